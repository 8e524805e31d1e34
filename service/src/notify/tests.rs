use std::{
    collections::HashMap,
    io::{IoSliceMut, Read as _},
    os::fd::{AsFd as _, OwnedFd},
};

use nix::sys::socket::{ControlMessageOwned, recvmsg};

use super::*;

fn manager() -> (tempfile::TempDir, UnixDatagram, Notifier) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let notifier = Notifier::new(Some(path.as_os_str()), Some(Duration::from_secs(10))).unwrap();
    (dir, socket, notifier)
}

fn hear(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4_096];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn the_service_manager_hears_each_message() {
    let (_dir, socket, notifier) = manager();
    notifier.ready();
    assert_eq!(hear(&socket), "READY=1");
    notifier.status("3 tasks\nREADY=1");
    assert_eq!(hear(&socket), "STATUS=3 tasks");
    notifier.status(&"ü".repeat(2_000));
    assert!(hear(&socket).len() <= STATUS_BYTES_MAX + "STATUS=".len());
    notifier.stopping();
    assert_eq!(hear(&socket), "STOPPING=1");
    notifier.reloading();
    assert!(hear(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
    notifier.keep_alive();
    assert_eq!(hear(&socket), "WATCHDOG=1");
    assert_eq!(notifier.keep_alive_interval(), Some(Duration::from_secs(5)));
}

#[test]
fn without_a_service_manager_nothing_happens() {
    let notifier = Notifier::new(None, None).unwrap();
    notifier.ready();
    notifier.keep_alive();
    let (read, _write) = std::io::pipe().unwrap();
    assert!(!notifier.store_fd("log", read.as_fd()).unwrap());
}

#[test]
fn a_service_manager_that_went_away_does_no_harm() {
    let (dir, socket, notifier) = manager();
    drop((dir, socket));
    notifier.ready();
}

#[test]
fn an_abstract_socket_is_reached() {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("berth-notify-test-{}", process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    let notifier = Notifier::new(Some(format!("@{name}").as_ref()), None).unwrap();
    notifier.ready();
    assert_eq!(hear(&socket), "READY=1");
}

#[test]
fn a_stored_descriptor_arrives_with_its_name() {
    let (_dir, socket, notifier) = manager();
    let (mut read, write) = std::io::pipe().unwrap();
    assert!(notifier.store_fd("log-0123", write.as_fd()).unwrap());
    drop(write);
    let mut buffer = [0; 256];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let received: Vec<OwnedFd> = message
        .cmsgs()
        .unwrap()
        .filter_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .map(own)
        .collect();
    assert_eq!(received.len(), 1);
    nix::unistd::write(&received[0], b"from the next process").unwrap();
    drop(received);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the next process");
    assert_eq!(&buffer[..26], b"FDSTORE=1\nFDNAME=log-0123\0");
    assert!(notifier.forget_fd("log-0123").unwrap());
    assert_eq!(hear(&socket), "FDSTOREREMOVE=1\nFDNAME=log-0123");
}

#[allow(unsafe_code)]
fn own(raw: std::os::fd::RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: recvmsg has just made it for this process.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

#[test]
fn names_that_would_break_the_protocol_are_refused() {
    let (_dir, _socket, notifier) = manager();
    let (read, _write) = std::io::pipe().unwrap();
    for name in ["", "a:b", "a\nREADY=1", "a b", &"x".repeat(256)] {
        assert!(notifier.store_fd(name, read.as_fd()).is_err(), "{name:?}");
    }
}

fn variables(pairs: &[(&str, &str)]) -> io::Result<Variables> {
    let map: HashMap<String, OsString> = pairs.iter().map(|(k, v)| ((*k).into(), v.into())).collect();
    Variables::read(|name| map.get(name).cloned())
}

#[test]
fn descriptors_and_watchdogs_of_other_processes_are_not_ours() {
    let pid = process::id().to_string();
    let ours = variables(&[
        ("LISTEN_PID", &pid),
        ("LISTEN_FDS", "3"),
        ("LISTEN_FDNAMES", "a:b"),
        ("WATCHDOG_USEC", "2000000"),
    ])
    .unwrap();
    assert_eq!(ours.fd_names, ["a", "b", "unknown"]);
    assert_eq!(ours.watchdog, Some(Duration::from_secs(2)));
    let others = variables(&[
        ("LISTEN_PID", "1"),
        ("LISTEN_FDS", "3"),
        ("WATCHDOG_USEC", "2000000"),
        ("WATCHDOG_PID", "1"),
    ])
    .unwrap();
    assert_eq!(others, Variables::default());
    let broken = [("LISTEN_PID", pid.as_str()), ("LISTEN_FDS", "99999999")];
    assert!(variables(&broken).is_err());
}
