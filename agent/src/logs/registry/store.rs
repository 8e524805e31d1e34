//! Owns the duplicates of pipes that outlive this process: the service manager's store of descriptors. What is in it is
//! known by name, never by order. Sends from a thread of its own: pid 1 may be busy for a second (daemon-reload), and a
//! container's start must not wait for it.
//!
//! systemd lets go of a pipe by itself once nobody can write to it any more, and empties the store at `systemctl stop`.
//! Beyond `FileDescriptorStoreMax=` it drops what it is sent without a word.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
};

use berth_service::notify::{Notifier, StoredFd};
use nix::sys::stat::fstat;
use tracing::warn;

/// Orders that may wait for the service manager. Each has two descriptors.
const QUEUE_MAX: usize = 1024;
/// Of the thread that sends: it has one small buffer.
const STACK_BYTES: usize = 64 * 1024;
/// Tells our descriptors from others in the store.
const PREFIX: &str = "logger-";
const STREAMS: [&str; 2] = ["out", "err"];

/// The name of one stream of a container's output in the store.
fn name(runtime_id: &str, stream: &str) -> String {
    format!("{PREFIX}{runtime_id}-{stream}")
}

/// A pair of read ends that came back, stdout first.
pub(super) type Ends = [OwnedFd; 2];

/// Sorts what the service manager handed over. Also returns the names of what makes no pair.
pub(super) fn pairs(stored: Vec<StoredFd>) -> (HashMap<String, Ends>, Vec<String>) {
    let mut halves: HashMap<String, [Option<OwnedFd>; 2]> = HashMap::new();
    let mut strange = Vec::new();
    for StoredFd { name, fd } in stored {
        let ours = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-'));
        let place = ours.and_then(|(id, stream)| {
            let index = STREAMS.iter().position(|known| *known == stream)?;
            Some((id.to_owned(), index))
        });
        match place {
            // The same name twice: the pipe of an earlier try of the attempt came along. The later one counts.
            Some((id, index)) => halves.entry(id).or_default()[index] = Some(fd),
            None => strange.push(name),
        }
    }
    let mut whole = HashMap::new();
    for (id, ends) in halves {
        match ends {
            [Some(out), Some(err)] => drop(whole.insert(id, [out, err])),
            _ => strange.extend(STREAMS.map(|stream| name(&id, stream))),
        }
    }
    (whole, strange)
}

enum Order {
    Keep(String, Ends),
    Forget(String),
}

/// Sends to the service manager what to keep. Without one, does nothing.
pub(super) struct Store {
    orders: Option<SyncSender<Order>>,
    /// Which pipe of a container is in the store: its inode.
    kept: HashMap<String, u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("kept", &self.kept.len())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The thread ends when this is dropped and the orders are sent.
    pub fn new(notifier: Notifier) -> Self {
        let orders = notifier.connected().then(|| {
            let (orders, queue) = sync_channel(QUEUE_MAX);
            let send = move || {
                for order in queue {
                    send(&notifier, order);
                }
            };
            let spawned = std::thread::Builder::new()
                .name("fd-store".into())
                .stack_size(STACK_BYTES)
                .spawn(send);
            match spawned {
                Ok(_) => Some(orders),
                Err(error) => {
                    warn!(%error, "cannot keep containers' pipes with the service manager");
                    None
                }
            }
        });
        Self {
            orders: orders.flatten(),
            kept: HashMap::new(),
        }
    }

    /// The pair is in the store since before this process.
    pub fn found(&mut self, runtime_id: &str, ends: &Ends) {
        if let Some(pipe) = inode(&ends[0]) {
            self.kept.insert(runtime_id.to_owned(), pipe);
        }
    }

    /// Puts a pair into the store, unless it is there.
    pub fn keep(&mut self, runtime_id: &str, ends: &Ends) {
        let Some(pipe) = inode(&ends[0]).filter(|_| self.orders.is_some()) else {
            return;
        };
        match self.kept.get(runtime_id) {
            Some(kept) if *kept == pipe => return,
            // A new try of the attempt has new pipes.
            Some(_) => self.forget(runtime_id),
            None => {}
        }
        let duplicates = (ends[0].try_clone(), ends[1].try_clone());
        match duplicates {
            (Ok(out), Ok(err)) => {
                if self.order(Order::Keep(runtime_id.to_owned(), [out, err])) {
                    self.kept.insert(runtime_id.to_owned(), pipe);
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                warn!(container = runtime_id, %error, "cannot keep a container's pipes with the service manager");
            }
        }
    }

    /// Takes a pair out of the store. One that is not there is fine.
    pub fn forget(&mut self, runtime_id: &str) {
        if self.kept.remove(runtime_id).is_some() {
            self.order(Order::Forget(runtime_id.to_owned()));
        }
    }

    fn order(&self, order: Order) -> bool {
        let Some(orders) = &self.orders else {
            return false;
        };
        let sent = orders.try_send(order);
        if let Err(TrySendError::Full(_)) = &sent {
            warn!("the service manager is slow: a container's pipes are not kept with it");
        }
        sent.is_ok()
    }
}

/// Takes names out of the store that mean nothing to us.
pub(super) fn forget_names(notifier: &Notifier, names: &[String]) {
    for name in names {
        if let Err(error) = notifier.forget_fd(name) {
            warn!(name, %error, "cannot let go of a stored descriptor");
        }
    }
}

fn send(notifier: &Notifier, order: Order) {
    let result = match &order {
        Order::Keep(id, ends) => {
            let mut each = STREAMS.iter().zip(ends);
            each.try_for_each(|(stream, end)| notifier.store_fd(&name(id, stream), end.as_fd()).map(drop))
        }
        Order::Forget(id) => STREAMS
            .iter()
            .try_for_each(|stream| notifier.forget_fd(&name(id, stream)).map(drop)),
    };
    if let Err(error) = result {
        let (Order::Keep(id, _) | Order::Forget(id)) = &order;
        warn!(container = id, %error, "the service manager does not take a container's pipes");
    }
}

fn inode(fd: &OwnedFd) -> Option<u64> {
    fstat(fd).ok().map(|stat| stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;

    #[test]
    fn only_pairs_of_ours_come_back_in_any_order() {
        let stored = |name: &str| StoredFd {
            name: name.into(),
            fd: pipe().unwrap().0.into(),
        };
        let (pairs, strange) = pairs(vec![
            stored("logger-c-1-err"),
            stored("unknown"),
            stored("logger-d-2-out"),
            stored("logger-c-1-out"),
            stored("logger-c-1-both"),
        ]);
        assert_eq!(pairs.keys().collect::<Vec<_>>(), ["c-1"]);
        let strange: std::collections::BTreeSet<_> = strange.iter().map(String::as_str).collect();
        let expected = ["logger-c-1-both", "logger-d-2-err", "logger-d-2-out", "unknown"];
        assert_eq!(strange, expected.into());
    }
}
