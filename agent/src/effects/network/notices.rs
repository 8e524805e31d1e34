//! Owns the two sockets over which the kernel tells that something of the network was changed: links, addresses and routes
//! (rtnetlink(7)), and nftables. What it tells is not believed, only taken as a reason to look: messages may be lost.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    error::NetworkError,
    netfilter::{HEADER_BYTES, NETFILTER_HEADER_BYTES, attributes, messages, u32_at},
};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// NFNLGRP_NFTABLES, the 7th.
const NFTABLES_GROUP: u32 = 1 << 6;
/// One datagram of the kernel's: NLMSG_GOODSIZE is a page.
const DATAGRAM_BYTES_MAX: usize = 16 * 1024;
/// Datagrams read at a time: whoever changes much must not keep this thread from its other work.
const DATAGRAMS_MAX: usize = 256;
/// Who changed the table since it was last looked at. More are not told apart.
const WRITERS_MAX: usize = 64;
/// NFNL_SUBSYS_NFTABLES, the upper byte of a message's type.
const NFTABLES: u8 = 10;
/// NFT_MSG_NEWGEN, which ends a transaction and has no table.
const NEW_GENERATION: u8 = 15;

/// What was told since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Noticed {
    /// A link, an address or a route was changed.
    pub(super) links: bool,
    /// Netlink ports of those who changed the instance's table.
    pub(super) writers: BTreeSet<u32>,
    /// Somebody changed some table. Or that is not known, because messages were lost.
    pub(super) tables: bool,
    /// Messages about tables were lost.
    pub(super) tables_lost: bool,
}

impl Noticed {
    /// As if it had been noticed together.
    pub(super) fn add(&mut self, more: Self) {
        self.links |= more.links;
        self.tables |= more.tables;
        self.tables_lost |= more.tables_lost;
        for writer in more.writers {
            if self.writers.len() < WRITERS_MAX {
                self.writers.insert(writer);
            } else {
                self.tables_lost = true;
            }
        }
    }

    pub(super) fn is_of_tables(&self) -> bool {
        self.tables || self.tables_lost || !self.writers.is_empty()
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug)]
pub(super) struct Notices {
    routes: AsyncFd<OwnedFd>,
    tables: AsyncFd<OwnedFd>,
    table: String,
    noticed: Noticed,
}

impl Notices {
    /// Listens in the caller's network namespace from now on. `table`: the instance's, of family inet.
    pub(super) fn open(table: &str) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Socket { source };
        Ok(Self {
            routes: listen(SockProtocol::NetlinkRoute, ROUTE_GROUPS).map_err(failed)?,
            tables: listen(SockProtocol::NetlinkNetFilter, NFTABLES_GROUP).map_err(failed)?,
            table: table.to_owned(),
            noticed: Noticed::default(),
        })
    }

    /// Waits until something was told that was not taken. Cancel-safe.
    pub(super) async fn wait(&mut self) -> Result<(), NetworkError> {
        let failed = |source| NetworkError::Socket { source };
        while self.noticed.is_nothing() {
            // It stays ready until a receive finds nothing.
            tokio::select! {
                ready = self.routes.readable() => ready.map_err(failed)?.retain_ready(),
                ready = self.tables.readable() => ready.map_err(failed)?.retain_ready(),
            }
            self.drain()?;
        }
        Ok(())
    }

    /// What was told up to now.
    pub(super) fn take(&mut self) -> Result<Noticed, NetworkError> {
        self.drain()?;
        Ok(std::mem::take(&mut self.noticed))
    }

    fn drain(&mut self) -> Result<(), NetworkError> {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        for _ in 0..DATAGRAMS_MAX {
            match receive(&self.routes, &mut buffer)? {
                Received::Nothing => break,
                Received::Lost | Received::Message(_) => self.noticed.links = true,
            }
        }
        for _ in 0..DATAGRAMS_MAX {
            match receive(&self.tables, &mut buffer)? {
                Received::Nothing => break,
                Received::Lost => self.noticed.tables_lost = true,
                Received::Message(length) => {
                    self.noticed.tables = true;
                    for writer in writers(&buffer[..length], &self.table) {
                        if self.noticed.writers.len() < WRITERS_MAX {
                            self.noticed.writers.insert(writer);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// A socket that hears of what the groups have.
#[allow(unsafe_code)]
fn listen(protocol: SockProtocol, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    // SAFETY: an OwnedFd stays the same open descriptor for as long as it lives, and it lives in the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? })
}

enum Received {
    Nothing,
    Lost,
    Message(usize),
}

fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Result<Received, NetworkError> {
    let received = socket.try_io(Interest::READABLE, |fd| {
        recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
    });
    match received {
        Ok(length) => Ok(Received::Message(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
        // The buffer overran; what comes after is whole again.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Received::Lost),
        Err(source) => Err(NetworkError::Socket { source }),
    }
}

/// Netlink ports of those who, by these messages, changed the table. What is malformed says nothing.
fn writers<'a>(datagram: &'a [u8], table: &'a str) -> impl Iterator<Item = u32> + 'a {
    messages(datagram).filter_map(move |message| {
        let [.., kind, subsystem] = message[4..6] else {
            return None;
        };
        let of_table = subsystem == NFTABLES && kind != NEW_GENERATION;
        // The first of every message but one is the table's name.
        let (_, name) = attributes(message.get(HEADER_BYTES + NETFILTER_HEADER_BYTES..)?).next()?;
        let same = name.strip_suffix(b"\0").unwrap_or(name) == table.as_bytes();
        (of_table && same).then(|| u32_at(message, 12)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel wrote it when `nft` (process 18453) added an element to a set of table `foo`.
    fn message(kind: u8, port: u32, table: &[u8]) -> Vec<u8> {
        let mut attribute = u16::try_from(4 + table.len()).unwrap().to_ne_bytes().to_vec();
        attribute.extend(1u16.to_ne_bytes());
        attribute.extend(table);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let length = u32::try_from(20 + attribute.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend([kind, NFTABLES, 0, 0, 0, 0, 0, 0]);
        message.extend(port.to_ne_bytes());
        message.extend([1, 0, 0, 0]);
        message.extend(attribute);
        message
    }

    #[test]
    fn who_changed_the_table_is_told_and_nobody_elses() {
        let mut datagram = message(12, 18453, b"foo\0");
        datagram.extend(message(8, 7, b"food\0"));
        datagram.extend(message(5, 9, b"foo\0"));
        datagram.extend(message(NEW_GENERATION, 11, b"\0\0\0\x03"));
        let all = |table| writers(&datagram, table).collect::<Vec<_>>();
        assert_eq!(all("foo"), [18453, 9]);
        assert_eq!(all("food"), [7]);
        assert!(all("fo").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..60usize) {
            let _ = writers(&bytes, "foo").count();
            let whole = message(12, 1, b"foo\0");
            let _ = writers(&whole[..cut.min(whole.len())], "foo").count();
        }
    }
}
