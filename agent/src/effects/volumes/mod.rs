//! Volumes of tasks and of the node. Owns their directories, the mounts they need on the host, and what they begin with; names
//! all of it by task, so that it goes with the task, but for shared volumes, which are the user's until an operator removes them.
//! Never mounts into a container, and never decides which volumes there are.
//!
//! All work is done on threads of its own, each with a deadline: a path of the host may be of a server that does not answer, and
//! a tree may be large.

mod copy;
mod error;
mod helper;
mod host_path;
mod image;
pub(super) mod mounts;
mod nfs;
mod places;
mod populate;
mod record;
mod tree;

use std::{
    ffi::CString,
    fs::DirBuilder,
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_agent_core::{
    ids::TaskId,
    ledger::HostObject,
    volumes::{LocalMount, MountSource, Scope, Volume, VolumeKind, VolumeMount},
};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

pub use self::{
    error::VolumeError, helper::run_if_asked, image::ImageMount, nfs::kernel_has_nfs, places::Places,
};
use self::{helper::Export, host_path::open_directory, record::Record};
use crate::audit::directories;

/// Of making a task's volumes.
const PREPARE_SECONDS: u64 = 45;
/// Of filling a container's volumes from its image.
const POPULATE_SECONDS: u64 = 120;
/// Of removing a task's volumes; a larger tree is gone on with in the next try.
const REMOVE_SECONDS: u64 = 45;
/// Beyond the deadline that the work itself keeps, for a call that does not come back.
const GRACE: Duration = Duration::from_secs(5);
/// Of a copy into a volume that was given up, to end by itself.
const COPY_ENDS: Duration = Duration::from_secs(10);
/// Between two looks whether a copy into a volume has ended that is to be removed.
const POLL: Duration = Duration::from_millis(20);
/// Of directories that only root may enter.
const OWN_MODE: u32 = 0o700;
/// Of a new volume's content, as Docker makes it.
const DATA_MODE: u32 = 0o755;

/// The volumes of one agent. Clones are the same.
#[derive(Clone, Debug)]
pub struct Volumes {
    places: Arc<Places>,
}

impl Volumes {
    pub fn new(places: Places) -> Self {
        Self {
            places: Arc::new(places),
        }
    }

    /// Makes what is missing of a task's volumes. Idempotent.
    ///
    /// # Errors
    /// What cannot be made, or is not allowed on this node; some of the others may have been made.
    pub async fn prepare(&self, task: &TaskId, volumes: &[Volume]) -> Result<(), VolumeError> {
        if volumes.is_empty() {
            return Ok(());
        }
        let (places, task, volumes) = (Arc::clone(&self.places), task.clone(), volumes.to_vec());
        let work = move |given_up: &AtomicBool| {
            let mut all = volumes.iter();
            all.try_for_each(|volume| prepare(&places, &task, volume, given_up))
        };
        run("making", PREPARE_SECONDS, work).await
    }

    /// A directory that holds all that a task's volumes write to the node's disk, but for shared ones, and one above it that
    /// outlives the task. Makes both.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_task(&self, task: &TaskId) -> Result<(PathBuf, PathBuf), VolumeError> {
        let (directory, all) = (self.places.task(task), self.places.tasks());
        make_own(&directory).map_err(VolumeError::io("of the task", "make", directory.clone()))?;
        Ok((directory, all))
    }

    /// What is mounted into a container for a volume, and whether what is unmounted below it has to go there too.
    pub fn source(&self, task: &TaskId, source: &MountSource) -> (PathBuf, bool) {
        let path = self.places.source(task, source);
        let follows = match source {
            MountSource::Host { path, .. } => self.places.is_above_own(Path::new(path)),
            _ => false,
        };
        (path, follows)
    }

    /// Looks whether what is to be mounted is there, and fills those of a container's volumes that begin with its image's content
    /// and are empty. Idempotent.
    ///
    /// # Errors
    /// What cannot be copied; the next try goes on from there.
    pub async fn populate(
        &self,
        task: &TaskId,
        mounts: &[VolumeMount],
        image: Option<ImageMount>,
    ) -> Result<(), VolumeError> {
        let may_be_remote = mounts
            .iter()
            .any(|mount| matches!(mount.source, MountSource::Task { .. }));
        let mounts: Vec<VolumeMount> = mounts.iter().filter(|mount| mount.populate).cloned().collect();
        if mounts.is_empty() && !may_be_remote {
            return Ok(());
        }
        let (places, task) = (Arc::clone(&self.places), task.clone());
        let work = move |given_up: &AtomicBool| {
            nfs::check(&places.task(&task))?;
            let until = copy::Until {
                deadline: Instant::now() + Duration::from_secs(POPULATE_SECONDS),
                given_up,
            };
            populate::all(&places, &task, &mounts, image.as_ref(), until)
        };
        run("filling", POPULATE_SECONDS, work).await
    }

    /// Removes all volumes of a task. What is not there is a success.
    ///
    /// # Errors
    /// What is left, and why; trying again goes on.
    pub async fn remove(&self, task: &TaskId) -> Result<(), VolumeError> {
        if !self.places.task(task).exists() {
            return Ok(());
        }
        let (places, task) = (Arc::clone(&self.places), task.clone());
        run("removing", REMOVE_SECONDS, move |_: &AtomicBool| {
            remove(&places, &task)
        })
        .await
    }

    /// Tasks that have volumes on this host.
    pub fn list(&self) -> io::Result<Vec<HostObject>> {
        let of_task = |task| HostObject::OfTask {
            kind: "volumes".into(),
            task,
        };
        directories(&self.places.tasks(), of_task, "volumes")
    }

    /// Removes everything but shared volumes, of which it returns the names. For the end of an instance.
    pub async fn remove_all(&self) -> Result<Vec<String>, VolumeError> {
        let places = Arc::clone(&self.places);
        run("removing", REMOVE_SECONDS, move |_: &AtomicBool| {
            remove_all(&places)
        })
        .await
    }

    /// Where shared volumes are.
    pub fn shared(&self) -> PathBuf {
        self.places.shared()
    }
}

fn prepare(
    places: &Places,
    task: &TaskId,
    volume: &Volume,
    given_up: &AtomicBool,
) -> Result<(), VolumeError> {
    let name = &volume.name;
    let home = places.named(task, name);
    match &volume.kind {
        VolumeKind::Host { path } => {
            let held = Places::data(&home);
            if places.restricts() {
                make_home(name, &home)?;
            }
            host_path::ready(places, name, path, true, &held)
        }
        VolumeKind::Local { scope, mount, labels } => {
            let record = Record {
                name: name.clone(),
                labels: labels.clone(),
                mount: mount.clone(),
            };
            if let Scope::Shared { autoprovision } = scope {
                prepare_shared(places, &record, *autoprovision)?;
            }
            prepare_local(places, &home, &record, *scope, given_up)
        }
    }
}

/// One that is there is used as it is: by its name, as Docker does.
fn prepare_shared(places: &Places, record: &Record, autoprovision: bool) -> Result<(), VolumeError> {
    let name = &record.name;
    let shared = places.shared();
    let home = shared.join(name);
    let failed = |step| VolumeError::io(name, step, home.clone());
    if autoprovision {
        make_own(&shared).map_err(failed("make"))?;
    } else if !shared.exists() {
        return Err(VolumeError::Missing { volume: name.clone() });
    }
    // Two tasks may come at the same time.
    let _lock = lock(&shared, None).map_err(failed("lock"))?;
    match Record::read(&home).map_err(failed("read the record of"))? {
        Some(known) if known.mount != record.mount => Err(VolumeError::Differs { volume: name.clone() }),
        Some(_) => Ok(()),
        None if !autoprovision => Err(VolumeError::Missing { volume: name.clone() }),
        None => {
            make_home(name, &home)?;
            if !matches!(record.mount, LocalMount::Nfs { .. }) {
                make_data(&home).map_err(failed("make"))?;
            }
            record.write(&home).map_err(failed("write the record of"))
        }
    }
}

fn prepare_local(
    places: &Places,
    home: &Path,
    record: &Record,
    scope: Scope,
    given_up: &AtomicBool,
) -> Result<(), VolumeError> {
    let name = &record.name;
    let data = Places::data(home);
    let failed = |step| VolumeError::io(name, step, data.clone());
    if let LocalMount::Bind { path, .. } = &record.mount {
        make_home(name, home)?;
        return host_path::ready(places, name, path, false, &data);
    }
    // What is on a server is shared there; its mount is the task's in any case.
    if scope != Scope::Task && !matches!(record.mount, LocalMount::Nfs { .. }) {
        return Ok(());
    }
    make_home(name, home)?;
    make_data(home).map_err(failed("make"))?;
    record.write(home).map_err(failed("write the record of"))?;
    match &record.mount {
        LocalMount::Memory { options } => mounts::memory(&data, options).map_err(failed("mount")),
        LocalMount::Nfs {
            server,
            path,
            options,
        } => {
            let export = Export {
                server,
                path,
                options,
            };
            nfs::mount(name, &data, &export, given_up)
        }
        LocalMount::Directory | LocalMount::Bind { .. } => Ok(()),
    }
}

fn make_home(volume: &str, home: &Path) -> Result<(), VolumeError> {
    make_own(home).map_err(VolumeError::io(volume, "make", home))
}

fn make_own(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(OWN_MODE).create(path)
}

/// An empty volume; one that is there stays as it is.
fn make_data(home: &Path) -> io::Result<()> {
    let data = Places::data(home);
    match std::fs::create_dir(&data) {
        // Whatever the agent's umask is.
        Ok(()) => std::fs::set_permissions(&data, std::fs::Permissions::from_mode(DATA_MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Held until it is dropped, by whoever fills or makes something in that directory. With a deadline: who removes it.
fn lock(directory: &Path, deadline: Option<Instant>) -> io::Result<std::os::fd::OwnedFd> {
    let opened = open_directory(directory)?;
    let Some(deadline) = deadline else {
        flock(&opened, FlockOperation::LockExclusive)?;
        return Ok(opened);
    };
    while let Err(error) = flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(error.into());
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL);
    }
    Ok(opened)
}

fn remove(places: &Places, task: &TaskId) -> Result<(), VolumeError> {
    let deadline = Instant::now() + Duration::from_secs(REMOVE_SECONDS);
    let directory = places.task(task);
    let failed = |step| VolumeError::io("of the task", step, directory.clone());
    // A copy that was given up ends soon, and makes nothing after that; but one to a server that does not answer.
    let remote = mounts::remote_below(&directory).map_err(failed("list the mounts of"))?;
    let patience = if remote.is_empty() {
        deadline
    } else {
        Instant::now() + COPY_ENDS
    };
    let mut locked = lock(&directory, Some(patience));
    if locked
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
        && !remote.is_empty()
    {
        nfs::unmount_by_force(&directory).map_err(failed("unmount by force"))?;
        locked = lock(&directory, Some(deadline));
    }
    let lock = match locked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        locked => locked.map_err(failed("wait for the copy into"))?,
    };
    mounts::unmount_all(&directory).map_err(failed("unmount"))?;
    drop(lock);
    let name = CString::new(task.as_str()).map_err(|error| failed("name")(error.into()))?;
    let parent = open_directory(&places.tasks()).map_err(failed("open"))?;
    tree::remove(parent.as_fd(), &name, deadline).map_err(failed("remove"))
}

fn remove_all(places: &Places) -> Result<Vec<String>, VolumeError> {
    let deadline = Instant::now() + Duration::from_secs(REMOVE_SECONDS);
    let root = places.root().to_owned();
    let failed = |step| VolumeError::io("of all tasks", step, root.clone());
    let parent = match open_directory(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed("open"))?,
    };
    mounts::unmount_all(&root).map_err(failed("unmount"))?;
    tree::remove(parent.as_fd(), c"tasks", deadline).map_err(failed("remove"))?;
    let mut names = Vec::new();
    match std::fs::read_dir(places.shared()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.map_err(failed("list"))? {
                let name = entry.map_err(failed("list"))?.file_name();
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    if names.is_empty() {
        for directory in [places.shared(), root.clone()] {
            match std::fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
                _ => {}
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Tells the work that nobody waits for it any more.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` on a thread of its own. One that a dead server holds is left behind with its volume.
async fn run<T: Send + 'static>(
    what: &'static str,
    seconds: u64,
    work: impl FnOnce(&AtomicBool) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let given_up = Arc::new(AtomicBool::new(false));
    let give_up = GiveUp(Arc::clone(&given_up));
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("volumes".to_owned())
        .spawn(move || {
            // A failed send means that the caller gave up.
            let _ = sender.send(work(&given_up));
        })
        .map_err(|source| VolumeError::Thread { what, source })?;
    let limit = Duration::from_secs(seconds) + GRACE;
    let result = tokio::time::timeout(limit, receiver).await;
    drop(give_up);
    match result {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(VolumeError::Thread {
            what,
            source: io::Error::other("it died"),
        }),
        Err(_) => Err(VolumeError::Late { what, seconds }),
    }
}

#[cfg(test)]
mod tests;
