//! Owns the namespaces that are kept ready, each with a veth pair that lacks only what is of its task: name, hardware
//! addresses, address and routes. One lives by a descriptor of this process and by nothing else, so that however the agent
//! ends the kernel takes it away, and nobody has to account for it. What a task takes is the task's from its mount on.

use std::{
    collections::VecDeque,
    fs::File,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::warn;

use super::{
    Names, Network,
    attach::{LINK_DELETED_DEADLINE, link_gone},
    error::NetworkError,
    names,
    netlink::{Link, Netlink, Socket, VethPair},
    netns,
    threads::block_on,
    veth::TASK_LINK,
};
use crate::{metrics::METRICS, sys::Chain};

/// Without a start for as long as that one is made: the starts of a burst need the kernel's one lock for links themselves.
const QUIET: Duration = Duration::from_millis(100);
/// On a node that is never quiet one is made after that.
const QUIET_DEADLINE: Duration = Duration::from_secs(1);
/// After one could not be made.
const RETRY: Duration = Duration::from_secs(10);
/// Names that earlier runs of the agent may still have, tried one after the other.
const NAMES_TRIED_MAX: u32 = 256;

/// Those that nobody has taken.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    size: usize,
    ready: Arc<Mutex<VecDeque<Ready>>>,
    /// One was taken, or thrown away.
    taken: Arc<Notify>,
    /// Of the next name.
    next: Arc<AtomicU64>,
}

/// A namespace with its pair, both ends down.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) netns: File,
    pub(super) pair: ReadyPair,
    /// Of both ends.
    mtu: Option<u32>,
}

/// The two ends, as they are to be found from their own sides.
#[derive(Debug)]
pub(super) struct ReadyPair {
    pub(super) host: Link,
    pub(super) task: Link,
}

impl Pool {
    /// Keeps `size` of them, once somebody runs [`Network::keep_ready`].
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            ready: Arc::default(),
            taken: Arc::default(),
            next: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One for links with this MTU: the one that is ready longest. Those that are of another are thrown away.
    pub(super) fn take(&self, mtu: Option<u32>) -> Option<Ready> {
        let mut ready = self.lock();
        ready.retain(|one| one.mtu == mtu);
        let taken = ready.pop_front();
        METRICS.namespaces.ready.store(ready.len() as u64, Relaxed);
        drop(ready);
        let counter = match taken {
            Some(_) => &METRICS.namespaces.taken,
            None => &METRICS.namespaces.made,
        };
        counter.fetch_add(1, Relaxed);
        self.taken.notify_one();
        taken
    }

    fn count(&self) -> usize {
        self.lock().len()
    }

    /// Names of the links of those that are ready.
    pub(super) fn links(&self) -> Vec<String> {
        self.lock().iter().map(|one| one.pair.host.name.clone()).collect()
    }

    fn is_short(&self) -> bool {
        self.count() < self.size
    }

    /// One that is late is one too many.
    fn put(&self, one: Ready) {
        let mut ready = self.lock();
        if ready.len() < self.size {
            ready.push_back(one);
        }
        METRICS.namespaces.ready.store(ready.len() as u64, Relaxed);
    }

    /// Throws all away. Returns the names of their links, which the kernel removes in its own time.
    fn empty(&self) -> Vec<String> {
        let links = self.links();
        self.lock().clear();
        METRICS.namespaces.ready.store(0, Relaxed);
        links
    }

    /// Returns when one is missing and nobody else is in want of the kernel.
    async fn wait_for_want(&self) {
        while !self.is_short() {
            self.taken.notified().await;
        }
        let deadline = Instant::now() + QUIET_DEADLINE;
        let busy = async { while timeout(QUIET, self.taken.notified()).await.is_ok() {} };
        let _ = timeout_at(deadline, busy).await;
    }
}

impl Network {
    /// How many namespaces are ready to be taken.
    pub fn ready(&self) -> usize {
        self.pool.count()
    }

    /// Fills up the namespaces that are kept ready, from now on. Cancel-safe.
    pub async fn keep_ready(&self) {
        let mut told = false;
        loop {
            self.pool.wait_for_want().await;
            match self.make_ready().await {
                Ok(()) => told = false,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(error = %Chain(&error), "cannot keep namespaces ready for tasks; starts make their own meanwhile");
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn make_ready(&self) -> Result<(), NetworkError> {
        let (pool, names, mtu, ipv6) = (self.pool.clone(), self.names.clone(), self.mtu.get(), self.ipv6);
        let make = move || {
            pool.put(make(&pool.next, &names, mtu, ipv6)?);
            Ok(())
        };
        let made = self.threads.run("make", "a namespace to be kept ready", (), make);
        made.await.map(|_| ())
    }

    /// Throws away those that are ready, and waits until the kernel has removed them.
    ///
    /// # Errors
    /// [`NetworkError::LinkRemains`] when it does not.
    pub(super) async fn empty_pool(&self) -> Result<(), NetworkError> {
        for link in self.pool.empty() {
            if !link_gone(&link, LINK_DELETED_DEADLINE).await {
                return Err(NetworkError::LinkRemains {
                    link,
                    waited: LINK_DELETED_DEADLINE,
                });
            }
        }
        Ok(())
    }
}

/// Makes one. Leaves the calling thread in its namespace.
fn make(next: &AtomicU64, names: &Names, mtu: Option<u32>, ipv6: bool) -> Result<Ready, NetworkError> {
    block_on(async {
        // Before the thread leaves the host's namespace.
        let host = Socket::open()?;
        let netns = netns::unnamed()?;
        let create = async |host: &Netlink| {
            let link = create(host, next, names, mtu, &netns).await?;
            host.configure(&link, None, true, ipv6).await?;
            Ok(link)
        };
        let link = host.with("make", "a link to be kept ready", create).await?;
        let task = Link {
            index: link.peer_index,
            name: TASK_LINK.to_owned(),
            ..Link::default()
        };
        let set_up = async |inside: &Netlink| {
            inside.loopback_up().await?;
            inside.configure(&task, None, false, ipv6).await
        };
        Socket::open()?.with("set up", TASK_LINK, set_up).await?;
        Ok(Ready {
            netns,
            pair: ReadyPair { host: link, task },
            mtu,
        })
    })
}

/// The host's end of a new pair, of a name that nobody has.
async fn create(
    host: &Netlink,
    next: &AtomicU64,
    names: &Names,
    mtu: Option<u32>,
    netns: &File,
) -> Result<Link, NetworkError> {
    let mut name = String::new();
    for _ in 0..NAMES_TRIED_MAX {
        let number = next.fetch_add(1, Relaxed);
        name = names.ready_link(number);
        let pair = VethPair {
            host_name: &name,
            host_mac: names::ready_mac(number),
            group: names.group(),
            mtu,
            task_name: TASK_LINK,
            task_mac: names::ready_mac(number),
            task_netns: netns.as_raw_fd(),
        };
        if host.create_veth(&pair).await? {
            let link = host.link(&name).await?;
            return link.ok_or(NetworkError::LinkVanished { link: name });
        }
    }
    Err(NetworkError::LinkTaken {
        link: name,
        owner: String::new(),
    })
}
