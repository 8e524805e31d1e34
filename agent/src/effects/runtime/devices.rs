//! Owns the list of the host's devices, for privileged containers. Reads `/dev`; never changes it.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use berth_agent_core::oci::{Device, DeviceKind};

const DEV: &str = "/dev";
/// What a container has of its own there, or has no use for (Docker).
const OWN: [&str; 9] = [
    "console",
    "ptmx",
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".udev",
    ".lxc",
    ".lxd-mounts",
];
/// Directories below directories: udev makes three.
const DEPTH_MAX: usize = 8;

/// Every device node below `/dev` as it is now. Links are left out: udev's names are not the container's.
pub(super) fn of_host() -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    walk(Path::new(DEV), DEPTH_MAX, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(directory: &Path, depth: usize, found: &mut Vec<Device>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth < DEPTH_MAX => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let own = entry.file_name().to_str().is_none_or(|name| OWN.contains(&name));
        // A device may be unplugged while the directory is read.
        let Some(metadata) = entry.metadata().ok().filter(|_| !own) else {
            continue;
        };
        let kind = match metadata.file_type() {
            kind if kind.is_dir() && depth > 0 => {
                walk(&path, depth - 1, found)?;
                continue;
            }
            kind if kind.is_char_device() => DeviceKind::Character,
            kind if kind.is_block_device() => DeviceKind::Block,
            _ => continue,
        };
        found.push(Device {
            path: path.to_string_lossy().into_owned(),
            kind,
            major: libc::major(metadata.rdev()),
            minor: libc::minor(metadata.rdev()),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_host_has_is_found_and_what_is_the_containers_own_is_not() {
        let found = of_host().unwrap();
        let null = found.iter().find(|device| device.path == "/dev/null").unwrap();
        assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Character, 1, 3));
        assert_eq!(null.mode, 0o666);
        for own in ["/dev/console", "/dev/ptmx", "/dev/pts/0", "/dev/fd"] {
            assert!(!found.iter().any(|device| device.path == own), "{own}");
        }
    }
}
