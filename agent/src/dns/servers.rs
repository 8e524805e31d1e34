//! Owns which servers are asked for other names: the configured ones, or the host's, as resolv.conf(5) has them. They are
//! read again when the file may have changed: a host that gets another network is told of it there.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::io::AsyncReadExt as _;

use crate::endpoints;

use super::ADDRESS;

pub(super) const PORT: u16 = 53;
/// As many as the C library asks.
pub(super) const SERVERS_MAX: usize = 3;
/// Between two looks at the file.
const FRESH: Duration = Duration::from_secs(2);
/// What is read of it.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug)]
pub(super) enum Servers {
    Configured(Vec<SocketAddr>),
    Host(HostServers),
}

impl Servers {
    /// The servers now, and whether they are others than last time.
    pub(super) async fn now(&self) -> (Vec<SocketAddr>, bool) {
        match self {
            Self::Configured(servers) => (servers.clone(), false),
            Self::Host(host) => host.now().await,
        }
    }
}

#[derive(Debug)]
pub(super) struct HostServers {
    file: PathBuf,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl HostServers {
    pub(super) fn new(file: PathBuf) -> Self {
        Self {
            file,
            read: Mutex::default(),
        }
    }

    async fn now(&self) -> (Vec<SocketAddr>, bool) {
        let before = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, servers)) = &before
            && at.elapsed() < FRESH
        {
            return (servers.clone(), false);
        }
        let text = self.text().await;
        let servers = match (text, &before) {
            (Ok(text), _) => parse(&text),
            // It is being replaced, or cannot be read now.
            (Err(_), Some((_, servers))) => servers.clone(),
            (Err(_), None) => parse(""),
        };
        let changed = before.is_some_and(|(_, known)| known != servers);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = Some((Instant::now(), servers.clone()));
        (servers, changed)
    }

    async fn text(&self) -> std::io::Result<String> {
        let file = tokio::fs::File::open(&self.file).await?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The servers of a resolv.conf. As the C library has it, the host itself where the file names none.
fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| address(words.next()?))
            .flatten()
    };
    let ours =
        |address: &SocketAddr| [IpAddr::V4(ADDRESS), IpAddr::V4(endpoints::ADDRESS)].contains(&address.ip());
    let servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(server)
        .filter(|address| !ours(address))
        .take(SERVERS_MAX)
        .collect();
    if servers.is_empty() {
        return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))];
    }
    servers
}

/// `10.0.0.2`, `fd00::1`, `fe80::1%eth0`.
fn address(text: &str) -> Option<SocketAddr> {
    if let Some((address, link)) = text.split_once('%') {
        let index = nix::net::if_::if_nametoindex(link).ok()?;
        let address = SocketAddrV6::new(address.parse().ok()?, PORT, 0, index);
        return Some(address.into());
    }
    let address: IpAddr = text.parse().ok()?;
    Some(SocketAddr::new(address, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_servers_are_those_of_its_file_also_on_loopback() {
        let text = "# c\nnameserver 127.0.0.53\n nameserver\t10.0.0.2 x\nnameserver fe80::1%lo\nnameserver 10.0.0.4\nsearch a\n";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "10.0.0.2:53", "[fe80::1%1]:53"]);
        // Never ourselves.
        for none in [
            "",
            "nameserver x\n",
            "nameserver 169.254.170.3\nnameserver 169.254.170.2",
        ] {
            assert_eq!(parse(none), ["127.0.0.1:53".parse().unwrap()], "{none:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again_and_one_that_is_away_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        let servers = HostServers::new(file.clone());
        let expire = || {
            let mut read = servers.read.lock().unwrap();
            let (at, _) = read.as_mut().unwrap();
            *at -= FRESH;
        };
        std::fs::write(&file, "nameserver 10.0.0.1\n").unwrap();
        let first = vec!["10.0.0.1:53".parse().unwrap()];
        assert_eq!(servers.now().await, (first.clone(), false));
        std::fs::write(&file, "nameserver 10.0.0.2\n").unwrap();
        assert_eq!(servers.now().await, (first, false));
        expire();
        let second = vec!["10.0.0.2:53".parse().unwrap()];
        assert_eq!(servers.now().await, (second.clone(), true));
        std::fs::remove_file(&file).unwrap();
        expire();
        assert_eq!(servers.now().await, (second, false));
    }
}
