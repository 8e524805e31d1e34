//! Servers that say their names, and who asks them, in any network namespace; and one that is outside of the host.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use crate::between_nodes;

/// Of the link to the outside, and its other end.
pub(crate) const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
pub(crate) const OUTSIDE_IPV6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xbe47, 99, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0xbe47, 99, 0, 0, 0, 0, 2),
];
const LINK: &str = "bporttest0";
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(crate) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// What a server says there.
    pub(crate) fn ask(self, address: SocketAddr, patience: Duration) -> std::io::Result<String> {
        match self {
            Self::Tcp => ask_tcp(address, patience),
            Self::Udp => ask_udp(address, patience),
        }
    }
}

fn ask_tcp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut server = TcpStream::connect_timeout(&address, patience)?;
    server.set_read_timeout(Some(patience))?;
    let mut name = String::new();
    server.read_to_string(&mut name)?;
    Ok(name)
}

fn ask_udp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = UdpSocket::bind((any, 0))?;
    client.set_read_timeout(Some(patience))?;
    // So that an answer from another address is none.
    client.connect(address)?;
    client.send(b"who")?;
    let mut name = [0; 32];
    let read = client.recv(&mut name)?;
    Ok(String::from_utf8_lossy(&name[..read]).into_owned())
}

/// Calls a function in the network namespace of a process; sockets that it makes stay there. None: the test's own.
pub(crate) fn within<T: Send>(pid: Option<i32>, call: impl FnOnce() -> T + Send) -> T {
    match pid {
        Some(pid) => between_nodes::within(Path::new(&format!("/proc/{pid}/ns/net")), call),
        None => call(),
    }
}

/// Tells everybody its name, by TCP and UDP, at every address of both families, until the process ends.
pub(crate) fn serve(pid: Option<i32>, port: u16, name: &'static str) {
    serve_tcp(pid, port, name);
    serve_udp(pid, (Ipv6Addr::UNSPECIFIED, port), name);
}

pub(crate) fn serve_tcp(pid: Option<i32>, port: u16, name: &'static str) {
    let tcp = within(pid, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    std::thread::spawn(move || {
        for client in tcp.incoming() {
            let _ = client.unwrap().write_all(name.as_bytes());
        }
    });
}

pub(crate) fn serve_udp(pid: Option<i32>, address: impl Into<SocketAddr>, name: &'static str) {
    let address = address.into();
    let udp = within(pid, || UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        while let Ok((_, client)) = udp.recv_from(&mut [0; 16]) {
            udp.send_to(name.as_bytes(), client).unwrap();
        }
    });
}

/// A network namespace that knows the host by one link.
pub(crate) struct Outside(Child);

impl Outside {
    pub(crate) fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .spawn()
            .unwrap();
        let outside = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", outside.pid());
        let start = Instant::now();
        while std::fs::read_link(&theirs).unwrap() == own {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let (pid, [here, there]) = (outside.pid(), OUTSIDE);
        let [here_ipv6, there_ipv6] = OUTSIDE_IPV6;
        for command in [
            format!("ip link add {LINK} type veth peer name out0 netns {pid}"),
            format!("ip addr add {here}/30 dev {LINK}"),
            format!("ip addr add {here_ipv6}/64 dev {LINK} nodad"),
            format!("ip link set {LINK} up"),
        ] {
            run(&command);
        }
        outside.run(&format!("ip addr add {there}/30 dev out0"));
        outside.run(&format!("ip addr add {there_ipv6}/64 dev out0 nodad"));
        outside.run("ip link set out0 up");
        outside
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    /// Runs a command of words there.
    pub(crate) fn run(&self, command: &str) {
        run(&format!("nsenter --net=/proc/{}/ns/net {command}", self.pid()));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // At once, and not when the kernel comes round to the namespace.
        let _ = Command::new("ip").args(["link", "del", LINK]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let done = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(done.success(), "{command}");
}
