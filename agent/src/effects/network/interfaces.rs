//! Owns the links of the host that its operator gives to tasks, one to one task: moved into the task's namespace, and back into
//! the host's with the name, size and addresses that they had. What that was is written before anything is done, so that
//! it is undone after a crash at any moment. Never touches a link that is not among them, or one that the host needs itself.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{
    error::NetworkError,
    names::Owner,
    netlink::{Link, Netlink, Socket},
    netns::{self, Entered},
    routes::Route,
    threads::{Threads, block_on},
    veth::TASK_LINK,
};
use crate::{dial::FirstHop, sys::Chain};

/// The thread's own namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// What a link was before it was lent to a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lent {
    pub(super) name: String,
    mac: Vec<u8>,
    mtu: u32,
    up: bool,
    addresses: Vec<LinkAddress>,
    /// Its index in the task's namespace, by which it is known there whatever the task calls it. 0: not known.
    #[serde(default)]
    pub(super) index_inside: u32,
}

/// One of its addresses, with what else was said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkAddress {
    pub(super) net: IpNet,
    pub(super) broadcast: Option<Ipv4Addr>,
    /// As the kernel numbers them.
    pub(super) scope: u8,
}

/// The links that tasks may have, and which has which.
#[derive(Clone, Debug)]
pub(super) struct Interfaces {
    names: Arc<[String]>,
    /// A file for each that is lent, by whom it is lent to.
    dir: PathBuf,
    /// Of who chooses one, and of who gives one back.
    turn: Arc<Mutex<()>>,
    control_plane: FirstHop,
}

/// What of the host tells which of its links it can spare.
pub(super) struct Needs<'a> {
    pub(super) links: &'a [Link],
    pub(super) routes: &'a [Route],
    /// Links that lead to the control plane.
    pub(super) ways: &'a BTreeSet<u32>,
}

impl Interfaces {
    pub(super) fn new(names: &[String], run_dir: &Path, control_plane: FirstHop) -> Self {
        Self {
            names: names.into(),
            dir: run_dir.join("interfaces"),
            turn: Arc::default(),
            control_plane,
        }
    }

    /// How many tasks can have one: those of the host that it can spare, and those that tasks have.
    pub(super) fn count(&self, needs: &Needs<'_>) -> Result<usize, NetworkError> {
        let lent = self.lent()?;
        let can_be = |name: &&String| {
            let link = needs.links.iter().find(|link| link.name == **name);
            link.is_some_and(|link| may_lend(link, needs).is_ok())
        };
        let is_lent = |name: &&String| lent.iter().any(|(_, lent)| lent.name == **name);
        let can_be_had = self.names.iter().filter(|name| is_lent(name) || can_be(name));
        Ok(can_be_had.count())
    }

    /// The links by which the host reaches the control plane, as far as is known.
    pub(super) async fn ways(&self, host: &Netlink) -> BTreeSet<u32> {
        match self.names.is_empty() {
            true => BTreeSet::new(),
            false => ways(host, self.control_plane.reached()).await,
        }
    }

    /// All that are lent, and to whom.
    pub(super) fn lent(&self) -> Result<Vec<(Owner, Lent)>, NetworkError> {
        let failed = || NetworkError::directory("list", &self.dir);
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed())?,
        };
        let mut lent = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed())?.file_name();
            if let Some(owner) = name.to_str().and_then(Owner::of_file)
                && let Some(record) = self.of(&owner)?
            {
                lent.push((owner, record));
            }
        }
        Ok(lent)
    }

    /// What is lent to it.
    pub(super) fn of(&self, owner: &Owner) -> Result<Option<Lent>, NetworkError> {
        let path = self.dir.join(owner.file_name());
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Written whole or not at all.
            Ok(content) => serde_json::from_slice(&content)
                .map(Some)
                .map_err(|error| NetworkError::directory("read", &path)(error.into())),
            Err(error) => Err(NetworkError::directory("read", &path)(error)),
        }
    }

    fn write(&self, owner: &Owner, lent: &Lent) -> Result<(), NetworkError> {
        // Others write theirs at the same time.
        let name = owner.file_name();
        let (path, fresh) = (self.dir.join(&name), self.dir.join(format!(".{name}")));
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec(lent)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(NetworkError::directory("write", &path))
    }

    fn forget(&self, owner: &Owner) -> Result<(), NetworkError> {
        let path = self.dir.join(owner.file_name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::directory("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Has one of them in the namespace, as its `eth0`: that which it has, or a free one. Completes what was begun.
    pub(super) async fn take(
        &self,
        owner: &Owner,
        host: &Netlink,
        inside: &Netlink,
        netns: &Entered,
    ) -> Result<Link, NetworkError> {
        let mut lent = match self.of(owner)? {
            Some(lent) => lent,
            None => self.choose(owner, host).await?,
        };
        if lent.inside(inside).await?.is_none() {
            if lent.index_inside != 0 {
                // That was in a namespace that is no more.
                lent.index_inside = 0;
                self.write(owner, &lent)?;
            }
            let link = host.link(&lent.name).await?.filter(|link| lent.has_mac_of(link));
            let link = link.ok_or_else(|| NetworkError::NoUplink {
                uplink: lent.name.clone(),
            })?;
            host.move_to(&link, netns.file.as_raw_fd()).await?;
        }
        let link = lent.inside(inside).await?;
        let mut link = link.ok_or_else(|| NetworkError::LinkVanished {
            link: lent.name.clone(),
        })?;
        if lent.index_inside != link.index {
            lent.index_inside = link.index;
            self.write(owner, &lent)?;
        }
        if link.name != TASK_LINK {
            inside.down(&link).await?;
            inside.rename(&link, TASK_LINK).await?;
            (link.name, link.up) = (TASK_LINK.to_owned(), false);
        }
        Ok(link)
    }

    /// A free one is the owner's from now on.
    async fn choose(&self, owner: &Owner, host: &Netlink) -> Result<Lent, NetworkError> {
        // On a thread that may wait, and only before it was reached for the first time; in nobody's turn. As long as it is not
        // known, any of them may be the way there.
        let control_plane = self.control_plane.resolve();
        let control_plane = control_plane.map_err(|source| NetworkError::WayUnknown { source })?;
        let _turn = self.turn.lock().await;
        let taken = self.lent()?;
        let (links, routes) = (host.links().await?, host.routes().await?);
        let ways = ways(host, control_plane).await;
        let needs = Needs {
            links: &links,
            routes: &routes,
            ways: &ways,
        };
        let is_free = |name: &&String| !taken.iter().any(|(_, lent)| lent.name == **name);
        for name in self.names.iter().filter(is_free) {
            let Some(link) = links.iter().find(|link| link.name == *name) else {
                continue;
            };
            if may_lend(link, &needs).is_err() {
                continue;
            }
            let lent = Lent {
                name: name.clone(),
                mac: link.address.clone(),
                mtu: link.mtu,
                up: link.up,
                addresses: host.addresses_of(link).await?,
                index_inside: 0,
            };
            self.write(owner, &lent)?;
            return Ok(lent);
        }
        Err(NetworkError::NoInterface {
            names: self.names.join(", "),
        })
    }

    /// Has what is lent to the owner in the host's namespace again, as it was. Idempotent. Only on a thread of its own, in
    /// the host's namespace, to which it comes back.
    pub(super) fn give_back(&self, owner: &Owner, path: &Path) -> Result<(), NetworkError> {
        let Some(lent) = self.of(owner)? else {
            return Ok(());
        };
        let failed = |step| {
            move |source: io::Error| NetworkError::Namespace {
                step,
                netns: OWN_NETNS.into(),
                source,
            }
        };
        let host = File::open(OWN_NETNS).map_err(failed("open"))?;
        if netns::enter(path)?.is_some() {
            let move_back = async |inside: &Netlink| lent.move_back(inside, &host).await;
            let moved = block_on(async { Socket::open()?.with("move back", &lent.name, move_back).await });
            setns(host.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| failed("come back to")(e.into()))?;
            moved?;
        }
        let _turn = self.turn.blocking_lock();
        let restore = async |host: &Netlink| lent.restore(host).await;
        block_on(async { Socket::open()?.with("restore", &lent.name, restore).await })?;
        self.forget(owner)
    }
}

impl Lent {
    fn has_mac_of(&self, link: &Link) -> bool {
        link.address == self.mac
    }

    /// It, in the task's namespace. A task that may can change its name and its hardware address, and make others of that name.
    pub(super) async fn inside(&self, inside: &Netlink) -> Result<Option<Link>, NetworkError> {
        let mut links = inside.links().await?;
        let is_it = |link: &Link| match self.index_inside {
            // The task does not run yet.
            0 => (link.name == TASK_LINK || link.name == self.name) && self.has_mac_of(link),
            index => link.index == index,
        };
        links.retain(is_it);
        Ok(links.pop())
    }

    async fn move_back(&self, inside: &Netlink, host: &File) -> Result<(), NetworkError> {
        let Some(link) = self.inside(inside).await? else {
            return Ok(());
        };
        inside.down(&link).await?;
        if !self.has_mac_of(&link) {
            inside.set_mac(&link, &self.mac).await?;
        }
        // In one step: in there another may have its name.
        inside.move_as(&link, &self.name, host.as_raw_fd()).await
    }

    /// It, among the links of the host. That which came back when its namespace ended is called as it was there.
    fn among<'a>(&self, links: &'a [Link], routes: &[Route]) -> Option<&'a Link> {
        let mut alike = links.iter().filter(|link| self.has_mac_of(link));
        if let Some(link) = alike.clone().find(|link| link.name == self.name) {
            return Some(link);
        }
        let only = alike.next().filter(|_| alike.next().is_none())?;
        let is_default = routes.iter().any(|route| route.is_default_over(only.index));
        (has_mac(only) && !is_default).then_some(only)
    }

    /// What the kernel refuses is left as it is: all else is as it was.
    async fn restore(&self, host: &Netlink) -> Result<(), NetworkError> {
        let (links, routes) = (host.links().await?, host.routes().await?);
        let Some(link) = self.among(&links, &routes) else {
            tracing::error!(link = self.name, "an interface that was lent to a task is gone");
            return Ok(());
        };
        let mut renamed = Ok(());
        if link.name != self.name {
            renamed = host.down(link).await;
            if renamed.is_ok() {
                renamed = host.rename(link, &self.name).await;
            }
        }
        self.heed(host.set_mtu(link, self.mtu).await);
        for address in &self.addresses {
            self.heed(host.add_any_address(link, address).await);
        }
        if self.up {
            self.heed(host.up(link).await);
        }
        renamed
    }

    fn heed(&self, done: Result<(), NetworkError>) {
        if let Err(error) = done {
            let link = &self.name;
            tracing::warn!(link, error = %Chain(&error), "an interface is not all as it was before a task had it");
        }
    }
}

fn has_mac(link: &Link) -> bool {
    link.address.iter().any(|byte| *byte != 0)
}

/// Whether the host can spare a link of its own, which is known again by its hardware address; else why not.
fn may_lend(link: &Link, needs: &Needs<'_>) -> Result<(), String> {
    let Needs { links, routes, ways } = needs;
    let others = || links.iter().filter(|other| other.index != link.index);
    let name = |index: u32| {
        let found = others().find(|other| other.index == index);
        found.map_or_else(|| format!("link {index}"), |found| found.name.clone())
    };
    if routes.iter().any(|route| route.is_default_over(link.index)) {
        return Err("is a link of the default route".into());
    }
    if ways.contains(&link.index) {
        return Err("leads to the control plane".into());
    }
    if let Some(master) = link.master {
        return Err(format!("belongs to {}", name(master)));
    }
    let is_on_it = |other: &&Link| [other.upon, other.master].contains(&Some(link.index));
    if let Some(other) = others().find(is_on_it) {
        return Err(format!("carries {}", other.name));
    }
    if !has_mac(link) {
        return Err("has no hardware address".into());
    }
    match others().find(|other| other.address == link.address) {
        Some(other) => Err(format!("has the hardware address of {}", other.name)),
        None => Ok(()),
    }
}

/// The links by which the kernel would send to these, of those that it can say it of.
async fn ways(host: &Netlink, to: impl IntoIterator<Item = IpAddr>) -> BTreeSet<u32> {
    let mut ways = BTreeSet::new();
    for address in to {
        match host.way_to(address).await {
            Ok(way) => ways.extend(way.link),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "one way to the control plane is not known")
            }
        }
    }
    ways
}

/// Whether a link is there that its operator would give to tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lendable {
    Yes,
    /// There is none, unless a task has it.
    Missing,
    /// No task gets it; it does, is or has this.
    No(String),
}

/// What is to be said of each of these.
///
/// # Errors
/// When the host cannot be read.
pub(crate) async fn lendable(
    names: &[String],
    control_plane: FirstHop,
) -> Result<Vec<(String, Lendable)>, NetworkError> {
    let names = names.to_vec();
    let look = move || {
        // That its name means nothing is said elsewhere.
        let addresses = control_plane.resolve().unwrap_or_default();
        let look = async |host: &Netlink| {
            let ways = ways(host, addresses).await;
            Ok((host.links().await?, host.routes().await?, ways))
        };
        let (links, routes, ways) = block_on(async { Socket::open()?.with("list", "links", look).await })?;
        let needs = Needs {
            links: &links,
            routes: &routes,
            ways: &ways,
        };
        let judge = |name: String| {
            let link = links.iter().find(|link| link.name == name);
            let judged = match link.map(|link| may_lend(link, &needs)) {
                None => Lendable::Missing,
                Some(Ok(())) => Lendable::Yes,
                Some(Err(why)) => Lendable::No(why),
            };
            (name, judged)
        };
        Ok(names.into_iter().map(judge).collect())
    };
    let threads = Threads::patient();
    Ok(threads.run("list", "links", (), look).await?.0)
}
