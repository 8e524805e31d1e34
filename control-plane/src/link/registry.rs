//! Owns who is connected, and the last heartbeat of each. Nothing of it is stored.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_proto::node::v1::{Heartbeat, OpenBulk, Pulls};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Requests for bulk streams that may wait for one session.
const COMMANDS_MAX: usize = 16;

/// Every connected node, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry(Arc<Mutex<Nodes>>);

#[derive(Debug, Default)]
struct Nodes {
    sessions: u64,
    connected: HashMap<String, Connected>,
}

#[derive(Debug)]
struct Connected {
    session: u64,
    superseded: CancellationToken,
    ended: CancellationToken,
    commands: mpsc::Sender<OpenBulk>,
    heartbeat: Option<Heartbeat>,
    pulls: Pulls,
}

/// A session's place; left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    registry: Registry,
    node: String,
    session: u64,
    /// A newer link of the same node took the place.
    pub(super) superseded: CancellationToken,
    ended: CancellationToken,
    pub(super) commands: mpsc::Receiver<OpenBulk>,
}

impl Registry {
    // Nothing panics while it holds the lock, so a poisoned one guards sound data.
    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the node's place. Of a link that had it, this returns what is cancelled when that link has ended.
    pub(super) fn enter(&self, node: &str) -> (Place, Option<CancellationToken>) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (superseded, ended) = (CancellationToken::new(), CancellationToken::new());
        let mut nodes = self.lock();
        nodes.sessions += 1;
        let session = nodes.sessions;
        let entry = Connected {
            session,
            superseded: superseded.clone(),
            ended: ended.clone(),
            commands: sender,
            heartbeat: None,
            pulls: Pulls::default(),
        };
        let previous = nodes.connected.insert(node.to_owned(), entry).map(|previous| {
            previous.superseded.cancel();
            previous.ended
        });
        let place = Place {
            registry: self.clone(),
            node: node.to_owned(),
            session,
            superseded,
            ended,
            commands,
        };
        (place, previous)
    }

    pub(super) fn heartbeat(&self, node: &str) -> Option<Heartbeat> {
        self.lock().connected.get(node)?.heartbeat.clone()
    }

    pub(super) fn pulls(&self, node: &str) -> Option<Pulls> {
        Some(self.lock().connected.get(node)?.pulls.clone())
    }

    /// Where to ask a connected node for a bulk stream.
    pub(super) fn commands(&self, node: &str) -> Option<mpsc::Sender<OpenBulk>> {
        Some(self.lock().connected.get(node)?.commands.clone())
    }
}

impl Place {
    /// Keeps the latest, unless a newer link has the place.
    pub(super) fn heartbeat(&self, heartbeat: Heartbeat) {
        self.update(|entry| entry.heartbeat = Some(heartbeat));
    }

    /// As [`heartbeat`](Self::heartbeat).
    pub(super) fn pulls(&self, pulls: Pulls) {
        self.update(|entry| entry.pulls = pulls);
    }

    fn update(&self, change: impl FnOnce(&mut Connected)) {
        let mut nodes = self.registry.lock();
        let entry = nodes.connected.get_mut(&self.node);
        if let Some(entry) = entry.filter(|entry| entry.session == self.session) {
            change(entry);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut nodes = self.registry.lock();
        if nodes
            .connected
            .get(&self.node)
            .is_some_and(|entry| entry.session == self.session)
        {
            nodes.connected.remove(&self.node);
        }
        drop(nodes);
        self.ended.cancel();
    }
}
