//! Owns the look whether tasks still have the links of the host that they were given: a card may be pulled out, a VF taken away,
//! and the namespace it happens in tells nobody else. Never changes anything.

use std::{collections::BTreeMap, path::Path};

use berth_agent_core::ids::TaskId;

use super::{
    Network,
    error::NetworkError,
    interfaces::Lent,
    netlink::{Netlink, Socket},
    netns,
    threads::block_on,
};

impl Network {
    /// What became of links that tasks had, for people. Of a task that is on its way up or down nothing is said.
    ///
    /// # Errors
    /// When the host, or a task's namespace, cannot be read.
    pub(super) async fn lost_interfaces(&self) -> Result<BTreeMap<TaskId, String>, NetworkError> {
        let mut lost = BTreeMap::new();
        for (owner, _) in self.interfaces.lent()? {
            let Some(lock) = self.locks.try_lock(&owner) else {
                continue;
            };
            // Again, as nobody changes it now. Before it was in there it cannot be lost.
            let Some(lent) = self.interfaces.of(&owner)?.filter(|lent| lent.index_inside != 0) else {
                continue;
            };
            let (path, name) = (self.netns_path(&owner), lent.name.clone());
            let look = move || is_lost(&lent, &path);
            let looked = self.threads.run("look for", &name, lock, look).await?;
            if looked.0 {
                lost.insert(
                    owner.task,
                    format!("interface {name}, which the task had, is gone"),
                );
            }
        }
        Ok(lost)
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
