//! Owns volumes that are on NFS servers: their mounts on the host, one for each task, and that a server that does not answer
//! costs its task alone. Never keeps a mount when its task is gone.

use std::{io, path::Path, sync::atomic::AtomicBool, time::Duration};

use super::{
    VolumeError,
    helper::{self, Export, Failed},
    mounts::{self, Remote},
};

/// Of mounting one volume, its server's name included. Less than what making all volumes may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);
/// Of an answer, before a container starts on it.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Of taking a mount away, and with it of writing what is not written yet.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

/// Mounts it, unless that is done.
pub(super) fn mount(
    volume: &str,
    target: &Path,
    export: &Export<'_>,
    given_up: &AtomicBool,
) -> Result<(), VolumeError> {
    let failed = |step| VolumeError::io(volume, step, target);
    if mounts::is_mount_point(target).map_err(failed("look for the mount at"))? {
        return Ok(());
    }
    let from = || format!("{}:{}", export.server, export.path);
    match helper::mount_nfs(export, target, MOUNT_LIMIT, given_up) {
        Ok(()) if mounts::is_mount_point(target).map_err(failed("look for the mount at"))? => Ok(()),
        Ok(()) => Err(failed("mount at")(io::Error::other("nothing is mounted"))),
        Err(Failed::Says(says)) => Err(VolumeError::NotMounted {
            volume: volume.to_owned(),
            from: from(),
            says,
        }),
        Err(Failed::Late) => Err(VolumeError::NoServer {
            volume: volume.to_owned(),
            from: from(),
            seconds: MOUNT_LIMIT.as_secs(),
            mounted: false,
        }),
        Err(Failed::Process(error)) => Err(failed("mount at")(error)),
    }
}

/// That the server of each of a task's volumes answers: who starts a container on one that does not would wait for it.
pub(super) fn check(directory: &Path) -> Result<(), VolumeError> {
    let remote = mounts::remote_below(directory);
    let remote = remote.map_err(VolumeError::io("of the task", "list the mounts of", directory))?;
    for Remote { point, from } in remote {
        // tasks/<task>/named/<volume>/data
        let name = point.parent().and_then(Path::file_name).unwrap_or_default();
        let volume = name.to_string_lossy().into_owned();
        match helper::look(&point, ANSWER_LIMIT) {
            Ok(()) => {}
            Err(Failed::Late) => {
                return Err(VolumeError::NoServer {
                    volume,
                    from,
                    seconds: ANSWER_LIMIT.as_secs(),
                    mounted: true,
                });
            }
            Err(Failed::Says(says)) => {
                let error = io::Error::other(says);
                return Err(VolumeError::io(&volume, "ask the server of", point)(error));
            }
            Err(Failed::Process(error)) => {
                return Err(VolumeError::io(&volume, "ask the server of", point)(error));
            }
        }
    }
    Ok(())
}

/// Takes one away. What the server has not taken yet is still written to it, if it answers again.
pub(super) fn unmount(point: &Path, force: bool) -> io::Result<()> {
    match helper::unmount(point, force, UNMOUNT_LIMIT) {
        Ok(()) => Ok(()),
        Err(Failed::Late) if !mounts::is_mount_point(point)? => {
            let path = point.display();
            tracing::warn!(%path, "the volume is unmounted, but its server has not taken all that was written");
            Ok(())
        }
        Err(Failed::Late) => Err(io::ErrorKind::TimedOut.into()),
        Err(Failed::Says(says)) => Err(io::Error::other(says)),
        Err(Failed::Process(error)) => Err(error),
    }
}

/// Ends the waiting of who fills a volume of a server that does not answer.
pub(super) fn unmount_by_force(directory: &Path) -> io::Result<()> {
    for Remote { point, .. } in mounts::remote_below(directory)?.iter().rev() {
        unmount(point, true)?;
    }
    Ok(())
}

/// Whether the kernel has NFS, or a module of it.
pub fn kernel_has_nfs() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let modules = || {
        let release = crate::sys::kernel_version().unwrap_or_default();
        let lists = ["modules.dep", "modules.builtin"];
        lists.map(|list| read(&format!("/lib/modules/{release}/{list}")))
    };
    read("/proc/filesystems")
        .lines()
        .any(|line| line.ends_with("\tnfs"))
        || modules().iter().any(|list| list.contains("/nfs.ko"))
}
