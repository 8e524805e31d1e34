//! Owns what leads ports of the host to those of tasks: the table's elements, and what a link needs so that they are reached from
//! the host's own 127.0.0.1.

use berth_agent_core::{ids::TaskId, ports::Published};

use super::{Network, error::NetworkError, names::Owner, set};

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
        self.firewall.publish(task, ports).await
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
        self.firewall.withdraw(task).await
    }

    /// The ports of the host that lead to tasks, with the task if there is one, as the table on the host has them.
    ///
    /// # Errors
    /// When `nft` cannot list them.
    pub async fn published(&self) -> Result<Vec<(String, Option<TaskId>)>, NetworkError> {
        self.firewall.list().await
    }
}
