//! Owns the agent's settings: what each is, its default, and what cannot work. Never reads them: `settings` does.
//!
//! Every key is described in `docs/configuration.md`.

mod gpus;
mod network;
pub(crate) mod runtimes;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use berth_agent_core::{addresses::Range, ids::NodeId};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use gpus::Gpus;
pub use network::{Between, Network};
pub use runtimes::NamedRuntime;

use crate::{
    dns::Dns,
    effects::cgroups::{CgroupError, TASK_PIDS_MAX_DEFAULT, check_parent},
    identity::{Identity, IdentityError, IdentityFiles, Source},
};

/// Fewer would not let a task's own program start; the kernel has no more.
const TASK_PIDS: std::ops::RangeInclusive<u32> = 16..=4_194_304;

/// The agent's settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Every host-global name derives from it: containerd namespace, nftables table, cgroup, link prefix.
    /// 1–16 of `[a-z0-9-]`.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// Durable state: database, logs.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// State that ends with the boot: namespaces, sockets.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// containerd's socket.
    #[serde(default = "default_containerd")]
    pub containerd_address: PathBuf,
    /// How long a start waits for containerd to answer, seconds: after a boot it may come later than the agent.
    #[serde(default = "default_containerd_wait_s")]
    pub containerd_wait_s: u32,
    /// Serves `/livez`, `/readyz` and `/metrics` on this TCP address as well; they are always on `run_dir/agent.sock`.
    pub metrics_listen: Option<SocketAddr>,
    /// For example `https://cp.example:7071`.
    pub control_plane: String,
    /// This node's id: 32 hexadecimal digits. By default the one in its certificate.
    pub node_id: Option<String>,
    /// The node's certificate chain, PEM. With this, `key` or `authority` set, the operator keeps the identity.
    pub certificate: Option<PathBuf>,
    /// The node's private key, PEM, readable by its owner only.
    pub key: Option<PathBuf>,
    /// The control plane's authority, PEM.
    pub authority: Option<PathBuf>,
    /// The logger's executable; by default the one beside the agent's.
    pub logger: Option<PathBuf>,
    /// Where addresses of tasks that are in no subnet come from.
    #[serde(default = "default_task_cidr")]
    pub task_cidr: Ipv4Net,
    /// Below it, their IPv6 addresses: a prefix of at most 96 bits, of which the IPv4 address is the last 32. None: they have
    /// none.
    pub task_cidr_v6: Option<Ipv6Net>,
    /// Where ports of the host are chosen from for bridge mode, `FIRST-LAST`; by default the kernel's range of ports that
    /// programs do not choose either (`net.ipv4.ip_local_port_range`).
    pub dynamic_ports: Option<String>,
    /// containerd's runtime for tasks.
    #[serde(default = "default_runtime")]
    pub runtime: String,
    /// The OCI runtime's executable for `io.containerd.runc.v2`: runc, crun, or a path.
    pub runtime_binary: Option<String>,
    /// Runtimes that tasks may ask for, by name; `runc` is there without being named.
    #[serde(default)]
    pub runtimes: BTreeMap<String, NamedRuntime>,
    /// Seccomp profiles that definitions may name, `NAME.json`.
    #[serde(default = "default_seccomp_dir")]
    pub seccomp_dir: PathBuf,
    #[serde(default = "default_snapshotter")]
    pub snapshotter: String,
    #[serde(default)]
    pub reserved: Reserved,
    #[serde(default)]
    pub registries: Registries,
    #[serde(default)]
    pub volumes: Volumes,
    #[serde(default)]
    pub gpus: Gpus,
    #[serde(default)]
    pub dns: Dns,
    #[serde(default)]
    pub network: Network,
    /// OCI and docker archives in this directory are imported at start: for sites without a registry.
    pub images_dir: Option<PathBuf>,
    /// The cgroup that holds the tasks' cgroups, from the root; by default `/<instance>.slice`.
    pub cgroup_parent: Option<String>,
    /// Processes and threads of one task.
    #[serde(default = "default_task_pids_max")]
    pub task_pids_max: u32,
    /// How long the logs of a stopped task are kept, seconds.
    #[serde(default = "default_log_retention_s")]
    pub log_retention_s: u32,
    /// How long a task may wait for resources, seconds.
    #[serde(default = "default_admission_deadline_s")]
    pub admission_deadline_s: u32,
    /// Container starts at a time; by default three per core. More is no faster, and each start waits longer.
    pub start_concurrency: Option<usize>,
    /// Custom attributes of the node, for placement constraints.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

const SSH_PORT: u16 = 22;

/// What tasks do not get.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reserved {
    /// 1024 = one core.
    pub cpu_units: u32,
    pub memory_mib: u32,
    pub tcp_ports: Vec<u16>,
    pub udp_ports: Vec<u16>,
}

impl Default for Reserved {
    /// The way to the host stays open, as ECS has it.
    fn default() -> Self {
        Self {
            cpu_units: 0,
            memory_mib: 0,
            tcp_ports: vec![SSH_PORT],
            udp_ports: Vec::new(),
        }
    }
}

/// What volumes of tasks may be.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volumes {
    /// Paths of the host that tasks may mount, and all below them.
    pub host_paths: Vec<PathBuf>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self {
            host_paths: vec!["/".into()],
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// `host` or `host:port` that speak plain HTTP, besides loopback.
    pub plain_http_hosts: Vec<String>,
    /// Authorities to trust besides the host's, PEM files.
    pub extra_ca: Vec<PathBuf>,
    pub credentials: Vec<Credential>,
    /// A tag that was resolved so recently is not asked for again, seconds.
    pub resolve_ttl_s: u32,
}

/// Basic credentials of one registry. The password is in a file of its own, readable by its owner only.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    pub host: String,
    pub username: String,
    pub password_file: PathBuf,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            plain_http_hosts: Vec::new(),
            extra_ca: Vec::new(),
            credentials: Vec::new(),
            resolve_ttl_s: 30,
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Settings(#[from] berth_service::settings::SettingsError),
    #[error("{origin}")]
    At {
        origin: berth_service::settings::Origin,
        source: Box<ConfigError>,
    },
    #[error("show the configuration")]
    Show(#[from] toml::ser::Error),
    #[error("configuration: {key} = {value:?}: {problem}")]
    Value {
        key: &'static str,
        value: String,
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file, its drop-ins and the environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        crate::settings::load(path, &[]).map(|loaded| loaded.value)
    }

    /// Where addresses of tasks that are in no subnet come from.
    ///
    /// # Errors
    /// When they cannot have IPv6 addresses of `task_cidr_v6`.
    pub fn task_range(&self) -> Result<Range, ConfigError> {
        Range::below(self.task_cidr, self.task_cidr_v6).map_err(|error| ConfigError::Value {
            key: "task_cidr_v6",
            value: self
                .task_cidr_v6
                .map(|prefix| prefix.to_string())
                .unwrap_or_default(),
            problem: error.to_string(),
        })
    }

    /// Refuses values that would fail later, or quietly do something else.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, value: &dyn std::fmt::Display, problem: &str| {
            Err(ConfigError::Value {
                key,
                value: value.to_string(),
                problem: problem.into(),
            })
        };
        if let Err(problem) = check_instance(&self.instance) {
            return bad("instance", &self.instance, problem);
        }
        if let Some(id) = &self.node_id
            && id.parse::<NodeId>().is_err()
        {
            return bad("node_id", id, "must be 32 lower-case hexadecimal digits");
        }
        if !self.control_plane.starts_with("https://") {
            return bad("control_plane", &self.control_plane, "must begin with https://");
        }
        if self.task_cidr.prefix_len() > 29 || self.task_cidr.prefix_len() < 8 {
            return bad("task_cidr", &self.task_cidr, "must be a /8 to /29 network");
        }
        let link_local = Ipv4Net::new(Ipv4Addr::new(169, 254, 0, 0), 16);
        if link_local.is_ok_and(|net| net.contains(&self.task_cidr.network())) {
            return bad(
                "task_cidr",
                &self.task_cidr,
                "link-local addresses are taken for the tasks' endpoints",
            );
        }
        self.task_range()?;
        for (key, path) in [
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("seccomp_dir", &self.seccomp_dir),
        ] {
            if !path.is_absolute() {
                return bad(key, &path.display(), "must be an absolute path");
            }
        }
        for path in &self.volumes.host_paths {
            let plain = path
                .components()
                .all(|part| !matches!(part, std::path::Component::ParentDir));
            if !path.is_absolute() || !plain {
                return bad(
                    "volumes.host_paths",
                    &path.display(),
                    "must be an absolute path without ..",
                );
            }
        }
        if let Some(parent) = &self.cgroup_parent
            && let Err(CgroupError::Parent { problem, .. }) = check_parent(parent)
        {
            return bad("cgroup_parent", parent, problem);
        }
        if !TASK_PIDS.contains(&self.task_pids_max) {
            return bad("task_pids_max", &self.task_pids_max, "must be 16 to 4194304");
        }
        self.gpus.check()?;
        if let Err(problem) = self.dns.check() {
            return bad("dns.servers", &self.dns.servers.len(), &problem);
        }
        self.network.check()?;
        runtimes::check(&self.runtimes)
    }

    /// Where this node's identity is: in the state directory, unless files are named.
    pub fn identity(&self) -> Source {
        let files = IdentityFiles::new(&self.state_dir);
        let own =
            |path: &Option<PathBuf>, name: &str| path.clone().unwrap_or_else(|| files.directory().join(name));
        if self.certificate.is_none() && self.key.is_none() && self.authority.is_none() {
            return Source::Own(files);
        }
        Source::Configured {
            certificate: own(&self.certificate, "node.pem"),
            key: own(&self.key, "node.key"),
            authority: own(&self.authority, "authority.pem"),
        }
    }

    /// The identity, if it is the configured node's.
    ///
    /// # Errors
    /// There is none, it cannot be read, or it is another node's: somebody has to do something.
    pub fn load_identity(&self) -> Result<Identity, IdentityError> {
        let source = self.identity();
        match self.node_id.as_deref().and_then(|id| id.parse::<NodeId>().ok()) {
            Some(expected) => source.load_of(&expected),
            None => source.load(),
        }
    }

    /// The agent's database.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("agent.db")
    }

    /// The cgroup that holds the tasks' cgroups.
    pub fn cgroup_parent(&self) -> String {
        let default = || default_cgroup_parent(&self.instance);
        self.cgroup_parent.clone().unwrap_or_else(default)
    }

    /// `<log_dir>/<task>/<container name>/<container id>-json.log`
    pub fn log_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// Where loggers register.
    pub fn logger_socket(&self) -> PathBuf {
        self.run_dir.join("logger.sock")
    }

    /// Where the agent tells of itself.
    pub fn introspection_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// The logger's executable.
    pub fn logger_path(&self) -> std::io::Result<PathBuf> {
        if let Some(path) = &self.logger {
            return Ok(path.clone());
        }
        Ok(std::env::current_exe()?.with_file_name("berth-logger"))
    }

    /// The program that is mounted into containers: always beside the logger.
    pub fn init_path(&self) -> std::io::Result<PathBuf> {
        Ok(self.logger_path()?.with_file_name("berth-init"))
    }
}

/// Reads a secret of one line. The file must be readable by its owner only.
pub fn read_secret(path: &Path) -> Result<String, ConfigError> {
    use std::os::unix::fs::MetadataExt as _;
    let read = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    let mode = std::fs::metadata(path).map_err(read)?.mode();
    if mode & 0o077 != 0 {
        let problem = format!("mode {:o} lets others read it: chmod 600", mode & 0o777);
        return Err(ConfigError::Value {
            key: "password_file",
            value: path.display().to_string(),
            problem,
        });
    }
    Ok(std::fs::read_to_string(path)
        .map_err(read)?
        .trim_end_matches(['\r', '\n'])
        .to_owned())
}

/// Whether every host-global name can be made from it.
pub(crate) fn check_instance(name: &str) -> Result<(), &'static str> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 16 && name.bytes().all(plain) {
        return Ok(());
    }
    Err("must be 1 to 16 of a-z, 0-9 and -, beginning with a letter")
}

/// A slice of systemd's.
pub(crate) fn default_cgroup_parent(instance: &str) -> String {
    format!("/{instance}.slice")
}

pub(crate) fn default_instance() -> String {
    "berth".into()
}

pub(crate) fn default_state_dir() -> PathBuf {
    "/var/lib/berth".into()
}

pub(crate) fn default_run_dir() -> PathBuf {
    "/run/berth".into()
}

pub(crate) fn default_containerd() -> PathBuf {
    "/run/containerd/containerd.sock".into()
}

fn default_containerd_wait_s() -> u32 {
    90
}

/// Inside 10.0.0.0/8, away from what docker (172.17+), Kubernetes (10.96, 10.244) and home routers take.
pub(crate) fn default_task_cidr() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 89, 0, 0), 22)
}

fn default_runtime() -> String {
    "io.containerd.runc.v2".into()
}

pub(crate) fn default_snapshotter() -> String {
    "overlayfs".into()
}

fn default_seccomp_dir() -> PathBuf {
    "/etc/berth/seccomp".into()
}

fn default_task_pids_max() -> u32 {
    TASK_PIDS_MAX_DEFAULT
}

fn default_log_retention_s() -> u32 {
    3 * 3600
}

fn default_admission_deadline_s() -> u32 {
    15 * 60
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        control_plane = "https://127.0.0.1:7071"
    "#;

    #[test]
    fn the_minimal_file_gets_the_documented_defaults() {
        let config: Config = toml::from_str(MINIMAL).unwrap();
        config.check().unwrap();
        assert_eq!(
            (config.instance.as_str(), config.log_retention_s),
            ("berth", 10_800)
        );
        assert_eq!(config.cgroup_parent(), "/berth.slice");
        assert_eq!(config.task_cidr.to_string(), "10.89.0.0/22");
        assert_eq!(config.reserved.tcp_ports, [22]);
    }

    #[test]
    fn the_identity_is_in_the_state_directory_unless_files_are_named() {
        let mut config: Config = toml::from_str(MINIMAL).unwrap();
        let Source::Own(files) = config.identity() else {
            panic!("the agent's own")
        };
        assert_eq!(files.directory(), Path::new("/var/lib/berth/identity"));
        config.key = Some("/etc/key".into());
        let Source::Configured { certificate, key, .. } = config.identity() else {
            panic!("the operator's")
        };
        assert_eq!(certificate, Path::new("/var/lib/berth/identity/node.pem"));
        assert_eq!(key, Path::new("/etc/key"));
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = toml::from_str::<Config>(&format!("{MINIMAL}\ntask_cdir = \"10.0.0.0/8\"")).unwrap_err();
        assert!(error.to_string().contains("task_cdir"), "{error}");
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        let refused = |change: fn(&mut Config)| {
            let mut config: Config = toml::from_str(MINIMAL).unwrap();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(|c| c.instance = "Über".into()).contains("instance"));
        assert!(refused(|c| c.node_id = Some("x".into())).contains("node_id"));
        assert!(refused(|c| c.control_plane = "http://x".into()).contains("control_plane"));
        assert!(refused(|c| c.task_cidr = "10.0.0.0/30".parse().unwrap()).contains("task_cidr"));
        assert!(refused(|c| c.task_cidr = "169.254.0.0/20".parse().unwrap()).contains("task_cidr"));
        let told = refused(|c| c.task_cidr_v6 = "fd00::/97".parse().ok());
        assert!(
            told.contains("task_cidr_v6") && told.contains("at most a /96"),
            "{told}"
        );
        assert!(refused(|c| c.task_cidr_v6 = "fe80::/64".parse().ok()).contains("fe80::/10"));
        assert!(refused(|c| c.state_dir = "state".into()).contains("state_dir"));
        assert!(refused(|c| c.cgroup_parent = Some("berth".into())).contains("cgroup_parent"));
        assert!(refused(|c| c.cgroup_parent = Some("/a.service".into())).contains("cgroup_parent"));
        assert!(refused(|c| c.volumes.host_paths = vec!["srv".into()]).contains("volumes.host_paths"));
        assert!(refused(|c| c.volumes.host_paths = vec!["/a/../b".into()]).contains("volumes.host_paths"));
        assert!(refused(|c| c.gpus.cdi_dirs = vec!["cdi".into()]).contains("gpus.cdi_dirs"));
        assert!(refused(|c| c.gpus.kinds = vec!["gpu".into()]).contains("gpus.kinds"));
        assert!(refused(|c| c.gpus.kinds = vec!["a/b".into(); 17]).contains("at most 16"));
        assert!(refused(|c| c.task_pids_max = 0).contains("task_pids_max"));
    }
}
