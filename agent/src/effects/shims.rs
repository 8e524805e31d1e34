//! Owns how shims are known among the host's processes, and the end of those that containerd has lost. Never asks containerd.
//!
//! containerd loses shims in two ways, both seen with 1.6.20:
//! - Containers of a task share a shim. Where two of them start at once, each may start one; the shim whose socket the other
//!   replaces is never called by anybody.
//! - A call that is cut off while a shim is being started (the agent was killed) ends the program that starts it, and not the shim,
//!   which then waits for somebody to read its log. Its socket takes connections all the same: the task's next start is given to
//!   it, and is never answered.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};

/// How the names of their processes begin (proc(5), `comm`, which holds 15 characters).
const NAME: &str = "containerd-shim";
/// containerd itself and the agent wait no longer for one to be started.
const LAUNCH_MAX: Duration = Duration::from_secs(60);
/// From SIGKILL to the end of its sockets: a moment, unless the host is short of everything.
const END_MAX: Duration = Duration::from_secs(1);
const END_POLL: Duration = Duration::from_millis(2);
/// Of a command line; a shim's has some 200.
const COMMAND_LINE_BYTES_MAX: usize = 4 << 10;

/// A process that serves containers of one namespace of one containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shim {
    pub pid: i32,
    /// Of the container that it was started for; it may serve others, too.
    pub id: String,
}

/// By its name, which its children have not, and its view of the host's files, which what runs in containers has not: that may call
/// itself anything.
pub(crate) fn is_shim(pid: i32) -> bool {
    let has_name = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(NAME));
    has_name && sees_the_host(pid)
}

/// It has the agent's mount namespace, or that of the host's first process: a service manager may give the agent one of its own.
fn sees_the_host(pid: i32) -> bool {
    let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = mounts(&pid.to_string());
    own.is_some() && (own == mounts("self") || own == mounts("1"))
}

/// Those of a namespace of the containerd that listens there. Reads all of /proc: some 10 µs for each process.
pub(crate) fn of(namespace: &str, containerd: &Path) -> Vec<Shim> {
    let Ok(containerd) = fs::canonicalize(containerd) else {
        return Vec::new();
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let shim = |pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = CommandLine::parse(&line)?;
        let is_ours = line.namespace == namespace && fs::canonicalize(&line.address).ok()? == containerd;
        is_ours.then_some(Shim { pid, id: line.id })
    };
    pids.filter(|&pid| is_shim(pid)).filter_map(shim).collect()
}

/// What a shim that serves is told by its command line.
#[derive(Debug, PartialEq, Eq)]
struct CommandLine {
    namespace: String,
    id: String,
    address: PathBuf,
}

impl CommandLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let line = line.get(..line.len().min(COMMAND_LINE_BYTES_MAX))?;
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let value = |name: &str| {
            let at = words.iter().position(|word| word == name)?;
            words.get(at + 1).map(|word| word.to_string())
        };
        Some(Self {
            namespace: value("-namespace")?,
            id: value("-id")?,
            address: value("-address")?.into(),
        })
    }
}

/// Since the host's boot, of a line of proc_pid_stat(5): its 22nd field. The second may contain anything.
fn began(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let ticks: u64 = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    let millis = ticks.checked_mul(1_000)?.checked_div(ticks_per_second)?;
    Some(Duration::from_millis(millis))
}

impl Shim {
    /// Nobody has a connection to it, and it has no child: neither a container nor a logger. Where that cannot be told, it is
    /// not lost. One that was started just now looks like that, too.
    pub fn is_lost(&self) -> bool {
        sockets(self.pid).is_some_and(|all| all.len() == 1) && self.has_child() == Some(false)
    }

    fn has_child(&self) -> Option<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid)).ok()? {
            // A kernel may be without this file.
            let children = fs::read_to_string(thread.ok()?.path().join("children")).ok()?;
            if !children.trim().is_empty() {
                return Some(true);
            }
        }
        Some(false)
    }

    /// The longest call that starts one was given up long ago.
    pub fn is_old(&self) -> bool {
        self.age().is_some_and(|age| age > LAUNCH_MAX)
    }

    fn age(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let began = began(&stat, sysconf(SysconfVar::CLK_TCK).ok()??.try_into().ok()?)?;
        Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).checked_sub(began)
    }
}

/// SIGKILL, after which containerd forgets what it thought was there, and the removal of the socket, unless it is another shim's
/// by now. Blocks until the process is gone. Does nothing to a process that is no shim.
pub(crate) fn end(pid: i32) {
    if !is_shim(pid) {
        return;
    }
    let socket = listens_at(pid);
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) => tracing::warn!(pid, "ended a shim that containerd had lost"),
        Err(Errno::ESRCH) => return,
        Err(error) => {
            tracing::warn!(pid, %error, "cannot end a shim that containerd has lost");
            return;
        }
    }
    let began = Instant::now();
    while is_shim(pid) && sockets(pid).is_some_and(|sockets| !sockets.is_empty()) && began.elapsed() < END_MAX
    {
        std::thread::sleep(END_POLL);
    }
    if let Some(socket) = socket {
        remove_unheard(&socket);
    }
}

/// Removes a socket where nobody listens. Nothing else: a file that is none refuses connections, too.
fn remove_unheard(socket: &Path) {
    let is_socket = fs::symlink_metadata(socket).is_ok_and(|file| file.file_type().is_socket());
    if is_socket
        && UnixStream::connect(socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    {
        // Gone is what was wanted; and the next shim removes what is in its way.
        let _ = fs::remove_file(socket);
    }
}

/// The inodes of what it listens on, and of its connections.
fn sockets(pid: i32) -> Option<BTreeSet<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: PathBuf| {
        link.to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    };
    Some(links.filter_map(inode).collect())
}

/// Where its socket was bound, if it has one socket.
fn listens_at(pid: i32) -> Option<PathBuf> {
    let sockets = sockets(pid)?;
    let [inode] = Vec::from_iter(sockets)[..] else {
        return None;
    };
    let all = fs::read_to_string(format!("/proc/{pid}/net/unix")).ok()?;
    all.lines().find_map(|line| bound(line, inode))
}

/// The path in a line of that file, if it is about that socket: `Num RefCount Protocol Flags Type St Inode Path`.
fn bound(line: &str, inode: u64) -> Option<PathBuf> {
    let mut fields = line.split_whitespace();
    let is_it = fields.nth(6)?.parse() == Ok(inode);
    let path = fields.next()?;
    (is_it && path.starts_with('/')).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shim_says_whose_it_is() {
        let line = b"/usr/bin/containerd-shim-runc-v2\0-namespace\0berth\0-id\0abc-1\0-address\0/run/containerd/containerd.sock\0";
        let expected = CommandLine {
            namespace: "berth".into(),
            id: "abc-1".into(),
            address: "/run/containerd/containerd.sock".into(),
        };
        assert_eq!(CommandLine::parse(line), Some(expected));
        assert_eq!(
            CommandLine::parse(b"containerd-shim\0-namespace\0berth\0-id"),
            None
        );
    }

    #[test]
    fn a_socket_is_known_by_its_inode() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 4514458 /run/containerd/s/ab";
        assert_eq!(bound(line, 4_514_458), Some("/run/containerd/s/ab".into()));
        assert_eq!(bound(line, 4_514_459), None);
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 7 @abstract";
        assert_eq!(bound(line, 7), None);
        assert_eq!(
            bound("0000000000000000: 00000003 00000000 00000000 0001 03 7", 7),
            None
        );
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "precious").unwrap();
        let heard = std::os::unix::net::UnixListener::bind(at("heard")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("unheard")).unwrap());
        for name in ["file", "heard", "unheard", "none"] {
            remove_unheard(&at(name));
        }
        assert!(at("file").exists() && at("heard").exists() && !at("unheard").exists());
        drop(heard);
    }

    #[test]
    fn a_process_says_when_it_began() {
        let stat = "7 (a) (b) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 12 0 61234 9 10";
        assert_eq!(began(stat, 100), Some(Duration::from_millis(612_340)));
        assert_eq!(began(stat, 0), None);
    }

    #[test]
    fn this_process_is_none_and_is_not_lost() {
        let own = Shim {
            pid: i32::try_from(std::process::id()).unwrap(),
            id: String::new(),
        };
        assert!(!is_shim(own.pid));
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!own.is_lost(), "it has a child");
        let child_of = Shim {
            pid: i32::try_from(child.id()).unwrap(),
            id: String::new(),
        };
        assert!(child_of.age().unwrap() < Duration::from_secs(60) && !child_of.is_old());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    proptest! {
        #[test]
        fn no_command_line_is_too_strange(line in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = CommandLine::parse(&line);
            let line = String::from_utf8_lossy(&line);
            let _ = (began(&line, 100), bound(&line, 1));
        }
    }
}
