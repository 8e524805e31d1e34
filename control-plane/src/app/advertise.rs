//! Owns the names of the node listener: those in its certificate, and the one that hosts which join are sent to. Never
//! asks anybody but this host.

use std::net::{IpAddr, SocketAddr};

use crate::config::Config;

/// `host:port` for hosts that join: as configured, else the first of `node_names`, else the address of `node_listen`,
/// else the first address of this host that others may reach, else its name.
pub(super) fn advertised(config: &Config, listening: SocketAddr) -> String {
    if let Some(given) = &config.node_advertise {
        return given.clone();
    }
    let own = || Some(listening.ip()).filter(|ip| !ip.is_unspecified());
    let name = config
        .node_names
        .first()
        .cloned()
        .or_else(|| own().or_else(global_address).map(|ip| ip.to_string()))
        .or_else(hostname)
        .unwrap_or_else(|| "localhost".to_owned());
    join(&name, listening.port())
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The host of a `host:port`, without the brackets of an IPv6 address. None: it is neither.
pub(crate) fn host_of(advertised: &str) -> Option<&str> {
    let (host, port) = advertised.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(six) => six.parse::<std::net::Ipv6Addr>().is_ok().then_some(six),
        None => {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
            (!host.is_empty() && host.bytes().all(allowed)).then_some(host)
        }
    }
}

/// Whether no other host gets here by that name.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// IPv4 before IPv6, in the order of the interfaces.
fn global_address() -> Option<IpAddr> {
    let addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .ok()?
        .filter_map(|interface| {
            let address = interface.address?;
            let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(four) => !four.is_loopback() && !four.is_link_local() && !four.is_unspecified(),
            IpAddr::V6(six) => !six.is_loopback() && !six.is_unicast_link_local() && !six.is_unspecified(),
        })
        .collect();
    addresses
        .iter()
        .find(|ip| ip.is_ipv4())
        .or_else(|| addresses.first())
        .copied()
}

fn hostname() -> Option<String> {
    // Not from /proc/sys, which its unit hides from it.
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    (!name.is_empty() && name.bytes().all(allowed)).then_some(name)
}

/// By which names and addresses nodes may reach the control plane.
pub(super) fn server_names(config: &Config, advertised: &str) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let listen = config.node_listen.ip();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend(hostname());
    names.extend(host_of(advertised).map(str::to_owned));
    names.extend(config.node_names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(names: &[&str]) -> Config {
        let mut config = Config::new("/none", vec![]);
        config.node_names = names.iter().map(|name| (*name).to_owned()).collect();
        config
    }

    #[test]
    fn hosts_that_join_are_sent_to_the_best_name_there_is() {
        let listening: SocketAddr = "0.0.0.0:8781".parse().unwrap();
        let named = config(&["cp.example.org", "10.0.0.1"]);
        assert_eq!(advertised(&named, listening), "cp.example.org:8781");
        let six = config(&["fd00::1"]);
        assert_eq!(advertised(&six, listening), "[fd00::1]:8781");
        let given = Config {
            node_advertise: Some("proxy.example:443".into()),
            ..named
        };
        assert_eq!(advertised(&given, listening), "proxy.example:443");
        assert!(server_names(&given, "proxy.example:443").contains(&"proxy.example".to_owned()));
        assert_eq!(
            advertised(&config(&[]), "127.0.0.1:7071".parse().unwrap()),
            "127.0.0.1:7071"
        );
    }

    #[test]
    fn a_host_and_a_port_are_told_apart() {
        assert_eq!(host_of("cp.example:8781"), Some("cp.example"));
        assert_eq!(host_of("[fd00::1]:1"), Some("fd00::1"));
        for wrong in [
            "cp",
            "cp:",
            "cp:0",
            "cp:99999",
            ":1",
            "fd00::1:1",
            "https://cp:1",
            "a b:1",
            "[x]:1",
        ] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
        assert!(is_loopback("localhost") && is_loopback("127.0.0.2") && !is_loopback("10.0.0.1"));
    }
}
