//! Owns a real berth-agent and the control plane it is linked to: one that only assigns and listens, so that what is
//! measured is the agent.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_control_plane::pki::Authority;
use berth_proto::node::v1::{
    self as wire, ControlMessage, NodeMessage, TaskStatus,
    control_message::Message as Down,
    node_message::Message as Up,
    node_service_server::{NodeService, NodeServiceServer},
};
use tokio::{
    process::{Child, Command},
    sync::{Notify, mpsc},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::host::Host;

const NODE_ID: &str = "00000000000000000000000000000be5";
const LIMIT: Duration = Duration::from_secs(120);
const MESSAGES_MAX: usize = 1024;

/// What the agent said, with the time it arrived here.
#[derive(Debug, Default)]
struct Heard {
    states: Mutex<HashMap<String, (TaskStatus, Instant, String)>>,
    link: Mutex<Option<mpsc::Sender<Result<ControlMessage, Status>>>>,
    changed: Notify,
}

#[derive(Debug)]
pub struct Node {
    heard: Arc<Heard>,
    agent: Child,
    /// The command that removes what an agent of this configuration has on the host.
    purge: Command,
    server: tokio::task::JoinHandle<()>,
    revision: u64,
    wanted: BTreeMap<String, wire::TaskSpec>,
}

impl Node {
    pub async fn start(host: &Host, bin_dir: &Path, more: &str, trace: bool) -> anyhow::Result<Self> {
        let dir = host.dir();
        let authority = Authority::load_or_create(&dir.join("pki"))?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = authority.issue_server(&["127.0.0.1".into()])?;
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(server.certificate_pem, server.key_pem))
            .client_ca_root(tonic::transport::Certificate::from_pem(
                authority.certificate_pem(),
            ));
        let heard = Arc::new(Heard::default());
        let service = NodeServiceServer::new(Service(Arc::clone(&heard)));
        let serve = Server::builder()
            .tcp_nodelay(true)
            .tls_config(tls)?
            .add_service(service);
        let server = tokio::spawn(async move {
            if let Err(error) = serve.serve_with_incoming(TcpListenerStream::new(listener)).await {
                eprintln!("bench control plane: {error}");
            }
        });
        std::fs::create_dir(dir.join("node"))?;
        authority
            .issue_node(NODE_ID, "default")?
            .write_to(&dir.join("node"))?;
        let config = dir.join("agent.toml");
        std::fs::write(&config, agent_config(host, &address.to_string(), more))?;
        let log = std::fs::File::create(dir.join("agent.log"))?;
        let stderr = if trace { Stdio::inherit() } else { Stdio::from(log) };
        let agent = Command::new(bin_dir.join("berth-agent"))
            .args(["run", "--config", &config.display().to_string()])
            .env("BERTH_LOG", if trace { "info,berth_agent=trace" } else { "info" })
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}: build it first", bin_dir.join("berth-agent").display()))?;
        let mut purge = Command::new(bin_dir.join("berth-agent"));
        purge.args(["purge", "--yes", "--config", &config.display().to_string()]);
        let node = Self {
            heard,
            agent,
            purge,
            server,
            revision: 1,
            wanted: BTreeMap::new(),
        };
        node.wait("the agent's link", |heard| lock(&heard.link).is_some())
            .await
            .with_context(|| std::fs::read_to_string(dir.join("agent.log")).unwrap_or_default())?;
        Ok(node)
    }

    pub fn pid(&self) -> Option<u32> {
        self.agent.id()
    }

    /// Assigns the tasks at once. Returns how long after that each was reported RUNNING, in order.
    pub async fn run(&mut self, specs: &[wire::TaskSpec]) -> anyhow::Result<Vec<Duration>> {
        let begun = Instant::now();
        self.send(specs.to_vec(), Vec::new()).await?;
        let ids: Vec<_> = specs.iter().map(|spec| spec.task_id.clone()).collect();
        let reached = |heard: &Heard| {
            let states = lock(&heard.states);
            ids.iter().all(|id| {
                states
                    .get(id)
                    .is_some_and(|(s, ..)| *s as i32 >= TaskStatus::Running as i32)
            })
        };
        self.wait("tasks to run", reached).await?;
        let states = lock(&self.heard.states);
        ids.iter()
            .map(|id| {
                let (status, at, reason) = &states[id];
                ensure!(
                    *status == TaskStatus::Running,
                    "task {id} is {status:?}: {reason}"
                );
                Ok(at.duration_since(begun))
            })
            .collect()
    }

    /// Stops the tasks and waits until nothing of them is left. Returns how long that took.
    pub async fn remove(&mut self, specs: &[wire::TaskSpec]) -> anyhow::Result<Duration> {
        let stopped = |spec: &wire::TaskSpec| {
            let desired_status = wire::DesiredStatus::Stopped.into();
            wire::TaskSpec {
                desired_status,
                ..spec.clone()
            }
        };
        let begun = Instant::now();
        self.send(specs.iter().map(stopped).collect(), Vec::new()).await?;
        let ids: Vec<_> = specs.iter().map(|spec| spec.task_id.clone()).collect();
        let gone = |heard: &Heard| {
            let states = lock(&heard.states);
            ids.iter().all(|id| {
                states
                    .get(id)
                    .is_some_and(|(status, ..)| *status == TaskStatus::Stopped)
            })
        };
        self.wait("tasks to stop", gone).await?;
        let took = begun.elapsed();
        for id in &ids {
            lock(&self.heard.states).remove(id);
            self.wanted.remove(id);
        }
        self.send(Vec::new(), ids).await?;
        Ok(took)
    }

    async fn send(
        &mut self,
        changed: Vec<wire::TaskSpec>,
        removed_task_ids: Vec<String>,
    ) -> anyhow::Result<()> {
        for spec in &changed {
            self.wanted.insert(spec.task_id.clone(), spec.clone());
        }
        self.revision += 1;
        let delta = wire::Delta {
            position: Some(position(self.revision)),
            changed,
            removed_task_ids,
        };
        let link = lock(&self.heard.link)
            .clone()
            .context("the agent is not linked")?;
        link.send(Ok(ControlMessage {
            message: Some(Down::Delta(delta)),
        }))
        .await
        .context("the link is gone")
    }

    async fn wait(&self, what: &str, done: impl Fn(&Heard) -> bool) -> anyhow::Result<()> {
        let waiting = async {
            loop {
                let changed = self.heard.changed.notified();
                if done(&self.heard) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(LIMIT, waiting)
            .await
            .with_context(|| format!("waited {LIMIT:?} for {what}"))
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        let specs: Vec<_> = self.wanted.values().cloned().collect();
        if !specs.is_empty() {
            self.remove(&specs).await?;
        }
        if let Some(pid) = self.agent.id().and_then(|pid| i32::try_from(pid).ok()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
        }
        let ended = tokio::time::timeout(LIMIT, self.agent.wait())
            .await
            .context("the agent did not end")??;
        ensure!(ended.success(), "the agent ended with {ended}");
        self.server.abort();
        let purged = tokio::time::timeout(LIMIT, self.purge.output())
            .await
            .context("the purge did not end")??;
        let said = String::from_utf8_lossy(&purged.stderr);
        ensure!(purged.status.success(), "the purge left something: {said}");
        Ok(())
    }
}

fn agent_config(host: &Host, address: &str, more: &str) -> String {
    let path = |name: &str| host.dir().join(name).display().to_string();
    format!(
        "instance = \"berth-bench\"\nstate_dir = {:?}\nrun_dir = \"/run/berth-bench\"\n\
         containerd_address = {:?}\ncontrol_plane = \"https://{address}\"\nnode_id = \"{NODE_ID}\"\n\
         certificate = {:?}\nkey = {:?}\nauthority = {:?}\ntask_cidr = \"10.90.0.0/20\"\nimages_dir = {:?}\n{more}\n",
        path("state-agent"),
        host.socket().display().to_string(),
        path("node/node.pem"),
        path("node/node.key"),
        path("node/authority.pem"),
        path("images"),
    )
}

fn position(revision: u64) -> wire::Position {
    wire::Position {
        store_id: "bench".into(),
        epoch: 1,
        revision,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Service(Arc<Heard>);

type Answer<T> = Result<Response<T>, Status>;
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for Service {
    type LinkStream = Outgoing<ControlMessage>;
    type BulkStream = Outgoing<wire::BulkToNode>;

    async fn register(&self, _: Request<wire::RegisterRequest>) -> Answer<wire::RegisterResponse> {
        Err(Status::unimplemented(
            "the bench issues its node's certificate itself",
        ))
    }

    async fn renew(&self, _: Request<wire::RenewRequest>) -> Answer<wire::RenewResponse> {
        Err(Status::unimplemented(
            "the bench issues its node's certificate itself",
        ))
    }

    async fn bulk(&self, _: Request<Streaming<wire::BulkFromNode>>) -> Answer<Self::BulkStream> {
        Err(Status::unimplemented("the bench reads no logs"))
    }

    async fn link(&self, request: Request<Streaming<NodeMessage>>) -> Answer<Self::LinkStream> {
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let heard = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some(Ok(NodeMessage {
                message: Some(message),
            })) = incoming.next().await
            {
                let answers = hear(&heard, message, &sender);
                for answer in answers {
                    let _ = sender
                        .send(Ok(ControlMessage {
                            message: Some(answer),
                        }))
                        .await;
                }
            }
            *lock(&heard.link) = None;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn hear(heard: &Heard, message: Up, link: &mpsc::Sender<Result<ControlMessage, Status>>) -> Vec<Down> {
    match message {
        Up::Hello(hello) => {
            *lock(&heard.link) = Some(link.clone());
            heard.changed.notify_waiters();
            let welcome = wire::Welcome {
                version: wire::VERSION,
                heartbeat_interval_ms: 5_000,
                applied_sequence: hello.last_sequence,
                cluster: "default".into(),
            };
            let snapshot = wire::Snapshot {
                position: Some(position(1)),
                tasks: Vec::new(),
                removals_confirmed: false,
                more: false,
            };
            vec![Down::Welcome(welcome), Down::Snapshot(snapshot)]
        }
        Up::StateChange(change) => {
            if let Some(task) = change.task {
                let status = TaskStatus::try_from(task.status).unwrap_or(TaskStatus::Unspecified);
                let mut states = lock(&heard.states);
                // The first time it is RUNNING is what counts.
                let known = states.get(&task.task_id).map(|(s, ..)| *s);
                if known != Some(status) {
                    states.insert(task.task_id, (status, Instant::now(), task.stopped_reason));
                }
            }
            heard.changed.notify_waiters();
            vec![Down::StateAck(wire::StateAck {
                sequence: change.sequence,
            })]
        }
        Up::DesiredAck(ack) if !ack.refused_reason.is_empty() => {
            eprintln!("the agent refused desired state: {}", ack.refused_reason);
            Vec::new()
        }
        Up::DesiredAck(_) | Up::Heartbeat(_) | Up::Pulls(_) | Up::Capacity(_) | Up::NetworkAck(_) => {
            Vec::new()
        }
    }
}
