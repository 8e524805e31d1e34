//! Owns several nodes on one machine: each a network namespace with an agent and a containerd of its own, joined by a bridge,
//! on which the control plane listens.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use berth_control_plane::app::ControlPlane;
use serde_json::{Value, json};
use tokio::sync::OwnedRwLockReadGuard;

use crate::{
    cluster::{HOST, binary, clean_up, container, control_plane_config, spawn_agent},
    containerd::{Containerd, within},
    ecs::Client,
    image,
    listing::is_ready,
};

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Fleet {
    pub client: Client,
    pub nodes: Vec<Node>,
    control_plane: Option<ControlPlane>,
    node_listen: SocketAddr,
    /// All names begin with it.
    name: String,
    /// The third octet of the network that the nodes are on.
    octet: u8,
    dir: tempfile::TempDir,
    _share: OwnedRwLockReadGuard<()>,
}

/// A host of its own, as far as the network goes.
#[derive(Debug)]
pub struct Node {
    /// The container instance's id.
    pub id: String,
    pub cluster: String,
    /// On the network of the nodes.
    pub address: Ipv4Addr,
    instance: String,
    dir: PathBuf,
    config: String,
    containerd: Option<Containerd>,
    agent: Option<Child>,
}

impl Fleet {
    /// A control plane, with the clusters `default` and `other`, and no node.
    pub async fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let share = Arc::clone(&HOST).read_owned().await;
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let octet = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bf{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir().unwrap();
        ip(&format!("link add {name} type bridge"));
        ip(&format!("addr add 10.93.{octet}.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        std::fs::create_dir(dir.path().join("images")).unwrap();
        image::busybox(&dir.path().join("images/busy.tar"));
        let listen: SocketAddr = format!("10.93.{octet}.1:0").parse().unwrap();
        let config = control_plane_config(&dir, "127.0.0.1:0".parse().unwrap(), listen, None);
        let control_plane = ControlPlane::start(config).await.unwrap();
        let client = Client::new(control_plane.api_addr());
        for cluster in ["default", "other"] {
            client
                .ok("CreateCluster", json!({ "clusterName": cluster }))
                .await;
        }
        Self {
            node_listen: control_plane.node_addr(),
            control_plane: Some(control_plane),
            client,
            nodes: Vec::new(),
            name,
            octet,
            dir,
            _share: share,
        }
    }

    /// Adds a node, with lines of configuration for its agent; `before` is run in its namespace first. Its index, once it
    /// is connected.
    pub async fn add(&mut self, cluster: &str, agent_config: &str, before: &[&str]) -> usize {
        let index = self.nodes.len();
        let number = index + 2;
        let id = format!("{number:032x}");
        let instance = format!("{}{index}", self.name);
        let dir = self.dir.path().join(&instance);
        std::fs::create_dir(&dir).unwrap();
        let address: Ipv4Addr = format!("10.93.{}.{number}", self.octet).parse().unwrap();
        // Before the first thing of it is made: whatever fails from here on, all of it goes with the fleet.
        self.nodes.push(Node {
            id: id.clone(),
            cluster: cluster.into(),
            address,
            instance: instance.clone(),
            dir: dir.clone(),
            config: String::new(),
            containerd: None,
            agent: None,
        });
        ip(&format!("netns add {instance}"));
        ip(&format!("-n {instance} link set lo up"));
        self.plug_in(index);
        for command in before {
            ip(&format!("-n {instance} {command}"));
        }
        let authority = self.control_plane.as_ref().unwrap().authority();
        authority
            .issue_node(&id, cluster)
            .unwrap()
            .write_to(&dir)
            .unwrap();
        let netns = Path::new("/run/netns").join(&instance);
        let containerd = Containerd::start_in(&dir.join("containerd"), Some(netns));
        let path = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "instance = {instance:?}\nstate_dir = {:?}\nrun_dir = \"/run/{instance}\"\ncontainerd_address = {:?}\n\
             control_plane = \"https://{}\"\nnode_id = {id:?}\ncertificate = {:?}\nkey = {:?}\nauthority = {:?}\n\
             task_cidr = \"10.91.200.0/24\"\nimages_dir = {:?}\n{agent_config}",
            path("agent"),
            containerd.socket(),
            self.node_listen,
            path("node.pem"),
            path("node.key"),
            path("authority.pem"),
            self.dir.path().join("images"),
        );
        let node = &mut self.nodes[index];
        (node.config, node.containerd) = (config, Some(containerd));
        node.start_agent();
        self.wait_connected(index, true).await;
        index
    }

    /// Gives the node its link to the network of the nodes, `up0`, with its address and the default route.
    pub fn plug_in(&self, node: usize) {
        let Node {
            instance, address, ..
        } = &self.nodes[node];
        ip(&format!(
            "link add {instance}h type veth peer name up0 netns {instance}"
        ));
        ip(&format!("link set {instance}h master {} up", self.name));
        ip(&format!("-n {instance} addr add {address}/24 dev up0"));
        ip(&format!("-n {instance} link set up0 up"));
        ip(&format!("-n {instance} route add default via {}", self.address()));
    }

    /// Takes that link away, and with it what led over it.
    pub fn unplug(&self, node: usize) {
        ip(&format!("link del {}h", self.nodes[node].instance));
    }

    pub async fn wait_connected(&self, node: usize, wanted: bool) {
        let what = format!("node {node} to be connected: {wanted}");
        self.until(&what, async || {
            (self.instance(node).await["agentConnected"] == wanted).then_some(())
        })
        .await;
    }

    /// The node as DescribeContainerInstances has it, with its health.
    pub async fn instance(&self, node: usize) -> Value {
        let node = &self.nodes[node];
        let body = json!({ "cluster": node.cluster, "containerInstances": [node.id], "include": ["CONTAINER_INSTANCE_HEALTH"] });
        let described = self.client.ok("DescribeContainerInstances", body).await;
        described["containerInstances"][0].clone()
    }

    /// Asks until there is an answer, and fails with what the agents said when there is none in time.
    pub async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                begun.elapsed() < crate::emulated(LIMIT),
                "waited {LIMIT:?} for {what}; the agents said:\n{}",
                self.nodes.iter().map(Node::says).collect::<String>()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a subnet; its id.
    pub async fn subnet(&self, cluster: &str, name: &str, range: &str) -> String {
        let body = json!({ "cluster": cluster, "name": name, "cidrBlock": range });
        self.make_subnet(body).await
    }

    /// Likewise, of which tasks have IPv6 addresses too.
    pub async fn dual_subnet(&self, name: &str, range: &str, prefix: &str) -> String {
        let body = json!({ "name": name, "cidrBlock": range, "ipv6CidrBlock": prefix });
        self.make_subnet(body).await
    }

    async fn make_subnet(&self, body: Value) -> String {
        let answer = self.client.berth("CreateSubnet", body).await;
        answer["subnet"]["subnetId"].as_str().unwrap().to_owned()
    }

    /// Likewise of a range of the network that the nodes are on, over a link of theirs, or another network.
    pub async fn lan(&self, body: Value) -> String {
        let mut whole = json!({
            "kind": "macvlan", "cidrBlock": format!("10.93.{}.0/24", self.octet), "range": format!("10.93.{}.128/25", self.octet),
            "gateway": self.address(), "uplink": "up0",
        });
        let fields = body.as_object().unwrap().clone();
        whole.as_object_mut().unwrap().extend(fields);
        let answer = self.client.berth("CreateSubnet", whole).await;
        answer["subnet"]["subnetId"].as_str().unwrap().to_owned()
    }

    /// A part of the network of the nodes.
    pub fn range(&self, first: u8, prefix: u8) -> String {
        format!("10.93.{}.{first}/{prefix}", self.octet)
    }

    /// Of this machine, on the network of the nodes.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 93, self.octet, 1)
    }

    /// This machine's link to it.
    pub fn bridge(&self) -> &str {
        &self.name
    }

    /// The node's part of a subnet, as ListSubnets has it.
    pub async fn part(&self, node: usize, subnet: &str) -> Value {
        let node = &self.nodes[node];
        let body = json!({ "cluster": node.cluster });
        let listed = self.client.berth("ListSubnets", body).await;
        let subnets = listed["subnets"].as_array().unwrap();
        let subnet = subnets.iter().find(|one| one["subnetId"] == subnet).unwrap();
        let mut nodes = subnet["nodes"].as_array().unwrap().iter();
        nodes
            .find(|one| one["node"] == node.id)
            .cloned()
            .unwrap_or_default()
    }

    /// Asks for a task that does nothing, in this subnet, on this node; the answer.
    pub async fn try_run(&self, node: usize, subnet: &str) -> Value {
        let body = self.idle(node, json!({ "subnets": [subnet] })).await;
        self.client.ok("StartTask", body).await
    }

    /// Likewise with its ports on the node's address, which is refused; the answer.
    pub async fn try_publish(&self, node: usize, subnet: &str) -> String {
        let network = json!({ "subnets": [subnet], "assignPublicIp": "ENABLED" });
        let body = self.idle(node, network).await;
        let answer = self
            .client
            .send("AmazonEC2ContainerServiceV20141113.StartTask", body)
            .await;
        answer.text().await.unwrap()
    }

    async fn idle(&self, node: usize, network: Value) -> Value {
        let node = &self.nodes[node];
        let definition = json!({
            "family": "idle", "networkMode": "awsvpc", "cpu": "128", "memory": "64",
            "containerDefinitions": [container("main", "sleep 3600")],
        });
        let answer = self.client.ok("RegisterTaskDefinition", definition).await;
        json!({
            "cluster": node.cluster, "containerInstances": [node.id],
            "taskDefinition": answer["taskDefinition"]["taskDefinitionArn"],
            "networkConfiguration": { "awsvpcConfiguration": network },
        })
    }

    /// A task that runs.
    pub async fn run(&self, node: usize, subnet: &str) -> Task {
        let answer = self.try_run(node, subnet).await;
        assert_eq!(answer["failures"], json!([]), "{answer}");
        let arn = answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
        let described = self.wait_status(node, &arn, "RUNNING").await;
        let details = described["attachments"][0]["details"].as_array().unwrap();
        let detail = |name: &str| {
            let found = details.iter().find(|detail| detail["name"] == name);
            found.unwrap()["value"].as_str().unwrap().to_owned()
        };
        assert_eq!(detail("subnetId"), subnet);
        let id = arn.rsplit('/').next().unwrap();
        Task {
            address: detail("privateIPv4Address").parse().unwrap(),
            ipv6: details
                .iter()
                .find(|detail| detail["name"] == "ipv6Address")
                .map(|detail| detail["value"].as_str().unwrap().parse().unwrap()),
            netns: self.nodes[node].run_dir().join("netns").join(id),
            mac: detail("macAddress"),
            arn,
        }
    }

    pub async fn wait_status(&self, node: usize, task: &str, status: &str) -> Value {
        let cluster = &self.nodes[node].cluster;
        self.until(&format!("{task} to be {status}"), async || {
            let body = json!({ "cluster": cluster, "tasks": [task] });
            let answer = self.client.ok("DescribeTasks", body).await;
            let described = answer["tasks"][0].clone();
            let failed = described["lastStatus"] == "STOPPED" && status != "STOPPED";
            assert!(!failed, "stopped instead of {status}: {described:#}");
            (described["lastStatus"] == status).then_some(described)
        })
        .await
    }

    pub async fn stop(&self, node: usize, task: &Task) {
        let cluster = &self.nodes[node].cluster;
        let body = json!({ "cluster": cluster, "task": task.arn });
        self.client.ok("StopTask", body).await;
        self.wait_status(node, &task.arn, "STOPPED").await;
    }
}

/// A task with an address of its own.
#[derive(Debug)]
pub struct Task {
    pub arn: String,
    pub address: Ipv4Addr,
    /// None: its subnet has no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Its network namespace.
    pub netns: PathBuf,
    pub mac: String,
}

impl Node {
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.instance)
    }

    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.instance)
    }

    pub fn start_agent(&mut self) {
        let command = within(Some(&self.netns()), binary("berth-agent"));
        let (file, log) = (self.dir.join("agent.toml"), self.dir.join("agent.log"));
        self.agent = Some(spawn_agent(command, &self.config, &file, &log));
    }

    /// SIGKILL: the agent gets no chance to tidy up.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn says(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Runs `ip` in its namespace; what it printed.
    pub fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.instance))
    }

    /// Its links, but those of namespaces that its agent keeps ready.
    pub fn links(&self) -> Vec<String> {
        let listed = self.ip("-br link");
        let name = |line: &str| line.split(['@', ' ']).next().unwrap_or_default().to_owned();
        let links = listed.lines().filter(|line| !is_ready(&name(line)));
        links.map(str::to_owned).collect()
    }

    /// The routes that its agent made to whole ranges: `10.64.0.0/26 via 10.93.1.3`, `unreachable 10.64.0.64/26`.
    pub fn ranges(&self) -> Vec<String> {
        self.routes("-4")
    }

    /// Likewise of IPv6.
    pub fn ipv6_ranges(&self) -> Vec<String> {
        self.routes("-6")
    }

    fn routes(&self, family: &str) -> Vec<String> {
        let listed = self.ip(&format!("{family} route show proto 190"));
        let brief = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kept = if words[0] == "unreachable" { 2 } else { 3 };
            words[..kept.min(words.len())].join(" ")
        };
        listed.lines().map(brief).collect()
    }
}

/// What `ip` says to it.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut agent) = node.agent.take() {
                let _ = agent.kill();
                let _ = agent.wait();
            }
            clean_up(&node.instance, &node.dir);
            drop(node.containerd.take());
            for arguments in [
                ["netns", "del", &node.instance],
                ["link", "del", &format!("{}h", node.instance)],
            ] {
                let quiet = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
                let _ = quiet;
            }
        }
        let _ = Command::new("ip").args(["link", "del", &self.name]).status();
    }
}
