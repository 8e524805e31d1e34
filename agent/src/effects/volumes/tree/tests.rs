use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::effects::volumes::host_path::open_directory;

fn removed(parent: &Path) -> io::Result<()> {
    let parent = open_directory(parent)?;
    remove(parent.as_fd(), c"v", Instant::now() + Duration::from_secs(60))
}

#[test]
fn whatever_is_planted_nothing_outside_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
    fs::create_dir_all(volume.join("a/b")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "").unwrap();
    symlink(&outside, volume.join("a/link")).unwrap();
    symlink("../../outside", volume.join("a/b/relative")).unwrap();
    symlink(outside.join("file"), volume.join("to-file")).unwrap();
    fs::hard_link(outside.join("file"), volume.join("hard")).unwrap();
    let fifo = volume.join("a/pipe");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    removed(dir.path()).unwrap();
    assert!(!volume.exists());
    assert_eq!(fs::metadata(outside.join("file")).unwrap().nlink(), 1);
    removed(dir.path()).unwrap();
    // A link in the place of the whole.
    symlink(&outside, &volume).unwrap();
    removed(dir.path()).unwrap();
    assert!(outside.join("file").exists() && fs::symlink_metadata(&volume).is_err());
}

#[test]
fn what_is_mounted_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("v/a/inside"), dir.path().join("outside"));
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "").unwrap();
    let none = None::<&str>;
    mount(Some(&outside), &inside, none, MsFlags::MS_BIND, none).unwrap();
    let error = removed(dir.path()).unwrap_err();
    let kept = outside.join("file").exists();
    umount2(&inside, MntFlags::MNT_DETACH).unwrap();
    assert!(kept, "removed through a mount");
    assert_eq!(error.raw_os_error(), Some(libc::EXDEV), "{error}");
    removed(dir.path()).unwrap();
}

#[test]
fn a_tree_of_any_depth_goes_and_so_does_what_was_made_immutable() {
    let dir = tempfile::tempdir().unwrap();
    // Deeper than a path can say, and than there may be open files.
    let script =
        "mkdir v && cd v && touch .moved-1 && for i in $(seq 1500); do mkdir d d2 && touch f && cd d; done";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir.path())
        .status();
    assert!(made.unwrap().success());
    for (path, flags) in [("v/d/d/f", "+i"), ("v/d/d/d", "+a"), ("v/d", "+i")] {
        let set = Command::new("chattr")
            .args([flags, path])
            .current_dir(dir.path())
            .status();
        assert!(set.unwrap().success(), "{path}");
    }
    removed(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn at_the_deadline_it_ends_and_can_be_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("v/a")).unwrap();
    let parent = open_directory(dir.path()).unwrap();
    let late = remove(parent.as_fd(), c"v", Instant::now()).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    removed(dir.path()).unwrap();
    assert!(!dir.path().join("v").exists());
}
