//! Owns the border for what a container has of the network by itself. Checks what is sent as if nobody had checked before:
//! it is written into files that resolvers read line by line.

use std::net::IpAddr;

use berth_agent_core::desired::Networking;
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, refuse};

/// Linux's HOST_NAME_MAX, bytes.
const HOSTNAME_BYTES_MAX: usize = 64;
/// ECS's longest name of a host or domain.
const NAME_BYTES_MAX: usize = 254;

pub(super) fn networking(wire: wire::Networking) -> Result<Networking, Refusal> {
    for (field, count) in [
        ("networking.extra_hosts", wire.extra_hosts.len()),
        ("networking.dns_servers", wire.dns_servers.len()),
        ("networking.dns_search_domains", wire.dns_search_domains.len()),
    ] {
        if count > ENTRIES_MAX {
            return refuse(field, format!("{count} entries are more than {ENTRIES_MAX}"));
        }
    }
    if !wire.hostname.is_empty() {
        check_name("networking.hostname", &wire.hostname, HOSTNAME_BYTES_MAX)?;
    }
    for domain in &wire.dns_search_domains {
        check_name("networking.dns_search_domains", domain, NAME_BYTES_MAX)?;
    }
    let host = |host: wire::HostEntry| {
        const FIELD: &str = "networking.extra_hosts";
        check_name(FIELD, &host.hostname, NAME_BYTES_MAX)?;
        Ok((host.hostname, address(FIELD, &host.address)?))
    };
    let server = |server: &String| address("networking.dns_servers", server);
    Ok(Networking {
        hostname: wire.hostname,
        extra_hosts: wire.extra_hosts.into_iter().map(host).collect::<Result<_, _>>()?,
        dns_servers: wire.dns_servers.iter().map(server).collect::<Result<_, _>>()?,
        dns_search_domains: wire.dns_search_domains,
        disabled: wire.disabled,
    })
}

fn check_name(field: &str, name: &str, bytes_max: usize) -> Result<(), Refusal> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=bytes_max).contains(&name.len()) && name.bytes().all(known) {
        return Ok(());
    }
    refuse(
        field,
        format!("{name:?} is not 1 to {bytes_max} of A-Z, a-z, 0-9, -, _ and ."),
    )
}

fn address(field: &str, text: &str) -> Result<IpAddr, Refusal> {
    text.parse()
        .or_else(|_| refuse(field, format!("{text:?} is not an IP address")))
}
