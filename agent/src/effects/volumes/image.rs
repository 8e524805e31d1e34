//! Owns the sight of an image's content, as its layers make it together, for the time of a copy. Never changes it. It is mounted
//! only until it is open, below the task's own directory, with which a mount would go that an agent killed in between leaves.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use super::host_path::open_directory;

/// How a snapshot on top of an image is mounted.
#[derive(Clone, Debug)]
pub struct ImageMount {
    /// `overlay`, `bind`, or a file system on a device.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// The root of the image. `at` is a directory of the agent's own.
pub(super) fn open(image: &ImageMount, at: &Path) -> io::Result<OwnedFd> {
    match image.kind.as_str() {
        "overlay" => {
            let lower = image
                .options
                .iter()
                .find_map(|option| option.strip_prefix("lowerdir="));
            let layers: Vec<PathBuf> = lower.unwrap_or_default().split(':').map(PathBuf::from).collect();
            match layers.as_slice() {
                // An overlay needs two.
                [layer] => open_directory(layer),
                layers => mounted(at, |at| mount_layers(layers, at)),
            }
        }
        "bind" | "rbind" => open_directory(Path::new(&image.source)),
        _ => mounted(at, |at| {
            let kind = Some(image.kind.as_str());
            let source = Some(image.source.as_str());
            mount(source, at, kind, MsFlags::MS_RDONLY, None::<&str>)
        }),
    }
}

/// Relative to what they have in common: the kernel takes one page of options, and images have up to 128 layers.
fn mount_layers(layers: &[PathBuf], at: &Path) -> nix::Result<()> {
    let common = common_directory(layers);
    nix::unistd::chdir(&common)?;
    let relative: Vec<String> = layers
        .iter()
        .map(|layer| {
            layer
                .strip_prefix(&common)
                .unwrap_or(layer)
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let options = format!("lowerdir={}", relative.join(":"));
    let kind = Some("overlay");
    mount(kind, at, kind, MsFlags::MS_RDONLY, Some(options.as_str()))
}

fn common_directory(paths: &[PathBuf]) -> PathBuf {
    let first = paths.first().and_then(|path| path.parent());
    let mut common = first.unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&common)) && common.pop() {}
    common
}

/// Opens `at` as it looks with what `make` mounts there.
fn mounted(at: &Path, make: impl FnOnce(&Path) -> nix::Result<()> + Send) -> io::Result<OwnedFd> {
    let work = || {
        // From now on its working directory is its own.
        unshare(CloneFlags::CLONE_FS)?;
        make(at)?;
        let opened = open_directory(at);
        umount2(at, MntFlags::MNT_DETACH)?;
        opened
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("image-view".to_owned())
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that mounts the image died")))
    })
}

/// The directory of the image that a container would see at `path`; links are those of the image, and lead nowhere else. None:
/// there is none.
pub(super) fn directory(root: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory)),
        // Nothing, a file, or a link that leads to nothing.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        os::{
            fd::{AsRawFd, OwnedFd},
            unix::fs::symlink,
        },
    };

    use super::*;

    fn read(root: &OwnedFd, path: &str) -> io::Result<String> {
        let mut text = String::new();
        let path = format!("/proc/self/fd/{}/{path}", root.as_raw_fd());
        fs::File::open(path)?.read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn layers_are_seen_together_and_nothing_is_left_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| dir.path().join("snapshots").join(name).join("fs");
        for (name, files) in [("1", ["a", "b"]), ("22", ["b", "c"])] {
            fs::create_dir_all(layer(name)).unwrap();
            for file in files {
                fs::write(layer(name).join(file), name).unwrap();
            }
        }
        let at = dir.path().join("view");
        fs::create_dir(&at).unwrap();
        let lower = format!("lowerdir={}:{}", layer("1").display(), layer("22").display());
        let image = |options: Vec<String>, kind: &str| ImageMount {
            kind: kind.into(),
            source: layer("1").display().to_string(),
            options,
        };
        let two = open(&image(vec!["index=off".into(), lower], "overlay"), &at).unwrap();
        let seen: Vec<_> = ["a", "b", "c"].iter().map(|f| read(&two, f).unwrap()).collect();
        assert_eq!(seen, ["1", "1", "22"]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
        let one = open(
            &image(vec![format!("lowerdir={}", layer("22").display())], "overlay"),
            &at,
        )
        .unwrap();
        assert_eq!(read(&one, "b").unwrap(), "22");
        assert!(read(&one, "a").is_err());
        let bound = open(&image(vec![], "bind"), &at).unwrap();
        assert_eq!(read(&bound, "a").unwrap(), "1");
    }

    #[test]
    fn links_are_the_images_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("usr/data")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("usr/data/here"), "").unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("/usr/data", root.join("absolute")).unwrap();
        symlink("../../../../usr/data", root.join("up")).unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let root = open_directory(&root).unwrap();
        for path in ["/usr/data", "/absolute", "/up", "usr/data/"] {
            let found = directory(&root, path).unwrap().unwrap();
            read(&found, "here").unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        for path in ["/missing", "/file", "/dangling", "/loop", "/file/below"] {
            assert!(directory(&root, path).unwrap().is_none(), "{path}");
        }
    }
}
