//! Owns why `berth dev` cannot run. Each message says what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

use super::environment::ParseError;
use crate::api::ClientError;

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("`berth dev` needs root to make namespaces, cgroups and containers: run it with sudo")]
    NotRoot,
    #[error("{program} is missing: install it with `sudo apt install {package}`")]
    Missing {
        program: &'static str,
        package: &'static str,
    },
    #[error(
        "{program} {found:?} is too old, 1.6 or newer is needed: install a newer one, or use --containerd SOCKET"
    )]
    TooOld { program: &'static str, found: String },
    #[error("cannot run {program}")]
    Run {
        program: &'static str,
        source: io::Error,
    },
    #[error("no containerd listens at {path}: start it, or leave --containerd away for a private one")]
    NoContainerd { path: PathBuf, source: io::Error },
    #[error("no berth-logger at {path}: build it with `cargo build -p berth-logger`, or give --logger FILE")]
    NoLogger { path: PathBuf },
    #[error("--{flag} {address} is in use: end what listens there, or give --{flag} another port")]
    PortInUse { flag: &'static str, address: SocketAddr },
    #[error("cannot listen at --{flag} {address}")]
    Listen {
        flag: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("--listen {0} is not loopback, and the API of `berth dev` is not encrypted: use 127.0.0.1")]
    NotLoopback(SocketAddr),
    #[error(
        "{dir} is in use by another `berth dev` (process {pid}): end it, or give --state-dir another directory"
    )]
    Locked { dir: PathBuf, pid: String },
    #[error(
        "instance {instance:?} is in use by another `berth dev`: end it, or give --instance another name"
    )]
    InstanceInUse { instance: String },
    #[error("--instance {0:?}: 1 to 16 of a-z, 0-9 and hyphens, starting with a letter")]
    InstanceName(String),
    #[error(
        "--state-dir {dir} is longer than {max} characters, too long for the sockets in it: give a shorter one"
    )]
    PathTooLong { dir: PathBuf, max: usize },
    #[error("cannot use {path}")]
    Path { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: remove it, new keys are then made")]
    Secrets { path: PathBuf, source: ParseError },
    #[error("--task-cidr {given} overlaps {route}, which this host has a route to: give another one")]
    CidrTaken { given: Ipv4Net, route: Ipv4Net },
    #[error("--task-cidr {0} is too small: /29 is the least")]
    CidrSmall(Ipv4Net),
    #[error("every /24 of {pool} overlaps a route of this host: give --task-cidr")]
    NoCidr { pool: Ipv4Net },
    #[error("containerd did not come up within {seconds} s; {log} ends with:\n{tail}")]
    ContainerdDown {
        seconds: u64,
        log: PathBuf,
        tail: String,
    },
    #[error("containerd died {times} times; {log} ends with:\n{tail}")]
    ContainerdDies { times: u32, log: PathBuf, tail: String },
    #[error("the control plane did not start")]
    ControlPlane { source: Cause },
    #[error("cannot make the node's certificate")]
    Certificate { source: Cause },
    #[error("the agent did not start")]
    Agent { source: Cause },
    #[error("the agent could not stop all tasks")]
    StopAll { source: Cause },
    #[error("the agent failed")]
    AgentFailed { source: Cause },
    #[error("the agent did not register within {seconds} s: --log-level info says more")]
    NodeSilent { seconds: u64 },
    #[error("the control plane just started cannot be used")]
    Client(#[from] ClientError),
    #[error("cannot make random keys")]
    Random { source: Cause },
    #[error("--log-level {given:?}")]
    LogLevel {
        given: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("cannot listen for signals")]
    Signals { source: io::Error },
}

impl DevError {
    /// For `map_err`: an I/O failure at a path.
    pub fn path(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Path { path, source }
    }
}
