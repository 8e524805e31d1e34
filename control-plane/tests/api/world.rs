//! A control plane with its API on loopback, and the hands to play its nodes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use berth_control_plane::{
    api::{ApiConfig, ApiKey, CLOCK_SKEW_MAX, router},
    audit::{AUDIT_FILE, Audit},
    model::{Allocation, Identity, Node, PendingCertificate, Task, keys},
    nodes::{Held, LogReceiver, NodeError, Nodes},
    pki::Authorities,
    store::{Committed, Operation, Store, Transaction, sqlite::SqliteStore, typed},
};
use berth_control_plane_core::{definition::UnsupportedLogDriver, task::FEATURES};
use berth_proto::node::v1::{Heartbeat, LogLine, LogRequest, Pulls, TaskSpec};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{Answer, Call, KEY, REGION, SECRET};

pub const ACCOUNT: &str = "123456789012";
pub const MIB: u64 = 1 << 20;

/// What one receive from a node's log stream gives.
type Batch = Result<Vec<LogLine>, String>;

/// Nodes as far as the API asks them: what they answer is put here by the test.
#[derive(Debug)]
pub struct FakeNodes {
    pub advertised: Mutex<String>,
    pub authorities: Arc<Authorities>,
    pub heartbeats: Mutex<HashMap<String, Heartbeat>>,
    pub pulls: Mutex<HashMap<String, Pulls>>,
    pub held: Mutex<HashMap<String, Held>>,
    pub logs: Mutex<HashMap<String, Vec<Batch>>>,
    pub asked: Mutex<Vec<LogRequest>>,
}

#[async_trait]
impl Nodes for FakeNodes {
    fn latest_heartbeat(&self, node: &str) -> Option<Heartbeat> {
        self.heartbeats.lock().unwrap().get(node).cloned()
    }

    fn latest_pulls(&self, node: &str) -> Option<Pulls> {
        self.pulls.lock().unwrap().get(node).cloned()
    }

    fn held(&self, node: &str) -> Option<Held> {
        self.held.lock().unwrap().get(node).cloned()
    }

    fn advertised(&self) -> String {
        self.advertised.lock().unwrap().clone()
    }

    fn authorities(&self) -> Arc<Authorities> {
        self.authorities.clone()
    }

    async fn open_logs(&self, node: &str, request: LogRequest) -> Result<LogReceiver, NodeError> {
        self.asked.lock().unwrap().push(request);
        let batches = self.logs.lock().unwrap().remove(node);
        let batches = batches.ok_or_else(|| NodeError::NotConnected(node.to_owned()))?;
        let (sender, receiver) = mpsc::channel(16);
        for batch in batches {
            sender.send(batch).await.unwrap();
        }
        Ok(receiver)
    }
}

pub struct World {
    pub address: SocketAddr,
    pub store: Arc<SqliteStore>,
    pub nodes: Arc<FakeNodes>,
    pub audit: Audit,
    server: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path().join("store.db")).unwrap());
        let nodes = Arc::new(FakeNodes {
            advertised: Mutex::new("cp.example.org:8781".into()),
            authorities: Arc::new(Authorities::load_or_create(&dir.path().join("pki")).unwrap()),
            heartbeats: Mutex::default(),
            pulls: Mutex::default(),
            held: Mutex::default(),
            logs: Mutex::default(),
            asked: Mutex::default(),
        });
        let audit = Audit::open(&dir.path().join(AUDIT_FILE)).unwrap();
        let key = ApiKey {
            access_key_id: KEY.into(),
            secret: SECRET.into(),
        };
        let (address, server) = serve(vec![key], store.clone(), nodes.clone(), audit.clone());
        Self {
            address,
            store,
            nodes,
            audit,
            server,
            _dir: dir,
        }
    }

    /// The same store behind another API: only keys of the store are good there.
    pub fn without_configured_keys(mut self) -> Self {
        self.server.abort();
        (self.address, self.server) =
            serve(vec![], self.store.clone(), self.nodes.clone(), self.audit.clone());
        self
    }

    /// The same store behind another API that refuses log drivers that do not exist yet.
    pub fn refusing_log_drivers(mut self) -> Self {
        self.server.abort();
        let key = ApiKey {
            access_key_id: KEY.into(),
            secret: SECRET.into(),
        };
        (self.address, self.server) = serve_where(
            vec![key],
            UnsupportedLogDriver::Refuse,
            self.store.clone(),
            self.nodes.clone(),
            self.audit.clone(),
        );
        self
    }

    /// The same store behind another API that writes its audit log elsewhere.
    pub fn with_audit(mut self, path: &str) -> Self {
        self.server.abort();
        self.audit = Audit::open(path.as_ref()).unwrap();
        let key = ApiKey {
            access_key_id: KEY.into(),
            secret: SECRET.into(),
        };
        (self.address, self.server) = serve(
            vec![key],
            self.store.clone(),
            self.nodes.clone(),
            self.audit.clone(),
        );
        self
    }

    /// With the cluster "default" and one node, which is returned.
    pub async fn with_node() -> (Self, String) {
        let world = Self::new().await;
        world.ok("CreateCluster", json!({})).await;
        let node = world.add_node("default", |_| {}).await;
        (world, node)
    }

    pub async fn call(&self, operation: &str, body: Value) -> Answer {
        Call::ecs(operation, &body).send(self.address).await
    }

    pub async fn ok(&self, operation: &str, body: Value) -> Value {
        self.call(operation, body).await.ok()
    }

    pub async fn refused(&self, operation: &str, body: Value, code: &str) -> String {
        self.call(operation, body).await.refused(code)
    }

    pub async fn berth(&self, operation: &str, body: Value) -> Answer {
        Call::new(format!("BerthV1.{operation}"), body.to_string())
            .send(self.address)
            .await
    }

    /// Puts a node of 2 cores and 4 GiB into a cluster.
    pub async fn add_node(&self, cluster: &str, edit: impl FnOnce(&mut Node)) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut node = Node {
            id: id.clone(),
            cluster: cluster.into(),
            status: "ACTIVE".into(),
            agent_connected: true,
            hostname: format!("host-{}", &id[..4]),
            boot_id: "boot".into(),
            agent_version: "0.1.0".into(),
            runtime_version: "containerd 1.6.20".into(),
            kernel_version: "6.1".into(),
            architecture: "amd64".into(),
            cpu_units: 2048,
            memory_bytes: 4096 * MIB,
            task_addresses: 100,
            node_address: None,
            node_ipv6_address: None,
            uses: vec![],
            linked_epoch: 0,
            reserved_tcp_ports: vec![22],
            reserved_udp_ports: vec![],
            gpus: vec![],
            features: FEATURES.iter().map(|feature| (*feature).to_owned()).collect(),
            node_attributes: [("ecs.os-type".to_owned(), Some("linux".to_owned()))].into(),
            attributes: Default::default(),
            tags: Default::default(),
            allocations: Default::default(),
            registered_at: 1_700_000_000_500,
            connectivity_at: 1_700_000_000_500,
        };
        edit(&mut node);
        self.put(typed::put_json(keys::node(cluster, &id), &node).unwrap())
            .await;
        id
    }

    async fn put(&self, operation: Operation) {
        self.store
            .commit(Transaction {
                compare: vec![],
                operations: vec![operation],
            })
            .await
            .unwrap();
    }

    /// All records under a prefix, as text.
    pub async fn stored(&self, prefix: &str) -> String {
        let page = self.store.range(prefix, None, 1_000).await.unwrap();
        let texts = page
            .entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        texts.collect()
    }

    pub async fn node(&self, id: &str) -> Node {
        typed::get_json(self.store.as_ref(), &keys::node("default", id))
            .await
            .unwrap()
            .unwrap()
            .value
    }

    /// Changes a node's record as the link does: by compare, again when somebody else was faster.
    pub async fn edit_node(&self, id: &str, edit: impl Fn(&mut Node)) {
        let key = keys::node("default", id);
        loop {
            let mut node = typed::get_json::<Node>(self.store.as_ref(), &key)
                .await
                .unwrap()
                .unwrap();
            edit(&mut node.value);
            let transaction = Transaction {
                compare: vec![node.unchanged()],
                operations: vec![typed::put_json(key.as_str(), &node.value).unwrap()],
            };
            if let Committed::Done(_) = self.store.commit(transaction).await.unwrap() {
                return;
            }
        }
    }

    /// As the link writes it when a node shows a certificate of this authority.
    pub async fn identity(&self, node: &str, authority: &str) {
        self.put_identity(node, authority, None).await;
    }

    /// As the link writes it when such a node is sent a certificate of another authority.
    pub async fn pending_identity(&self, node: &str, authority: &str, sent: &str) {
        let pending = PendingCertificate {
            authority: sent.into(),
            not_after: i64::MAX,
        };
        self.put_identity(node, authority, Some(pending)).await;
    }

    async fn put_identity(&self, node: &str, authority: &str, pending: Option<PendingCertificate>) {
        let identity = Identity {
            node: node.into(),
            cluster: "default".into(),
            authority: authority.into(),
            not_after: None,
            pending,
            joined_with: None,
            changed_at: 1,
        };
        self.put(typed::put_json(keys::identity(node), &identity).unwrap())
            .await;
    }

    pub async fn task(&self, id: &str) -> Task {
        typed::get_json(self.store.as_ref(), &keys::task("default", id))
            .await
            .unwrap()
            .unwrap()
            .value
    }

    /// What the node would have reported.
    pub async fn report(&self, id: &str, edit: impl FnOnce(&mut Task)) {
        let mut task = self.task(id).await;
        edit(&mut task);
        task.version += 1;
        self.put(typed::put_json(keys::task("default", id), &task).unwrap())
            .await;
    }

    /// The node reports STOPPED: the task, its allocation and its desired spec, as the link does it.
    pub async fn report_stopped(&self, id: &str) {
        self.report(id, |task| {
            task.last_status = "STOPPED".into();
            task.desired_status = "STOPPED".into();
            task.stopped_at = Some(1_700_000_009_000);
        })
        .await;
        let node = self.task(id).await.node;
        self.edit_node(&node, |node| drop(node.allocations.remove(id)))
            .await;
        self.put(Operation::Delete {
            key: keys::desired(&node, id),
        })
        .await;
    }

    /// What the node is told to do.
    pub async fn desired(&self, node: &str, task: &str) -> Option<TaskSpec> {
        let entry = self.store.get(&keys::desired(node, task)).await.unwrap()?;
        Some(TaskSpec::decode(entry.value.as_ref()).unwrap())
    }

    pub async fn allocation(&self, node: &str, task: &str) -> Option<Allocation> {
        self.node(node).await.allocations.get(task).cloned()
    }

    /// Nothing of a refused call may be left.
    pub async fn assert_nothing_runs(&self) {
        for prefix in ["/tasks/", "/desired/", "/idempotency/"] {
            assert_eq!(
                self.store.range(prefix, None, 10).await.unwrap().entries,
                [],
                "{prefix}"
            );
        }
        let nodes = typed::all_json::<Node>(self.store.as_ref(), "/nodes/")
            .await
            .unwrap();
        assert!(nodes.iter().all(|node| node.value.allocations.is_empty()));
    }

    pub async fn register(&self, family: &str) -> String {
        self.register_as(awsvpc(family)).await
    }

    pub async fn register_as(&self, definition: Value) -> String {
        let answer = self.ok("RegisterTaskDefinition", definition).await;
        answer["taskDefinition"]["taskDefinitionArn"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Runs one task of an awsvpc family and returns its id.
    pub async fn run(&self, definition: &str) -> String {
        let answer = self
            .ok(
                "RunTask",
                json!({"taskDefinition": definition, "networkConfiguration": network()}),
            )
            .await;
        assert_eq!(answer["failures"], json!([]), "{answer}");
        id_of(answer["tasks"][0]["taskArn"].as_str().unwrap())
    }
}

fn serve(
    keys: Vec<ApiKey>,
    store: Arc<SqliteStore>,
    nodes: Arc<FakeNodes>,
    audit: Audit,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    serve_where(keys, UnsupportedLogDriver::default(), store, nodes, audit)
}

fn serve_where(
    keys: Vec<ApiKey>,
    unsupported_log_driver: UnsupportedLogDriver,
    store: Arc<SqliteStore>,
    nodes: Arc<FakeNodes>,
    audit: Audit,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let config = ApiConfig {
        region: REGION.into(),
        account_id: ACCOUNT.into(),
        keys,
        clock_skew_max: CLOCK_SKEW_MAX,
        unsupported_log_driver,
    };
    let app = router(config, store, nodes, audit);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let address = listener.local_addr().unwrap();
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    (address, server)
}

/// The last part of an ARN.
pub fn id_of(arn: &str) -> String {
    arn.rsplit('/').next().unwrap().to_owned()
}

pub fn network() -> Value {
    json!({"awsvpcConfiguration": {"subnets": ["subnet-default"], "securityGroups": ["sg-default"]}})
}

/// As three of four real definitions are: FARGATE and awsvpc.
pub fn awsvpc(family: &str) -> Value {
    json!({
        "family": family, "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": "256",
        "memory": "512", "containerDefinitions": [
            {"name": "web", "image": "127.0.0.1:5000/nginx:1", "portMappings": [{"containerPort": 80}],
             "dependsOn": [{"containerName": "cache", "condition": "START"}]},
            {"name": "cache", "image": "127.0.0.1:5000/redis:7", "memory": 128},
        ],
    })
}

/// In host mode on a fixed port.
pub fn host(family: &str, port: u16) -> Value {
    json!({
        "family": family, "networkMode": "host", "containerDefinitions": [
            {"name": "main", "image": "busybox", "memory": 64, "cpu": 128, "portMappings": [{"containerPort": port}]},
        ],
    })
}
