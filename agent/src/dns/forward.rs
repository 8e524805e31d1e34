//! Owns the asking of other servers: one after the other, over UDP and where that is too small over TCP, within one deadline.
//! Never believes an answer that does not fit its question, and never hands on what a client wrote besides that.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout_at,
};

use super::{
    cache::Cache,
    message::{Question, Reply, TCP_BYTES_MAX},
    servers::Servers,
};

/// From a question to its answer, whoever is asked: before the client, which waits 5 s, asks again.
const DEADLINE: Duration = Duration::from_secs(4);
/// For one server, before the next is asked.
const SERVER_DEADLINE: Duration = Duration::from_millis(1_300);
/// What is read of a datagram: more than was said that we take.
const DATAGRAM_BYTES_MAX: usize = 4_096;

/// How an answer was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Cache,
    Server,
    /// No server answered in time, or none could.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Forwarder {
    servers: Servers,
    cache: Mutex<Cache>,
    /// Which server answered last: it is asked first.
    good: AtomicUsize,
    deadline: Duration,
    server_deadline: Duration,
}

impl Forwarder {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers,
            cache: Mutex::default(),
            good: AtomicUsize::new(0),
            deadline: DEADLINE,
            server_deadline: SERVER_DEADLINE,
        }
    }

    #[cfg(test)]
    pub(super) fn patient_for(self, deadline: Duration, server_deadline: Duration) -> Self {
        Self {
            deadline,
            server_deadline,
            ..self
        }
    }

    pub(super) async fn ask(&self, question: &Question) -> (Reply, Source) {
        let (servers, changed) = self.servers.now().await;
        let known = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if changed {
                // Another network may have other names.
                cache.clear();
            }
            cache.get(question, Instant::now())
        };
        if let Some(reply) = known {
            return (reply, Source::Cache);
        }
        match self.ask_servers(question, &servers).await {
            Some(reply) => {
                let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                cache.put(question, &reply, Instant::now());
                (reply, Source::Server)
            }
            None => (Reply::failure(ResponseCode::ServFail), Source::Nobody),
        }
    }

    /// Goes round until the deadline. What only says that a server cannot answer is handed on when all of them said so.
    async fn ask_servers(&self, question: &Question, servers: &[SocketAddr]) -> Option<Reply> {
        let deadline = tokio::time::Instant::now() + self.deadline;
        let first = self.good.load(Relaxed);
        let mut unable = None;
        let mut refusals = 0;
        for (n, index) in (0..servers.len())
            .cycle()
            .skip(first % servers.len().max(1))
            .enumerate()
        {
            let server = servers[index];
            let begun = tokio::time::Instant::now();
            let until = deadline.min(begun + self.server_deadline);
            match timeout_at(until, exchange(server, question)).await {
                Ok(Ok(message)) if is_final(message.metadata.response_code) => {
                    self.good.store(index, Relaxed);
                    return Some(Reply::of(message));
                }
                Ok(Ok(message)) => {
                    unable = Some(Reply::of(message));
                    refusals += 1;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "a name server cannot be asked");
                    refusals += 1;
                }
                Err(_) => tracing::debug!(%server, "a name server did not answer in time"),
            }
            let round = (n + 1) % servers.len() == 0;
            if tokio::time::Instant::now() >= deadline || (round && refusals == servers.len()) {
                return unable;
            }
            if round {
                refusals = 0;
            }
        }
        unable
    }
}

/// Whether another server would not know better.
fn is_final(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// One server's answer. Servers of before EDNS (1999) may not understand it: they are asked once more without.
async fn exchange(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let answer = over_udp(server, question, true).await?;
    match answer.metadata.response_code {
        ResponseCode::FormErr | ResponseCode::NotImp => over_udp(server, question, false).await,
        _ => Ok(answer),
    }
}

async fn over_udp(server: SocketAddr, question: &Question, edns: bool) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A port of its own, which the kernel chooses, and an id: what a forger has to guess.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&encode(question, id, edns)?).await?;
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Ok(message) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        if !question.is_answered_by(id, &message) {
            continue;
        }
        if message.metadata.truncation {
            return over_tcp(server, question, edns).await;
        }
        return Ok(message);
    }
}

async fn over_tcp(server: SocketAddr, question: &Question, edns: bool) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random();
    write_message(&mut stream, &encode(question, id, edns)?).await?;
    let bytes = read_message(&mut stream).await?;
    let message = Message::from_vec(&bytes).map_err(io::Error::other)?;
    if question.is_answered_by(id, &message) && !message.metadata.truncation {
        return Ok(message);
    }
    Err(io::Error::other("what came is no answer to what was asked"))
}

fn encode(question: &Question, id: u16, edns: bool) -> io::Result<Vec<u8>> {
    question.to_server(id, edns).to_vec().map_err(io::Error::other)
}

/// A message as TCP has it: its length before it. The caller has the deadline.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Likewise.
pub(super) async fn write_message(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len())
        .map_err(|_| io::Error::other(format!("{} bytes are more than {TCP_BYTES_MAX}", bytes.len())))?;
    let mut framed = Vec::with_capacity(bytes.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await
}
