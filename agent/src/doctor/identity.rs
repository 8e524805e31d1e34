//! Who this node is, and whether its control plane can be reached.

use std::{net::SocketAddr, time::Duration};

use tokio::net::TcpStream;

use super::Finding;
use crate::{
    config::Config,
    dial::{DialError, Dialer},
    identity::verify::moment,
    sys::Chain,
};

/// Of one address.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Of a name's addresses, so many are tried.
const ADDRESSES_MAX: usize = 3;

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    vec![identity(config), reach(&config.control_plane).await]
}

fn identity(config: &Config) -> Finding {
    const CHECK: &str = "identity";
    let identity = match config.load_identity() {
        Ok(identity) => identity,
        Err(error) => {
            let advice = "join it: get a token with `berth token create` and run what that prints";
            return Finding::problem(CHECK, Chain(&error).to_string(), advice);
        }
    };
    let (from, to) = (moment(identity.not_before), moment(identity.not_after));
    let said = format!(
        "node {}, its certificate is valid from {from} to {to}",
        identity.node_id
    );
    if identity.is_valid_at(time::OffsetDateTime::now_utc()) {
        return Finding::ok(CHECK, said);
    }
    Finding::problem(
        CHECK,
        format!(
            "{said}; this host's clock says {}",
            moment(time::OffsetDateTime::now_utc())
        ),
        "if the clock is wrong, set it: `timedatectl set-ntp true`; if not, join anew: `berth-agent register --force`",
    )
}

async fn reach(control_plane: &str) -> Finding {
    const CHECK: &str = "control plane";
    let hop = match first_hop(control_plane) {
        Ok(hop) => hop,
        Err(error) => {
            let advice = "the environment of the agent's service is what counts: HTTPS_PROXY, NO_PROXY";
            return Finding::problem(CHECK, Chain(&error).to_string(), advice);
        }
    };
    let Some((host, port)) = hop else {
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

/// Host and port of what is connected to: the control plane of `https://host[:port][/…]`, or the proxy before it.
fn first_hop(url: &str) -> Result<Option<(String, u16)>, DialError> {
    let uri: Option<http::Uri> = url.parse().ok();
    let Some(uri) = uri.filter(|uri| uri.host().is_some()) else {
        return Ok(None);
    };
    Dialer::from_env()?.first_hop(&uri).map(Some)
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    fn hop(url: &str) -> Option<(String, u16)> {
        first_hop(url).unwrap()
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(hop("https://cp.example:8781"), Some(("cp.example".into(), 8781)));
        assert_eq!(hop("https://[2001:db8::1]:1"), Some(("2001:db8::1".into(), 1)));
        assert_eq!(hop("https://cp.example"), Some(("cp.example".into(), 443)));
        assert_eq!(hop(""), None);
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
