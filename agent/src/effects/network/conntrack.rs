//! Owns what the kernel remembers of conversations by UDP with published ports (ctnetlink, over netlink(7)): it goes on leading
//! a client's datagrams to where the port led when they began, for as long as they come. What leads elsewhere than the port
//! does now is forgotten. Never an entry of TCP, of another port, or of an address that is not the host's.
//!
//! The kernel deletes everything when it is told to delete without a tuple, and, before 5.8, with a filter that it does not
//! know: so entries are listed and deleted one by one, each by the very tuple that it was listed with.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
        setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};

use super::netfilter::{
    HEADER_BYTES, NETFILTER_HEADER_BYTES, attribute, attributes, kind, messages, outcome,
};

/// Of all: a table of a million entries is listed in less than a second.
const DEADLINE: Duration = Duration::from_secs(5);
/// What is forgotten at a time: more would be a host with nothing but these.
const ENTRIES_MAX: usize = 65_536;
/// One datagram of a listing: the kernel's are of at most 32 KiB.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;
/// NFNL_SUBSYS_CTNETLINK, with IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `ctattr_type`, and of what is nested in a tuple.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE_IPV4: u16 = 1;
const DESTINATION_IPV4: u16 = 2;
const SOURCE_IPV6: u16 = 3;
const DESTINATION_IPV6: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// `ctattr_filter`, and its bits for the protocol's number and the port that is sent to.
const FILTER_ORIGINAL: u16 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_PORT: u32 = 1 << 5;
const NESTED: u16 = 0x8000;
const UDP: u8 = 17;

/// Where ports of the host's lead, of one family; None: nowhere.
pub(super) type Led = BTreeMap<u16, Option<SocketAddr>>;

/// One entry, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Attributes as they were listed: of its first direction, zone and number.
    name: Vec<u8>,
    to: SocketAddr,
    /// Who answers, which is where it is led.
    led_to: SocketAddr,
}

/// Forgets conversations with ports of the caller's network namespace that lead elsewhere than these do. How many there were.
pub(super) fn forget(led: &Led, ipv6: bool) -> io::Result<usize> {
    let own = addresses()?;
    let is_stale = |entry: &Entry| {
        let of_host = entry.to.ip().is_loopback() || own.contains(&entry.to.ip());
        let led = led.get(&entry.to.port());
        of_host && led.is_some_and(|led| *led != Some(entry.led_to))
    };
    let mut socket = Socket::open(ipv6)?;
    let only = led.keys().next().copied().filter(|_| led.len() == 1);
    let stale = socket.list(only, is_stale)?;
    for entry in &stale {
        socket.delete(entry)?;
    }
    Ok(stale.len())
}

fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let ip = |address: nix::ifaddrs::InterfaceAddress| {
        let address = address.address?;
        let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        ipv4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|address| IpAddr::from(address.ip()))
        })
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(ip).collect())
}

struct Socket {
    fd: OwnedFd,
    family: u8,
    buffer: Vec<u8>,
    deadline: Instant,
}

impl Socket {
    fn open(ipv6: bool) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let patience = TimeVal::milliseconds(DEADLINE.as_millis().try_into().unwrap_or(i64::MAX));
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        Ok(Self {
            fd,
            family: u8::try_from(family).unwrap_or_default(),
            buffer: vec![0; DATAGRAM_BYTES_MAX],
            deadline: Instant::now() + DEADLINE,
        })
    }

    /// Of UDP, of this family; of one port where there is one.
    fn list(&mut self, port: Option<u16>, is_wanted: impl Fn(&Entry) -> bool) -> io::Result<Vec<Entry>> {
        self.send(GET, libc::NLM_F_DUMP, &wanted(port))?;
        let mut found = Vec::new();
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                match i32::from(kind(message)) {
                    libc::NLMSG_DONE => return outcome(message).map(|()| found),
                    libc::NLMSG_ERROR => outcome(message)?,
                    _ => {
                        let entry = parse(message).filter(|entry| is_wanted(entry));
                        found.extend(entry.filter(|_| found.len() < ENTRIES_MAX));
                    }
                }
            }
        }
    }

    /// Idempotent.
    fn delete(&mut self, entry: &Entry) -> io::Result<()> {
        self.send(DELETE, libc::NLM_F_ACK, &entry.name)?;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                if i32::from(kind(message)) == libc::NLMSG_ERROR {
                    return match outcome(message) {
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                        done => done,
                    };
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: libc::c_int, attributes: &[u8]) -> io::Result<()> {
        let length = HEADER_BYTES + NETFILTER_HEADER_BYTES + attributes.len();
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or_default();
        let mut message = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Number and port: one request at a time, and the kernel knows who asks.
        message.extend([0; 8]);
        message.extend([self.family, 0, 0, 0]);
        message.extend(attributes);
        sendto(
            self.fd.as_raw_fd(),
            &message,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )?;
        Ok(())
    }

    /// The next datagram of the kernel's, into the buffer.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            if Instant::now() > self.deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (length, from) = recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer)?;
            if from.is_some_and(|from| from.pid() == 0) {
                return Ok(length);
            }
        }
    }
}

/// What is listed where the kernel can choose: of one port, or all of UDP. Else it is everything.
fn wanted(port: Option<u16>) -> Vec<u8> {
    let mut protocol = attribute(PROTOCOL_NUMBER, &[UDP]);
    let mut by = BY_PROTOCOL;
    if let Some(port) = port {
        protocol.extend(attribute(DESTINATION_PORT, &port.to_be_bytes()));
        by |= BY_PORT;
    }
    let tuple = attribute(TUPLE_PROTOCOL | NESTED, &protocol);
    let filter = attribute(FILTER_ORIGINAL, &by.to_ne_bytes());
    [
        attribute(TUPLE_ORIGINAL | NESTED, &tuple),
        attribute(FILTER | NESTED, &filter),
    ]
    .concat()
}

/// None: it is not of UDP, or malformed.
fn parse(message: &[u8]) -> Option<Entry> {
    let (mut to, mut led_to, mut name) = (None, None, Vec::new());
    for (kind, value) in attributes(message.get(HEADER_BYTES + NETFILTER_HEADER_BYTES..)?) {
        let mut keep = |kind| name.extend(attribute(kind, value));
        match kind {
            TUPLE_ORIGINAL => {
                keep(TUPLE_ORIGINAL | NESTED);
                to = Some(tuple(value)?.1);
            }
            TUPLE_REPLY => led_to = Some(tuple(value)?.0),
            ID | ZONE => keep(kind),
            _ => {}
        }
    }
    Some(Entry {
        name,
        to: to?,
        led_to: led_to?,
    })
}

/// Source and destination, of UDP.
fn tuple(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ips, protocol) = (value(tuple, TUPLE_IP)?, value(tuple, TUPLE_PROTOCOL)?);
    let ip = |of_ipv4, of_ipv6| {
        let ipv4 = value(ips, of_ipv4).and_then(|bytes| Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)));
        ipv4.or_else(|| Some(<[u8; 16]>::try_from(value(ips, of_ipv6)?).ok()?.into()))
    };
    let port = |of| Some(u16::from_be_bytes(value(protocol, of)?.try_into().ok()?));
    let source = (ip(SOURCE_IPV4, SOURCE_IPV6)?, port(SOURCE_PORT)?);
    let destination = (ip(DESTINATION_IPV4, DESTINATION_IPV6)?, port(DESTINATION_PORT)?);
    let is_udp = value(protocol, PROTOCOL_NUMBER)? == [UDP];
    is_udp.then(|| (source.into(), destination.into()))
}

fn value(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel lists one.
    fn entry(ips: [&[u8]; 4], kinds: [u16; 2], ports: [u16; 4], number: u8) -> Vec<u8> {
        let tuple = |kind, ips: &[&[u8]], ports: &[u16]| {
            let ips = [attribute(kinds[0], ips[0]), attribute(kinds[1], ips[1])].concat();
            let protocol = [
                attribute(PROTOCOL_NUMBER, &[number]),
                attribute(SOURCE_PORT, &ports[0].to_be_bytes()),
                attribute(DESTINATION_PORT, &ports[1].to_be_bytes()),
            ]
            .concat();
            let both = [
                attribute(TUPLE_IP | NESTED, &ips),
                attribute(TUPLE_PROTOCOL | NESTED, &protocol),
            ]
            .concat();
            attribute(kind | NESTED, &both)
        };
        let mut message = vec![0; HEADER_BYTES + NETFILTER_HEADER_BYTES];
        message.extend(tuple(TUPLE_ORIGINAL, &ips[..2], &ports[..2]));
        message.extend(tuple(TUPLE_REPLY, &ips[2..], &ports[2..]));
        message.extend(attribute(3, &[0; 4]));
        message.extend(attribute(ID, &[1, 2, 3, 4]));
        message
    }

    #[test]
    fn an_entry_says_which_port_was_asked_and_who_answers() {
        let (client, host, task) = ([192, 0, 2, 2], [192, 0, 2, 1], [10, 77, 0, 1]);
        let ips: [&[u8]; 4] = [&client, &host, &task, &client];
        let udp = entry(ips, [1, 2], [5000, 53, 8080, 5000], UDP);
        let read = parse(&udp).unwrap();
        assert_eq!(read.to, "192.0.2.1:53".parse().unwrap());
        assert_eq!(read.led_to, "10.77.0.1:8080".parse().unwrap());
        let begins = &udp[HEADER_BYTES + NETFILTER_HEADER_BYTES..][..52];
        assert_eq!(read.name, [begins, &attribute(ID, &[1, 2, 3, 4])].concat());
        assert_eq!(parse(&entry(ips, [1, 2], [5000, 53, 8080, 5000], 6)), None, "TCP");
        let ipv6: [&[u8]; 4] = [&[2; 16], &[1; 16], &[3; 16], &[2; 16]];
        let read = parse(&entry(ipv6, [3, 4], [5000, 53, 8080, 5000], UDP)).unwrap();
        assert_eq!((read.to.ip(), read.led_to.ip()), ([1; 16].into(), [3; 16].into()));
    }

    proptest! {
        #[test]
        fn any_message_is_an_entry_with_its_name_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..160usize) {
            let ips: [&[u8]; 4] = [&[1; 4]; 4];
            let whole = entry(ips, [1, 2], [1, 2, 3, 4], UDP);
            for message in [&bytes[..], &whole[..cut.min(whole.len())]] {
                // Without a tuple in its name, all that there is would be deleted.
                if let Some(entry) = parse(message) {
                    prop_assert!(attributes(&entry.name).any(|(kind, _)| kind == TUPLE_ORIGINAL));
                }
            }
        }
    }
}
