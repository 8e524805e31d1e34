//! Owns the listeners: one of datagrams, one of connections, and how much each task may ask of them. Never knows an answer.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use berth_service::places::{Places, Taken};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Resolver,
    forward::{read_message, write_message},
    message::{Question, Received, Reply, TCP_BYTES_MAX},
};
use crate::{
    metrics::METRICS,
    rate::{Limit, Rates},
};

/// Of each task, as much as a resolver of Amazon's gives an interface.
const RATE: Limit = Limit {
    per_second: 1_024,
    burst: 1_024,
};
/// Questions over UDP that wait for other servers.
const WAITING: Places = Places { all: 512, of_one: 64 };
const CONNECTIONS: Places = Places { all: 256, of_one: 8 };
/// A question and its sending take so long at most, and between two of them a connection rests so long.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Longest connection.
const TCP_LIMIT: Duration = Duration::from_secs(60);
/// Pause after a failed accept: no descriptors are left, for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is read of a datagram: a question that is larger asks for something that we do not have.
const DATAGRAM_BYTES_MAX: usize = 1_500;

/// Who asks how often, whichever way.
type Asked = Arc<Mutex<Rates<IpAddr>>>;

fn may_ask(asked: &Asked, who: IpAddr) -> bool {
    let mut rates = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let allowed = rates.allow(&who, Instant::now());
    if !allowed {
        METRICS.dns.dropped.fetch_add(1, Relaxed);
    }
    allowed
}

/// Serves both until `stop`.
pub(super) async fn serve(udp: UdpSocket, tcp: TcpListener, resolver: Resolver, stop: CancellationToken) {
    let asked: Asked = Arc::new(Mutex::new(Rates::new(RATE)));
    let both = async {
        tokio::join!(
            datagrams(&udp, &resolver, &asked),
            connections(&tcp, &resolver, &asked)
        )
    };
    stop.run_until_cancelled(both).await;
}

/// What is known here is answered at once; the rest waits beside that.
async fn datagrams(socket: &UdpSocket, resolver: &Resolver, asked: &Asked) {
    let waiting = Taken::new(WAITING);
    let mut answers = FuturesUnordered::new();
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        // Both are cancel-safe: a datagram that is not taken here is taken next time.
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(()) = answers.next(), if !answers.is_empty() => continue,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                // One that could not be delivered, for example.
                tracing::debug!(%error, "no question can be read");
                continue;
            }
        };
        if !may_ask(asked, peer.ip()) {
            continue;
        }
        let question = match Question::read(&buffer[..length]) {
            Received::Question(question) => question,
            Received::Malformed(answer) => {
                METRICS.dns.malformed.fetch_add(1, Relaxed);
                send(socket, &answer, peer).await;
                continue;
            }
            Received::Noise => continue,
        };
        let bytes_max = question.udp_bytes_max();
        if let Some(reply) = resolver.answer_at_once(&question, peer.ip()) {
            send(socket, &reply.encode(&question, bytes_max), peer).await;
            continue;
        }
        let Some(place) = waiting.take(peer.ip()) else {
            let reply = resolver.too_many();
            send(socket, &reply.encode(&question, bytes_max), peer).await;
            continue;
        };
        answers.push(async move {
            let _place = place;
            let reply = resolver.forward(&question).await;
            send(socket, &reply.encode(&question, bytes_max), peer).await;
        });
    }
}

/// Who asked and went away does not get an answer.
async fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        tracing::debug!(%error, %peer, "an answer cannot be sent");
    }
}

async fn connections(listener: &TcpListener, resolver: &Resolver, asked: &Asked) {
    let taken = Taken::new(CONNECTIONS);
    let mut open = FuturesUnordered::new();
    loop {
        // As above.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(()) = open.next(), if !open.is_empty() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                // One too many is closed at once.
                if let Some(place) = taken.take(peer.ip()) {
                    open.push(async move {
                        let _place = place;
                        let talked = timeout(TCP_LIMIT, talk(stream, peer.ip(), resolver, asked)).await;
                        if let Ok(Err(error)) = talked {
                            tracing::debug!(%error, %peer, "a connection ended");
                        }
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One question after the other.
async fn talk(mut stream: TcpStream, who: IpAddr, resolver: &Resolver, asked: &Asked) -> io::Result<()> {
    loop {
        let bytes = timeout(TCP_IDLE, read_message(&mut stream)).await??;
        if !may_ask(asked, who) {
            return Ok(());
        }
        let answer = match Question::read(&bytes) {
            Received::Question(question) => {
                let reply: Reply = match resolver.answer_at_once(&question, who) {
                    Some(reply) => reply,
                    None => resolver.forward(&question).await,
                };
                reply.encode(&question, TCP_BYTES_MAX)
            }
            Received::Malformed(answer) => {
                METRICS.dns.malformed.fetch_add(1, Relaxed);
                answer
            }
            Received::Noise => return Ok(()),
        };
        timeout(TCP_IDLE, write_message(&mut stream, &answer)).await??;
    }
}
