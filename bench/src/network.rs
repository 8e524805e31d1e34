//! Owns what a task's network costs its packets: throughput beside a plain veth pair, and the time of a packet's way with few
//! tasks and with many, also by a published port. No containers: the kernel makes no difference, and 1,000 would measure the machine's memory. Each host
//! is a network namespace of its own.

use std::{
    fs::File,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_agent::effects::network::{Network, NetworkConfig};
use berth_agent_core::{addresses::Range, desired::Protocol, ids::TaskId, ports::Published};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::report::Report;

const INSTANCE: &str = "berth-bench-net";
const ENDPOINT_PORT: u16 = 51_679;
const FEW: u32 = 10;
const MANY: u32 = 1000;
/// One measurement of throughput, seconds.
const IPERF_S: &str = "2";
const PREFIX: &str = "fd00:77::/64";
/// For a server to listen, and for an answer of one.
const PATIENCE: Duration = Duration::from_secs(10);
const ROUND_TRIPS: u32 = 5000;
/// Each from a port of its own: the kernel knows the way of what follows.
const FIRST_PACKETS: u32 = 500;
const PORT: u16 = 9000;
/// The port of the host that leads to the n-th task is the n-th after this one.
const PUBLISHED: u16 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Of the plain pair: the host's, and the other end's.
    fn plain(self) -> [(IpAddr, u8); 2] {
        match self {
            Self::Ipv4 => [1, 2].map(|n| (Ipv4Addr::new(192, 0, 2, n).into(), 24)),
            Self::Ipv6 => [1, 2].map(|n| (Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, n).into(), 64)),
        }
    }

    /// Of the n-th task.
    fn of(self, n: u32) -> anyhow::Result<IpAddr> {
        let both = range()?.address(address(n));
        Ok(match self {
            Self::Ipv4 => both.ipv4.into(),
            Self::Ipv6 => both.ipv6.context("the range has IPv6")?.into(),
        })
    }

    /// Of a row.
    fn name(self, row: &str) -> String {
        match self {
            Self::Ipv4 => row.to_owned(),
            Self::Ipv6 => format!("{row}_ipv6"),
        }
    }
}

/// `rounds` of each, the order turning.
pub fn measure(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    for family in Family::ALL {
        throughput(family, rounds, report)?;
    }
    latency(rounds, report)
}

fn throughput(family: Family, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let measured = Host::run(move |host| {
        let task = host.attach(1)?;
        let plain = host.isolated(2)?;
        run("ip link add plain0 type veth peer name plain1")?;
        run(&format!("ip link set plain1 netns {}", plain.display()))?;
        let [(own, len), (peer, _)] = family.plain();
        // There is nobody who could have the same address.
        let more = if own.is_ipv6() { " nodad" } else { "" };
        run(&format!("ip addr add {own}/{len} dev plain0{more}"))?;
        run("ip link set plain0 up")?;
        run_in(&plain, &format!("ip addr add {peer}/{len} dev plain1{more}"))?;
        run_in(&plain, "ip link set plain1 up")?;
        let _servers = [Iperf::serve(&task)?, Iperf::serve(&plain)?];
        let ways = [family.of(1)?, peer];
        let mut measured = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        // The first of each finds caches cold.
        for round in 0..=rounds {
            for turn in 0..2 {
                let way = (round + turn) % 2;
                for (direction, arguments) in [&[][..], &["-R"]].into_iter().enumerate() {
                    let speed = iperf(ways[way], arguments)?;
                    if round > 0 {
                        measured[direction][way].push(speed);
                    }
                }
            }
        }
        Ok(measured)
    })?;
    let names = ["throughput_to_task_vs_veth", "throughput_from_task_vs_veth"];
    for (name, [task, plain]) in names.into_iter().zip(measured) {
        report.add(
            &family.name(name),
            "Gbit/s",
            task,
            plain,
            "a plain veth pair (iperf3)",
        );
    }
    Ok(())
}

fn latency(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let hosts = [Crowd::start(MANY)?, Crowd::start(FEW)?];
    for way in [Way::Direct, Way::Published] {
        for family in Family::ALL {
            let mut measured = [Vec::new(), Vec::new()];
            for round in 0..=rounds {
                for turn in 0..hosts.len() {
                    let at = (round + turn) % hosts.len();
                    let took = hosts[at].measure(way, family)?;
                    if round > 0 {
                        measured[at].push(took);
                    }
                }
            }
            let [many, few] = measured;
            let (name, peer) = match way {
                Way::Direct => ("round_trip_1000_tasks_vs_10", "with 10 tasks"),
                Way::Published => ("published_1000_ports_vs_10", "with 10 published ports"),
            };
            report.add(&family.name(name), "us", many, few, peer);
        }
    }
    hosts.into_iter().try_for_each(Crowd::end)
}

/// How one task comes to the other.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// At its address.
    Direct,
    /// By the port of the host that leads to it: the first packet of each conversation, for which the port is looked up.
    Published,
}

/// A host with so many tasks, each with a published port, two of which talk to each other when asked.
struct Crowd {
    ask: mpsc::Sender<(Way, Family)>,
    answers: mpsc::Receiver<anyhow::Result<f64>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Crowd {
    fn start(tasks: u32) -> anyhow::Result<Self> {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            Host::publishing(tasks, move |host| {
                for (address, _) in Family::ALL.map(|family| family.plain()[0]) {
                    run(&format!("ip addr add {address} dev lo"))?;
                }
                let (first, last) = (host.attach(1)?, host.attach(2)?);
                for n in 3..=tasks {
                    host.attach(n)?;
                }
                while let Ok((way, family)) = asked.recv() {
                    let took = match way {
                        Way::Direct => round_trip(family, &first, &last),
                        Way::Published => first_packets(family, &first, &last),
                    };
                    if answer.send(took).is_err() {
                        break;
                    }
                }
                Ok(())
            })
        });
        Ok(Self { ask, answers, thread })
    }

    fn measure(&self, way: Way, family: Family) -> anyhow::Result<f64> {
        let ended = "a host of the bench has ended";
        self.ask.send((way, family)).context(ended)?;
        self.answers.recv().context(ended)?
    }

    fn end(self) -> anyhow::Result<()> {
        drop(self.ask);
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| anyhow::bail!("a host of the bench panicked"))
    }
}

fn bind(address: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Mean time of a datagram from one task to the other and back, µs.
fn round_trip(family: Family, from: &Path, to: &Path) -> anyhow::Result<f64> {
    let asks = within(from, || bind(family.of(1)?, 0))?;
    asks.connect((family.of(2)?, PORT))?;
    echoed(family, to, ROUND_TRIPS, || ask(&asks))
}

/// Likewise by the port of the host that leads to the other, each from a port that was not heard of before.
fn first_packets(family: Family, from: &Path, to: &Path) -> anyhow::Result<f64> {
    let (host, _) = family.plain()[0];
    let mut asking = within(from, || {
        let all = (0..FIRST_PACKETS).map(|_| {
            let socket = bind(family.of(1)?, 0)?;
            socket.connect((host, PUBLISHED + 2))?;
            Ok(socket)
        });
        all.collect::<anyhow::Result<Vec<_>>>()
    })?;
    echoed(family, to, FIRST_PACKETS, || {
        ask(&asking.pop().context("a socket for each")?)
    })
}

fn ask(socket: &UdpSocket) -> anyhow::Result<()> {
    let mut buffer = [0; 64];
    socket.send(&buffer)?;
    socket.recv(&mut buffer)?;
    Ok(())
}

/// Mean time of a question, of so many, that the second task answers, µs.
fn echoed(
    family: Family,
    to: &Path,
    count: u32,
    mut ask: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let echo = within(to, || bind(family.of(2)?, PORT))?;
    std::thread::scope(|scope| {
        let echoing = scope.spawn(move || -> anyhow::Result<()> {
            let mut buffer = [0; 64];
            for _ in 0..count {
                let (length, peer) = echo.recv_from(&mut buffer)?;
                echo.send_to(&buffer[..length], peer)?;
            }
            Ok(())
        });
        let begun = Instant::now();
        for _ in 0..count {
            ask()?;
        }
        let took = begun.elapsed();
        echoing
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the echo panicked"))?;
        Ok(took.as_secs_f64() * 1e6 / f64::from(count))
    })
}

/// A host of its own: network and mount namespaces that end with its thread.
struct Host {
    network: Network,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Host {
    fn run<T: Send + 'static>(
        work: impl FnOnce(&Self) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        Self::publishing(0, work)
    }

    /// Likewise, with a port that leads to each of so many tasks.
    fn publishing<T: Send + 'static>(
        tasks: u32,
        work: impl FnOnce(&Self) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            run("ip link set lo up")?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let dir = tempfile::tempdir()?;
            let network = runtime.block_on(Network::start(NetworkConfig {
                instance: INSTANCE.to_owned(),
                run_dir: dir.path().join("run"),
                task_cidr: range()?,
                kept: Vec::new(),
                endpoint_port: ENDPOINT_PORT,
                mtu: None,
                ready: 0,
                pass_other_firewalls: false,
                published: (1..=tasks).map(published).collect::<Result<_, _>>()?,
                ranges: Default::default(),
                lans: Default::default(),
                interfaces: vec![],
                control_plane: Default::default(),
                resolver_port: None,
                instance_metadata: false,
            }))?;
            work(&Self {
                network,
                runtime,
                _dir: dir,
            })
        });
        thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("a host of the bench panicked"))
    }

    /// The namespace of the n-th task, which has the n-th address.
    fn attach(&self, n: u32) -> anyhow::Result<PathBuf> {
        let task = task(n)?;
        let attached = self.network.attach(&task, range()?.address(address(n)));
        Ok(self.runtime.block_on(attached)?.netns)
    }

    /// A namespace without a link.
    fn isolated(&self, n: u32) -> anyhow::Result<PathBuf> {
        Ok(self.runtime.block_on(self.network.attach_isolated(&task(n)?))?)
    }
}

fn task(n: u32) -> anyhow::Result<TaskId> {
    format!("{n:010x}{:022x}", 0)
        .parse()
        .ok()
        .context("an id of 32 digits")
}

/// The port of the host that leads to the n-th task.
fn published(n: u32) -> anyhow::Result<(TaskId, Published)> {
    let port = Published {
        protocol: Protocol::Udp,
        host_port: PUBLISHED + u16::try_from(n)?,
        address: range()?.address(address(n)),
        port: PORT,
    };
    Ok((task(n)?, port))
}

/// Of both families.
fn range() -> anyhow::Result<Range> {
    let ipv4 = ipnet::Ipv4Net::new(Ipv4Addr::new(10, 77, 0, 0), 16)?;
    Ok(Range::below(ipv4, Some(PREFIX.parse()?))?)
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 0)) + n)
}

/// A server that is ended with this.
struct Iperf(Child);

impl Iperf {
    fn serve(netns: &Path) -> anyhow::Result<Self> {
        let child = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .args(["iperf3", "-s"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(Self(
            child.context("start iperf3: is the package iperf3 installed?")?,
        ))
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What arrives in one measurement, Gbit/s.
fn iperf(server: IpAddr, arguments: &[&str]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    loop {
        let output = Command::new("iperf3")
            .args(["-J", "-t", IPERF_S, "-c", &server.to_string()])
            .args(arguments)
            .output();
        let output = match output {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                anyhow::bail!("iperf3 is missing: install the package iperf3")
            }
            output => output?,
        };
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let bits = result.pointer("/end/sum_received/bits_per_second");
        match bits.and_then(serde_json::Value::as_f64) {
            Some(bits) => return Ok(bits / 1e9),
            // The server does not listen yet.
            None if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
            None => anyhow::bail!("iperf3 to {server}: {result}"),
        }
    }
}

fn run(command: &str) -> anyhow::Result<()> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {}", said.trim());
    Ok(())
}

fn run_in(netns: &Path, command: &str) -> anyhow::Result<()> {
    run(&format!("nsenter --net={} {command}", netns.display()))
}

/// Calls a function in a namespace; sockets that it makes stay there.
fn within<T: Send>(netns: &Path, call: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(File::open(netns)?.as_fd(), CloneFlags::CLONE_NEWNET)?;
            call()
        });
        thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("a thread of the bench panicked"))
    })
}
