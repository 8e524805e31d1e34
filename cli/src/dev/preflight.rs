//! Owns the refusals: everything that would make a start fail half-way is found before anything is made.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};

use super::cidr::{self, Origin};
use super::paths::{Paths, STATE_DIR_LENGTH_MAX};
use super::{DevError, secrets};
use crate::arguments::{DevArgs, Global};

/// The agent takes no longer one.
const INSTANCE_LENGTH_MAX: usize = 16;
/// The oldest containerd that has what the agent uses.
const CONTAINERD_MIN: (u32, u32) = (1, 6);

/// A host found fit, with its state directory and instance taken: both are given back when this is dropped.
#[derive(Debug)]
pub struct Ground {
    pub paths: Paths,
    pub task_cidr: Ipv4Net,
    pub cidr_origin: Origin,
    pub logger: PathBuf,
    _state_lock: Flock<File>,
    _instance_lock: UnixListener,
}

pub fn check(global: &Global, args: &DevArgs) -> Result<Ground, DevError> {
    check_names(global, args)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(DevError::NotRoot);
    }
    check_programs(args)?;
    let logger = logger(args)?;
    let paths =
        Paths::new(&std::path::absolute(&global.state_dir).map_err(DevError::path(&global.state_dir))?);
    if paths.state_dir.as_os_str().len() > STATE_DIR_LENGTH_MAX {
        return Err(DevError::PathTooLong {
            dir: paths.state_dir,
            max: STATE_DIR_LENGTH_MAX,
        });
    }
    // Who holds the directory also holds the ports: the directory is the better thing to name.
    if paths.lock().exists() {
        drop(lock_state_dir(&paths)?);
    }
    let instance_lock = lock_instance(&args.instance)?;
    check_port("listen", args.listen)?;
    check_port("node-listen", args.node_listen)?;
    let kept = cidr::read_kept(&paths.task_cidr());
    let (task_cidr, cidr_origin) = cidr::choose(args.task_cidr, kept, &cidr::read_routes()?)?;

    // From here on something is made: the state directory, and the lock in it.
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&paths.state_dir)
        .map_err(DevError::path(&paths.state_dir))?;
    let state_lock = lock_state_dir(&paths)?;
    secrets::write_private(&paths.task_cidr(), &task_cidr.to_string())?;
    Ok(Ground {
        paths,
        task_cidr,
        cidr_origin,
        logger,
        _state_lock: state_lock,
        _instance_lock: instance_lock,
    })
}

fn check_names(global: &Global, args: &DevArgs) -> Result<(), DevError> {
    let name = &args.instance;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > INSTANCE_LENGTH_MAX
        || !name.starts_with(|c: char| c.is_ascii_lowercase())
        || !name.chars().all(allowed)
    {
        return Err(DevError::InstanceName(name.clone()));
    }
    if !args.listen.ip().is_loopback() {
        return Err(DevError::NotLoopback(args.listen));
    }
    debug_assert!(!global.state_dir.as_os_str().is_empty());
    Ok(())
}

fn check_programs(args: &DevArgs) -> Result<(), DevError> {
    version_of("nft", "nftables")?;
    if let Some(path) = &args.containerd {
        UnixStream::connect(path).map_err(|source| DevError::NoContainerd {
            path: path.clone(),
            source,
        })?;
        return Ok(());
    }
    version_of("runc", "runc")?;
    let text = version_of("containerd", "containerd")?;
    match containerd_version(&text) {
        Some(version) if version >= CONTAINERD_MIN => Ok(()),
        _ => Err(DevError::TooOld {
            program: "containerd",
            found: text,
        }),
    }
}

fn version_of(program: &'static str, package: &'static str) -> Result<String, DevError> {
    match Command::new(program).arg("--version").output() {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DevError::Missing { program, package }),
        Err(source) => Err(DevError::Run { program, source }),
    }
}

/// `containerd github.com/containerd/containerd 1.6.20~ds1 …` → (1, 6); some builds write `v1.6.20`.
fn containerd_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn logger(args: &DevArgs) -> Result<PathBuf, DevError> {
    let path = match &args.logger {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .map_err(DevError::path("/proc/self/exe"))?
            .with_file_name("berth-logger"),
    };
    if path.is_file() {
        Ok(path)
    } else {
        Err(DevError::NoLogger { path })
    }
}

fn check_port(flag: &'static str, address: SocketAddr) -> Result<(), DevError> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(DevError::PortInUse { flag, address }),
        Err(source) => Err(DevError::Listen {
            flag,
            address,
            source,
        }),
    }
}

/// An abstract socket: the kernel gives the name back when the process ends, however it ends.
fn lock_instance(instance: &str) -> Result<UnixListener, DevError> {
    let taken = || DevError::InstanceInUse {
        instance: instance.into(),
    };
    let name = UnixAddr::from_abstract_name(format!("berth-instance/{instance}")).map_err(|_| taken())?;
    UnixListener::bind_addr(&name).map_err(|_| taken())
}

fn lock_state_dir(paths: &Paths) -> Result<Flock<File>, DevError> {
    let path = paths.lock();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(DevError::path(&path))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            return Err(DevError::Locked {
                dir: paths.state_dir.clone(),
                pid: holder(&mut file),
            });
        }
        Err((_, errno)) => {
            return Err(DevError::Path {
                path,
                source: errno.into(),
            });
        }
    };
    write_pid(&mut lock).map_err(DevError::path(&path))?;
    Ok(lock)
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all(std::process::id().to_string().as_bytes())
}

fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => pid.trim().to_owned(),
        _ => "unknown".into(),
    }
}

/// Makes a directory that only root may look into, if it is not there.
pub fn private_directory(path: &Path) -> Result<(), DevError> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(DevError::path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_version_is_found() {
        for (text, version) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                Some((1, 6)),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.3 c787fb98911740dd3ff2d0e45ce88cdf01410486",
                Some((2, 1)),
            ),
            (
                "containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da",
                Some((1, 7)),
            ),
            ("something else", None),
        ] {
            assert_eq!(containerd_version(text), version, "{text}");
        }
    }

    #[test]
    fn a_state_directory_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let first = lock_state_dir(&paths).unwrap();
        let error = lock_state_dir(&paths).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        lock_state_dir(&paths).unwrap();
    }

    #[test]
    fn an_instance_has_one_user() {
        let name = format!("test-{}", std::process::id());
        let first = lock_instance(&name).unwrap();
        assert!(matches!(
            lock_instance(&name),
            Err(DevError::InstanceInUse { .. })
        ));
        drop(first);
        lock_instance(&name).unwrap();
    }

    #[test]
    fn a_port_in_use_names_the_flag() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = check_port("node-listen", holder.local_addr().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("--node-listen 127.0.0.1:"), "{error}");
    }
}
