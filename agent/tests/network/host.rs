//! A host of its own for each test: a thread with private network and mount namespaces, with an uplink to an "outside"
//! that knows no route to tasks. What a test leaves behind goes with its thread.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use berth_agent::effects::network::{Attached, HostObject, Network, NetworkConfig};
use berth_agent_core::ids::TaskId;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const INSTANCE: &str = "berth-test";
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// For a packet that must come.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a packet that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(400);

pub struct Host {
    pub dir: tempfile::TempDir,
    outside: Child,
}

/// Runs a test on a host of its own.
pub fn on_host(test: impl AsyncFnOnce(&Host) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let host = Host::new();
        runtime.block_on(test(&host));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Host {
    fn new() -> Self {
        let mut outside = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .spawn()
            .unwrap();
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", outside.id());
        let start = Instant::now();
        while fs::read_link(&theirs).unwrap() == own {
            assert!(outside.try_wait().unwrap().is_none() && start.elapsed() < CONNECT_DEADLINE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
            outside,
        };
        run("ip link set lo up");
        run(&format!(
            "ip link add uplink type veth peer name out0 netns {}",
            host.outside.id()
        ));
        run(&format!("ip addr add {HOST}/24 dev uplink"));
        run("ip link set uplink up");
        for command in [
            &format!("ip addr add {OUTSIDE}/24 dev out0"),
            "ip link set out0 up",
            "ip link set lo up",
        ] {
            run_in(&host.outside_netns(), command);
        }
        // The kernel tells the carrier a moment later; a listing before that would differ from every later one.
        while !run("ip -o link show uplink").contains("state UP") {
            assert!(start.elapsed() < CONNECT_DEADLINE, "the uplink does not come up");
            std::thread::sleep(Duration::from_millis(1));
        }
        host
    }

    pub fn outside_netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.outside.id()).into()
    }

    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            instance: INSTANCE.to_owned(),
            run_dir: self.dir.path().join("run"),
            task_cidr: "10.77.0.0/16".parse().unwrap(),
            kept: Vec::new(),
            endpoint_port: 51_679,
            ranges: Default::default(),
            lans: Default::default(),
            interfaces: vec![],
            control_plane: Default::default(),
            mtu: None,
            ready: 0,
            pass_other_firewalls: false,
            published: Vec::new(),
            resolver_port: Some(51_680),
            instance_metadata: false,
        }
    }

    pub async fn network(&self) -> Network {
        Network::start(self.config()).await.unwrap()
    }

    /// Everything of a network that could be left behind, as the host's own tools list it. Without what changes by
    /// itself: counters and the uplink's neighbour states.
    pub fn listing(&self) -> String {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        let mut text: String = mounts
            .lines()
            .filter(|line| line.contains(dir))
            .collect::<Vec<_>>()
            .join("\n");
        for command in [
            "ip -o link show",
            "ip -4 -o addr show",
            "ip -4 route show table all",
            "ip neigh show nud permanent",
            "ip rule show",
            "nft -s list ruleset",
            &format!("find {dir}"),
        ] {
            text += &format!("\n# {command}\n{}", run(command));
        }
        text
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

/// The n-th task.
pub fn task(n: u32) -> TaskId {
    format!("{n:010x}00000000000000000000aa").parse().unwrap()
}

/// The n-th address of the range.
pub fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 0)) + n)
}

/// Runs a command of words on the test's host and returns what it printed.
pub fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// As [`run`], in a namespace.
pub fn run_in(netns: &Path, command: &str) -> String {
    run(&format!("nsenter --net={} {command}", netns.display()))
}

/// Calls a function in a namespace; sockets that it makes stay there.
pub fn within<T: Send>(netns: &Path, call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(File::open(netns).unwrap().as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            call()
        });
        thread.join().unwrap()
    })
}

pub fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap()
}

pub fn connect(address: Ipv4Addr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((address, 8080)), CONNECT_DEADLINE)
}

/// Sends a few bytes both ways over a new connection; returns who the listener thinks it talks to.
pub fn converse(listener: &TcpListener, client: TcpStream) -> Ipv4Addr {
    match talk(listener, client) {
        IpAddr::V4(ip) => ip,
        other => panic!("{other}"),
    }
}

/// Likewise of either family.
pub fn talk(listener: &TcpListener, mut client: TcpStream) -> IpAddr {
    let (mut server, peer) = listener.accept().unwrap();
    let mut heard = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut heard).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"pong");
    peer.ip()
}

/// Sends a datagram there and gets it back; returns who the server thinks it talks to.
pub fn ask(server: &UdpSocket, to: impl Into<SocketAddr>) -> IpAddr {
    let to = to.into();
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.connect(to).unwrap();
    ask_from(&client, server)
}

/// Likewise from a socket that is connected already.
pub fn ask_from(client: &UdpSocket, server: &UdpSocket) -> IpAddr {
    for socket in [client, server] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send(b"ping").unwrap();
    let mut heard = [0; 4];
    let (_, peer) = server.recv_from(&mut heard).unwrap();
    server.send_to(b"pong", peer).unwrap();
    client.recv(&mut heard).unwrap();
    assert_eq!(&heard, b"pong");
    peer.ip()
}

pub fn udp(address: Ipv4Addr, port: u16) -> UdpSocket {
    UdpSocket::bind((address, port)).unwrap()
}

/// Whether a datagram comes within [`SILENCE`].
pub fn hears(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.recv_from(&mut [0; 16]).is_ok()
}

/// Attaches the n-th task with the n-th address.
pub async fn attach(network: &Network, n: u32) -> Attached {
    network.attach(&task(n), address(n)).await.unwrap()
}

/// The name of the first link of the instance.
pub async fn link_name(network: &Network) -> String {
    let objects = network.list().await.unwrap();
    let name = |object: &HostObject| match object {
        HostObject::Link { name, .. } => Some(name.clone()),
        _ => None,
    };
    objects.iter().find_map(name).unwrap()
}
