//! Owns how much of the listener one peer may take: connections of strangers by their source, connections of a node
//! by its id. Never knows what is said on them.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections without a client certificate, the handshakes under way among them, all together.
pub(super) const STRANGERS_MAX: usize = 512;
/// The same from one source. Nodes behind one address that all come back at once share it while they shake hands.
pub(super) const STRANGERS_PER_SOURCE_MAX: usize = 128;
/// Connections with one node's certificate: one is needed, and old ones may linger.
pub(super) const CONNECTIONS_PER_NODE_MAX: usize = 16;
/// Bits of an IPv6 address that one customer has (RFC 6177).
const IPV6_SOURCE_BITS: u32 = 64;

/// Who opened a connection, as far as limits are concerned: an IPv4 address, or an IPv6 network of one customer.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6((u128::from(six) & (u128::MAX << (128 - IPV6_SOURCE_BITS))).into()),
        four => four,
    }
}

/// Counts what is open.
#[derive(Debug, Default)]
pub(super) struct Admission {
    strangers: Counts<IpAddr>,
    nodes: Counts<String>,
}

impl Admission {
    pub(super) fn stranger(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let source = source(address);
        self.strangers
            .enter(source, STRANGERS_PER_SOURCE_MAX, STRANGERS_MAX)
            .then(|| Guest::Stranger(self.clone(), source))
    }

    pub(super) fn node(self: &Arc<Self>, node: &str) -> Option<Guest> {
        self.nodes
            .enter(node.to_owned(), CONNECTIONS_PER_NODE_MAX, usize::MAX)
            .then(|| Guest::Node(self.clone(), node.to_owned()))
    }
}

/// One connection that counts; until dropped.
#[derive(Debug)]
pub(super) enum Guest {
    Stranger(Arc<Admission>, IpAddr),
    Node(Arc<Admission>, String),
}

impl Drop for Guest {
    fn drop(&mut self) {
        match self {
            Self::Stranger(admission, source) => admission.strangers.leave(source),
            Self::Node(admission, node) => admission.nodes.leave(node),
        }
    }
}

#[derive(Debug)]
struct Counts<K>(Mutex<(usize, HashMap<K, usize>)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::new((0, HashMap::new())))
    }
}

impl<K: Eq + Hash> Counts<K> {
    fn enter(&self, key: K, each_max: usize, all_max: usize) -> bool {
        let (all, counts) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&key).copied().unwrap_or_default();
        if *all >= all_max || own >= each_max {
            return false;
        }
        *all += 1;
        counts.insert(key, own + 1);
        true
    }

    fn leave(&self, key: &K) {
        let (all, counts) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = counts.get_mut(key) {
            *own -= 1;
            *all -= 1;
            if *own == 0 {
                counts.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_and_gets_it_back() {
        let admission = Arc::new(Admission::default());
        let (one, neighbour, other) = ("2001:db8::1", "2001:db8::ffff", "10.0.0.1");
        let mut guests: Vec<Guest> = (0..STRANGERS_PER_SOURCE_MAX)
            .map(|_| admission.stranger(one.parse().unwrap()).unwrap())
            .collect();
        assert!(
            admission.stranger(neighbour.parse().unwrap()).is_none(),
            "one customer, one share"
        );
        assert!(admission.stranger(other.parse().unwrap()).is_some());
        guests.pop();
        assert!(admission.stranger(neighbour.parse().unwrap()).is_some());
    }

    #[test]
    fn strangers_and_the_connections_of_a_node_are_bounded() {
        let admission = Arc::new(Admission::default());
        let strangers: Vec<Option<Guest>> = (0..=STRANGERS_MAX)
            .map(|n| admission.stranger(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())))
            .collect();
        assert_eq!(strangers.iter().flatten().count(), STRANGERS_MAX);
        let nodes: Vec<Option<Guest>> = (0..=CONNECTIONS_PER_NODE_MAX)
            .map(|_| admission.node("a"))
            .collect();
        assert_eq!(nodes.iter().flatten().count(), CONNECTIONS_PER_NODE_MAX);
        assert!(admission.node("b").is_some());
    }
}
