use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink},
    process::Command,
    time::Duration,
};

use super::*;
use crate::effects::volumes::host_path::open_directory;

fn copied(from: &Path, to: &Path) -> io::Result<()> {
    let until = Until {
        deadline: Instant::now() + Duration::from_secs(60),
        given_up: &AtomicBool::new(false),
    };
    copy(open_directory(from)?, open_directory(to)?, until)
}

fn attribute(path: &Path, set: Option<(&str, &str)>) -> String {
    let python = "import os,sys; p=sys.argv[1]\nif len(sys.argv)>2: os.setxattr(p,sys.argv[2],sys.argv[3].encode())\n\
                  print({n: os.getxattr(p,n).hex() for n in sorted(os.listxattr(p))})";
    let mut command = Command::new("python3");
    command.args(["-c", python]).arg(path);
    if let Some((name, value)) = set {
        command.args([name, value]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn everything_is_copied_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("sub/file"), vec![7; BUFFER_BYTES + 1]).unwrap();
    chown(from.join("sub/file"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(from.join("sub/file"), from.join("again")).unwrap();
    symlink("/etc/passwd", from.join("link")).unwrap();
    lchown(from.join("link"), Some(3), Some(4)).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::unistd::mkfifo(&from.join("pipe"), mode).unwrap();
    fs::set_permissions(from.join("pipe"), fs::Permissions::from_mode(0o662)).unwrap();
    let device = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&from.join("null"), nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
    chown(&from, Some(5), Some(6)).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).unwrap();
    attribute(&from.join("again"), Some(("user.berth", "x")));
    attribute(&from.join("again"), Some(("trusted.overlay.x", "x")));

    copied(&from, &to).unwrap();
    for path in ["", "sub", "sub/empty", "sub/file", "link", "pipe", "null"] {
        let (a, b) = (
            fs::symlink_metadata(from.join(path)).unwrap(),
            fs::symlink_metadata(to.join(path)).unwrap(),
        );
        let of = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.rdev());
        assert_eq!(of(&a), of(&b), "{path}");
    }
    assert_eq!(fs::read(to.join("sub/file")).unwrap(), vec![7; BUFFER_BYTES + 1]);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(fs::metadata(to.join("pipe")).unwrap().file_type().is_fifo());
    let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(inode("again"), inode("sub/file"));
    assert_eq!(attribute(&to.join("again"), None).trim(), "{'user.berth': '78'}");
}

#[test]
fn what_an_earlier_copy_left_is_replaced_and_links_in_its_place_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, outside) = (
        dir.path().join("from"),
        dir.path().join("to"),
        dir.path().join("outside"),
    );
    for path in [&from, &to, &outside] {
        fs::create_dir(path).unwrap();
    }
    fs::write(from.join("a"), "whole").unwrap();
    fs::write(from.join("b"), "whole").unwrap();
    fs::write(to.join("a"), "ha").unwrap();
    fs::write(outside.join("secret"), "kept").unwrap();
    symlink(outside.join("secret"), to.join("b")).unwrap();
    copied(&from, &to).unwrap();
    for name in ["a", "b"] {
        assert_eq!(fs::read_to_string(to.join(name)).unwrap(), "whole");
    }
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "kept");
    // A link where a directory is to be.
    fs::create_dir(from.join("d")).unwrap();
    fs::write(from.join("d/new"), "").unwrap();
    symlink(&outside, to.join("d")).unwrap();
    copied(&from, &to).unwrap_err();
    assert!(!outside.join("new").exists());
}

#[test]
fn it_ends_at_its_deadline_when_given_up_and_before_it_is_too_deep() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("d/".repeat(DEPTH_MAX + 1))).unwrap();
    fs::create_dir(&to).unwrap();
    let kind = |seconds, given_up: bool| {
        let until = Until {
            deadline: Instant::now() + Duration::from_secs(seconds),
            given_up: &AtomicBool::new(given_up),
        };
        let copied = copy(
            open_directory(&from).unwrap(),
            open_directory(&to).unwrap(),
            until,
        );
        copied.unwrap_err().kind()
    };
    assert_eq!(kind(0, false), io::ErrorKind::TimedOut);
    assert_eq!(kind(60, true), io::ErrorKind::Interrupted);
    assert_eq!(kind(60, false), io::ErrorKind::InvalidInput);
}
