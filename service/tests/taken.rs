//! What the service manager passes is taken out of the environment, by a process that has one thread as `main` begins.

#![allow(clippy::unwrap_used)]

use std::{
    env,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    process::{Command, exit},
};

use berth_service::notify::ServiceManager;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

fn main() {
    if env::var_os("BERTH_TAKEN_CHILD").is_some() {
        return child();
    }
    let (mut read, write) = std::io::pipe().unwrap();
    // The shell gives the descriptor its number and its own process id to what it becomes.
    let script = format!(
        "exec 19>&{}; exec 3>&19 4>&19 19>&-; LISTEN_PID=$$ exec \"$0\"",
        write.as_raw_fd()
    );
    let mut command = Command::new("bash");
    command.arg("-c").arg(script).arg(env::current_exe().unwrap());
    command
        .env("BERTH_TAKEN_CHILD", "1")
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "log-a:log-b")
        .env("WATCHDOG_USEC", "3000000")
        .env("NOTIFY_SOCKET", "@nobody-listens");
    fcntl(&write, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let status = command.status().unwrap();
    drop(write);
    assert!(status.success(), "{status}");
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "log-b\n");
    println!("test what_is_passed_is_taken_once ... ok");
}

fn child() {
    let manager = ServiceManager::take().unwrap();
    assert!(manager.notifier.connected());
    assert_eq!(manager.notifier.keep_alive_interval().unwrap().as_millis(), 1_500);
    for name in [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ] {
        assert!(env::var_os(name).is_none(), "{name} is inherited by children");
    }
    let names: Vec<&str> = manager.fds.iter().map(|stored| stored.name.as_str()).collect();
    assert_eq!(names, ["log-a", "log-b"]);
    for stored in &manager.fds {
        let flags = fcntl(&stored.fd, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
    }
    let taken = manager
        .fds
        .into_iter()
        .find(|stored| stored.name == "log-b")
        .unwrap();
    let mut file = std::fs::File::from(taken.fd);
    file.write_all(b"log-b\n").unwrap();
    assert!(ServiceManager::take().is_err(), "taken twice");
    let threaded = std::thread::spawn(|| ServiceManager::take().unwrap_err().to_string());
    assert!(threaded.join().unwrap().contains("before other threads run"));
    exit(0);
}
