//! A private containerd with one image, and the requests that tests make of it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use berth_agent::effects::{
    runtime::{LoggerRegistry, Runtime, RuntimeConfig, RuntimeError, Started},
    volumes::{Places, Volumes},
};
use berth_agent_core::{
    desired::{ContainerSpec, Limits, LogSpec, NetworkMode},
    effect::{SignalKind, StartContainer},
    event::ObservedState,
    ids::{Attempt, TaskId, runtime_id},
    image::{ImageConfig, ResolvedImage},
    oci,
    task::START_TRIES_MAX,
};
use tokio_util::sync::CancellationToken;

use crate::{cgroups, image};

/// Anything that takes longer has gone wrong; a loaded machine included.
const DEADLINE: Duration = Duration::from_secs(30);

/// Copies both streams into the file it is given, and registers by a file beside the socket's name.
const LOGGER: &str = r#"#!/bin/sh
trap '' TERM
while [ $# -gt 1 ]; do
    case "$1" in id) id=$2 ;; path) path=$2 ;; socket) socket=$2 ;; esac
    shift 2
done
mkdir -p "${path%/*}"
: > "$socket-$id"
exec >> "$path" 2>&1
cat <&4 5>&- 3<&- &
exec 5>&-
exec cat <&3
"#;

pub struct Host {
    pub runtime: Runtime,
    pub config: RuntimeConfig,
    pub directory: tempfile::TempDir,
    containerd: Option<Child>,
    chain_id: String,
}

/// Believes in the files of [`LOGGER`].
struct Registered(PathBuf);

impl LoggerRegistry for Registered {
    fn registered(&self, runtime_id: &str) -> bool {
        Path::new(&format!("{}-{runtime_id}", self.0.display())).exists()
    }
}

impl Host {
    pub async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "berth-runtime-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let at = |part: &str| directory.path().join(part);
        fs::write(at("logger"), LOGGER).unwrap();
        fs::set_permissions(at("logger"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at("config.toml"), containerd_config(directory.path())).unwrap();
        let containerd = spawn_containerd(directory.path());
        image::write_archive(&at("image.tar"));
        ctr(
            directory.path(),
            &[
                "images",
                "import",
                "--snapshotter",
                "overlayfs",
                at("image.tar").to_str().unwrap(),
            ],
        );
        let config = RuntimeConfig {
            instance: name.clone(),
            containerd: at("containerd.sock"),
            namespace: namespace(directory.path()),
            snapshotter: "overlayfs".to_owned(),
            runtime: "io.containerd.runc.v2".to_owned(),
            binary_name: None,
            runtimes: BTreeMap::new(),
            seccomp_dir: at("seccomp"),
            gpus: Default::default(),
            quotas: berth_agent::effects::quotas::Quotas::new(&at("state")),
            logger: at("logger"),
            init: None,
            logger_socket: at("socket"),
            log_dir: at("logs"),
            run_dir: at("run"),
            name_server: None,
            cgroup_parent: name,
            cgroup_version: cgroups::version(),
            volumes: Volumes::new(Places::new(&at("state"), &at("run"), Vec::new())),
            start_concurrency: 4,
        };
        let channel = containerd_client::connect(at("containerd.sock")).await.unwrap();
        let registry = Arc::new(Registered(at("socket")));
        let runtime = Runtime::new(channel, config.clone()).with_registry(registry);
        let chain_id = top_snapshot(directory.path());
        Self {
            runtime,
            config,
            directory,
            containerd: Some(containerd),
            chain_id,
        }
    }

    /// A second runtime on the same containerd, as after a restart of the agent: it remembers nothing.
    pub async fn forgetful(&self) -> Runtime {
        self.runtime_with(self.config.clone())
            .await
            .with_registry(Arc::new(Registered(self.config.logger_socket.clone())))
    }

    /// With the logger as it is shipped, and nobody for it to register at.
    pub async fn with_real_logger(&self) -> Runtime {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "berth-logger"])
            .status();
        assert!(built.unwrap().success());
        let target = std::env::current_exe()
            .unwrap()
            .ancestors()
            .nth(2)
            .unwrap()
            .to_owned();
        self.runtime_with(RuntimeConfig {
            logger: target.join("berth-logger"),
            ..self.config.clone()
        })
        .await
    }

    pub async fn runtime_with(&self, config: RuntimeConfig) -> Runtime {
        let channel = containerd_client::connect(self.directory.path().join("containerd.sock"))
            .await
            .unwrap();
        Runtime::new(channel, config)
    }

    /// A task with its cgroups, and a request for its only container to run a shell script.
    pub fn request(&self, script: &str) -> StartContainer {
        let task: TaskId = unique_id().parse().unwrap();
        for part in ["rt", "c"] {
            cgroups::make(&format!("{}/{part}", self.task_cgroup(&task)));
        }
        StartContainer {
            task,
            attempt: Attempt::FIRST,
            spec: ContainerSpec {
                id: unique_id().parse().unwrap(),
                name: "app".into(),
                image: image::REFERENCE.into(),
                image_digest: String::new(),
                entry_point: vec![],
                command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
                environment: vec![],
                environment_files: vec![],
                working_directory: String::new(),
                user: String::new(),
                cpu_units: 0,
                memory_bytes: 0,
                memory_reservation_bytes: 0,
                essential: true,
                depends_on: vec![],
                stop_timeout_ms: 30_000,
                start_timeout_ms: 0,
                ports: vec![],
                labels: BTreeMap::new(),
                readonly_root_filesystem: false,
                ulimits: vec![],
                log: LogSpec {
                    max_size_bytes: 1 << 20,
                    max_files: 1,
                    blocking: false,
                    max_buffer_bytes: 0,
                    discard: false,
                    attributes: Default::default(),
                },
                linux: Default::default(),
                networking: Default::default(),
                pseudo_terminal: false,
                interactive: false,
                restart: None,
                volumes: Default::default(),
                health_check: None,
                gpus: vec![],
            },
            image: ResolvedImage {
                reference: image::REFERENCE.into(),
                digest: String::new(),
                resolved: String::new(),
                chain_id: self.chain_id.clone(),
                config: ImageConfig::default(),
            },
            network: NetworkMode::None,
            address: None,
            task_limits: Limits::default(),
            task_privileged: false,
            task_swaps: false,
            ephemeral_storage_bytes: 0,
            pid: Default::default(),
            ipc: Default::default(),
            runtime: String::new(),
            task_sysctls: vec![],
            mounts: vec![],
            task_arn: "arn:aws:ecs:local:0:task/c/t".into(),
            cluster: "c".into(),
            family: "f".into(),
            revision: 1,
        }
    }

    pub fn task_cgroup(&self, task: &TaskId) -> String {
        format!("/{}/{task}", self.config.cgroup_parent)
    }

    pub fn container_cgroup(&self, request: &StartContainer) -> String {
        oci::container_cgroup(&self.config.cgroup_parent, &request.task, &request.spec.id)
    }

    pub async fn started(&self, request: &StartContainer) -> Started {
        // As the core does: containerd itself now and then loses a race with a shim that is leaving.
        for _ in 1..START_TRIES_MAX {
            match self.try_start(request).await {
                Ok(started) => return started,
                Err(error) if error.retryable() => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(error) => panic!("{:?}", error.failure()),
            }
        }
        self.try_start(request)
            .await
            .unwrap_or_else(|error| panic!("{:?}", error.failure()))
    }

    pub async fn try_start(&self, request: &StartContainer) -> Result<Started, RuntimeError> {
        self.runtime.start(request, None, CancellationToken::new()).await
    }

    pub async fn signal(&self, request: &StartContainer, kind: SignalKind) {
        self.runtime
            .signal(&request.spec.id, request.attempt, kind)
            .await
            .unwrap();
    }

    pub async fn remove(&self, request: &StartContainer) {
        self.runtime
            .remove(&request.spec.id, request.attempt)
            .await
            .unwrap();
    }

    pub async fn state(&self, request: &StartContainer) -> Option<ObservedState> {
        let listed = self.runtime.list().await.unwrap();
        let same = listed
            .into_iter()
            .find(|c| c.container == request.spec.id && c.attempt == request.attempt);
        same.map(|container| container.state)
    }

    /// Waits for the end of the container's process.
    pub async fn exit_code(&self, request: &StartContainer) -> i32 {
        eventually("the container ends", async || match self.state(request).await {
            Some(ObservedState::Exited { code, .. }) => Some(code),
            _ => None,
        })
        .await
    }

    /// Runs to its end; its output.
    pub async fn output(&self, request: &StartContainer) -> String {
        self.started(request).await;
        assert_eq!(self.exit_code(request).await, 0, "{}", self.log(request));
        // The logger has drained when this returns.
        self.remove(request).await;
        self.log(request)
    }

    pub fn log(&self, request: &StartContainer) -> String {
        let file = format!(
            "{}/{}/{}-json.log",
            request.task, request.spec.name, request.spec.id
        );
        fs::read_to_string(self.config.log_dir.join(file)).unwrap_or_default()
    }

    /// What containerd and the run directory have of a container, as containerd's own tool tells it.
    pub fn leftovers(&self, request: &StartContainer) -> Vec<String> {
        let id = runtime_id(&request.spec.id, request.attempt);
        let mut found = Vec::new();
        for what in ["tasks", "containers", "snapshots"] {
            let listed = ctr(self.directory.path(), &[what, "ls"]);
            found.extend(
                listed
                    .lines()
                    .filter(|line| line.contains(&id))
                    .map(str::to_owned),
            );
        }
        let files = self.config.run_dir.join("tasks").join(request.task.as_str());
        found.extend(files.exists().then(|| files.display().to_string()));
        found
    }

    pub fn ctr(&self, args: &[&str]) -> String {
        ctr(self.directory.path(), args)
    }

    /// SIGKILL; containers go on.
    pub fn kill_containerd(&mut self) {
        let mut child = self.containerd.take().expect("containerd runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn restart_containerd(&mut self) {
        self.containerd = Some(spawn_containerd(self.directory.path()));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        cgroups::clear(&format!("/{}", self.config.cgroup_parent));
        let sockets = shim_sockets(self.directory.path());
        if self.containerd.is_some() {
            self.kill_containerd();
        }
        sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
        kill_shims(self.directory.path());
        // runc's own state is the same directory for every containerd.
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.config.namespace));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for path in ours.filter(|path| Path::new(path).starts_with(self.directory.path())) {
            let _ = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Tries until there is an answer.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "in {DEADLINE:?} never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn unique_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn containerd_config(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{directory}/containerd.sock"
[ttrpc]
address = "{directory}/containerd.sock.ttrpc"
"#
    )
}

fn spawn_containerd(directory: &Path) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join("containerd.log"))
        .unwrap();
    let child = Command::new("containerd")
        .arg("--config")
        .arg(directory.join("config.toml"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("containerd is installed");
    let began = Instant::now();
    let socket = directory.join("containerd.sock");
    let answers = || {
        Command::new("ctr")
            .arg("-a")
            .arg(&socket)
            .arg("version")
            .output()
            .unwrap()
            .status
            .success()
    };
    while !answers() {
        let log = || fs::read_to_string(directory.join("containerd.log")).unwrap_or_default();
        assert!(
            began.elapsed() < DEADLINE,
            "containerd does not answer: {}",
            log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn ctr(directory: &Path, args: &[&str]) -> String {
    let socket = directory.join("containerd.sock");
    let output = Command::new("ctr")
        .arg("-a")
        .arg(socket)
        .args(["-n", &namespace(directory)])
        .args(args)
        .output();
    let output = output.expect("ctr is installed");
    assert!(
        output.status.success(),
        "ctr {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The committed snapshot that no other one has as its parent.
fn top_snapshot(directory: &Path) -> String {
    let listed = ctr(directory, &["snapshots", "ls"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let keys: Vec<Vec<String>> = listed.lines().skip(1).map(words).collect();
    let is_parent = |key: &str| keys.iter().any(|row| row.len() == 3 && row[1] == key);
    let top = keys
        .iter()
        .find(|row| row.last().is_some_and(|kind| kind == "Committed") && !is_parent(&row[0]));
    top.unwrap_or_else(|| panic!("no snapshot in {listed}"))[0].clone()
}

/// Those that ctr started are in no cgroup of ours; each shim has its containerd's address among its arguments.
fn kill_shims(directory: &Path) {
    let socket = directory.join("containerd.sock").display().to_string();
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.contains("containerd-shim") && arguments.split('\0').any(|argument| argument == socket)
    };
    for pid in pids.filter(is_ours) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Its own, because runc tells containers of different containerds apart by it alone.
fn namespace(directory: &Path) -> String {
    directory.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Where the shims listen: a shim that is killed leaves its socket behind, outside our directory.
fn shim_sockets(directory: &Path) -> Vec<PathBuf> {
    let bundles = directory
        .join("state/io.containerd.runtime.v2.task")
        .join(namespace(directory));
    let addresses = fs::read_dir(bundles).into_iter().flatten().flatten();
    let socket = |bundle: fs::DirEntry| {
        let address = fs::read_to_string(bundle.path().join("address")).ok()?;
        Some(PathBuf::from(address.strip_prefix("unix://")?))
    };
    addresses.filter_map(socket).collect()
}
