//! Owns the values of `hostname`, `extraHosts`, `dnsServers`, `dnsSearchDomains` and `disableNetworking`: what a
//! container has of the network by itself. Ports are in `ports`, and never here.

use std::net::IpAddr;

use super::read::{Object, flag, objects, requires, text, texts};
use crate::problems::{Problems, shown};

/// Linux's HOST_NAME_MAX, bytes.
const HOSTNAME_BYTES_MAX: usize = 64;
/// Longest name of another host or of a domain, as ECS has it.
const NAME_BYTES_MAX: usize = 254;
/// What ECS refuses in awsvpc, where all containers are one host.
const NOT_IN_AWSVPC: [&str; 4] = ["hostname", "extraHosts", "dnsServers", "dnsSearchDomains"];

pub(super) fn check(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    if text(task, "networkMode") == Some("awsvpc") {
        for name in NOT_IN_AWSVPC
            .into_iter()
            .filter(|name| container.contains_key(*name))
        {
            let message = "ECS does not support it in awsvpc, where the containers of a task are one host";
            problems.push(format!("{path}.{name}"), message);
        }
    }
    if let Some(name) = text(container, "hostname").filter(|name| !is_hostname(name)) {
        let message = format!(
            "{} is not a host name: 1 to {HOSTNAME_BYTES_MAX} of letters, digits, - and ., each part beginning and \
             ending with a letter or digit",
            shown(name)
        );
        problems.push(format!("{path}.hostname"), message);
    }
    for (at, host) in objects(container, "extraHosts") {
        let path = format!("{path}.extraHosts[{at}]");
        if let Some(name) = text(host, "hostname").filter(|name| !is_name(name)) {
            problems.push(format!("{path}.hostname"), not_a_name(name));
        }
        if let Some(address) = text(host, "ipAddress") {
            check_address(&format!("{path}.ipAddress"), address, problems);
        }
    }
    for (at, address) in texts(container, "dnsServers") {
        check_address(&format!("{path}.dnsServers[{at}]"), address, problems);
    }
    for (at, name) in texts(container, "dnsSearchDomains").filter(|(_, name)| !is_name(name)) {
        problems.push(format!("{path}.dnsSearchDomains[{at}]"), not_a_name(name));
    }
    check_disabled(task, path, container, problems);
}

/// Whether a container is cut off, which FARGATE does not have.
pub(super) fn is_disabled_somewhere(task: &Object) -> bool {
    objects(task, "containerDefinitions").any(|(_, container)| flag(container, "disableNetworking"))
}

fn check_disabled(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    if !flag(container, "disableNetworking") {
        return;
    }
    let path = format!("{path}.disableNetworking");
    if requires(task, "FARGATE") {
        problems.push(path.as_str(), "FARGATE does not have it");
    }
    if container.contains_key("portMappings") {
        problems.push(
            path,
            "nothing reaches the portMappings of a container without a network",
        );
    }
}

fn check_address(path: &str, address: &str, problems: &mut Problems) {
    if address.parse::<IpAddr>().is_err() {
        problems.push(path, format!("{} is not an IPv4 or IPv6 address", shown(address)));
    }
}

fn is_hostname(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let part = |part: &str| {
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(inner)
    };
    name.len() <= HOSTNAME_BYTES_MAX && name.split('.').all(part)
}

/// ECS's pattern for search domains.
fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends = name.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric());
    ends && name.len() <= NAME_BYTES_MAX && name.bytes().all(known)
}

fn not_a_name(name: &str) -> String {
    let expected = "of letters, digits, -, _ and ., ending with a letter or digit";
    format!("{} is not a name: 1 to {NAME_BYTES_MAX} {expected}", shown(name))
}
