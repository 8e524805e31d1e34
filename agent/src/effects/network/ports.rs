//! Owns the question whether a port of the host is free to be published. Never holds one: what leads a port to a task is the
//! firewall, which is asked before any socket.

use std::{io, net::Ipv4Addr};

use berth_agent_core::desired::Protocol;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use std::os::fd::AsRawFd as _;

/// A process of the host has the port, on any of its addresses: it would hear nothing any more.
pub(super) fn is_taken(protocol: Protocol, port: u16) -> bool {
    // Whatever else keeps us from finding out is no reason to refuse a port.
    try_bind(protocol, port).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn try_bind(protocol: Protocol, port: u16) -> io::Result<()> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // Of connections that are over, nothing is in the way; for UDP it would share the port with whoever allows it.
    if protocol == Protocol::Tcp {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    let [a, b, c, d] = Ipv4Addr::UNSPECIFIED.octets();
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, port))?;
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
        assert!(is_taken(Protocol::Tcp, port));
        let both = TcpListener::bind("[::]:0").unwrap();
        assert!(is_taken(Protocol::Tcp, both.local_addr().unwrap().port()));
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(is_taken(Protocol::Udp, udp.local_addr().unwrap().port()));
    }

    #[test]
    fn a_connection_that_is_over_does_not_take_its_port() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // The end that closes first is left waiting (TIME-WAIT).
        drop(listener.accept().unwrap());
        drop((client, listener));
        assert!(!is_taken(Protocol::Tcp, port));
    }
}
