//! Owns one nftables table, `inet <instance>`: put in place as a whole by one `nft` run, and changed by its elements where only
//! these change. What it is to hold is kept in memory, so that a table that somebody else changed is repaired by putting it in
//! place again. Never touches a table of somebody else.

mod foreign;
mod ipv6;
mod nft;
mod wanted;

use std::sync::{Arc, PoisonError};

use berth_agent_core::{ids::TaskId, ports::Published};
use serde_json::Value;
use tokio::sync::Mutex;

pub(crate) use self::foreign::{Drops, Place};
pub(super) use self::{
    foreign::{foreign_drops, let_through, take_back},
    nft::is_own_run,
    wanted::{Ranges, Wanted},
};

use self::nft::{nft, run_script};
use super::{
    error::NetworkError,
    names::Names,
    ports::{Bind, is_taken},
};

/// Elements of a map as `nft -j` lists it: each a pair of a key, which may have a comment, and what it leads to.
fn published(listing: &[u8]) -> Vec<(String, Option<TaskId>)> {
    let listing: Value = serde_json::from_slice(listing).unwrap_or_default();
    let maps = listing["nftables"].as_array().into_iter().flatten();
    let elements = maps.filter_map(|entry| entry["map"]["elem"].as_array()).flatten();
    let one = |element: &Value| {
        let key = &element[0];
        let task = key["elem"]["comment"].as_str().and_then(|task| task.parse().ok());
        let pair = match &key["elem"]["val"]["concat"] {
            Value::Null => &key["concat"],
            pair => pair,
        };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (format!("{}/{}", text(&pair[1]), text(&pair[0])), task)
    };
    elements.map(one).collect()
}

/// The table of one instance, in the network namespace of whoever calls.
#[derive(Debug)]
pub(super) struct Firewall {
    names: Arc<Names>,
    /// Held over each run of `nft`: they change the table one after the other.
    wanted: Mutex<Wanted>,
    /// Why the table is not in place.
    problem: std::sync::Mutex<Option<String>>,
}

impl Firewall {
    pub(super) fn new(names: Arc<Names>, wanted: Wanted) -> Self {
        Self {
            names,
            wanted: Mutex::new(wanted),
            problem: std::sync::Mutex::default(),
        }
    }

    /// Remembers why the table could not be put in place, or that it was. Whether that is news.
    pub(super) fn note(&self, problem: Option<String>) -> bool {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *known != problem;
        *known = problem;
        is_news
    }

    /// For an operator.
    pub(super) fn impairment(&self) -> Option<String> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = problem.as_ref()?;
        Some(format!(
            "tasks have no firewall table, and published ports lead nowhere: {problem}"
        ))
    }

    /// Puts the whole table in place, elements included. Idempotent, and all that a repair needs.
    pub(super) async fn apply(&self) -> Result<(), NetworkError> {
        let wanted = self.wanted.lock().await;
        run_script("apply the table", &wanted.render(&self.names)).await
    }

    /// What tasks have addresses of, and where they are seen by them. The table is put in place again where that is news.
    pub(super) async fn set_ranges(&self, ranges: Ranges) -> Result<(), NetworkError> {
        let mut wanted = self.wanted.lock().await;
        let mut after = wanted.clone();
        if !after.set_ranges(ranges) {
            return Ok(());
        }
        run_script("apply the table", &after.render(&self.names)).await?;
        *wanted = after;
        Ok(())
    }

    /// Leads ports of the host to the task's, if no process of the host has them. Idempotent. After another failure they may lead there: see [`Firewall::withdraw`].
    pub(super) async fn publish(&self, task: &TaskId, ports: &[Published]) -> Result<(), NetworkError> {
        let mut wanted = self.wanted.lock().await;
        let others = |port: &&Published| !wanted.is_of(port.protocol, port.host_port, task);
        let is_taken = |port: &&Published| {
            let taken = |bind| is_taken(bind, port.protocol, port.host_port);
            taken(Bind::Ipv4) || port.address.ipv6.is_some() && taken(Bind::Ipv6)
        };
        let taken: Vec<_> = ports.iter().filter(others).filter(is_taken).collect();
        let taken: Vec<_> = taken.iter().map(|port| (port.protocol, port.host_port)).collect();
        if !taken.is_empty() {
            return Err(NetworkError::PortsTaken { ports: taken });
        }
        let before = wanted.clone();
        // Before it is done: what may be there is taken away again.
        wanted.publish(task, ports.iter().cloned());
        self.change(&before, &wanted).await
    }

    /// Whether ports of the host lead to the task.
    pub(super) async fn publishes(&self, task: &TaskId) -> bool {
        self.wanted.lock().await.publishes(task)
    }

    /// Takes away what leads to the task, and says what did. Idempotent.
    pub(super) async fn withdraw(&self, task: &TaskId) -> Result<Vec<Published>, NetworkError> {
        let mut wanted = self.wanted.lock().await;
        let mut after = wanted.clone();
        let withdrawn = after.withdraw(task);
        if !withdrawn.is_empty() {
            self.change(&wanted, &after).await?;
            *wanted = after;
        }
        Ok(withdrawn)
    }

    /// Only the elements that differ; all of the table where it is not as it was left.
    async fn change(&self, before: &Wanted, after: &Wanted) -> Result<(), NetworkError> {
        let script = before.changes_to(after, &self.names);
        if script.is_empty() || run_script("change elements of the table", &script).await.is_ok() {
            return Ok(());
        }
        run_script("apply the table", &after.render(&self.names)).await
    }

    /// What leads to tasks, as people name it, by the tasks that its elements name.
    pub(super) async fn list(&self) -> Result<Vec<(String, Option<TaskId>)>, NetworkError> {
        let args = ["-j", "list", "map", "inet", self.names.table(), "published"];
        // Not while it is changed.
        let _wanted = self.wanted.lock().await;
        match nft("list published ports", &args, "").await {
            Ok(listing) => Ok(published(&listing)),
            // The table is gone, and nothing leads anywhere.
            Err(NetworkError::Nft { stderr, .. }) if stderr.contains("No such file or directory") => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the table. Idempotent.
    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        let table = self.names.table();
        let script = format!("table inet {table} {{ }}\ndelete table inet {table}\n");
        run_script("delete the table", &script).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_tell_their_task() {
        let listing = br#"{"nftables": [{"metainfo": {}}, {"map": {"name": "published", "elem": [
            [{"concat": ["udp", 53]}, {"concat": ["10.0.0.2", 5300]}],
            [{"elem": {"val": {"concat": ["tcp", 80]}, "comment": "0123456789abcdef0123456789abcdef"}},
             {"concat": ["10.0.0.1", 8080]}]]}}]}"#;
        let task = "0123456789abcdef0123456789abcdef".parse().ok();
        assert_eq!(
            published(listing),
            [("53/udp".to_owned(), None), ("80/tcp".to_owned(), task)]
        );
        assert!(published(br#"{"nftables": [{"map": {"name": "published"}}]}"#).is_empty());
        assert!(published(b"not json").is_empty());
    }
}
