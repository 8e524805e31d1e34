//! Owns who is connected, the last heartbeat of each, and whether a second agent has shown up under the same identity.
//! Nothing of it is stored.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_proto::node::v1::{Heartbeat, OpenBulk, Pulls};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{bounds::IMPAIRMENTS_MAX, join::clipped};
use crate::nodes::Held;

/// Requests for bulk streams that may wait for one session.
const COMMANDS_MAX: usize = 16;
/// How long a second agent is told of after its last attempt.
const CLONE_SHOWN: Duration = Duration::from_secs(300);

/// Every connected node, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry(Arc<Mutex<Nodes>>);

#[derive(Debug, Default)]
struct Nodes {
    sessions: u64,
    connected: HashMap<String, Connected>,
}

/// Why a session has to end that did nothing wrong on its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dismissal {
    /// A newer link of the same agent has the place.
    Superseded,
    /// The node is revoked; the reason is for it.
    Revoked(String),
}

/// One agent process, as it says itself and as its connection says.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    /// Empty from an older agent, which is not told apart.
    pub(super) run_id: String,
    pub(super) address: SocketAddr,
    pub(super) hostname: String,
    pub(super) boot_id: String,
}

impl std::fmt::Display for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} (host {:?}, boot {:?})",
            self.address, self.hostname, self.boot_id
        )
    }
}

#[derive(Debug)]
struct Connected {
    session: u64,
    agent: Agent,
    heard: Instant,
    dismissal: watch::Sender<Option<Dismissal>>,
    ended: CancellationToken,
    commands: mpsc::Sender<OpenBulk>,
    heartbeat: Option<Heartbeat>,
    pulls: Pulls,
    /// Why the node does not follow its desired state, and whether an operator can make it.
    held: Option<Held>,
    /// Who else came with this identity, and when last.
    clone: Option<(Agent, Instant)>,
}

/// What became of an attempt to enter.
#[derive(Debug)]
pub(super) enum Entry {
    /// It has the place. Of a link that had it, this is cancelled when that one has ended.
    In(Place, Option<CancellationToken>),
    /// Another agent has it, and was heard of not long ago.
    Occupied(Occupant),
}

/// Who has the place.
#[derive(Debug)]
pub(super) struct Occupant {
    pub(super) agent: Agent,
    pub(super) heard: Instant,
    pub(super) ended: CancellationToken,
}

/// A session's place; left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    registry: Registry,
    node: String,
    session: u64,
    pub(super) dismissed: Dismissed,
    ended: CancellationToken,
    pub(super) commands: mpsc::Receiver<OpenBulk>,
}

impl Registry {
    // Nothing panics while it holds the lock, so a poisoned one guards sound data.
    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the node's place, unless another agent process has it that was heard within `silence`.
    pub(super) fn enter(&self, node: &str, agent: &Agent, silence: Duration) -> Entry {
        let mut nodes = self.lock();
        if let Some(first) = nodes.connected.get(node)
            && first.agent.is_another(agent)
            && first.heard.elapsed() < silence
        {
            return Entry::Occupied(Occupant {
                agent: first.agent.clone(),
                heard: first.heard,
                ended: first.ended.clone(),
            });
        }
        nodes.sessions += 1;
        let session = nodes.sessions;
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (dismissal, dismissed) = watch::channel(None);
        let ended = CancellationToken::new();
        let entry = Connected {
            session,
            agent: agent.clone(),
            heard: Instant::now(),
            dismissal,
            ended: ended.clone(),
            commands,
            heartbeat: None,
            pulls: Pulls::default(),
            held: None,
            clone: None,
        };
        let previous = nodes.connected.insert(node.to_owned(), entry).map(|previous| {
            previous.dismissal.send_replace(Some(Dismissal::Superseded));
            previous.ended
        });
        let place = Place {
            registry: self.clone(),
            node: node.to_owned(),
            session,
            dismissed: Dismissed(dismissed),
            ended,
            commands: receiver,
        };
        Entry::In(place, previous)
    }

    /// How many there are.
    pub(super) fn connected(&self) -> usize {
        self.lock().connected.len()
    }

    /// Ends a node's session, if it has one.
    pub(super) fn dismiss(&self, node: &str, dismissal: Dismissal) -> bool {
        let nodes = self.lock();
        let entry = nodes.connected.get(node);
        entry.is_some_and(|entry| {
            entry.dismissal.send_replace(Some(dismissal));
            true
        })
    }

    /// Remembers a second agent, for people.
    pub(super) fn seen_clone(&self, node: &str, agent: &Agent) {
        if let Some(entry) = self.lock().connected.get_mut(node) {
            entry.clone = Some((agent.clone(), Instant::now()));
        }
    }

    /// The latest, with what the control plane itself knows to be wrong.
    pub(super) fn heartbeat(&self, node: &str) -> Option<Heartbeat> {
        let nodes = self.lock();
        let entry = nodes.connected.get(node)?;
        let clone = entry.clone.as_ref().filter(|(_, at)| at.elapsed() < CLONE_SHOWN);
        if clone.is_none() && entry.held.is_none() {
            return entry.heartbeat.clone();
        }
        let mut heartbeat = entry.heartbeat.clone().unwrap_or_default();
        if let Some(held) = &entry.held {
            // Within the bounds of what the node itself may say.
            heartbeat.impairments.truncate(IMPAIRMENTS_MAX - 1);
            let reason = clipped(&format!("desired state: {}", held.reason));
            heartbeat.impairments.insert(0, reason);
        }
        let Some((agent, at)) = clone else {
            return Some(heartbeat);
        };
        heartbeat.impairments.push(format!(
            "identity: another agent with this node's identity was refused {} s ago: {agent}",
            at.elapsed().as_secs()
        ));
        Some(heartbeat)
    }

    pub(super) fn held(&self, node: &str) -> Option<Held> {
        self.lock().connected.get(node)?.held.clone()
    }

    pub(super) fn pulls(&self, node: &str) -> Option<Pulls> {
        Some(self.lock().connected.get(node)?.pulls.clone())
    }

    /// Where to ask a connected node for a bulk stream.
    pub(super) fn commands(&self, node: &str) -> Option<mpsc::Sender<OpenBulk>> {
        Some(self.lock().connected.get(node)?.commands.clone())
    }
}

impl Agent {
    fn is_another(&self, other: &Self) -> bool {
        !self.run_id.is_empty() && !other.run_id.is_empty() && self.run_id != other.run_id
    }
}

impl Place {
    /// The node said something.
    pub(super) fn heard(&self) {
        self.update(|entry| entry.heard = Instant::now());
    }

    /// Keeps the latest, unless a newer link has the place.
    pub(super) fn heartbeat(&self, heartbeat: Heartbeat) {
        self.update(|entry| entry.heartbeat = Some(heartbeat));
    }

    /// What the node said of its desired state: taken over, or not.
    pub(super) fn held(&self, held: Option<Held>) {
        self.update(|entry| entry.held = held);
    }

    /// As [`heartbeat`](Self::heartbeat).
    pub(super) fn pulls(&self, pulls: Pulls) {
        self.update(|entry| entry.pulls = pulls);
    }

    /// Whether another session has the place.
    pub(super) fn is_superseded(&self) -> bool {
        let nodes = self.registry.lock();
        nodes
            .connected
            .get(&self.node)
            .is_none_or(|entry| entry.session != self.session)
    }

    fn update(&self, change: impl FnOnce(&mut Connected)) {
        let mut nodes = self.registry.lock();
        let entry = nodes.connected.get_mut(&self.node);
        if let Some(entry) = entry.filter(|entry| entry.session == self.session) {
            change(entry);
        }
    }
}

/// Tells a session that it has to end.
#[derive(Debug)]
pub(super) struct Dismissed(watch::Receiver<Option<Dismissal>>);

impl Dismissed {
    /// Returns when it has to. Cancel-safe.
    pub(super) async fn wait(&mut self) -> Dismissal {
        match self.0.wait_for(Option::is_some).await {
            Ok(dismissal) => dismissal.clone().unwrap_or(Dismissal::Superseded),
            // The entry is gone: a newer one took its place and left again.
            Err(_) => Dismissal::Superseded,
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
