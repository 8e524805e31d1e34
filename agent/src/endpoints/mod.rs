//! The task metadata endpoint, versions 3 and 4: what a container may know of itself and its task, over HTTP. Owns the
//! listeners, who may ask, and how often; never changes anything.
//!
//! There is one listener for all tasks, in the host's network namespace, on an unprivileged port: inside a task it would take
//! ports from the workload. Tasks with a network of their own reach it as 169.254.170.2:80, an address that the host's end of
//! each task's link has, and so goes with the link; a rule of the firewall leads there, and lets nobody else in. Who asks is
//! known by the source address, which the firewall ties to one link and a TCP handshake to whoever has it. A task on the host's
//! network asks on loopback, and is known by the name of its endpoint alone, which nobody can guess.

mod askers;
mod document;
mod key;
mod looks;
mod on_host;
mod protection;
mod stats;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as Segment},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use berth_agent_core::{
    addresses::Range,
    desired::{NetworkMode, TaskSpec},
    ids::{ContainerId, TaskId},
    network::WantedNetwork,
    task::Task,
};
use berth_service::{
    http::{Peer, serve_tcp},
    places::Places,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::on_host::OnHost;
use self::{
    askers::{Askers, Asks},
    document::Context,
    key::Key,
    looks::Looks,
};
use crate::{driver::Input, rate::Limit, telemetry::Sampler};

/// Where a task with a network of its own finds it, on port 80, as in ECS.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);
/// Tried first, as the ECS agent's; any other if somebody has it.
const PORT: u16 = 51_679;
/// As many tasks' worth of askers at a time, and of each.
const PLACES: Places = Places { all: 256, of_one: 16 };
/// The ECS agent's defaults (`ECS_TASK_METADATA_RPS_LIMIT`).
const RATE: Limit = Limit {
    per_second: 40,
    burst: 60,
};
/// The driver has so long to answer.
const DRIVER_PATIENCE: Duration = Duration::from_secs(2);
/// And the host's disks.
const HOST_PATIENCE: Duration = Duration::from_secs(2);
const BACKLOG: i32 = 128;

/// Names containers' endpoints. Clones are the same.
#[derive(Clone, Debug)]
pub struct Endpoints {
    key: Arc<Key>,
    port: u16,
}

/// Bound, not served yet.
#[derive(Debug)]
pub struct Listeners {
    of_tasks: TcpListener,
    of_host: TcpListener,
}

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Sources {
    pub inputs: mpsc::WeakSender<Input>,
    pub sampler: Arc<Mutex<Sampler>>,
    /// Where addresses of tasks that are in no subnet come from.
    pub task_cidr: Range,
    /// The node's parts of subnets.
    pub network: watch::Receiver<WantedNetwork>,
    pub on_host: OnHost,
}

impl Endpoints {
    /// Takes the port and the key that containers were told of, or new ones: they hold until the host boots, as containers do.
    ///
    /// # Errors
    /// No port can be had, or `run_dir` cannot be written.
    pub fn bind(run_dir: &Path) -> anyhow::Result<(Self, Listeners)> {
        let kept = key::load(run_dir).context("read the key of the task metadata endpoint")?;
        let told = kept.as_ref().map(|(_, port)| *port);
        let (key, wanted) = kept.map_or_else(|| (Key::new(), PORT), |(key, port)| (key, port));
        let (listeners, port) = Listeners::bind(wanted)
            .or_else(|error| {
                tracing::debug!(%error, port = wanted, "the task metadata endpoint takes another port");
                Listeners::bind(0)
            })
            .context("listen for the task metadata endpoint")?;
        if let Some(warning) = moved(told, port) {
            tracing::warn!("{warning}");
        }
        key::store(run_dir, &key, port).context("keep the key of the task metadata endpoint")?;
        let key = Arc::new(key);
        Ok((Self { key, port }, listeners))
    }

    /// Of the listeners, on [`ADDRESS`] and on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The variables that tell a container where to ask. None where it could not.
    pub fn environment(&self, network: NetworkMode, container: &ContainerId) -> Vec<(String, String)> {
        let host = match network {
            NetworkMode::Awsvpc | NetworkMode::Bridge => ADDRESS.to_string(),
            NetworkMode::Host => format!("127.0.0.1:{}", self.port),
            NetworkMode::None => return Vec::new(),
        };
        let name = self.key.name(container);
        [
            ("ECS_CONTAINER_METADATA_URI", "v3"),
            ("ECS_CONTAINER_METADATA_URI_V4", "v4"),
            ("ECS_AGENT_URI", "api"),
        ]
        .map(|(variable, version)| (variable.to_owned(), format!("http://{host}/{version}/{name}")))
        .into()
    }

    /// Serves until `stop`. To be called within a runtime.
    ///
    /// # Errors
    /// When the listeners cannot be made the runtime's.
    pub fn serve(
        &self,
        listeners: Listeners,
        sources: Sources,
        stop: &CancellationToken,
    ) -> io::Result<impl Future<Output = ()> + use<>> {
        let asked = Asked {
            key: Arc::clone(&self.key),
            sources,
            askers: Arc::new(Mutex::new(Askers::new(RATE))),
            looks: Looks::new(HOST_PATIENCE),
        };
        let routes = asked.routes();
        let of_tasks = serve_tcp(listeners.of_tasks, routes.clone(), PLACES, stop.clone())?;
        // Everybody there has the one address.
        let places = Places {
            of_one: PLACES.all,
            ..PLACES
        };
        let of_host = serve_tcp(listeners.of_host, routes, places, stop.clone())?;
        Ok(async move {
            tokio::join!(of_tasks, of_host);
        })
    }
}

/// What an operator has to know where the port is not the one that containers were told.
fn moved(told: Option<u16>, port: u16) -> Option<String> {
    let told = told.filter(|told| *told != port)?;
    Some(format!(
        "task metadata is at port {port} of 127.0.0.1 now: somebody else has {told} (see `ss -ltnp`). Tasks in host mode that were started \
         before ask there, and get no answer: start them anew. All others find it"
    ))
}

impl Listeners {
    fn bind(port: u16) -> io::Result<(Self, u16)> {
        let of_host = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let port = of_host.local_addr()?.port();
        let of_tasks = listen_free(SocketAddrV4::new(ADDRESS, port))?;
        Ok((Self { of_tasks, of_host }, port))
    }
}

/// Listens on an address that this host has only while there are tasks.
pub(crate) fn listen_free(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = bind_free(SockType::Stream, address)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

/// A socket that has such an address.
pub(crate) fn bind_free(kind: SockType, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Inet, kind, flags, None)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        // What an earlier agent's connections left; two sockets of datagrams would take turns.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(socket)
}

/// One router's state.
#[derive(Clone)]
struct Asked {
    key: Arc<Key>,
    sources: Sources,
    askers: Arc<Mutex<Askers>>,
    looks: Looks,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Container,
    Task,
    TaskWithTags,
    Stats,
    TaskStats,
}

/// Why there is no answer. ECS answers a text in JSON, too.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no container of the task that asks has this endpoint")]
    Unknown,
    #[error("more than {} requests a second", RATE.per_second)]
    TooMany,
    #[error("the agent does not answer now; try again")]
    Away,
    #[error("the container has no figures: it does not run")]
    NoFigures,
}

impl Refused {
    fn code(&self) -> StatusCode {
        match self {
            Self::Unknown | Self::NoFigures => StatusCode::NOT_FOUND,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Away => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.code(), document(&json!(self.to_string()))).into_response()
    }
}

fn document(value: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}

/// In the form that belongs to task protection, also where nobody may ask.
fn protected(answer: Result<(StatusCode, Value), Refused>) -> Response {
    let (code, value) = answer.unwrap_or_else(|refused| {
        let name = match refused {
            Refused::Unknown | Refused::NoFigures => "ResourceNotFoundException",
            Refused::TooMany => "ThrottlingException",
            Refused::Away => "ServerException",
        };
        let error = json!({"Code": name, "Message": refused.to_string()});
        (refused.code(), json!({"error": error}))
    });
    (code, document(&value)).into_response()
}

impl Asked {
    fn routes(self) -> Router {
        let mut routes = Router::new();
        for version in ["v3", "v4"] {
            for (path, subject) in [
                ("", Subject::Container),
                ("/task", Subject::Task),
                ("/taskWithTags", Subject::TaskWithTags),
                ("/stats", Subject::Stats),
                ("/task/stats", Subject::TaskStats),
            ] {
                let asked = self.clone();
                let answer = move |Extension(peer): Extension<Peer>, Segment(name): Segment<String>| async move {
                    match asked.answer(peer, &name, subject).await {
                        Ok(value) => document(&value).into_response(),
                        Err(refused) => refused.into_response(),
                    }
                };
                routes = routes.route(&format!("/{version}/{{name}}{path}"), get(answer));
            }
        }
        let (reads, writes) = (self.clone(), self);
        let read = move |Extension(peer): Extension<Peer>, Segment(name): Segment<String>| async move {
            let asked = reads.task(peer, &name).await;
            protected(asked.map(|(task, _)| protection::get(&task.spec.arn)))
        };
        let write = move |Extension(peer): Extension<Peer>, Segment(name): Segment<String>, body: Bytes| async move {
            let asked = writes.task(peer, &name).await;
            protected(asked.map(|(task, _)| protection::update(&task.spec.arn, &body)))
        };
        let state = get(read)
            .put(write)
            .layer(DefaultBodyLimit::max(protection::BYTES_MAX));
        routes.route("/api/{name}/task-protection/v1/state", state)
    }

    /// As [`find`](Self::find), if it does not ask too often.
    async fn task(&self, peer: Peer, name: &str) -> Result<(Box<Task>, ContainerId), Refused> {
        let from = match peer.0.ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => return Err(Refused::Unknown),
        };
        let mut asks = self.askers().ask(from, name, Instant::now());
        if asks == Asks::Learn {
            self.learn_names().await?;
            asks = self.askers().ask(from, name, Instant::now());
        }
        if asks != Asks::May {
            return Err(Refused::TooMany);
        }
        let found = self.find(from, name).await;
        match &found {
            Ok((task, _)) => self.askers().learn(from, name.to_owned(), task.spec.id.clone()),
            Err(Refused::Unknown) => self.askers().missed(from, name),
            Err(_) => {}
        }
        found
    }

    /// Those of all tasks on the host's network.
    async fn learn_names(&self) -> Result<(), Refused> {
        let names = Arc::new(Mutex::new(Vec::new()));
        let (key, found) = (Arc::clone(&self.key), Arc::clone(&names));
        let all = move |task: &Task| {
            if task.spec.network == NetworkMode::Host && task.holds_host() {
                let of_task = task
                    .spec
                    .containers
                    .iter()
                    .map(|c| (key.name(&c.id), task.spec.id.clone()));
                found
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(of_task);
            }
            false
        };
        self.ask_driver(Box::new(all)).await?;
        let names = std::mem::take(&mut *names.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, task) in names {
            self.askers().learn(Ipv4Addr::LOCALHOST, name, task);
        }
        Ok(())
    }

    async fn answer(&self, peer: Peer, name: &str, subject: Subject) -> Result<Value, Refused> {
        let (task, container) = self.task(peer, name).await?;
        match subject {
            Subject::Container => {
                let context = self.context(&task).await?;
                document::container(&task, &container, &context).ok_or(Refused::Unknown)
            }
            Subject::Task => Ok(document::task(&task, &self.context(&task).await?)),
            Subject::TaskWithTags => Ok(document::task_with_tags(&task, &self.context(&task).await?)),
            Subject::Stats | Subject::TaskStats => {
                let mut all = self.stats(&task.spec.id, &task).await?;
                if let Subject::TaskStats = subject {
                    return Ok(all.into());
                }
                let id = document::runtime_id(&task, &container).unwrap_or_default();
                match all.remove(&id) {
                    Some(figures) if !figures.is_null() => Ok(figures),
                    _ => Err(Refused::NoFigures),
                }
            }
        }
    }

    async fn context(&self, task: &Task) -> Result<Context, Refused> {
        let (on_host, of) = (self.sources.on_host.clone(), task.clone());
        let found = self.looks.run(move || on_host.look(&of)).await?;
        Ok(Context {
            range: self.range_of(&task.spec),
            found,
        })
    }

    /// Where the task's address comes from.
    fn range_of(&self, task: &TaskSpec) -> Option<Range> {
        if let Some(lan) = &task.lan {
            return Some(lan.network.into());
        }
        match &task.subnet {
            None => Some(self.sources.task_cidr),
            Some(subnet) => self.sources.network.borrow().ranges.get(subnet).copied(),
        }
    }

    fn askers(&self) -> MutexGuard<'_, Askers> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task that asks, and the container that has the name.
    async fn find(&self, from: Ipv4Addr, name: &str) -> Result<(Box<Task>, ContainerId), Refused> {
        let (key, wanted) = (Arc::clone(&self.key), name.to_owned());
        let find = move |task: &Task| {
            let may_ask = match task.spec.network {
                NetworkMode::Awsvpc => task.address.is_some_and(|own| own.ipv4 == from),
                NetworkMode::Bridge => task.container_addresses.values().any(|own| own.ipv4 == from),
                NetworkMode::Host => from.is_loopback(),
                NetworkMode::None => false,
            };
            let named = || task.spec.containers.iter().any(|c| key.name(&c.id) == wanted);
            task.holds_host() && may_ask && named()
        };
        let task = self.ask_driver(Box::new(find)).await?.ok_or(Refused::Unknown)?;
        let mut containers = task.spec.containers.iter();
        let container = containers.find(|c| self.key.name(&c.id) == name);
        let id = container.map(|c| c.id.clone()).ok_or(Refused::Unknown)?;
        Ok((task, id))
    }

    /// The first of the node's tasks that is one.
    async fn ask_driver(
        &self,
        find: Box<dyn Fn(&Task) -> bool + Send>,
    ) -> Result<Option<Box<Task>>, Refused> {
        let inputs = self.sources.inputs.upgrade().ok_or(Refused::Away)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            inputs.send(Input::Find { find, reply }).await.map_err(|_| ())?;
            answer.await.map_err(|_| ())
        };
        match tokio::time::timeout(DRIVER_PATIENCE, asked).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(())) | Err(_) => Err(Refused::Away),
        }
    }

    /// By runtime id.
    async fn stats(&self, id: &TaskId, task: &Task) -> Result<serde_json::Map<String, Value>, Refused> {
        let (sampler, id) = (Arc::clone(&self.sources.sampler), id.clone());
        let read = move || {
            let mut sampler = sampler.lock().unwrap_or_else(PoisonError::into_inner);
            sampler.sample_task(&id)
        };
        // Reading a cgroup's files takes the kernel a moment.
        let sampled = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| Refused::Away)?;
        let sample = sampled.ok_or(Refused::NoFigures)?;
        Ok(stats::of_task(task, &sample, time::OffsetDateTime::now_utc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_took_meanwhile_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (first, listeners) = Endpoints::bind(dir.path()).unwrap();
        drop(listeners);
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, first.port())).unwrap();
        let (second, _listeners) = Endpoints::bind(dir.path()).unwrap();
        assert_ne!(second.port(), first.port());
        drop(other);
        let warning = moved(Some(first.port()), second.port()).unwrap();
        assert!(
            warning.contains(&format!("somebody else has {}", first.port()))
                && warning.contains("start them anew")
        );
        assert_eq!(moved(Some(7), 7), None);
        assert_eq!(moved(None, 7), None, "nobody was told of another");
    }
}
