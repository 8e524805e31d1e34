//! Owns what is asked of a file system of a server. It is done by a process of its own, this program under another name: one
//! that waits for a server that does not answer can be killed, a thread of the agent cannot. Never decides what to mount.

use std::{
    ffi::OsString,
    io::{self, Read as _},
    net::{IpAddr, ToSocketAddrs as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, mount, umount2},
    sys::{prctl, signal::Signal, statfs::statfs},
    unistd::getppid,
};

use super::mounts::parse;

/// The name under which this program does nothing else.
const NAME: &str = "berth-volume-helper";
const MOUNT: &str = "mount";
const LOOK: &str = "look";
const UNMOUNT: &str = "unmount";
const UNMOUNT_BY_FORCE: &str = "unmount-by-force";
/// What a helper says of a failure, bytes.
const SAYS_BYTES_MAX: u64 = 1024;
const POLL: Duration = Duration::from_millis(5);
/// What a helper that was killed may still take.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// What became of a helper that did not succeed.
#[derive(Debug)]
pub(super) enum Failed {
    Says(String),
    Late,
    Process(io::Error),
}

/// An export of a server, with options of nfs(5).
pub(super) struct Export<'a> {
    pub(super) server: &'a str,
    pub(super) path: &'a str,
    pub(super) options: &'a [String],
}

/// Mounts it at `target`. Whatever comes of it, nothing is mounted later.
pub(super) fn mount_nfs(
    export: &Export<'_>,
    target: &Path,
    limit: Duration,
    given_up: &AtomicBool,
) -> Result<(), Failed> {
    let mut arguments: Vec<OsString> = vec![MOUNT.into(), target.into()];
    arguments.extend([export.server, export.path].map(OsString::from));
    arguments.extend(export.options.iter().map(OsString::from));
    let mut child = spawn(&arguments).map_err(Failed::Process)?;
    match await_end(&mut child, limit, given_up) {
        Err(Failed::Late) => {
            kill(child);
            Err(Failed::Late)
        }
        ended => ended,
    }
}

/// Asks the file system at `path` for its size, which its server has to answer.
pub(super) fn look(path: &Path, limit: Duration) -> Result<(), Failed> {
    let mut child = spawn(&[LOOK.into(), path.into()]).map_err(Failed::Process)?;
    match await_end(&mut child, limit, &AtomicBool::new(false)) {
        Err(Failed::Late) => {
            kill(child);
            Err(Failed::Late)
        }
        ended => ended,
    }
}

/// Takes away what is mounted at `path`, at once; what was not written to the server yet goes on being written, as long as that
/// takes. `force`: that is given up, and who waits for the server meets an error.
pub(super) fn unmount(path: &Path, force: bool, limit: Duration) -> Result<(), Failed> {
    let how = if force { UNMOUNT_BY_FORCE } else { UNMOUNT };
    let mut child = spawn(&[how.into(), path.into()]).map_err(Failed::Process)?;
    match await_end(&mut child, limit, &AtomicBool::new(false)) {
        Err(Failed::Late) => {
            reap(child);
            Err(Failed::Late)
        }
        ended => ended,
    }
}

fn spawn(arguments: &[OsString]) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0(NAME)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn await_end(child: &mut Child, limit: Duration, given_up: &AtomicBool) -> Result<(), Failed> {
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(Failed::Process)? {
            Some(status) => break status,
            None if Instant::now() >= deadline || given_up.load(Ordering::Relaxed) => {
                return Err(Failed::Late);
            }
            None => std::thread::sleep(POLL),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut says = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What is no text says nothing.
        let _ = stderr.take(SAYS_BYTES_MAX).read_to_string(&mut says);
    }
    match says.trim() {
        "" => Err(Failed::Process(io::Error::other(format!(
            "the helper ended: {status}"
        )))),
        says => Err(Failed::Says(says.to_owned())),
    }
}

/// The kernel lets go of who waits for a server when it is killed.
fn kill(mut child: Child) {
    let _ = child.kill();
    let deadline = Instant::now() + KILL_GRACE;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(POLL);
    }
    reap(child);
}

/// Waits for its end elsewhere, so that nothing is left of it then.
fn reap(mut child: Child) {
    let waited = std::thread::Builder::new()
        .name("volumes".to_owned())
        .spawn(move || child.wait());
    if let Err(error) = waited {
        tracing::warn!(%error, "no thread waits for the end of a helper");
    }
}

/// For the first line of `main` of every program that runs an agent: if the process was started as a helper, it does its work
/// and has its exit code.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next()? != NAME {
        return None;
    }
    let arguments: Vec<OsString> = arguments.collect();
    Some(match help(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(says) => {
            eprintln!("{says}");
            ExitCode::FAILURE
        }
    })
}

fn help(arguments: &[OsString]) -> Result<(), String> {
    let (what, path, rest) = match arguments {
        [what, path, rest @ ..] => (what.to_str().unwrap_or_default(), Path::new(path), rest),
        _ => return Err("too few arguments".into()),
    };
    let said = |error: Errno| error.desc().to_owned();
    match (what, rest) {
        (MOUNT, [server, export, options @ ..]) => {
            end_with_parent()?;
            let text = |text: &OsString| text.to_string_lossy().into_owned();
            let options: Vec<String> = options.iter().map(text).collect();
            do_mount(path, &text(server), &text(export), options)
        }
        (LOOK, []) => {
            end_with_parent()?;
            statfs(path).map(drop).map_err(said)
        }
        // Whoever asked for it: it goes on to the end.
        (UNMOUNT, []) => umount2(path, MntFlags::MNT_DETACH).map_err(said),
        (UNMOUNT_BY_FORCE, []) => umount2(path, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).map_err(said),
        _ => Err(format!("{what}: not understood")),
    }
}

/// An agent that is killed leaves no helper behind, which would mount something that nobody expects any more.
fn end_with_parent() -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| error.to_string())?;
    if getppid().as_raw() == 1 {
        return Err("the agent is gone".into());
    }
    Ok(())
}

/// As Docker does it: the kernel is asked directly, and gets the address that the server's name stands for.
fn do_mount(target: &Path, server: &str, export: &str, mut options: Vec<String>) -> Result<(), String> {
    let address = address(server, &options)?;
    options.push(format!("addr={address}"));
    let host = if server.contains(':') {
        format!("[{server}]")
    } else {
        server.to_owned()
    };
    let (flags, data) = parse(&options);
    let device = format!("{host}:{export}");
    let mounted = mount(
        Some(device.as_str()),
        target,
        Some("nfs"),
        flags,
        Some(data.as_str()),
    );
    mounted.map_err(|error| {
        let hint = match error {
            Errno::ENODEV | Errno::EPROTONOSUPPORT => "; the kernel of this node has no such NFS",
            Errno::EACCES => "; the server does not export it to this node",
            Errno::EINVAL => "; the kernel takes these options not",
            Errno::ECONNREFUSED => "; no NFS server listens there",
            _ => "",
        };
        format!("{}{hint}", error.desc())
    })
}

/// The first address of the family that `proto` asks for, else of IPv4, if there is one.
fn address(server: &str, options: &[String]) -> Result<IpAddr, String> {
    let protocol = options.iter().find_map(|option| option.strip_prefix("proto="));
    let found = (server, 0_u16)
        .to_socket_addrs()
        .map_err(|error| format!("the name of the server: {error}"))?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    let first = |v4: bool| found.iter().find(|address| address.is_ipv4() == v4).copied();
    let chosen = match protocol {
        Some("tcp") => first(true),
        Some("tcp6") => first(false),
        _ => first(true).or_else(|| first(false)),
    };
    chosen.ok_or_else(|| "the server has no address of the family that proto asks for".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_of_the_family_that_is_asked_for() {
        let ask = |server: &str, options: &[&str]| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            address(server, &options).map(|address| address.to_string())
        };
        assert_eq!(ask("10.0.0.1", &["ro"]).as_deref(), Ok("10.0.0.1"));
        assert_eq!(ask("fd00::1", &["proto=tcp6"]).as_deref(), Ok("fd00::1"));
        assert_eq!(ask("fd00::1", &[]).as_deref(), Ok("fd00::1"));
        assert_eq!(ask("localhost", &["proto=tcp"]).as_deref(), Ok("127.0.0.1"));
        ask("10.0.0.1", &["proto=tcp6"]).unwrap_err();
        let unknown = ask("no-such-host.invalid", &[]).unwrap_err();
        assert!(unknown.starts_with("the name of the server: "), "{unknown}");
    }

    #[test]
    fn a_child_that_does_not_end_is_late_and_gone() {
        let sleep = || {
            Command::new("sleep")
                .arg("600")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let (never, at_once) = (AtomicBool::new(false), AtomicBool::new(true));
        for (limit, given_up) in [
            (Duration::from_millis(20), &never),
            (Duration::from_secs(600), &at_once),
        ] {
            let mut child = sleep();
            let pid = child.id();
            assert!(matches!(
                await_end(&mut child, limit, given_up),
                Err(Failed::Late)
            ));
            kill(child);
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
        }
        let says = Command::new("sh")
            .args(["-c", "echo why >&2; exit 1"])
            .stderr(Stdio::piped())
            .spawn();
        let ended = await_end(&mut says.unwrap(), Duration::from_secs(60), &never);
        assert!(matches!(ended, Err(Failed::Says(says)) if says == "why"));
        let silent = Command::new("false").stderr(Stdio::piped()).spawn();
        let ended = await_end(&mut silent.unwrap(), Duration::from_secs(60), &never);
        assert!(matches!(ended, Err(Failed::Process(_))));
    }
}
