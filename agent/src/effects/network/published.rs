//! Owns what leads ports of the host to those of tasks: the table's elements, what a link needs so that they are reached from
//! the host's own 127.0.0.1, and that no conversation from before goes elsewhere.

use std::net::{IpAddr, SocketAddr};

use berth_agent_core::{desired::Protocol, ids::TaskId, ports::Published};
use tracing::warn;

use super::{
    Network,
    conntrack::{self, Led},
    error::NetworkError,
    names::Owner,
    set,
};
use crate::sys::Chain;

impl Network {
    /// Leads ports of the host to those of a task, which are at its `owners`' addresses. Idempotent: those that lead there
    /// already are not asked about again.
    ///
    /// # Errors
    /// [`NetworkError::PortsTaken`] when processes of the host have some of them: none leads to the task then that did not
    /// before.
    pub async fn publish(
        &self,
        task: &TaskId,
        owners: &[Owner],
        ports: &[Published],
    ) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        for owner in owners {
            self.let_localhost_through(owner)?;
        }
        self.firewall.publish(task, ports).await?;
        self.forget_others(task, ports, true).await;
        Ok(())
    }

    /// What the host sends to its own 127.0.0.1 goes through this link, and comes back.
    pub(super) fn let_localhost_through(&self, owner: &Owner) -> Result<(), NetworkError> {
        let link = self.names.link(owner);
        set(&format!("/proc/sys/net/ipv4/conf/{link}/route_localnet"))
    }

    /// Takes away what leads to the task from ports of the host. Idempotent.
    ///
    /// # Errors
    /// When `nft` cannot; what leads there then still does.
    pub async fn withdraw(&self, task: &TaskId) -> Result<(), NetworkError> {
        let withdrawn = self.firewall.withdraw(task).await?;
        self.forget_others(task, &withdrawn, false).await;
        Ok(())
    }

    /// Has the kernel forget conversations by UDP that lead from these ports elsewhere than to the task, or, where none leads
    /// there any more, anywhere.
    async fn forget_others(&self, task: &TaskId, ports: &[Published], lead_there: bool) {
        let (mut ipv4, mut ipv6) = (Led::new(), Led::new());
        for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let to = |ip: IpAddr| lead_there.then_some(SocketAddr::from((ip, port.port)));
            ipv4.insert(port.host_port, to(port.address.ipv4.into()));
            if let Some(address) = port.address.ipv6 {
                ipv6.insert(port.host_port, to(address.into()));
            }
        }
        if ipv4.is_empty() {
            return;
        }
        const STEP: &str = "forget conversations with ports of";
        let subject = task.to_string();
        let of = subject.clone();
        let forget = move || {
            let families = [(ipv4, false), (ipv6, true)];
            let mut families = families.into_iter().filter(|(led, _)| !led.is_empty());
            let forgotten = families.try_for_each(|(led, ipv6)| conntrack::forget(&led, ipv6).map(drop));
            forgotten.map_err(|source| NetworkError::Netlink {
                step: STEP,
                link: of,
                source,
            })
        };
        if let Err(error) = self.threads.run(STEP, &subject, (), forget).await {
            warn!(error = %Chain(&error), "who goes on by UDP from before may not come to where a port leads now");
        }
    }

    /// The ports of the host that lead to tasks, with the task if there is one, as the table on the host has them.
    ///
    /// # Errors
    /// When `nft` cannot list them.
    pub async fn published(&self) -> Result<Vec<(String, Option<TaskId>)>, NetworkError> {
        self.firewall.list().await
    }
}
