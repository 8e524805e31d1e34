//! Owns the devices of the host: all of them for privileged containers, and those that a definition maps. Never changes
//! one.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use berth_agent_core::{
    desired::DeviceMapping,
    oci::{Device, DeviceKind},
};

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
/// Devices of one directory that is mapped.
const DIRECTORY_DEVICES_MAX: usize = 1_000;

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
        if metadata.is_dir() && depth > 0 {
            walk(&path, depth - 1, found)?;
        } else {
            found.extend(node(path.to_string_lossy().into_owned(), &metadata, "rwm"));
        }
    }
    Ok(())
}

/// `None`: it is no device.
fn node(path: String, metadata: &fs::Metadata, access: &str) -> Option<Device> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return None,
    };
    Some(Device {
        path,
        kind,
        major: libc::major(metadata.rdev()),
        minor: libc::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

/// What a definition maps, as it is now. A link is followed, for that is how udev names devices; of a directory, every
/// device below it is meant, which keeps its place there (Docker).
pub(super) fn mapped(mapping: &DeviceMapping) -> io::Result<Vec<Device>> {
    let access: String = [(mapping.read, 'r'), (mapping.write, 'w'), (mapping.mknod, 'm')]
        .into_iter()
        .filter_map(|(may, letter)| may.then_some(letter))
        .collect();
    let host = fs::canonicalize(&mapping.host_path)?;
    let metadata = fs::metadata(&host)?;
    if let Some(device) = node(mapping.container_path.clone(), &metadata, &access) {
        return Ok(vec![device]);
    }
    let mut found = Vec::new();
    if metadata.is_dir() {
        walk(&host, DEPTH_MAX, &mut found)?;
    }
    if found.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a device nor a directory with devices",
        ));
    }
    if found.len() > DIRECTORY_DEVICES_MAX {
        let message = format!("{} devices, the limit is {DIRECTORY_DEVICES_MAX}", found.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let place = mapping.container_path.trim_end_matches('/');
    for device in &mut found {
        let below = Path::new(&device.path)
            .strip_prefix(&host)
            .map_err(io::Error::other)?;
        device.path = format!("{place}/{}", below.to_string_lossy());
        device.access.clone_from(&access);
    }
    Ok(found)
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

    fn mapping(host: &str, container: &str) -> DeviceMapping {
        DeviceMapping {
            host_path: host.into(),
            container_path: container.into(),
            read: true,
            write: false,
            mknod: true,
        }
    }

    #[test]
    fn a_device_is_found_by_its_own_name_and_by_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("by-id");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for host in ["/dev/zero", link.to_str().unwrap()] {
            let found = mapped(&mapping(host, "/dev/mine")).unwrap();
            assert_eq!(found.len(), 1);
            let zero = &found[0];
            assert_eq!((zero.path.as_str(), zero.access.as_str()), ("/dev/mine", "rm"));
            assert_eq!((zero.kind, zero.major, zero.minor), (DeviceKind::Character, 1, 5));
        }
    }

    #[test]
    fn of_a_directory_every_device_keeps_its_place() {
        let found = mapped(&mapping("/dev", "/host/")).unwrap();
        let null = found.iter().find(|device| device.path == "/host/null").unwrap();
        assert_eq!((null.major, null.minor, null.access.as_str()), (1, 3, "rm"));
    }

    #[test]
    fn what_is_no_device_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        for host in [directory.path(), &file] {
            let error = mapped(&mapping(host.to_str().unwrap(), "/x")).unwrap_err();
            assert!(error.to_string().contains("neither a device"), "{error}");
        }
        let missing = mapped(&mapping("/dev/no-such-device", "/x")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
