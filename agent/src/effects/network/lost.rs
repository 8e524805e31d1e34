//! Owns the look whether tasks still have the links of the host that they were given: a card may be pulled out, a VF taken away,
//! and the namespace it happens in tells nobody else. Never changes anything.

use std::{collections::BTreeMap, path::Path};

use berth_agent_core::ids::TaskId;
use tracing::debug;

use super::{
    Network,
    error::NetworkError,
    interfaces::Lent,
    names::Owner,
    netlink::{Netlink, Socket},
    netns,
    threads::block_on,
};
use crate::sys::Chain;

impl Network {
    /// What became of links that tasks had, for people. Of a task that is on its way up or down nothing is said, nor of one that
    /// cannot be looked at now.
    pub(super) async fn lost_interfaces(&self) -> BTreeMap<TaskId, String> {
        let mut lost = BTreeMap::new();
        let lent = self.interfaces.lent().unwrap_or_else(|error| {
            debug!(error = %Chain(&error), "cannot look which interfaces tasks have");
            Vec::new()
        });
        for (owner, _) in lent {
            match self.lost_interface(&owner).await {
                Ok(Some(name)) => {
                    let reason = format!("interface {name}, which the task had, is gone");
                    lost.insert(owner.task, reason);
                }
                Ok(None) => {}
                Err(error) => {
                    debug!(task = %owner.task, error = %Chain(&error), "cannot look whether the task has its interface");
                }
            }
        }
        lost
    }

    /// The name of the link that it had and that is gone.
    async fn lost_interface(&self, owner: &Owner) -> Result<Option<String>, NetworkError> {
        let Some(lock) = self.locks.try_lock(owner) else {
            return Ok(None);
        };
        // Again, as nobody changes it now. Before it was in there it cannot be lost.
        let Some(lent) = self.interfaces.of(owner)?.filter(|lent| lent.index_inside != 0) else {
            return Ok(None);
        };
        let (path, name) = (self.netns_path(owner), lent.name.clone());
        let look = move || is_lost(&lent, &path);
        let (is_lost, _lock) = self.threads.run("look for", &name, lock, look).await?;
        Ok(is_lost.then_some(name))
    }
}

/// Changes the calling thread.
fn is_lost(lent: &Lent, path: &Path) -> Result<bool, NetworkError> {
    if netns::enter(path)?.is_none() {
        return Ok(false);
    }
    let look = async |inside: &Netlink| lent.inside(inside).await;
    let found = block_on(async { Socket::open()?.with("look for", &lent.name, look).await })?;
    Ok(found.is_none())
}
