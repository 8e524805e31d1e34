//! Owns one nftables table, `inet <instance>`: put in place as a whole by one `nft` run, and changed by its elements where only
//! these change. What it is to hold is kept in memory, so that a table that somebody else changed is repaired by putting it in
//! place again. Never touches a table of somebody else.

mod foreign;
mod nft;
mod wanted;

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use berth_agent_core::ids::TaskId;
use ipnet::Ipv4Net;
use tokio::sync::Mutex;

pub(crate) use self::foreign::{Drops, Place};
pub use self::wanted::Published;
pub(super) use self::{
    foreign::{foreign_drops, let_through, take_back},
    nft::is_own_run,
    wanted::Wanted,
};

use self::nft::run_script;
use super::{error::NetworkError, names::Names, ports::is_taken};

/// The table of one instance, in the network namespace of whoever calls.
#[derive(Debug)]
pub(super) struct Firewall {
    names: Arc<Names>,
    /// Held over each run of `nft`: they change the table one after the other.
    wanted: Mutex<Wanted>,
}

impl Firewall {
    pub(super) fn new(names: Arc<Names>, wanted: Wanted) -> Self {
        Self {
            names,
            wanted: Mutex::new(wanted),
        }
    }

    /// Puts the whole table in place, elements included. Idempotent, and all that a repair needs.
    pub(super) async fn apply(&self) -> Result<(), NetworkError> {
        let wanted = self.wanted.lock().await;
        run_script("apply the table", &wanted.render(&self.names)).await
    }

    /// What tasks have addresses of, and where they are seen by them. The table is put in place again where that is news.
    pub(super) async fn set_ranges(
        &self,
        ranges: BTreeSet<Ipv4Net>,
        kept: Vec<Ipv4Addr>,
        peers: BTreeSet<Ipv4Net>,
    ) -> Result<(), NetworkError> {
        let mut wanted = self.wanted.lock().await;
        let mut after = wanted.clone();
        if !after.set_ranges(ranges, kept, peers) {
            return Ok(());
        }
        run_script("apply the table", &after.render(&self.names)).await?;
        *wanted = after;
        Ok(())
    }

    /// Leads ports of the host to the task's, if no process of the host has them. Idempotent. After another failure they may lead there: see [`Firewall::withdraw`].
    pub(super) async fn publish(&self, task: &TaskId, ports: &[Published]) -> Result<(), NetworkError> {
        let mut wanted = self.wanted.lock().await;
        let asked = ports.iter().map(|port| (port.protocol, port.host_port));
        let taken: Vec<_> = asked
            .filter(|(protocol, port)| !wanted.is_of(*protocol, *port, task) && is_taken(*protocol, *port))
            .collect();
        if !taken.is_empty() {
            return Err(NetworkError::PortsTaken { ports: taken });
        }
        let before = wanted.clone();
        // Before it is done: what may be there is taken away again.
        wanted.publish(task, ports.iter().cloned());
        self.change(&before, &wanted).await
    }

    /// Takes away what leads to the task. Idempotent.
    pub(super) async fn withdraw(&self, task: &TaskId) -> Result<(), NetworkError> {
        let mut wanted = self.wanted.lock().await;
        let mut after = wanted.clone();
        if !after.withdraw(task) {
            return Ok(());
        }
        self.change(&wanted, &after).await?;
        *wanted = after;
        Ok(())
    }

    /// Only the elements that differ; all of the table where it is not as it was left.
    async fn change(&self, before: &Wanted, after: &Wanted) -> Result<(), NetworkError> {
        let script = before.changes_to(after, &self.names);
        if script.is_empty() || run_script("change elements of the table", &script).await.is_ok() {
            return Ok(());
        }
        run_script("apply the table", &after.render(&self.names)).await
    }

    /// Deletes the table. Idempotent.
    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        let table = self.names.table();
        let script = format!("table inet {table} {{ }}\ndelete table inet {table}\n");
        run_script("delete the table", &script).await
    }
}
