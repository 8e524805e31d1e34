//! Owns the links of the host that its operator gives to tasks, one to one task: moved into the task's namespace, and back into
//! the host's with the name, size and addresses that they had. What that was is written before anything is done, so that
//! it is undone after a crash at any moment. Never touches a link that is not among them, or that of the default route.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use super::{
    error::NetworkError,
    names::Owner,
    netlink::{Link, Netlink, Socket},
    netns::{self, Entered},
    threads::block_on,
    veth::TASK_LINK,
};

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
    /// Of who chooses one.
    turn: Arc<Mutex<()>>,
}

impl Interfaces {
    pub(super) fn new(names: &[String], run_dir: &Path) -> Self {
        Self {
            names: names.into(),
            dir: run_dir.join("interfaces"),
            turn: Arc::default(),
        }
    }

    /// How many tasks can have one: those of the host, but for that of the default route, and those that tasks have.
    pub(super) fn count(&self, links: &[Link], uplinks: &[u32]) -> Result<usize, NetworkError> {
        let lent = self.lent()?;
        let is_there = |name: &&String| {
            links
                .iter()
                .any(|link| link.name == **name && !uplinks.contains(&link.index))
        };
        let is_lent = |name: &&String| lent.iter().any(|(_, lent)| lent.name == **name);
        Ok(self
            .names
            .iter()
            .filter(|name| is_there(name) || is_lent(name))
            .count())
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
        let (path, fresh) = (self.dir.join(owner.file_name()), self.dir.join(".new"));
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
        let lent = match self.of(owner)? {
            Some(lent) => lent,
            None => self.choose(owner, host).await?,
        };
        if let Some(link) = inside.link(TASK_LINK).await? {
            return Ok(link);
        }
        if inside.link(&lent.name).await?.is_none() {
            let link = host.link(&lent.name).await?;
            let link = link.ok_or_else(|| NetworkError::NoUplink {
                uplink: lent.name.clone(),
            })?;
            host.move_to(&link, netns.file.as_raw_fd()).await?;
        }
        if let Some(link) = inside.link(&lent.name).await? {
            inside.rename(&link, TASK_LINK).await?;
        }
        let link = inside.link(TASK_LINK).await?;
        link.ok_or(NetworkError::LinkVanished { link: lent.name })
    }

    /// A free one is the owner's from now on.
    async fn choose(&self, owner: &Owner, host: &Netlink) -> Result<Lent, NetworkError> {
        let uplinks = host.default_links().await?;
        for name in self.names.iter() {
            let Some(link) = host
                .link(name)
                .await?
                .filter(|link| !uplinks.contains(&link.index))
            else {
                continue;
            };
            let addresses = host.addresses_of(&link).await?;
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if self.lent()?.iter().any(|(_, lent)| lent.name == *name) {
                continue;
            }
            let lent = Lent {
                name: name.clone(),
                mac: link.address.clone(),
                mtu: link.mtu,
                up: link.up,
                addresses,
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
        let restore = async |host: &Netlink| lent.restore(host).await;
        block_on(async { Socket::open()?.with("restore", &lent.name, restore).await })?;
        self.forget(owner)
    }
}

impl Lent {
    fn is(&self, link: &Link) -> bool {
        link.address == self.mac
    }

    async fn move_back(&self, inside: &Netlink, host: &File) -> Result<(), NetworkError> {
        let found = match inside.link(TASK_LINK).await?.filter(|link| self.is(link)) {
            Some(link) => Some(link),
            None => inside.link(&self.name).await?.filter(|link| self.is(link)),
        };
        let Some(link) = found else {
            return Ok(());
        };
        inside.down(&link).await?;
        if link.name != self.name {
            inside.rename(&link, &self.name).await?;
        }
        inside.move_to(&link, host.as_raw_fd()).await
    }

    async fn restore(&self, host: &Netlink) -> Result<(), NetworkError> {
        // A physical one comes back by itself when its namespace ends, as it was called there.
        let links = host.links().await?;
        let Some(link) = links.into_iter().find(|link| self.is(link)) else {
            tracing::error!(link = self.name, "an interface that was lent to a task is gone");
            return Ok(());
        };
        if link.name != self.name {
            host.down(&link).await?;
            host.rename(&link, &self.name).await?;
        }
        host.set_mtu(&link, self.mtu).await?;
        for address in &self.addresses {
            host.add_any_address(&link, address).await?;
        }
        if self.up {
            host.up(&link).await?;
        }
        Ok(())
    }
}
