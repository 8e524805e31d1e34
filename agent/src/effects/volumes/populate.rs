//! Owns what volumes begin with: as Docker has it, an empty one that is mounted over a directory of the image holds that
//! directory's content first. A copy that was cut off is known by a mark, and done again.

use std::{io, os::fd::OwnedFd, path::Path};

use berth_agent_core::{
    ids::TaskId,
    volumes::{MountSource, VolumeMount},
};

use super::{
    VolumeError,
    copy::{self, Until},
    host_path::open_directory,
    image::{self, ImageMount},
    lock, make_data, make_own,
    places::Places,
};

/// In a volume's home while it is filled.
const MARK: &str = "filling";

pub(super) fn all(
    places: &Places,
    task: &TaskId,
    mounts: &[VolumeMount],
    image: Option<&ImageMount>,
    until: Until<'_>,
) -> Result<(), VolumeError> {
    let mut root = None;
    for mount in mounts {
        let home = places.home(task, &mount.source);
        let filled = one(places, &home, task, mount, image, &mut root, until);
        filled.map_err(|source| {
            let what = "filling";
            match source.kind() {
                io::ErrorKind::Interrupted => VolumeError::GivenUp { what },
                io::ErrorKind::TimedOut => VolumeError::Late {
                    what,
                    seconds: super::POPULATE_SECONDS,
                },
                _ => VolumeError::io(name(&mount.source), "fill with the image's", &mount.path)(source),
            }
        })?;
    }
    Ok(())
}

fn name(source: &MountSource) -> &str {
    match source {
        MountSource::Host { volume, .. } | MountSource::Task { volume } | MountSource::Shared { volume } => {
            volume
        }
        MountSource::Image { .. } => "of the image",
    }
}

/// `root` is the image's, once it was opened.
fn one(
    places: &Places,
    home: &Path,
    task: &TaskId,
    mount: &VolumeMount,
    image: Option<&ImageMount>,
    root: &mut Option<OwnedFd>,
    until: Until<'_>,
) -> io::Result<()> {
    if let MountSource::Image { .. } = mount.source {
        make_own(home)?;
        make_data(home)?;
    }
    make_own(&places.task(task))?;
    // All of a task's: who removes them waits for that. A shared one is filled by one task at a time.
    let _task = lock(&places.task(task), Some(until.deadline))?;
    let _shared = match mount.source {
        MountSource::Shared { .. } => Some(lock(home, Some(until.deadline))?),
        _ => None,
    };
    let data = places.source(task, &mount.source);
    let mark = home.join(MARK);
    if !mark.exists() && !is_empty_directory(&data)? {
        return Ok(());
    }
    let root = match (root, image) {
        (Some(root), _) => root,
        (slot, Some(image)) => {
            let view = places.view(task);
            make_own(&view)?;
            slot.insert(image::open(image, &view)?)
        }
        (_, None) => return Err(io::Error::other("the image cannot be looked at")),
    };
    let Some(from) = image::directory(root, &mount.path)? else {
        return Ok(());
    };
    std::fs::write(&mark, "")?;
    copy::copy(from, open_directory(&data)?, until)?;
    std::fs::remove_file(&mark)
}

/// What is no directory is not filled.
fn is_empty_directory(path: &Path) -> io::Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(error),
    }
}
