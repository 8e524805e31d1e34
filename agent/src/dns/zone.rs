//! Owns what is answered of `berth.`, the domain of tasks: pure. Never knows how a question came, and never answers for
//! another cluster than that of the task which asks.
//!
//! `<task id>.<cluster>.berth` has the task's addresses. What is not known below `berth.` does not exist: no other server is
//! asked, for the domain is ours alone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_agent_core::{addresses::Address, desired::NetworkMode, ids::TaskId, report::Status, task::Task};
use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{PTR, SOA},
    },
};

use super::message::{Question, Reply};

/// The domain of all names of tasks.
const DOMAIN: &str = "berth";
/// RFC 1035, 2.3.4.
const LABEL_BYTES_MAX: usize = 63;
/// How long a name may be remembered, and that there is none, seconds: a task that is replaced has another address.
pub(super) const TTL_S: u32 = 5;
/// Of a name that another server would look at, seconds. Nobody copies this domain.
const SOA_TIME_S: i32 = 3600;

/// The name of a task, without the dot at the end. None: its cluster's name is too long for a label.
pub fn name_of(task: &TaskId, cluster: &str) -> Option<String> {
    (cluster.len() <= LABEL_BYTES_MAX).then(|| format!("{task}.{cluster}.{DOMAIN}"))
}

/// A task's id as a number: what is kept for each of thousands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u128);

impl Key {
    /// Of 32 hexadecimal digits. In names, case does not count.
    pub fn parse(id: &str) -> Option<Self> {
        let plain = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        plain
            .then(|| u128::from_str_radix(id, 16).ok().map(Self))
            .flatten()
    }
}

impl From<&TaskId> for Key {
    fn from(id: &TaskId) -> Self {
        // An id is nothing else.
        Self(u128::from_str_radix(id.as_str(), 16).unwrap_or_default())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Where a task is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// They are its node's: nobody's name is asked for there.
    pub of_node: bool,
}

impl Addresses {
    fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (ipv4, ipv6) = (self.ipv4.map(IpAddr::from), self.ipv6.map(IpAddr::from));
        ipv4.into_iter().chain(ipv6)
    }
}

/// What the node itself knows of its tasks. It is first to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Clusters of those who may ask, by the address they ask from.
    askers: BTreeMap<Ipv4Addr, String>,
    /// Every task the node knows, and where it is reached.
    tasks: BTreeMap<Key, Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    At(Address),
    /// At this node, whose address for others the control plane tells.
    Node,
}

impl Own {
    pub fn of<'a>(tasks: impl Iterator<Item = &'a Task>) -> Self {
        let mut own = Self::default();
        for task in tasks {
            let lives = task.holds_host() && task.status() < Status::Deprovisioning;
            let address = task
                .address
                .filter(|_| lives && task.spec.network == NetworkMode::Awsvpc);
            if let Some(address) = address {
                own.askers.insert(address.ipv4, task.spec.cluster.clone());
            }
            // Containers of bridge mode ask, each by itself.
            for address in task.container_addresses.values().filter(|_| lives) {
                own.askers.insert(address.ipv4, task.spec.cluster.clone());
            }
            let place = match task.spec.network {
                NetworkMode::Awsvpc => address.map_or(Place::Nowhere, Place::At),
                NetworkMode::Bridge | NetworkMode::Host if lives => Place::Node,
                NetworkMode::Bridge | NetworkMode::Host | NetworkMode::None => Place::Nowhere,
            };
            own.tasks.insert(Key::from(&task.spec.id), place);
        }
        own
    }

    /// The cluster of the task that asks from there.
    pub(super) fn cluster_of(&self, asker: IpAddr) -> Option<&str> {
        match asker {
            IpAddr::V4(address) => self.askers.get(&address).map(String::as_str),
            // The resolver is asked by IPv4.
            IpAddr::V6(_) => None,
        }
    }

    /// The task that has an address.
    fn has(&self, address: IpAddr) -> Option<(Key, Address)> {
        let mut all = self.tasks.iter();
        all.find_map(|(key, place)| {
            let Place::At(own) = *place else { return None };
            let same = address == own.ipv4 || own.ipv6.is_some_and(|ipv6| address == ipv6);
            same.then_some((*key, own))
        })
    }
}

/// The tasks of a cluster, as the control plane says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Empty: it has not said yet.
    cluster: String,
    of: BTreeMap<Key, Addresses>,
    reverse: BTreeMap<IpAddr, Key>,
}

impl Names {
    pub(super) fn new(cluster: String) -> Self {
        Self {
            cluster,
            ..Self::default()
        }
    }

    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.of.keys().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, Addresses)> + '_ {
        self.of.iter().map(|(key, addresses)| (*key, *addresses))
    }

    pub(super) fn get(&self, key: Key) -> Option<Addresses> {
        self.of.get(&key).copied()
    }

    pub(super) fn insert(&mut self, key: Key, addresses: Addresses) {
        self.remove(key);
        self.of.insert(key, addresses);
        for address in addresses.iter().filter(|_| !addresses.of_node) {
            self.reverse.insert(address, key);
        }
    }

    pub(super) fn remove(&mut self, key: Key) {
        for address in self.of.remove(&key).iter().flat_map(Addresses::iter) {
            // Another task may have it by now.
            if self.reverse.get(&address) == Some(&key) {
                self.reverse.remove(&address);
            }
        }
    }
}

/// All that is known here, for the tasks of one cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zone<'a> {
    pub(super) cluster: &'a str,
    pub(super) own: &'a Own,
    pub(super) names: &'a Names,
}

impl Zone<'_> {
    /// None: the question is not of this domain.
    pub(super) fn answer(&self, question: &Question) -> Option<Reply> {
        let name = question.name();
        let labels: Vec<&[u8]> = name.iter().collect();
        if !labels
            .last()
            .is_some_and(|top| top.eq_ignore_ascii_case(DOMAIN.as_bytes()))
        {
            return self.reverse(question);
        }
        let cluster = |label: &[u8]| label.eq_ignore_ascii_case(self.cluster.as_bytes());
        let exists = match labels[..] {
            [_] => {
                let records = (question.kind() == RecordType::SOA).then(soa);
                return Some(found(records.into_iter().collect()));
            }
            [of, _] => cluster(of).then(Addresses::default),
            [task, of, _] if cluster(of) => self.find(task),
            _ => None,
        };
        let Some(addresses) = exists else {
            return Some(Reply {
                code: ResponseCode::NXDomain,
                ..found(vec![])
            });
        };
        let wants = |kind| question.kind() == kind || question.kind() == RecordType::ANY;
        let v4 = addresses.ipv4.filter(|_| wants(RecordType::A));
        let v6 = addresses.ipv6.filter(|_| wants(RecordType::AAAA));
        let data = [v4.map(RData::from), v6.map(RData::from)];
        let records = data
            .into_iter()
            .flatten()
            .map(|data| Record::from_rdata(name.clone(), TTL_S, data));
        Some(found(records.collect()))
    }

    /// What the node knows itself goes before what it was told.
    fn find(&self, label: &[u8]) -> Option<Addresses> {
        let key = Key::parse(std::str::from_utf8(label).ok()?)?;
        match self.own.tasks.get(&key) {
            Some(Place::Nowhere) => None,
            Some(Place::At(address)) => {
                let of_asker = self.own.cluster_of(address.ipv4.into()) == Some(self.cluster);
                of_asker.then_some(Addresses {
                    ipv4: Some(address.ipv4),
                    ipv6: address.ipv6,
                    of_node: false,
                })
            }
            Some(Place::Node) | None => self.told().and_then(|names| names.get(key)),
        }
    }

    /// What is told of the asker's cluster.
    fn told(&self) -> Option<&Names> {
        (self.names.cluster == self.cluster).then_some(self.names)
    }

    /// The name of an address, where it is a task's of the cluster.
    fn reverse(&self, question: &Question) -> Option<Reply> {
        if question.kind() != RecordType::PTR {
            return None;
        }
        let address = address_of(question.name())?;
        let key = match self.own.has(address) {
            Some((key, own)) if self.own.cluster_of(own.ipv4.into()) == Some(self.cluster) => Some(key),
            // Another cluster's, or a container's that has no name.
            Some(_) => None,
            None if self.own.cluster_of(address).is_some() => None,
            None => self
                .told()
                .and_then(|names| names.reverse.get(&address).copied())
                .filter(|key| !self.own.tasks.contains_key(key)),
        }?;
        let name = Name::from_ascii(format!("{key}.{}.{DOMAIN}.", self.cluster)).ok()?;
        let data = RData::PTR(PTR(name));
        Some(found(vec![Record::from_rdata(
            question.name().clone(),
            TTL_S,
            data,
        )]))
    }
}

/// The address that a name below `in-addr.arpa.` means.
fn address_of(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// What there is; with the domain's own record where that is nothing, for how long that may be remembered.
fn found(answers: Vec<Record>) -> Reply {
    Reply {
        authoritative: true,
        authorities: if answers.is_empty() { vec![soa()] } else { vec![] },
        answers,
        ..Reply::default()
    }
}

fn soa() -> Record {
    let name = |text: &str| Name::from_ascii(text).unwrap_or_else(|_| Name::root());
    let domain = name("berth.");
    // RFC 2606: nobody's mailbox.
    let who = name("nobody.invalid.");
    let (refresh, retry, expire) = (SOA_TIME_S, SOA_TIME_S, SOA_TIME_S);
    let soa = SOA::new(domain.clone(), who, 1, refresh, retry, expire, TTL_S);
    Record::from_rdata(domain, TTL_S, RData::SOA(soa))
}
