//! A service manager that keeps descriptors by name, as systemd does (sd_pid_notify_with_fds(3)).
#![allow(unsafe_code)]

use std::{
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use berth_service::notify::{Notifier, StoredFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

pub struct Manager {
    socket: UnixDatagram,
    pub path: PathBuf,
    /// Every message, first to last.
    pub said: Vec<String>,
    pub stored: Vec<(String, OwnedFd)>,
}

impl Manager {
    pub fn new(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self {
            socket,
            path,
            said: Vec::new(),
            stored: Vec::new(),
        }
    }

    pub fn notifier(&self) -> Notifier {
        Notifier::new(Some(self.path.as_os_str()), None).unwrap()
    }

    /// Takes messages until as many descriptors are stored.
    pub fn until_stored(&mut self, count: usize) {
        while self.stored.len() != count {
            self.take_one();
        }
    }

    /// Takes messages until one begins like this, and forgets those before it.
    pub fn until_said(&mut self, beginning: &str) -> String {
        loop {
            if let Some(at) = self.said.iter().position(|text| text.starts_with(beginning)) {
                return self.said.drain(..=at).next_back().unwrap();
            }
            self.take_one();
        }
    }

    fn take_one(&mut self) {
        let mut buffer = [0; 4096];
        let mut control = nix::cmsg_space!([RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let mut fds = Vec::new();
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: the kernel has just made them for us.
                fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = received.bytes;
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let name = name.unwrap_or("stored").to_owned();
        if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.stored.retain(|(stored, _)| *stored != name);
        }
        if text.lines().any(|line| line == "FDSTORE=1") {
            self.stored.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        }
        self.said.push(text);
    }

    /// What the next agent is given, in no order that means anything. The manager keeps its own.
    pub fn hand_over(&self) -> Vec<StoredFd> {
        let copy = |(name, fd): &(String, OwnedFd)| StoredFd {
            name: name.clone(),
            fd: fd.try_clone().unwrap(),
        };
        self.stored.iter().rev().map(copy).collect()
    }
}
