//! Names, asked for from inside of tasks, and by those who must not.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use berth_control_plane::{
    model::{TaskName, keys},
    store::{Operation, Transaction, typed},
};
use berth_tests::cluster::{Cluster, Options};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use serde_json::{Value, json};

use crate::fields::{Seen, look};

const LIMIT: Duration = Duration::from_secs(20);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 3);
/// A name of the test's server with an answer that no datagram holds.
const LONG: &str = "long.example.";

/// A name server on loopback, over UDP and TCP: every name has the same address.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    fn start() -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        // Both end with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).unwrap();
                count.fetch_add(1, SeqCst);
                let mut answer = Self::answer(&buffer[..length]);
                if answer.to_vec().unwrap().len() > 1_232 {
                    answer = answer.truncate();
                }
                udp.send_to(&answer.to_vec().unwrap(), peer).unwrap();
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let question = read_message(&mut stream);
                write_message(&mut stream, &Self::answer(&question).to_vec().unwrap());
            }
        });
        Self { address, asked }
    }

    fn answer(question: &[u8]) -> Message {
        let mut message = Message::from_vec(question).unwrap();
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name().clone();
        let count = if name.to_ascii() == LONG { 200 } else { 1 };
        for n in 0..count {
            let address = Ipv4Addr::new(192, 0, 2, n);
            message.add_answer(Record::from_rdata(name.clone(), 60, RData::from(address)));
        }
        message
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn write_message(stream: &mut TcpStream, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], bytes].concat()).unwrap();
}

/// Works in the network of a process.
pub(crate) fn in_network_of<T: Send + 'static>(pid: i32, work: impl FnOnce() -> T + Send + 'static) -> T {
    let enter = move || {
        let netns = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    std::thread::spawn(enter).join().unwrap()
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// What a task's resolver answers over UDP.
fn ask(pid: i32, name: &str, kind: RecordType) -> Message {
    let name = name.to_owned();
    in_network_of(pid, move || ask_from_here(&name, kind))
}

/// What the resolver answers to who has this thread's network.
pub(crate) fn ask_from_here(name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((RESOLVER, 53)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send(&question(name, kind)).unwrap();
    let mut buffer = [0; 4_096];
    let length = socket.recv(&mut buffer).unwrap();
    assert!(length <= 512, "the question did not say that more is taken");
    Message::from_vec(&buffer[..length]).unwrap()
}

/// Likewise over TCP: two questions, one behind the other.
fn ask_over_tcp(pid: i32, name: &str) -> Message {
    let question = question(name, RecordType::A);
    in_network_of(pid, move || {
        let mut stream = TcpStream::connect_timeout(&(RESOLVER, 53).into(), LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write_message(&mut stream, &question);
        write_message(&mut stream, &question);
        let first = read_message(&mut stream);
        assert_eq!(first, read_message(&mut stream));
        Message::from_vec(&first).unwrap()
    })
}

/// The code of an answer, and the addresses in it.
pub(crate) fn result(message: &Message) -> (ResponseCode, Vec<IpAddr>) {
    assert_eq!(
        (message.metadata.id, message.metadata.message_type),
        (7, MessageType::Response)
    );
    let addresses = message.answers.iter().filter_map(|record| record.data.ip_addr());
    (message.metadata.response_code, addresses.collect())
}

/// What the C library and curl make of a name with the task's own resolv.conf.
fn fetch(cluster: &Cluster, pid: i32, url: &str) -> String {
    let file = cluster.directory().join("resolv.conf");
    std::fs::copy(format!("/proc/{pid}/root/etc/resolv.conf"), &file).unwrap();
    let file = file.display();
    let script = format!("mount --bind {file} /etc/resolv.conf && curl -sS --noproxy '*' -m 10 {url}");
    let output = Command::new("nsenter")
        .args([
            &format!("--net=/proc/{pid}/ns/net"),
            "unshare",
            "-m",
            "sh",
            "-c",
            &script,
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Where the node says that it is.
const NODE: &str = "198.51.100.7";

fn asking(upstream: &Upstream) -> Options {
    Options {
        agent_config: format!(
            "[dns]\nservers = [\"{}\"]\n[network]\nnode_address = \"{NODE}\"\n",
            upstream.address
        ),
        ..Options::default()
    }
}

fn name_of(task: &str) -> String {
    format!("{}.default.berth.", task.rsplit('/').next().unwrap())
}

async fn address_of(cluster: &Cluster, task: &str) -> IpAddr {
    let described = cluster.describe(task).await;
    let shown = &described["containers"][0]["networkInterfaces"][0]["privateIpv4Address"];
    shown.as_str().unwrap().parse().unwrap()
}

const WEB: &str = "mkdir /www; echo it-is-me >/www/index.html; httpd -p 8080 -h /www; nc -l -p 53 >/dev/null & \
                   until netstat -ltn | grep -q ':53 '; do :; done; cat /etc/resolv.conf";

#[tokio::test(flavor = "multi_thread")]
async fn tasks_find_each_other_by_name_and_all_others_by_the_servers_that_are_set() {
    let upstream = Upstream::start();
    let cluster = Cluster::with(asking(&upstream)).await;
    let (web, seen) = look(&cluster, |_| {}, &[("web", WEB, json!({}))]).await;
    let seen_web = &seen["web"];
    let lines = &seen_web.lines;
    assert!(
        lines.iter().any(|line| line == "nameserver 169.254.170.3"),
        "{lines:?}"
    );
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("nameserver")).count(),
        1
    );
    let (name, address) = (name_of(&web), address_of(&cluster, &web).await);
    let described = cluster.describe(&web).await;
    let details = described["attachments"][0]["details"].as_array().unwrap().clone();
    let shown = details
        .iter()
        .find(|detail| detail["name"] == "privateDnsName")
        .unwrap();
    assert_eq!(shown["value"], json!(name.trim_end_matches('.')));
    let script = format!("nslookup {name}");
    let (client, asked) = look(&cluster, |_| {}, &[("client", &script, json!({}))]).await;
    let Seen { lines, pid } = &asked["client"];
    let found = |line: &String| line.starts_with("Address") && line.ends_with(&format!(" {address}"));
    assert!(lines.iter().any(found), "{lines:?}");
    assert_eq!(
        fetch(&cluster, *pid, &format!("http://{name}:8080/")).trim(),
        "it-is-me"
    );
    // Port 53 of a task is the workload's.
    let to = SocketAddr::new(address, 53);
    let workload = in_network_of(seen_web.pid, || UdpSocket::bind("0.0.0.0:53").unwrap());
    in_network_of(*pid, move || {
        TcpStream::connect_timeout(&to, LIMIT).unwrap();
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap();
    });
    workload.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(workload.recv(&mut [0; 8]).unwrap(), 1);

    let known = (ResponseCode::NoError, vec![address]);
    assert_eq!(result(&ask(*pid, &name, RecordType::A)), known);
    assert_eq!(result(&ask_over_tcp(*pid, &name)), known);
    let nothing = |code| (code, vec![]);
    let asked = upstream.asked();
    assert_eq!(
        result(&ask(*pid, &name, RecordType::AAAA)),
        nothing(ResponseCode::NoError)
    );
    for unknown in [
        format!("{}.default.berth.", "0".repeat(32)),
        name.replace("default", "other"),
        "db.berth.".into(),
    ] {
        assert_eq!(
            result(&ask(*pid, &unknown, RecordType::A)),
            nothing(ResponseCode::NXDomain)
        );
    }
    assert_eq!(upstream.asked(), asked, "nothing of ours is asked of others");

    // All others.
    let other = (ResponseCode::NoError, vec!["192.0.2.0".parse().unwrap()]);
    for _ in 0..2 {
        assert_eq!(result(&ask(*pid, "host.example.", RecordType::A)), other);
    }
    assert_eq!(upstream.asked(), asked + 1, "the second time it is known");
    let cut = ask(*pid, LONG, RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(ask_over_tcp(*pid, LONG).answers.len(), 200);

    // Containers of bridge mode ask from addresses of their own.
    let bridge = |definition: &mut Value| definition["networkMode"] = json!("bridge");
    let (bridged, seen) = look(&cluster, bridge, &[("bridged", &script, json!({}))]).await;
    let lines = &seen["bridged"].lines;
    assert!(lines.iter().any(found), "{lines:?}");
    assert_eq!(
        result(&ask(seen["bridged"].pid, "host.example.", RecordType::A)),
        other
    );
    // Their task is at its node's address, as one on the host's network is. Whose that is nobody can say.
    let on_host = cluster
        .running("sleep 3600", |d| d["networkMode"] = json!("host"))
        .await;
    let node = (ResponseCode::NoError, vec![NODE.parse().unwrap()]);
    for task in [&bridged, &on_host] {
        let name = name_of(task);
        let told = async || (result(&ask(*pid, &name, RecordType::A)) == node).then_some(());
        cluster.until("the name of a task at its node", LIMIT, told).await;
    }
    let arpa = Name::from(NODE.parse::<Ipv4Addr>().unwrap()).to_string();
    let asked = upstream.asked();
    ask(*pid, &arpa, RecordType::PTR);
    assert_eq!(
        upstream.asked(),
        asked + 1,
        "others are asked whose the node's address is"
    );
    for task in [&bridged, &on_host] {
        cluster.stop(task).await;
        let gone = nothing(ResponseCode::NXDomain);
        let forgotten = async || (result(&ask(*pid, &name_of(task), RecordType::A)) == gone).then_some(());
        cluster.until("the name to be gone", LIMIT, forgotten).await;
    }

    cluster.stop(&web).await;
    assert_eq!(
        result(&ask(*pid, &name, RecordType::A)),
        nothing(ResponseCode::NXDomain)
    );
    only_tasks_ask(&cluster);
    cluster.stop(&client).await;
}

/// Whoever is on the host, or reaches it, is not answered.
fn only_tasks_ask(cluster: &Cluster) {
    let kept: Value =
        serde_json::from_slice(&std::fs::read(cluster.run_dir().join("dns.json")).unwrap()).unwrap();
    let port = u16::try_from(kept["port"].as_u64().unwrap()).unwrap();
    // Of the link of the task that is there still.
    let listener = SocketAddr::from((Ipv4Addr::new(169, 254, 170, 2), port));
    TcpStream::connect_timeout(&listener, Duration::from_millis(300)).unwrap_err();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
        .send_to(&question("host.example.", RecordType::A), listener)
        .unwrap();
    socket.recv(&mut [0; 512]).unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_known_while_the_control_plane_is_away_also_to_the_next_agent() {
    let upstream = Upstream::start();
    let mut cluster = Cluster::with(asking(&upstream)).await;
    let (task, seen) = look(&cluster, |_| {}, &[("client", "true", json!({}))]).await;
    let pid = seen["client"].pid;
    // As if it ran on another node.
    let (id, elsewhere) = ("f".repeat(32), "10.250.0.9");
    let record = TaskName {
        ipv4_address: Some(elsewhere.into()),
        ipv6_address: None,
        of_node: false,
    };
    let store = cluster.store();
    let change = async |operation| {
        let operations = vec![operation];
        let transaction = Transaction {
            operations,
            ..Transaction::default()
        };
        store.commit(transaction).await.unwrap();
    };
    let key = keys::name("default", &id);
    let (own, other) = (name_of(&task), format!("{id}.default.berth."));
    let known = (ResponseCode::NoError, vec![elsewhere.parse().unwrap()]);
    let gone = (ResponseCode::NXDomain, vec![]);
    let becomes = async |cluster: &Cluster, expected: &(ResponseCode, Vec<IpAddr>)| {
        let answered = async || (result(&ask(pid, &other, RecordType::A)) == *expected).then_some(());
        cluster.until("the name", LIMIT, answered).await;
    };
    change(typed::put_json(key.clone(), &record).unwrap()).await;
    becomes(&cluster, &known).await;
    change(Operation::Delete { key: key.clone() }).await;
    becomes(&cluster, &gone).await;
    change(typed::put_json(key, &record).unwrap()).await;
    becomes(&cluster, &known).await;
    let of_own = result(&ask(pid, &own, RecordType::A));
    assert_eq!(
        of_own,
        (ResponseCode::NoError, vec![address_of(&cluster, &task).await])
    );

    cluster.stop_control_plane().await;
    assert_eq!(result(&ask(pid, &other, RecordType::A)), known);
    cluster.kill_agent();
    cluster.start_agent();
    // It is asked as soon as it listens, and knows all of it then.
    let answers = async || {
        let question = question(&other, RecordType::A);
        let answer = in_network_of(pid, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.send_to(&question, (RESOLVER, 53)).unwrap();
            let mut buffer = [0; 512];
            socket
                .recv(&mut buffer)
                .ok()
                .map(|length| buffer[..length].to_vec())
        })?;
        Some(result(&Message::from_vec(&answer).unwrap()))
    };
    assert_eq!(cluster.until("the agent to answer", LIMIT, answers).await, known);
    assert_eq!(result(&ask(pid, &own, RecordType::A)), of_own);
    let host = result(&ask(pid, "host.example.", RecordType::A));
    assert_eq!(host, (ResponseCode::NoError, vec!["192.0.2.0".parse().unwrap()]));

    // What the control plane does not know any more is gone.
    cluster.start_control_plane().await;
    becomes(&cluster, &gone).await;
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_resolver_a_task_asks_the_servers_of_its_host() {
    let options = Options {
        agent_config: "[dns]\nenabled = false\n".into(),
        ..Options::default()
    };
    let cluster = Cluster::with(options).await;
    let (task, seen) = look(&cluster, |_| {}, &[("a", "cat /etc/resolv.conf", json!({}))]).await;
    let lines = &seen["a"].lines;
    assert!(
        !lines.iter().any(|line| line.contains("169.254.170.3")),
        "{lines:?}"
    );
    assert!(!cluster.run_dir().join("dns.json").exists());
    cluster.stop(&task).await;
}
