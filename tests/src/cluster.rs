//! Owns a whole Berth on this host: private containerd, control plane in this process, agent in a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use berth_control_plane::{api::ApiKey, app::ControlPlane, config::Config, store::SharedStore};
use serde_json::{Value, json};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::{
    containerd::Containerd,
    ecs::{ACCESS_KEY_ID, Client, SECRET_ACCESS_KEY},
    image,
    listing::{self, Listing},
};

const NODE_ID: &str = "00000000000000000000000000007e57";
const LIMIT: Duration = Duration::from_secs(60);

/// What a test wants different.
#[derive(Clone, Debug)]
pub struct Options {
    pub task_cidr: String,
    /// Lines added to the agent's configuration.
    pub agent_config: String,
    /// Where the agent's state goes instead of the test's directory.
    pub agent_state_dir: Option<PathBuf>,
    /// Where all of the cluster is, containerd's root among it, instead of the system's place for such.
    pub directory: Option<PathBuf>,
    /// The node joins by token, and its certificates are good for so long.
    pub joins: Option<Duration>,
    pub agent_environment: Vec<(String, String)>,
    /// What the service manager hands to the next agent: names, and where a duplicate can be opened.
    pub agent_fds: Vec<(String, PathBuf)>,
}

impl Default for Options {
    /// Every cluster of a run has a range of its own: they share one host.
    fn default() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            task_cidr: format!("10.91.{n}.0/24"),
            agent_config: String::new(),
            agent_state_dir: None,
            directory: None,
            joins: None,
            agent_environment: Vec::new(),
            agent_fds: Vec::new(),
        }
    }
}

/// Tests that list the whole host, or measure it, have it to themselves; the others share it.
pub(crate) static HOST: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

#[derive(Debug)]
#[allow(dead_code, reason = "held until the cluster is gone")]
enum Share {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

#[derive(Debug)]
pub struct Cluster {
    pub instance: String,
    pub client: Client,
    pub containerd: Containerd,
    pub options: Options,
    dir: tempfile::TempDir,
    control_plane: Option<ControlPlane>,
    api: SocketAddr,
    nodes: SocketAddr,
    agent: Option<Child>,
    _share: Share,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// With the host to itself.
    pub async fn alone() -> Self {
        Self::alone_with(Options::default()).await
    }

    pub async fn alone_with(options: Options) -> Self {
        let share = Share::Exclusive(Arc::clone(&HOST).write_owned().await);
        Self::build(options, share).await
    }

    pub async fn with(options: Options) -> Self {
        let share = Share::Shared(Arc::clone(&HOST).read_owned().await);
        Self::build(options, share).await
    }

    async fn build(options: Options, share: Share) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests start containers: run them as root"
        );
        let place = options.directory.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in(place)
            .unwrap();
        let containerd = Containerd::start(&dir.path().join("containerd"));
        std::fs::create_dir(dir.path().join("images")).unwrap();
        image::busybox(&dir.path().join("images/busy.tar"));
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = control_plane_config(&dir, any, any, options.joins);
        let control_plane = ControlPlane::start(config).await.unwrap();
        if options.joins.is_none() {
            let identity = control_plane.authority().issue_node(NODE_ID, "default").unwrap();
            std::fs::create_dir(dir.path().join("node")).unwrap();
            identity.write_to(&dir.path().join("node")).unwrap();
        }
        let (api, nodes) = (control_plane.api_addr(), control_plane.node_addr());
        let instance = format!("bt{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let client = Client::new(api);
        let control_plane = Some(control_plane);
        let mut cluster = Self {
            instance,
            client,
            containerd,
            options,
            dir,
            control_plane,
            api,
            nodes,
            agent: None,
            _share: share,
        };
        cluster
            .client
            .ok("CreateCluster", json!({ "clusterName": "default" }))
            .await;
        if cluster.options.joins.is_some() {
            let invitation = cluster.invite(json!({})).await;
            let joined = cluster.join(&invitation, &cluster.agent_state_dir(), &[]);
            assert!(joined.status.success(), "{joined:?}");
        }
        cluster.start_agent();
        cluster.wait_connected(true).await;
        cluster
    }

    /// A join token, with what goes with it: see CreateJoinToken.
    pub async fn invite(&self, body: Value) -> Value {
        self.client.berth("CreateJoinToken", body).await
    }

    /// `berth-agent register` with what [`invite`](Self::invite) answered, for a host whose state is in `state_dir`.
    pub fn join(&self, invitation: &Value, state_dir: &Path, more: &[&str]) -> Output {
        let control_plane = format!("https://{}", self.nodes);
        Command::new(binary("berth-agent"))
            .args(["register", "--json", "--control-plane", &control_plane])
            .args(["--ca-hash", invitation["caHash"].as_str().unwrap(), "--state-dir"])
            .arg(state_dir)
            .args(more)
            .env("BERTH_JOIN_TOKEN", invitation["token"].as_str().unwrap())
            .output()
            .unwrap()
    }

    /// Another agent on this host with this node's identity, as a cloned disk image has it.
    pub fn clone_of_agent(&self) -> Double {
        let name = format!("{}x", self.instance);
        let state_dir = self.dir.path().join("clone");
        let identity = state_dir.join("identity");
        std::fs::create_dir_all(&identity).unwrap();
        for file in std::fs::read_dir(self.agent_state_dir().join("identity")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), identity.join(file.file_name())).unwrap();
        }
        let log = self.dir.path().join("clone.log");
        let octet = self.options.task_cidr.split('.').nth(2).unwrap();
        let config = self.agent_config(&name, &state_dir, &format!("10.92.{octet}.0/24"));
        Double {
            agent: spawn_agent(
                Command::new(binary("berth-agent")),
                &config,
                &self.dir.path().join("clone.toml"),
                &log,
            ),
            log,
            instance: name,
            dir: self.dir.path().to_path_buf(),
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run").join(&self.instance)
    }

    pub fn agent_state_dir(&self) -> PathBuf {
        self.options
            .agent_state_dir
            .clone()
            .unwrap_or_else(|| self.dir.path().join("agent"))
    }

    /// `node.pem`, `node.key` and `authority.pem`.
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    fn agent_log(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    /// What the agent has logged so far.
    pub fn agent_says(&self) -> String {
        std::fs::read_to_string(self.agent_log()).unwrap_or_default()
    }

    pub fn agent_config_file(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    /// Where addresses of its tasks come from that are in no subnet.
    pub fn task_cidr(&self) -> &str {
        &self.options.task_cidr
    }

    fn agent_config(&self, instance: &str, state_dir: &Path, task_cidr: &str) -> String {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let identity = if self.options.joins.is_some() {
            String::new()
        } else {
            format!(
                "node_id = \"{NODE_ID}\"\ncertificate = {:?}\nkey = {:?}\nauthority = {:?}\n",
                path("node/node.pem"),
                path("node/node.key"),
                path("node/authority.pem"),
            )
        };
        format!(
            "instance = {instance:?}\nstate_dir = {state_dir:?}\nrun_dir = {:?}\ncontainerd_address = {:?}\n\
             control_plane = \"https://{}\"\n{identity}task_cidr = {task_cidr:?}\nimages_dir = {:?}\n{}",
            Path::new("/run").join(instance),
            self.containerd.socket(),
            self.nodes,
            path("images"),
            self.options.agent_config,
        )
    }

    pub fn start_agent(&mut self) {
        let state_dir = self.agent_state_dir();
        let config = self.agent_config(&self.instance, &state_dir, &self.options.task_cidr);
        let file = self.agent_config_file();
        let mut command = self.agent_command();
        command.envs(self.options.agent_environment.clone());
        self.agent = Some(spawn_agent(command, &config, &file, &self.agent_log()));
    }

    /// With descriptors from 3 on, as sd_listen_fds(3) has them.
    fn agent_command(&self) -> Command {
        let fds = &self.options.agent_fds;
        if fds.is_empty() {
            return Command::new(binary("berth-agent"));
        }
        let opened: Vec<String> = (3..)
            .zip(fds)
            .map(|(number, (_, path))| format!("{number}<{}", path.display()))
            .collect();
        let script = format!("exec {}; LISTEN_PID=$$ exec \"$0\" \"$@\"", opened.join(" "));
        let names: Vec<&str> = fds.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command
            .arg("-c")
            .arg(script)
            .arg(binary("berth-agent"))
            .env("LISTEN_FDS", fds.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        command
    }

    pub fn agent_pid(&self) -> i32 {
        i32::try_from(self.agent.as_ref().expect("the agent runs").id()).unwrap()
    }

    /// It was started, and not stopped or killed since.
    pub fn agent_runs(&self) -> bool {
        self.agent.is_some()
    }

    /// SIGKILL: the agent gets no chance to tidy up.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Waits until it ends by itself; its exit code.
    pub async fn agent_ends(&mut self) -> Option<i32> {
        let mut agent = self.agent.take().expect("the agent runs");
        tokio::task::spawn_blocking(move || agent.wait().unwrap().code())
            .await
            .unwrap()
    }

    /// SIGTERM, and its exit code.
    pub fn stop_agent(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.agent_pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.agent.take().unwrap().wait().unwrap().code()
    }

    pub async fn stop_control_plane(&mut self) {
        self.control_plane
            .take()
            .unwrap()
            .shutdown(tokio::time::Instant::now() + Duration::from_secs(5))
            .await;
    }

    pub async fn start_control_plane(&mut self) {
        let config = control_plane_config(&self.dir, self.api, self.nodes, self.options.joins);
        self.control_plane = Some(ControlPlane::start(config).await.unwrap());
    }

    /// The control plane's.
    pub fn store(&self) -> SharedStore {
        self.control_plane.as_ref().unwrap().store()
    }

    /// As the control plane has it; also while it does not run.
    pub fn control_plane_config(&self) -> Config {
        control_plane_config(&self.dir, self.api, self.nodes, self.options.joins)
    }

    /// A directory that is gone with the cluster.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    pub async fn wait_connected(&self, wanted: bool) {
        self.until(&format!("agentConnected {wanted}"), LIMIT, async || {
            let nodes = self.client.ok("ListContainerInstances", json!({})).await;
            let arns = nodes["containerInstanceArns"].clone();
            if arns.as_array().is_none_or(Vec::is_empty) {
                return None;
            }
            let body = json!({ "containerInstances": arns });
            let described = self.client.ok("DescribeContainerInstances", body).await;
            let connected = described["containerInstances"][0]["agentConnected"].as_bool();
            (connected == Some(wanted)).then_some(())
        })
        .await;
    }

    /// Asks until there is an answer, and fails with what the agent said when there is none in time.
    pub async fn until<T>(&self, what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                begun.elapsed() < crate::emulated(limit),
                "waited {limit:?} for {what}; the agent said:\n{}",
                self.agent_says()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Registers a definition of one essential container `main` that runs `sh -c SCRIPT`, changed by `change`.
    pub async fn register(&self, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut definition = json!({
            "family": "test", "networkMode": "awsvpc", "cpu": "256", "memory": "128",
            "containerDefinitions": [container("main", script)],
        });
        change(&mut definition);
        let answer = self.client.ok("RegisterTaskDefinition", definition).await;
        answer["taskDefinition"]["taskDefinitionArn"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Runs one task; its ARN.
    pub async fn run(&self, definition: &str) -> String {
        let answer = self.try_run(definition).await;
        assert_eq!(answer["failures"], json!([]), "{answer}");
        answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned()
    }

    pub async fn try_run(&self, definition: &str) -> Value {
        self.run_tagged(definition, &[]).await
    }

    /// Runs one task with these tags; the answer.
    pub async fn run_tagged(&self, definition: &str, tags: &[(&str, &str)]) -> Value {
        let tag = |(key, value): &(&str, &str)| json!({ "key": key, "value": value });
        let tags: Vec<Value> = tags.iter().map(tag).collect();
        let described = self
            .client
            .ok("DescribeTaskDefinition", json!({ "taskDefinition": definition }))
            .await;
        let mut body = json!({ "taskDefinition": definition, "tags": tags });
        if described["taskDefinition"]["networkMode"] == "awsvpc" {
            body["networkConfiguration"] =
                json!({ "awsvpcConfiguration": { "subnets": ["subnet-default"] } });
        }
        self.client.ok("RunTask", body).await
    }

    pub async fn describe(&self, task: &str) -> Value {
        let answer = self.client.ok("DescribeTasks", json!({ "tasks": [task] })).await;
        answer["tasks"][0].clone()
    }

    pub async fn wait_status(&self, task: &str, status: &str) -> Value {
        self.until(&format!("{task} to be {status}"), LIMIT, async || {
            let described = self.describe(task).await;
            if described["lastStatus"] == "STOPPED" && status != "STOPPED" {
                panic!(
                    "stopped instead of {status}: {described:#}\n{}",
                    self.agent_says()
                );
            }
            (described["lastStatus"] == status).then_some(described)
        })
        .await
    }

    /// Registers, runs, and waits until it runs.
    pub async fn running(&self, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let definition = self.register(script, change).await;
        let task = self.run(&definition).await;
        self.wait_status(&task, "RUNNING").await;
        task
    }

    pub async fn stop(&self, task: &str) -> Value {
        self.client.ok("StopTask", json!({ "task": task })).await;
        self.wait_status(task, "STOPPED").await
    }

    /// Processes of a container of the task, by the kernel's own account.
    pub fn pids(&self, task: &str) -> Vec<i32> {
        let dir = self.cgroup("memory", task).join("c");
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let procs = std::fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids.sort_unstable();
        pids
    }

    /// The task's cgroup in a hierarchy of v1, or in the only one of v2.
    pub fn cgroup(&self, controller: &str, task: &str) -> PathBuf {
        let id = task.rsplit('/').next().unwrap();
        let root = PathBuf::from("/sys/fs/cgroup");
        let v1 = root.join(controller);
        let root = if v1.is_dir() { v1 } else { root };
        root.join(format!("{}.slice", self.instance)).join(id)
    }

    /// The task's cgroup, or one below it (`<task>/rt`), in every hierarchy that has it.
    pub fn cgroups(&self, task: &str) -> Vec<PathBuf> {
        let task = task.rsplit_once("task/").map_or(task, |(_, name)| name);
        let path = task.split_once('/').map_or(task, |(_cluster, path)| path);
        let below = Path::new(&format!("{}.slice", self.instance)).join(path);
        let mounts = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        let v1 = mounts.map(|entry| entry.unwrap().path().join(&below));
        let all = v1.chain([Path::new("/sys/fs/cgroup").join(&below)]);
        let found: Vec<_> = all.filter(|dir| dir.is_dir()).collect();
        assert!(!found.is_empty(), "there is no cgroup {}", below.display());
        found
    }

    /// Where this instance's tasks have cgroups, as the shell's patterns.
    pub(crate) fn cgroup_parents(&self) -> String {
        cgroup_parents(&self.instance)
    }

    pub fn listing(&self) -> Listing {
        let mut all = listing::host(&self.instance, &self.run_dir(), &self.containerd);
        let volumes = std::fs::read_dir(self.agent_state_dir().join("volumes/tasks"));
        let names = volumes
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        all.extend(names.map(|name| format!("volumes {}", name.display())));
        all
    }

    /// The listing, once it is as it was; otherwise fails with the difference.
    pub async fn assert_nothing_left(&self, before: &Listing) {
        let begun = Instant::now();
        loop {
            let left: Vec<_> = self.listing().difference(before).cloned().collect();
            if left.is_empty() {
                return;
            }
            assert!(
                begun.elapsed() < crate::emulated(Duration::from_secs(2)),
                "left behind: {left:#?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The body of one container.
pub fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": image::BUSYBOX, "essential": true, "stopTimeout": 2,
        "command": ["sh", "-c", script],
    })
}

pub(crate) fn spawn_agent(mut command: Command, config: &str, file: &Path, log: &Path) -> Child {
    std::fs::write(file, config).unwrap();
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    command
        .arg("run")
        .arg("--config")
        .arg(file)
        .env("BERTH_LOG", "debug,h2=info,hyper=info,tower=info,rustls=info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// An agent that should not be.
#[derive(Debug)]
pub struct Double {
    agent: Child,
    log: PathBuf,
    instance: String,
    dir: PathBuf,
}

impl Double {
    /// What it has logged so far.
    pub fn says(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        clean_up(&self.instance, &self.dir);
    }
}

pub(crate) fn control_plane_config(
    dir: &tempfile::TempDir,
    api_listen: SocketAddr,
    node_listen: SocketAddr,
    certificates: Option<Duration>,
) -> Config {
    let key = ApiKey {
        access_key_id: ACCESS_KEY_ID.into(),
        secret: SECRET_ACCESS_KEY.into(),
    };
    Config {
        api_listen,
        node_listen,
        node_silence: crate::emulated(Duration::from_secs(3)),
        heartbeat_interval: Duration::from_millis(500),
        node_certificate_lifetime: certificates.unwrap_or(Duration::from_secs(86_400)),
        ..Config::new(dir.path().join("control-plane"), vec![key])
    }
}

/// berth-init beside the agent, where usual builds do not put it; call it before the agent starts. Where there are only
/// binaries, it was put there with them.
pub fn build_init() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-helpers");
    if script.exists() {
        let agent = binary("berth-agent");
        let built = Command::new(script)
            .args([agent.parent().unwrap(), Path::new("berth-init")])
            .status();
        assert!(built.unwrap().success());
    }
    binary("berth-init");
}

/// A binary of this workspace, in the profile of the test.
pub fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    while dir.file_name().is_some_and(|name| name != "deps") {
        dir.pop();
    }
    let path = dir.with_file_name(name);
    assert!(
        path.is_file(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    path
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        clean_up(&self.instance, self.dir.path());
    }
}

/// Where an instance's tasks have cgroups, as the shell's patterns.
fn cgroup_parents(instance: &str) -> String {
    format!("/sys/fs/cgroup/*/{instance}.slice /sys/fs/cgroup/{instance}.slice")
}

/// What a failed test left: this instance's shims by pid, then its namespaces, links, cgroups and table.
pub(crate) fn clean_up(instance: &str, dir: &Path) {
    let script = format!(
        "for p in $(pgrep -f -- '[-]namespace {0} '); do kill -9 $p; done; \
         for d in {2}; do [ -d $d ] && find $d -name cgroup.procs | \
         xargs cat 2>/dev/null | xargs -r kill -9; done; sleep 0.2; \
         for n in /run/{0}/netns/*; do umount -l $n; done; umount -l /run/{0}/netns; \
         for m in /run/{0}/shm/*; do umount -l $m; done; \
         rm -rf --one-file-system /run/{0}; \
         for d in {2}; do [ -d $d ] && find $d -depth -type d -exec rmdir {{}} +; done; \
         nft delete table inet {0}; \
         for m in $(cut -d' ' -f5 /proc/self/mountinfo | grep '^{1}/'); do umount -l $m; done; true",
        instance,
        dir.display(),
        cgroup_parents(instance),
    );
    let _ = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
}
