//! Real nodes' side of the link: a tonic client over mutual TLS on loopback, against the real store.

mod audited;
mod clones;
mod desired;
mod hostile;
mod identity;
mod joining;
mod liveness;
mod logs;
mod names;
mod renewal;
mod reports;
mod restored;
mod revocation;
mod rotation;

use std::{sync::Arc, time::Duration};

use berth_proto::node::v1::{
    Capacity, ControlMessage, DesiredStatus, Hello, NodeDescription, NodeMessage, TaskNames, TaskSpec, Trust,
    Welcome, control_message::Message as ToNode, node_message::Message as FromNode,
    node_service_client::NodeServiceClient,
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc, time::Instant, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{LinkConfig, LinkServer};
use crate::{
    model::{Allocation, Node, Task, TaskContainer},
    pki::{Authorities, NodeIdentity},
    store::{
        Committed, Operation, SharedStore, Store, Transaction,
        sqlite::{Limits, SqliteStore},
        typed,
    },
};

pub(super) const CLUSTER: &str = "default";
/// Longest wait for what has to come.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// An id made of one digit.
pub(super) fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 32).collect()
}

/// A control plane's link with its store.
pub(super) struct Plane {
    pub(super) directory: tempfile::TempDir,
    pub(super) authority: Arc<Authorities>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) server: LinkServer,
}

impl Plane {
    pub(super) async fn start() -> Self {
        Self::start_with(Duration::from_secs(15), Limits::default()).await
    }

    pub(super) async fn start_with(node_silence: Duration, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authorities::load_or_create(&directory.path().join("pki")).unwrap());
        let store = Arc::new(SqliteStore::open_with(directory.path().join("db"), limits).unwrap());
        let server = serve(&authority, store.clone(), node_silence).await;
        Self {
            directory,
            authority,
            store,
            server,
        }
    }

    /// One whose listener is configured so.
    pub(super) async fn serving(config: LinkConfig) -> Self {
        let plane = Self::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = LinkServer::start(listener, plane.authority.clone(), plane.store.clone(), config)
            .await
            .unwrap();
        Self { server, ..plane }
    }

    pub(super) fn identity(&self, node: &str) -> NodeIdentity {
        self.authority.issue_node(node, CLUSTER).unwrap()
    }

    pub(super) async fn client(&self, node: &str) -> NodeServiceClient<Channel> {
        client(
            &self.server,
            &self.authority.certificate_pem(),
            Some(&self.identity(node)),
        )
        .await
        .unwrap()
    }

    /// A node that has said hello and got what comes first.
    pub(super) async fn connect(&self, node: &str) -> Link {
        let mut link = Link::open(self.client(node).await).await;
        link.hello(node, 0).await;
        link.expect_start().await;
        link
    }

    /// As the node of the hello.
    pub(super) async fn connect_as(&self, hello: Hello) -> Link {
        let mut link = Link::open(self.client(&hello.node_id).await).await;
        link.send(FromNode::Hello(hello)).await;
        link.expect_start().await;
        link
    }

    pub(super) async fn put(&self, operations: Vec<Operation>) -> u64 {
        match self
            .store
            .commit(Transaction {
                compare: vec![],
                operations,
            })
            .await
            .unwrap()
        {
            Committed::Done(revision) => revision,
            Committed::Conflict => unreachable!(),
        }
    }

    pub(super) async fn node(&self, node: &str) -> Node {
        let key = format!("/nodes/{CLUSTER}/{node}");
        typed::get_json(&*self.store, &key).await.unwrap().unwrap().value
    }

    pub(super) async fn task(&self, task: &str) -> Option<Task> {
        typed::get_json(&*self.store, &format!("/tasks/{CLUSTER}/{task}"))
            .await
            .unwrap()
            .map(|t| t.value)
    }

    pub(super) async fn spec(&self, node: &str, task: &str) -> Option<TaskSpec> {
        let entry = self
            .store
            .get(&format!("/desired/{node}/{task}"))
            .await
            .unwrap()?;
        Some(TaskSpec::decode(&*entry.value).unwrap())
    }

    /// As RunTask places it: task, desired spec and allocation.
    pub(super) async fn place(&self, node: &str, task: &str) -> u64 {
        let mut record = self.node(node).await;
        record.allocations.insert(task.to_owned(), allocation());
        self.put(vec![
            typed::put_json(format!("/nodes/{CLUSTER}/{node}"), &record).unwrap(),
            typed::put_json(format!("/tasks/{CLUSTER}/{task}"), &task_record(node, task)).unwrap(),
            desired(node, task, DesiredStatus::Running),
        ])
        .await
    }

    /// Waits until the node's record says so.
    pub(super) async fn until_connected(&self, node: &str, connected: bool) {
        let deadline = Instant::now() + SOON;
        while self.node(node).await.agent_connected != connected {
            assert!(
                Instant::now() < deadline,
                "{node} does not become connected={connected}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(super) fn config(node_silence: Duration) -> LinkConfig {
    LinkConfig {
        audit: None,
        names: vec!["127.0.0.1".into()],
        advertise: None,
        certificate_lifetime: Duration::from_secs(86_400),
        server_lifetime: None,
        node_silence,
        heartbeat_interval: Duration::from_secs(5),
    }
}

pub(super) async fn serve(
    authority: &Arc<Authorities>,
    store: SharedStore,
    node_silence: Duration,
) -> LinkServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    LinkServer::start(listener, authority.clone(), store, config(node_silence))
        .await
        .unwrap()
}

pub(super) async fn client(
    server: &LinkServer,
    authority_pem: &str,
    identity: Option<&NodeIdentity>,
) -> Result<NodeServiceClient<Channel>, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority_pem));
    if let Some(identity) = identity {
        tls = tls.identity(Identity::from_pem(&identity.certificate_pem, &identity.key_pem));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address())).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await?;
    Ok(NodeServiceClient::new(channel).max_decoding_message_size(8 << 20))
}

/// A node's end of a link.
pub(super) struct Link {
    pub(super) client: NodeServiceClient<Channel>,
    pub(super) sender: mpsc::Sender<NodeMessage>,
    pub(super) receiver: Streaming<ControlMessage>,
    /// Whom it was told to believe.
    pub(super) trust: Option<Trust>,
    /// What it was told of names.
    pub(super) names: Vec<TaskNames>,
}

impl Link {
    pub(super) async fn open(mut client: NodeServiceClient<Channel>) -> Self {
        let (sender, messages) = mpsc::channel(64);
        let receiver = client
            .link(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        Self {
            client,
            sender,
            receiver,
            trust: None,
            names: vec![],
        }
    }

    pub(super) async fn send(&self, message: FromNode) {
        self.sender
            .send(NodeMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    pub(super) async fn hello(&self, node: &str, last_sequence: u64) {
        self.send(FromNode::Hello(hello(node, last_sequence))).await;
    }

    pub(super) async fn receive(&mut self) -> Result<Option<ToNode>, Status> {
        loop {
            let message = timeout(SOON, self.receiver.message())
                .await
                .expect("a message was due")?;
            match message.map(|m| m.message.expect("an empty message")) {
                Some(ToNode::Names(names)) => self.names.push(names),
                message => return Ok(message),
            }
        }
    }

    /// Waits until it was told of names anew.
    pub(super) async fn told_names(&mut self) -> TaskNames {
        if self.names.is_empty() {
            let message = timeout(SOON, self.receiver.message()).await;
            match message.expect("names were due").unwrap().unwrap().message {
                Some(ToNode::Names(names)) => return names,
                other => panic!("{other:?} instead of names"),
            }
        }
        self.names.remove(0)
    }

    pub(super) async fn next(&mut self) -> ToNode {
        self.receive().await.unwrap().expect("the link ended")
    }

    pub(super) async fn expect_start(&mut self) -> (Welcome, berth_proto::node::v1::Snapshot) {
        let ToNode::Welcome(welcome) = self.next().await else {
            panic!("no welcome")
        };
        let ToNode::Snapshot(snapshot) = self.next().await else {
            panic!("no snapshot")
        };
        let ToNode::Trust(trust) = self.next().await else {
            panic!("no trust")
        };
        self.trust = Some(trust);
        let names = self.told_names().await;
        assert!(names.whole && names.cluster == CLUSTER, "{names:?}");
        self.names.push(names);
        (welcome, snapshot)
    }

    /// How the control plane ended it.
    pub(super) async fn end(&mut self) -> Status {
        loop {
            match self.receive().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// Nothing comes.
    pub(super) async fn quiet(&mut self) {
        let message = timeout(Duration::from_millis(200), self.receiver.message()).await;
        assert!(message.is_err(), "{message:?}");
    }
}

pub(super) fn hello(node: &str, last_sequence: u64) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        node_id: node.into(),
        description: Some(NodeDescription {
            hostname: "host-1".into(),
            boot_id: "b".into(),
            ..Default::default()
        }),
        capacity: Some(Capacity {
            cpu_units: 2_048,
            memory_bytes: 1 << 30,
            task_addresses: 100,
            reserved_tcp_ports: vec![22],
            ..Default::default()
        }),
        features: vec!["net.awsvpc".into()],
        attributes: [
            ("ecs.os-type".to_owned(), "linux".to_owned()),
            ("gpu".to_owned(), String::new()),
        ]
        .into(),
        last_sequence,
        ..Default::default()
    }
}

pub(super) fn desired(node: &str, task: &str, status: DesiredStatus) -> Operation {
    let spec = TaskSpec {
        task_id: task.into(),
        family: "web".into(),
        desired_status: status.into(),
        ..Default::default()
    };
    let value = spec.encode_to_vec().into();
    Operation::Put {
        key: format!("/desired/{node}/{task}"),
        value,
        lease: None,
    }
}

fn allocation() -> Allocation {
    Allocation {
        cpu_units: 256,
        memory_bytes: 64 << 20,
        tcp_ports: vec![],
        udp_ports: vec![],
        address: true,
        subnet: None,
        addresses: 1,
        gpus: vec![],
        stopping: false,
        group: "family:web".into(),
    }
}

pub(crate) fn task_record(node: &str, task: &str) -> Task {
    let container = TaskContainer {
        id: id('c'),
        name: "web".into(),
        image: "nginx".into(),
        last_status: "PENDING".into(),
        exit_code: None,
        reason: None,
        runtime_id: None,
        image_digest: None,
        restart_count: 0,
        pins: true,
        resolved_digest: None,
        cpu: "0".into(),
        memory: None,
        memory_reservation: None,
        ports: vec![],
        bindings: vec![],
        gpus: vec![],
        essential: true,
        discards_output: false,
        health: None,
    };
    Task {
        id: task.into(),
        cluster: CLUSTER.into(),
        node: node.into(),
        family: "web".into(),
        revision: 1,
        group: "family:web".into(),
        started_by: None,
        launch_type: "EC2".into(),
        desired_status: "RUNNING".into(),
        last_status: "PROVISIONING".into(),
        cpu: None,
        memory: None,
        overrides: serde_json::json!({}),
        network_mode: "awsvpc".into(),
        subnets: vec![],
        security_groups: vec![],
        attachment_id: None,
        containers: vec![container],
        tags: Default::default(),
        version: 1,
        ipv4_address: None,
        ipv6_address: None,
        mac_address: None,
        stop_code: None,
        stopped_reason: None,
        waiting_reason: None,
        warnings: vec![],
        node_warnings: vec![],
        ephemeral_storage_gib: None,
        created_at: 1,
        pull_started_at: None,
        pull_stopped_at: None,
        started_at: None,
        stopping_at: None,
        execution_stopped_at: None,
        stopped_at: None,
    }
}
