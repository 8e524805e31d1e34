//! Owns the question whether a port of the host is free to be published. Never holds one: what leads a port to a task is the
//! firewall, which is asked before any socket.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
};

use berth_agent_core::desired::Protocol;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use std::os::fd::AsRawFd as _;

/// Of which family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bind {
    Ipv4,
    Ipv6,
}

/// A process of the host has the port, on any of its addresses of the family: it would hear nothing any more.
pub(super) fn is_taken(family: Bind, protocol: Protocol, port: u16) -> bool {
    // Whatever else keeps us from finding out is no reason to refuse a port.
    try_bind(family, protocol, port).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn try_bind(family: Bind, protocol: Protocol, port: u16) -> io::Result<()> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let of = match family {
        Bind::Ipv4 => AddressFamily::Inet,
        Bind::Ipv6 => AddressFamily::Inet6,
    };
    let socket = socket(of, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // Of connections that are over, nothing is in the way; for UDP it would share the port with whoever allows it.
    if protocol == Protocol::Tcp {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    match family {
        Bind::Ipv4 => {
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            bind(socket.as_raw_fd(), &SockaddrIn::from(any))?;
        }
        Bind::Ipv6 => {
            // IPv4 is asked about by itself.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
            bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_port_with_a_listener_on_any_address_is_taken() {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert!(is_taken(Bind::Ipv4, Protocol::Tcp, port));
        let both = TcpListener::bind("[::]:0").unwrap();
        assert!(is_taken(
            Bind::Ipv4,
            Protocol::Tcp,
            both.local_addr().unwrap().port()
        ));
        let port = both.local_addr().unwrap().port();
        assert!(is_taken(Bind::Ipv6, Protocol::Tcp, port));
        let six = UdpSocket::bind("[::1]:0").unwrap();
        let port = six.local_addr().unwrap().port();
        assert!(is_taken(Bind::Ipv6, Protocol::Udp, port) && !is_taken(Bind::Ipv4, Protocol::Udp, port));
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(is_taken(
            Bind::Ipv4,
            Protocol::Udp,
            udp.local_addr().unwrap().port()
        ));
    }

    #[test]
    fn a_connection_that_is_over_does_not_take_its_port() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // The end that closes first is left waiting (TIME-WAIT).
        drop(listener.accept().unwrap());
        drop((client, listener));
        assert!(!is_taken(Bind::Ipv4, Protocol::Tcp, port));
    }
}
