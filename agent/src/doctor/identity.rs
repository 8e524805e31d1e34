//! Who this node is, and whether its control plane can be reached.

use std::{net::SocketAddr, time::Duration};

use tokio::net::TcpStream;

use super::Finding;
use crate::config::Config;

/// Of one address.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Of a name's addresses, so many are tried.
const ADDRESSES_MAX: usize = 3;

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    vec![reach(&config.control_plane).await]
}

async fn reach(control_plane: &str) -> Finding {
    const CHECK: &str = "control plane";
    let Some((host, port)) = host_and_port(control_plane) else {
        return Finding::problem(
            CHECK,
            format!("{control_plane:?} is no address"),
            "set control_plane, such as https://cp.example:8781, or join one: berth-agent register",
        );
    };
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host((host.as_str(), port)).await {
        Ok(found) => found.take(ADDRESSES_MAX).collect(),
        Err(error) => {
            return Finding::problem(
                CHECK,
                format!("{host}: {error}"),
                format!("the name does not resolve: `getent hosts {host}`; see /etc/resolv.conf"),
            );
        }
    };
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Finding::ok(CHECK, format!("{address} answers")),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer in {} s", CONNECT_DEADLINE.as_secs()),
        }
    }
    Finding::problem(
        CHECK,
        last,
        format!(
            "is it running there, and does every firewall between let TCP port {port} through? Tasks that run go on \
             without it"
        ),
    )
}

/// Of `https://host[:port][/…]`.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let uri: tonic::transport::Uri = url.parse().ok()?;
    let host = uri
        .host()?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    Some((host, uri.port_u16().unwrap_or(443)))
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(
            host_and_port("https://cp.example:8781"),
            Some(("cp.example".into(), 8781))
        );
        assert_eq!(
            host_and_port("https://[2001:db8::1]:1"),
            Some(("2001:db8::1".into(), 1))
        );
        assert_eq!(
            host_and_port("https://cp.example"),
            Some(("cp.example".into(), 443))
        );
        assert_eq!(host_and_port(""), None);
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(reach(&format!("https://{address}")).await.outcome, Outcome::Ok);
        drop(listener);
        let finding = reach(&format!("https://{address}")).await;
        assert_eq!(finding.outcome, Outcome::Problem);
        assert!(
            finding.advice.contains(&address.port().to_string()),
            "{finding:?}"
        );
    }
}
