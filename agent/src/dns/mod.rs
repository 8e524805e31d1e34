//! The resolver of tasks: names of tasks are answered here, all others by the host's servers. Owns the listeners and who may
//! ask; never needs the control plane, which only says which names there are.
//!
//! There is one listener of each kind for all tasks, in the host's network namespace, on an unprivileged port: inside a task
//! it would take port 53 from the workload. Tasks ask [`ADDRESS`], and a rule of the firewall leads them to the address of the
//! other endpoints, which the host's end of each task's link has. Who asks is known by the source address, which the firewall
//! ties to one link; an answer goes to that address only.

mod cache;
mod forward;
mod message;
mod server;
mod servers;
mod table;
#[cfg(test)]
mod tests;
mod zone;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use anyhow::Context as _;
use hickory_proto::op::ResponseCode;
use nix::sys::socket::SockType;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    forward::{Forwarder, Source},
    message::{Question, Reply},
    servers::{HostServers, PORT, SERVERS_MAX, Servers},
    zone::Zone,
};
pub use self::{
    table::{NameTable, NamesChange},
    zone::{Addresses, Key, Own, name_of},
};
use crate::{
    endpoints::{self, bind_free, listen_free},
    metrics::METRICS,
};

/// Where tasks find it, on port 53. No link has this address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 3);
/// Tried first; any other if somebody has it.
const PORT_FIRST: u16 = 51_680;
/// Ports tried for one that is free for both kinds.
const TRIES_MAX: usize = 16;
/// Where the host names its servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Whether tasks ask the agent. Else they ask the host's servers, as far as they reach them.
    pub enabled: bool,
    /// Servers for names that are not tasks': `10.0.0.2`, `[fd00::1]:5353`. None: the host's.
    pub servers: Vec<Server>,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            enabled: true,
            servers: Vec::new(),
        }
    }
}

impl Dns {
    /// What is wrong with it: the key, and why.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.servers.len() > SERVERS_MAX {
            return Err(format!("at most {SERVERS_MAX} servers are asked"));
        }
        Ok(())
    }
}

/// A server's address, with a port if it is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Server(SocketAddr);

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text
            .parse::<IpAddr>()
            .map(|address| SocketAddr::new(address, PORT));
        let address = address.or_else(|_| text.parse());
        address
            .map(Self)
            .map_err(|_| format!("{text:?} is not an IP address, with or without a port"))
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        match server.0.port() {
            PORT => server.0.ip().to_string(),
            _ => server.0.to_string(),
        }
    }
}

/// Bound, not served yet.
#[derive(Debug)]
pub struct Listeners {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// What is kept of it until the host boots: flows of tasks lead to the port they began with.
#[derive(Serialize, Deserialize)]
struct Stored {
    port: u16,
}

/// Takes the port that was taken before, or another.
///
/// # Errors
/// No port can be had, or `run_dir` cannot be written.
pub fn listen(run_dir: &Path) -> anyhow::Result<(Listeners, u16)> {
    let file = run_dir.join("dns.json");
    let kept = fs::read(&file).ok();
    let kept = kept.and_then(|text| serde_json::from_slice::<Stored>(&text).ok());
    let wanted = kept.map_or(PORT_FIRST, |stored| stored.port);
    let (listeners, port) = bind(wanted)
        .or_else(|error| {
            tracing::debug!(%error, port = wanted, "the resolver takes another port");
            bind_any()
        })
        .context("listen for names")?;
    let text = serde_json::to_vec(&Stored { port }).context("keep the port of the resolver")?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok((listeners, port))
}

fn bind(port: u16) -> io::Result<(Listeners, u16)> {
    let tcp = listen_free(SocketAddrV4::new(endpoints::ADDRESS, port))?;
    let port = tcp.local_addr()?.port();
    let udp = bind_free(SockType::Datagram, SocketAddrV4::new(endpoints::ADDRESS, port))?;
    Ok((Listeners { udp: udp.into(), tcp }, port))
}

/// One that is free for connections need not be free for datagrams.
fn bind_any() -> io::Result<(Listeners, u16)> {
    let mut tries = 1;
    loop {
        match bind(0) {
            Err(_) if tries < TRIES_MAX => tries += 1,
            bound => return bound,
        }
    }
}

/// Answers questions. Clones are the same.
#[derive(Clone, Debug)]
pub struct Resolver {
    own: watch::Receiver<Own>,
    names: NameTable,
    forwarder: Arc<Forwarder>,
}

impl Resolver {
    /// `own` is what the node knows of its tasks, `names` what it was told of the others.
    pub fn new(settings: &Dns, own: watch::Receiver<Own>, names: NameTable) -> Self {
        let servers = match settings.servers[..] {
            [] => Servers::Host(HostServers::new(RESOLV_CONF.into())),
            _ => Servers::Configured(settings.servers.iter().map(|server| server.0).collect()),
        };
        Self {
            own,
            names,
            forwarder: Arc::new(Forwarder::new(servers)),
        }
    }

    /// Serves until `stop`. To be called within a runtime.
    ///
    /// # Errors
    /// When the listeners cannot be made the runtime's.
    pub fn serve(
        self,
        listeners: Listeners,
        stop: CancellationToken,
    ) -> io::Result<impl Future<Output = ()> + use<>> {
        let udp = tokio::net::UdpSocket::from_std(listeners.udp)?;
        let tcp = tokio::net::TcpListener::from_std(listeners.tcp)?;
        Ok(server::serve(udp, tcp, self, stop))
    }

    /// What needs nobody else. None: other servers have to be asked.
    fn answer_at_once(&self, question: &Question, asker: IpAddr) -> Option<Reply> {
        let own = self.own.borrow();
        let refusal = question.refusal();
        // It is on its way out, or the node does not know yet that it is there.
        let cluster = own.cluster_of(asker);
        let (None, Some(cluster)) = (refusal, cluster) else {
            METRICS.dns.refused.fetch_add(1, Relaxed);
            return Some(Reply::failure(refusal.unwrap_or(ResponseCode::Refused)));
        };
        let names = self.names.read();
        let zone = Zone {
            cluster,
            own: &own,
            names: &names,
        };
        let reply = zone.answer(question)?;
        METRICS.dns.answered.fetch_add(1, Relaxed);
        Some(reply)
    }

    async fn forward(&self, question: &Question) -> Reply {
        let (reply, source) = self.forwarder.ask(question).await;
        let counter = match source {
            Source::Cache => &METRICS.dns.cached,
            Source::Server => &METRICS.dns.forwarded,
            Source::Nobody => &METRICS.dns.failed,
        };
        counter.fetch_add(1, Relaxed);
        reply
    }

    /// So many wait already that this one does not.
    fn too_many(&self) -> Reply {
        METRICS.dns.dropped.fetch_add(1, Relaxed);
        Reply::failure(ResponseCode::ServFail)
    }
}
