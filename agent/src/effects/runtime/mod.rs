//! Owns containers on containerd: their snapshot, record, process and the files mounted into them. containerd's types
//! go no further than this module. Never decides what runs; never makes cgroups or networks, and never pulls.
//!
//! Everything made carries labels ([`labels`]) that name instance, task, container and attempt, so that what a host
//! runs can be told without the agent's own records.

mod accounts;
mod apparmor;
mod call;
mod connect;
mod devices;
mod error;
mod exec;
mod files;
mod holder;
mod host;
mod index;
mod init;
pub mod labels;
mod list;
mod offered;
mod options;
mod probe;
mod remove;
mod seccomp;
mod signal;
mod start;
mod volumes;
mod watch;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use berth_agent_core::oci::HostFacts;
use containerd_client::services::v1::version_client::VersionClient;
use tokio::sync::Semaphore;
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::{gpus::Gpus, quotas::Quotas, volumes::Volumes};
use crate::endpoints::Endpoints;
pub use apparmor::AppArmorError;
pub use connect::{ConnectError, VERSION_MIN, connect};
pub use error::{Answer, RuntimeError, Step};
pub use files::resolv_conf;
pub use holder::holder_of;
pub use index::Identity;
pub use init::{InitError, usable as init_usable};
pub use labels::Ending;
pub use list::{ListedContainer, ListedSnapshot};
pub use offered::ProbeFailure;
pub use probe::{Containerd, ProbeError, Snapshotter, probe};
pub use seccomp::SeccompError;
pub use start::{Started, Timings};
pub(crate) use watch::now;
pub use watch::{ExitNotice, Process};

/// One of containerd's runtimes, and the program it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciRuntime {
    /// `io.containerd.runc.v2` …
    pub kind: String,
    /// `runc`, `crun`, or a path; `None` is the shim's default.
    pub binary: Option<String>,
}

/// How the agent uses containerd. Every host-global name in it derives from the instance's name.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Written into labels, and what [`Runtime::list`] looks for.
    pub instance: String,
    /// containerd's socket, by which its shims are known.
    pub containerd: PathBuf,
    /// containerd's namespace: `[A-Za-z0-9._-]`, at most 76 characters.
    pub namespace: String,
    /// `overlayfs`, `native` …
    pub snapshotter: String,
    /// `io.containerd.runc.v2`.
    pub runtime: String,
    /// `runc`, `crun`, or a path; `None` is the shim's default.
    pub binary_name: Option<String>,
    /// Those that tasks may ask for, by name.
    pub runtimes: BTreeMap<String, OciRuntime>,
    /// The logger's executable, absolute.
    pub logger: PathBuf,
    /// berth-init, absolute and without need of libraries; without it no container is started that needs it.
    pub init: Option<PathBuf>,
    /// Where the logger registers.
    pub logger_socket: PathBuf,
    /// Log files are `<log_dir>/<task>/<name>/<container>-json.log`.
    pub log_dir: PathBuf,
    /// Files of containers are below `<run_dir>/tasks/<task>`.
    pub run_dir: PathBuf,
    /// Whom containers with a network of their own ask for names; None: the host's servers.
    pub name_server: Option<Ipv4Addr>,
    /// Tasks' cgroups are `/<cgroup_parent>/<task>`.
    pub cgroup_parent: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    pub volumes: Volumes,
    /// Seccomp profiles are `<seccomp_dir>/<name>.json`.
    pub seccomp_dir: PathBuf,
    pub gpus: Gpus,
    pub quotas: Quotas,
    /// Starts at a time; more than 2–4 × cores is no faster, and each waits longer. Zero is taken as one.
    pub start_concurrency: usize,
}

/// Knows which containers have a logger of their own.
///
/// containerd does not notice a logger that dies before it is ready: its container would block or lose its output.
pub trait LoggerRegistry: Send + Sync {
    /// The logger of that runtime id has registered.
    fn registered(&self, runtime_id: &str) -> bool;
}

/// Makes, signals, lists and removes containers. Clones share one connection and one start limit.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
    registry: Option<Arc<dyn LoggerRegistry>>,
    endpoints: Option<Endpoints>,
}

struct Shared {
    channel: Channel,
    config: RuntimeConfig,
    /// `None` where the configured name is no header value: containerd then refuses every call by name.
    namespace: Option<MetadataValue<Ascii>>,
    host: HostFacts,
    starts: Semaphore,
    users: Mutex<accounts::Cache>,
    index: index::Index,
    processes: exec::Processes,
}

impl Runtime {
    /// Uses a connected channel; reads what the host allows once.
    pub fn new(channel: Channel, config: RuntimeConfig) -> Self {
        let shared = Shared {
            channel,
            namespace: config.namespace.parse().ok(),
            host: host::facts(config.cgroup_version),
            starts: Semaphore::new(config.start_concurrency.max(1)),
            users: Mutex::default(),
            index: index::Index::default(),
            processes: exec::Processes::default(),
            config,
        };
        Self {
            shared: Arc::new(shared),
            registry: None,
            endpoints: None,
        }
    }

    /// From now on a container without a registered logger is not started.
    pub fn with_registry(mut self, registry: Arc<dyn LoggerRegistry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Tells containers where their endpoints are.
    #[must_use]
    pub fn with_endpoints(mut self, endpoints: Endpoints) -> Self {
        self.endpoints = Some(endpoints);
        self
    }

    /// containerd's version, as it says.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let mut client = VersionClient::new(self.shared.channel.clone());
        let answer = call::call(
            Step::Version,
            "",
            call::DEADLINE,
            client.version(self.request(())),
        )
        .await?;
        Ok(answer.version)
    }

    /// The kernel can limit swap per cgroup.
    pub fn counts_swap(&self) -> bool {
        self.shared.host.swap_limit
    }

    /// Containers can be started that need berth-init.
    pub fn has_init(&self) -> bool {
        self.config().init.is_some()
    }

    /// AppArmor is enabled: containers may have profiles of it.
    pub fn has_apparmor(&self) -> bool {
        self.shared.host.apparmor
    }

    /// A request in the instance's namespace.
    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(namespace) = &self.shared.namespace {
            request
                .metadata_mut()
                .insert("containerd-namespace", namespace.clone());
        }
        request
    }

    pub(in crate::effects) fn config(&self) -> &RuntimeConfig {
        &self.shared.config
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("config", self.config())
            .finish_non_exhaustive()
    }
}
