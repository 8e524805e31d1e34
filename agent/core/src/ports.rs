//! Owns which ports of the host lead to which of a task's containers: those that a definition names, and those that the node
//! chooses. Never opens one: whether a process of the host has a port is found out when it is published.

use std::{collections::BTreeSet, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::{
    addresses::Address,
    desired::{Millis, NetworkMode, PortMapping, Protocol, TaskSpec},
    ids::ContainerId,
};

/// How long a port is not chosen again after its task ended, milliseconds: peers may still send to it.
pub const PORT_REST_MS: i64 = 30_000;

/// Where the node chooses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicPorts {
    pub range: RangeInclusive<u16>,
    /// Of the range, and not to be chosen: whoever manages the host keeps them for something.
    pub avoided: BTreeSet<u16>,
}

impl Default for DynamicPorts {
    /// ECS's, where the kernel does not say.
    fn default() -> Self {
        Self {
            range: 49_153..=65_535,
            avoided: BTreeSet::new(),
        }
    }
}

/// A port of the host, or as many as the container's range has, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub container: ContainerId,
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
    /// Of a range: the container's last.
    pub last_container_port: Option<u16>,
}

impl Binding {
    /// Each port of the host's, and the container's that it leads to.
    pub fn ports(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let last = self.last_container_port.unwrap_or(self.container_port);
        // A range fits: it was chosen, or read, so.
        (self.host_port..=u16::MAX).zip(self.container_port..=last)
    }

    /// Those that it occupies of the host.
    pub fn host_ports(&self) -> impl Iterator<Item = (Protocol, u16)> + use<> {
        let protocol = self.protocol;
        self.ports().map(move |(host_port, _)| (protocol, host_port))
    }
}

/// One port of the host that leads to one of a task's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub protocol: Protocol,
    pub host_port: u16,
    pub address: Address,
    pub port: u16,
}

/// What rests, and where the search goes on. Who holds what is in the node's accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// So that ports are used in turn.
    next: u16,
    resting: Vec<Resting>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resting {
    protocol: Protocol,
    port: u16,
    until: Millis,
}

impl Ports {
    /// All bindings of a task, as its definition has them and, where that leaves it to the node, from `dynamic`: never a port
    /// for which `held` is true, one that rests, or one of its own twice. Ranges stay together. None: there are not enough.
    pub fn choose(
        &mut self,
        spec: &TaskSpec,
        dynamic: &DynamicPorts,
        held: &dyn Fn(Protocol, u16) -> bool,
        now: Millis,
    ) -> Option<Vec<Binding>> {
        self.expire(now);
        let mut own: BTreeSet<(Protocol, u16)> = spec.host_ports().collect();
        let mut bindings = Vec::new();
        for (container, mapping) in spec.published_ports() {
            let host_port = match mapping.host_port {
                0 => self.find(mapping, dynamic, &|protocol, port| {
                    held(protocol, port) || own.contains(&(protocol, port))
                })?,
                given => given,
            };
            let binding = Binding {
                container: container.clone(),
                protocol: mapping.protocol,
                host_port,
                container_port: mapping.container_port,
                last_container_port: mapping.last_container_port,
            };
            own.extend(binding.host_ports());
            bindings.push(binding);
        }
        Some(bindings)
    }

    /// The first of as many ports in a row as the mapping has.
    fn find(
        &mut self,
        mapping: &PortMapping,
        dynamic: &DynamicPorts,
        held: &dyn Fn(Protocol, u16) -> bool,
    ) -> Option<u16> {
        let (first, last) = (*dynamic.range.start(), *dynamic.range.end());
        let protocol = mapping.protocol;
        let resting: BTreeSet<u16> = self
            .resting
            .iter()
            .filter(|resting| resting.protocol == protocol)
            .map(|resting| resting.port)
            .collect();
        let free =
            |port: u16| !dynamic.avoided.contains(&port) && !resting.contains(&port) && !held(protocol, port);
        let count = mapping.count();
        let start = if dynamic.range.contains(&self.next) {
            self.next
        } else {
            first
        };
        let mut run: u32 = 0;
        let mut before = None;
        // Once around, and as far again as a row may be long that begins before where we began.
        let all = (start..=last).chain(first..=last);
        for port in all {
            let continues = before == port.checked_sub(1);
            run = match free(port) {
                true if continues => run + 1,
                true => 1,
                false => 0,
            };
            before = Some(port);
            if run == count {
                self.next = port.checked_add(1).unwrap_or(first);
                return u16::try_from(u32::from(port) + 1 - count).ok();
            }
        }
        None
    }

    /// They are not chosen for a while.
    pub fn rest(&mut self, ports: impl IntoIterator<Item = (Protocol, u16)>, now: Millis) -> Millis {
        let until = now.plus(PORT_REST_MS);
        for (protocol, port) in ports {
            self.resting
                .retain(|resting| (resting.protocol, resting.port) != (protocol, port));
            self.resting.push(Resting {
                protocol,
                port,
                until,
            });
        }
        until
    }

    /// Forgets what has rested long enough.
    pub fn expire(&mut self, now: Millis) {
        self.resting.retain(|resting| resting.until > now);
    }

    /// When the next one may be chosen again.
    pub fn next_expiry(&self) -> Option<Millis> {
        self.resting.iter().map(|resting| resting.until).min()
    }

    /// The clock was set: they rest as long as they would have.
    pub fn shift_expiry(&mut self, by_ms: i64) {
        for resting in &mut self.resting {
            resting.until = resting.until.plus(by_ms);
        }
    }
}

impl PortMapping {
    /// How many ports it is.
    pub fn count(&self) -> u32 {
        let last = self.last_container_port.unwrap_or(self.container_port);
        u32::from(last.saturating_sub(self.container_port)) + 1
    }
}

impl TaskSpec {
    /// Whether its ports are ones of the host, which lead to it.
    pub fn publishes(&self) -> bool {
        match self.network {
            NetworkMode::Bridge => true,
            NetworkMode::Awsvpc => self.publish_ports,
            NetworkMode::Host | NetworkMode::None => false,
        }
    }

    /// Whether the node is to choose ports of the host for it.
    pub fn wants_ports(&self) -> bool {
        self.published_ports().any(|(_, mapping)| mapping.host_port == 0)
    }

    /// What of its ports leads to it from the host. Nothing reaches a container without a network.
    pub fn published_ports(&self) -> impl Iterator<Item = (&ContainerId, &PortMapping)> {
        let publishes = self.publishes();
        let containers = self.containers.iter();
        let reachable = containers.filter(move |container| publishes && !container.networking.disabled);
        reachable.flat_map(|container| container.ports.iter().map(move |port| (&container.id, port)))
    }

    /// The host's ports that its definition names: those of host mode, and those that are published.
    pub fn host_ports(&self) -> impl Iterator<Item = (Protocol, u16)> + '_ {
        let host = self.network == NetworkMode::Host;
        let own = self
            .containers
            .iter()
            .filter(move |_| host)
            .flat_map(|c| &c.ports);
        let published = self.published_ports().map(|(_, mapping)| mapping);
        own.chain(published)
            .filter(|mapping| mapping.host_port != 0)
            .flat_map(|mapping| {
                let count = usize::try_from(mapping.count()).unwrap_or(usize::MAX);
                (mapping.host_port..=u16::MAX)
                    .take(count)
                    .map(|port| (mapping.protocol, port))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(first: u16, last: Option<u16>) -> PortMapping {
        PortMapping {
            container_port: first,
            host_port: 0,
            protocol: Protocol::Tcp,
            last_container_port: last,
        }
    }

    fn dynamic(range: RangeInclusive<u16>, avoided: &[u16]) -> DynamicPorts {
        DynamicPorts {
            range,
            avoided: avoided.iter().copied().collect(),
        }
    }

    const NOBODY: &dyn Fn(Protocol, u16) -> bool = &|_, _| false;

    #[test]
    fn ports_are_used_in_turn_and_none_that_is_held_avoided_or_resting() {
        let mut ports = Ports::default();
        let range = dynamic(100..=105, &[102]);
        let held = |_, port| port == 101;
        let find = |ports: &mut Ports| ports.find(&mapping(80, None), &range, &held);
        assert_eq!(find(&mut ports), Some(100));
        assert_eq!(find(&mut ports), Some(103));
        ports.rest([(Protocol::Tcp, 104), (Protocol::Udp, 105)], Millis(0));
        assert_eq!(find(&mut ports), Some(105), "only 105/udp rests");
        assert_eq!(find(&mut ports), Some(100), "from the beginning again");
        ports.expire(Millis(PORT_REST_MS));
        assert_eq!(find(&mut ports), Some(103));
        assert_eq!(find(&mut ports), Some(104));
        assert_eq!(ports.next_expiry(), None);
    }

    #[test]
    fn a_range_is_a_row_wherever_there_is_one() {
        let mut ports = Ports::default();
        let range = dynamic(100..=109, &[104]);
        assert_eq!(ports.find(&mapping(1, Some(3)), &range, NOBODY), Some(100));
        // 103 alone is too short; from 105 there is room.
        assert_eq!(ports.find(&mapping(1, Some(4)), &range, NOBODY), Some(105));
        // It may begin before where the search does: 109, then around.
        assert_eq!(ports.find(&mapping(1, Some(4)), &range, NOBODY), Some(100));
        assert_eq!(ports.find(&mapping(1, Some(6)), &range, NOBODY), None);
        assert_eq!(
            dynamic(65_535..=65_535, &[]).range.end(),
            &65_535,
            "the last port there is"
        );
        assert_eq!(
            ports.find(&mapping(1, None), &dynamic(65_535..=65_535, &[]), NOBODY),
            Some(65_535)
        );
    }

    #[test]
    fn a_binding_names_each_port() {
        let binding = Binding {
            container: format!("{:032x}", 1).parse().unwrap(),
            protocol: Protocol::Udp,
            host_port: 65_534,
            container_port: 7,
            last_container_port: Some(8),
        };
        assert_eq!(binding.ports().collect::<Vec<_>>(), [(65_534, 7), (65_535, 8)]);
    }
}
