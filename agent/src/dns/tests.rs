//! What is answered, without any socket but those of servers that a test makes itself.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use berth_agent_core::{
    desired::{Millis, NetworkMode},
    task::{Phase, Task},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::SOA},
};
use proptest::prelude::*;
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};

use super::{
    forward::{read_message, write_message},
    message::{Received, TCP_BYTES_MAX, UDP_BYTES_MAX},
    zone::Names,
    *,
};

const ASKER: &str = "10.1.0.2";
const ID: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "ffffffffffffffffffffffffffffffff";

fn message(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn read(message: &Message) -> Question {
    match Question::read(&message.to_vec().unwrap()) {
        Received::Question(question) => *question,
        other => panic!("{other:?}"),
    }
}

fn question(name: &str, kind: RecordType) -> Question {
    read(&message(name, kind))
}

/// A task that runs.
fn task(id: &str, cluster: &str, address: Option<&str>) -> Task {
    let spec = json!({
        "id": id, "arn": "", "cluster": cluster, "family": "f", "revision": 1, "desired": "Running", "network": "Awsvpc",
        "limits": {"cpu_units": 0, "memory_bytes": 0}, "charge": {"cpu_units": 0, "memory_bytes": 0}, "containers": [],
        "restart_after_reboot": false, "stop_reason": "", "created_at": 0,
    });
    let mut task = Task::new(serde_json::from_value(spec).unwrap(), 1, Millis(0));
    task.address = address.map(|text| text.parse::<Ipv4Addr>().unwrap().into());
    task.phase = Phase::Active;
    task
}

fn names(cluster: &str, of: &[(&str, &str)]) -> Names {
    let mut names = Names::new(cluster.into());
    for (id, address) in of {
        let ipv4 = Some(address.parse().unwrap());
        names.insert(
            Key::parse(id).unwrap(),
            Addresses {
                ipv4,
                ..Addresses::default()
            },
        );
    }
    names
}

fn answer(own: &[Task], names: &Names, asked: &Question) -> Option<Reply> {
    let own = Own::of(own.iter());
    let cluster = own.cluster_of(ASKER.parse().unwrap()).unwrap();
    Zone {
        cluster,
        own: &own,
        names,
    }
    .answer(asked)
}

/// Code, and what is in the answer.
fn seen(reply: Option<Reply>) -> Option<(ResponseCode, Vec<String>)> {
    let reply = reply?;
    assert!(reply.authoritative);
    // What is not there says for how long that holds.
    let soa = |record: &Record| matches!(&record.data, RData::SOA(soa) if soa.minimum == 5);
    assert_eq!(reply.answers.is_empty(), reply.authorities.iter().any(soa));
    let data = reply.answers.iter().map(|record| {
        assert_eq!(record.ttl, 5);
        record.data.to_string()
    });
    Some((reply.code, data.collect()))
}

#[test]
fn a_name_is_what_is_known_of_the_cluster_of_who_asks() {
    use RecordType as Type;
    use ResponseCode::{NXDomain, NoError};
    let own = [task(ID, "Shop", Some(ASKER))];
    let told = names("Shop", &[(OTHER, "10.2.0.9"), (ID, "10.9.9.9")]);
    let upper = OTHER.to_uppercase();
    for (name, kind, expected) in [
        // The node itself knows better.
        (format!("{ID}.Shop.berth."), Type::A, Some((NoError, vec![ASKER]))),
        (
            format!("{OTHER}.shop.berth."),
            Type::A,
            Some((NoError, vec!["10.2.0.9"])),
        ),
        (
            format!("{upper}.SHOP.Berth."),
            Type::A,
            Some((NoError, vec!["10.2.0.9"])),
        ),
        (
            format!("{OTHER}.shop.berth."),
            Type::ANY,
            Some((NoError, vec!["10.2.0.9"])),
        ),
        (
            format!("{OTHER}.shop.berth."),
            Type::AAAA,
            Some((NoError, vec![])),
        ),
        (format!("{OTHER}.shop.berth."), Type::MX, Some((NoError, vec![]))),
        ("shop.berth.".into(), Type::A, Some((NoError, vec![]))),
        ("berth.".into(), Type::NS, Some((NoError, vec![]))),
        (
            format!("{}.shop.berth.", "0".repeat(32)),
            Type::A,
            Some((NXDomain, vec![])),
        ),
        (format!("{OTHER}.stock.berth."), Type::A, Some((NXDomain, vec![]))),
        (
            format!("x.{OTHER}.shop.berth."),
            Type::A,
            Some((NXDomain, vec![])),
        ),
        ("web.shop.berth.".into(), Type::A, Some((NXDomain, vec![]))),
        ("stock.berth.".into(), Type::A, Some((NXDomain, vec![]))),
        // What is not ours is asked of others.
        ("berth.example.".into(), Type::A, None),
        (".".into(), Type::NS, None),
        ("9.0.2.10.in-addr.arpa.".into(), Type::A, None),
        ("9.9.9.10.in-addr.arpa.".into(), Type::PTR, None),
        ("0.2.10.in-addr.arpa.".into(), Type::PTR, None),
        ("x.in-addr.arpa.".into(), Type::PTR, None),
    ] {
        let expected = expected.map(|(code, data)| (code, data.into_iter().map(str::to_owned).collect()));
        assert_eq!(
            seen(answer(&own, &told, &question(&name, kind))),
            expected,
            "{name} {kind}"
        );
    }
    let reverse = |name: &str| seen(answer(&own, &told, &question(name, Type::PTR))).unwrap().1;
    assert_eq!(
        reverse("9.0.2.10.in-addr.arpa."),
        [format!("{OTHER}.Shop.berth.")]
    );
    assert_eq!(reverse("2.0.1.10.in-addr.arpa."), [format!("{ID}.Shop.berth.")]);
    let soa = answer(&own, &told, &question("berth.", Type::SOA)).unwrap();
    assert_eq!(soa.answers[0].record_type(), Type::SOA);
}

#[test]
fn a_task_has_its_ipv6_address_too_and_a_name_for_it() {
    let mut asker = task(ID, "Shop", Some(ASKER));
    asker.address.as_mut().unwrap().ipv6 = "fd00::a02:1".parse().ok();
    let mut told = Names::new("Shop".into());
    let addresses = Addresses {
        ipv4: "10.2.0.9".parse().ok(),
        ipv6: "fd00::a02:9".parse().ok(),
        of_node: false,
    };
    told.insert(Key::parse(OTHER).unwrap(), addresses);
    let asked = |name: &str, kind, told: &Names| {
        seen(answer(std::slice::from_ref(&asker), told, &question(name, kind))).map(|(_, data)| data)
    };
    let name = |id: &str| format!("{id}.shop.berth.");
    for (id, ipv6) in [(ID, "fd00::a02:1"), (OTHER, "fd00::a02:9")] {
        assert_eq!(asked(&name(id), RecordType::AAAA, &told).unwrap(), [ipv6]);
        let arpa = Name::from(ipv6.parse::<Ipv6Addr>().unwrap()).to_string();
        let named = asked(&arpa, RecordType::PTR, &told).unwrap();
        assert_eq!(named, [format!("{id}.Shop.berth.")]);
    }
    assert_eq!(asked(&name(OTHER), RecordType::ANY, &told).unwrap().len(), 2);
    let arpa = Name::from("fd00::a02:9".parse::<Ipv6Addr>().unwrap()).to_string();
    told.remove(Key::parse(OTHER).unwrap());
    assert_eq!(asked(&arpa, RecordType::PTR, &told), None);
}

#[test]
fn a_task_at_its_node_is_where_that_is_said_to_be_and_nobodys_name_is_found_there() {
    let there = |of_node| {
        let mut told = Names::new("Shop".into());
        let addresses = Addresses {
            ipv4: "192.0.2.7".parse().ok(),
            ipv6: "fd00::7".parse().ok(),
            of_node,
        };
        told.insert(Key::parse(OTHER).unwrap(), addresses);
        told
    };
    let asker = || task(ID, "Shop", Some(ASKER));
    let asked = |own: &[Task], told: &Names, name: &str, kind| {
        seen(answer(own, told, &question(name, kind))).map(|(_, data)| data)
    };
    let name = format!("{OTHER}.shop.berth.");
    for mode in [NetworkMode::Bridge, NetworkMode::Host] {
        let mut own = task(OTHER, "Shop", None);
        own.spec.network = mode;
        // Here, on another node, and no more here.
        let known = [asker(), own.clone()];
        assert_eq!(
            asked(&known, &there(true), &name, RecordType::A).unwrap(),
            ["192.0.2.7"]
        );
        assert_eq!(
            asked(&[asker()], &there(true), &name, RecordType::AAAA).unwrap(),
            ["fd00::7"]
        );
        own.phase = Phase::Releasing;
        let known = [asker(), own];
        assert_eq!(
            asked(&known, &there(true), &name, RecordType::A).unwrap(),
            [""; 0]
        );
    }
    let arpa = "7.2.0.192.in-addr.arpa.";
    assert_eq!(asked(&[asker()], &there(true), arpa, RecordType::PTR), None);
    assert!(asked(&[asker()], &there(false), arpa, RecordType::PTR).is_some());
}

#[test]
fn what_ended_here_or_was_told_of_another_cluster_is_not_there() {
    let told = names("Shop", &[(OTHER, "10.2.0.9")]);
    let asked = question(&format!("{OTHER}.shop.berth."), RecordType::A);
    let code = |own: &[Task], told: &Names| answer(own, told, &asked).unwrap().code;
    let asker = || task(ID, "Shop", Some(ASKER));
    assert_eq!(code(&[asker()], &told), ResponseCode::NoError);
    let mut ended = task(OTHER, "Shop", Some("10.2.0.9"));
    ended.phase = Phase::Releasing;
    assert_eq!(code(&[asker(), ended], &told), ResponseCode::NXDomain);
    assert_eq!(
        code(&[asker()], &names("Stock", &[(OTHER, "10.2.0.9")])),
        ResponseCode::NXDomain
    );
    // A task of another cluster on the same node, as after the host was registered anew.
    let stranger = task(OTHER, "Stock", Some("10.2.0.9"));
    assert_eq!(code(&[asker(), stranger], &told), ResponseCode::NXDomain);
    assert_eq!(
        Own::of([asker()].iter()).cluster_of("10.2.0.9".parse().unwrap()),
        None
    );
    assert_eq!(
        Own::of([asker()].iter()).cluster_of(Ipv6Addr::LOCALHOST.into()),
        None
    );
    // A container of bridge mode asks from its own address, where its task is not.
    let mut bridge = task(OTHER, "Shop", None);
    bridge.spec.network = NetworkMode::Bridge;
    let container = format!("{:032x}", 1).parse().unwrap();
    bridge
        .container_addresses
        .insert(container, "10.2.0.9".parse::<Ipv4Addr>().unwrap().into());
    let cluster_of = |task: &Task| {
        let own = Own::of([task].into_iter());
        own.cluster_of("10.2.0.9".parse().unwrap()).map(str::to_owned)
    };
    assert_eq!(cluster_of(&bridge).as_deref(), Some("Shop"));
    assert_eq!(
        code(&[asker(), bridge.clone()], &names("Shop", &[])),
        ResponseCode::NXDomain
    );
    bridge.phase = Phase::Releasing;
    assert_eq!(cluster_of(&bridge), None);
}

#[test]
fn what_cannot_be_answered_is_refused_by_what_is_wrong_with_it() {
    let code = |bytes: &[u8]| match Question::read(bytes) {
        Received::Malformed(answer) => {
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(
                (answer.metadata.id, answer.metadata.message_type),
                (77, MessageType::Response)
            );
            answer.metadata.response_code
        }
        other => panic!("{other:?}"),
    };
    let good = message("a.example.", RecordType::A);
    assert_eq!(code(&good.to_vec().unwrap()[..20]), ResponseCode::FormErr);
    let mut two = good.clone();
    two.add_query(good.queries[0].clone());
    assert_eq!(code(&two.to_vec().unwrap()), ResponseCode::FormErr);
    let mut none = good.clone();
    none.queries.clear();
    assert_eq!(code(&none.to_vec().unwrap()), ResponseCode::FormErr);
    let mut notify = good.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify.to_vec().unwrap()), ResponseCode::NotImp);
    // An answer is never answered: two resolvers would talk for ever.
    let mut answer = good.clone();
    answer.metadata.message_type = MessageType::Response;
    for noise in [&answer.to_vec().unwrap()[..], &[0; 11], &[]] {
        assert!(matches!(Question::read(noise), Received::Noise));
    }
    assert_eq!(read(&good).refusal(), None);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(
            question("a.example.", kind).refusal(),
            Some(ResponseCode::Refused)
        );
    }
    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(read(&chaos).refusal(), Some(ResponseCode::Refused));
    let mut later = good;
    later.edns = Some(Edns::new());
    later.edns.as_mut().unwrap().set_version(1);
    assert_eq!(read(&later).refusal(), Some(ResponseCode::BADVERS));
}

#[test]
fn what_does_not_fit_is_cut_off_and_says_so() {
    let record = Record::from_rdata(
        Name::from_ascii("a.example.").unwrap(),
        9,
        RData::from(Ipv4Addr::LOCALHOST),
    );
    let reply = |count| Reply {
        answers: vec![record.clone(); count],
        ..Reply::default()
    };
    let plain = question("a.example.", RecordType::A);
    assert_eq!(plain.udp_bytes_max(), 512);
    let whole = Message::from_vec(&reply(10).encode(&plain, 512)).unwrap();
    assert_eq!(
        (whole.metadata.truncation, whole.answers.len(), whole.edns),
        (false, 10, None)
    );
    let cut = reply(100).encode(&plain, 512);
    assert!(cut.len() <= 512);
    let cut = Message::from_vec(&cut).unwrap();
    assert_eq!((cut.metadata.truncation, cut.answers.len()), (true, 0));
    assert_eq!((cut.metadata.id, cut.queries), (77, vec![plain.query.clone()]));
    let mut message = message("a.example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    message.edns = Some(edns);
    let large = read(&message);
    assert_eq!(large.udp_bytes_max(), usize::from(UDP_BYTES_MAX));
    let more = Message::from_vec(&reply(60).encode(&large, large.udp_bytes_max())).unwrap();
    assert_eq!((more.metadata.truncation, more.answers.len()), (false, 60));
    assert_eq!(more.edns.unwrap().max_payload(), UDP_BYTES_MAX);
}

proptest! {
    #[test]
    fn any_bytes_are_read_and_answered_within_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        at in 0..200_usize,
        name in "[a-zA-Z0-9.-]{0,80}",
        kind in any::<u16>(),
    ) {
        // As they are, and in the place of a part of a question that is right.
        let name = Name::from_ascii(format!("{name}.berth.")).unwrap_or_else(|_| Name::root());
        let mut good = Message::new(1, MessageType::Query, OpCode::Query);
        good.add_query(Query::query(name, RecordType::from(kind)));
        let mut changed = good.to_vec().unwrap();
        let at = at.min(changed.len());
        let end = changed.len().min(at + bytes.len() % 8);
        changed.splice(at..end, bytes.iter().copied().take(8));
        let own = [task(ID, "Shop", Some(ASKER))];
        let told = names("Shop", &[(OTHER, "10.2.0.9")]);
        for bytes in [&bytes, &changed] {
            match Question::read(bytes) {
                Received::Question(asked) => {
                    let reply = answer(&own, &told, &asked).unwrap_or_default();
                    let length = reply.encode(&asked, asked.udp_bytes_max()).len();
                    prop_assert!(length <= asked.udp_bytes_max());
                }
                Received::Malformed(answer) => prop_assert!(answer.len() == 12),
                Received::Noise => {}
            }
        }
    }
}

/// A server that answers each question over UDP as it is told, and counts.
struct Server {
    socket: UdpSocket,
    asked: usize,
}

impl Server {
    async fn start() -> (Self, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (Self { socket, asked: 0 }, address)
    }

    /// Serves until dropped: with each question what comes back for it.
    async fn serve(&mut self, answers: impl Fn(&Message) -> Vec<Message>) {
        let mut buffer = [0; 4_096];
        loop {
            let (length, peer) = self.socket.recv_from(&mut buffer).await.unwrap();
            self.asked += 1;
            for answer in answers(&Message::from_vec(&buffer[..length]).unwrap()) {
                let bytes = answer.to_vec().unwrap();
                self.socket.send_to(&bytes, peer).await.unwrap();
            }
        }
    }
}

fn answered(asked: &Message, address: &str) -> Message {
    let mut answer = asked.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.edns = None;
    let data = RData::from(address.parse::<Ipv4Addr>().unwrap());
    answer.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, data));
    answer
}

fn coded(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = asked.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.edns = None;
    answer.metadata.response_code = code;
    answer
}

fn forwarder(servers: &[SocketAddr]) -> Forwarder {
    Forwarder::new(Servers::Configured(servers.to_vec()))
}

fn first(reply: &Reply) -> String {
    reply.answers[0].data.to_string()
}

#[tokio::test]
async fn another_server_is_asked_once_and_believed_only_what_fits_the_question() {
    let (mut server, address) = Server::start().await;
    let forwarder = forwarder(&[address]);
    let mut asked = message("Www.Example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4_096);
    asked.edns = Some(edns);
    asked.add_additional(Record::from_rdata(
        Name::root(),
        1,
        RData::from(Ipv4Addr::BROADCAST),
    ));
    let asked = read(&asked);
    let answers = |asked: &Message| {
        // Nothing of the client's but its question.
        assert_ne!(asked.metadata.id, 77);
        assert!(asked.additionals.is_empty() && asked.metadata.recursion_desired);
        assert_eq!(asked.edns.as_ref().unwrap().max_payload(), UDP_BYTES_MAX);
        let (mut forged, mut other) = (answered(asked, "10.6.6.6"), answered(asked, "10.6.6.7"));
        forged.metadata.id ^= 1;
        other.queries[0].set_name(Name::from_ascii("evil.example.").unwrap());
        vec![forged, other, answered(asked, "10.0.0.1")]
    };
    let ask = async {
        let (reply, source) = forwarder.ask(&asked).await;
        assert_eq!((first(&reply).as_str(), source), ("10.0.0.1", Source::Server));
        let again = question("www.example.", RecordType::A);
        let (reply, source) = forwarder.ask(&again).await;
        assert_eq!((first(&reply).as_str(), source), ("10.0.0.1", Source::Cache));
    };
    tokio::select! { () = ask => {}, () = server.serve(answers) => {} }
    assert_eq!(server.asked, 1);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_cannot_answer_and_first_the_next_time() {
    let (mut unable, bad) = Server::start().await;
    let (mut able, good) = Server::start().await;
    // Nobody listens there any more.
    let (_, gone) = Server::start().await;
    let forwarder = forwarder(&[gone, bad, good]);
    let ask = async {
        for (name, source) in [("a.example.", Source::Server), ("b.example.", Source::Server)] {
            let (reply, by) = forwarder.ask(&question(name, RecordType::A)).await;
            assert_eq!((first(&reply).as_str(), by), ("10.0.0.1", source));
        }
    };
    tokio::select! {
        () = ask => {}
        () = unable.serve(|asked| vec![coded(asked, ResponseCode::ServFail)]) => {}
        () = able.serve(|asked| vec![answered(asked, "10.0.0.1")]) => {}
    }
    assert_eq!((unable.asked, able.asked), (1, 2));
}

#[tokio::test]
async fn a_server_of_before_edns_is_asked_without_and_what_all_of_them_say_is_handed_on() {
    let (mut server, address) = Server::start().await;
    let forwarder = forwarder(&[address]);
    let old = |asked: &Message| match asked.edns {
        Some(_) => vec![coded(asked, ResponseCode::FormErr)],
        None => vec![answered(asked, "10.0.0.1")],
    };
    let asked = question("a.example.", RecordType::A);
    let ask = async { assert_eq!(first(&forwarder.ask(&asked).await.0), "10.0.0.1") };
    tokio::select! { () = ask => {}, () = server.serve(old) => {} }
    let asked = question("b.example.", RecordType::A);
    let ask = async { assert_eq!(forwarder.ask(&asked).await.0.code, ResponseCode::Refused) };
    tokio::select! { () = ask => {}, () = server.serve(|asked| vec![coded(asked, ResponseCode::Refused)]) => {} }
}

#[tokio::test]
async fn that_there_is_no_such_name_is_handed_on_and_kept() {
    let (mut server, address) = Server::start().await;
    let forwarder = forwarder(&[address]);
    let answers = |asked: &Message| {
        let mut answer = coded(asked, ResponseCode::NXDomain);
        let zone = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 60);
        answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
        vec![answer]
    };
    let asked = question("none.example.", RecordType::A);
    let ask = async {
        for source in [Source::Server, Source::Cache] {
            let (reply, by) = forwarder.ask(&asked).await;
            assert_eq!(
                (reply.code, reply.authorities.len(), by),
                (ResponseCode::NXDomain, 1, source)
            );
        }
    };
    tokio::select! { () = ask => {}, () = server.serve(answers) => {} }
    assert_eq!(server.asked, 1);
}

#[tokio::test]
async fn what_a_datagram_cannot_hold_is_fetched_over_tcp() {
    let (mut server, address) = Server::start().await;
    let tcp = TcpListener::bind(address).await.unwrap();
    let forwarder = forwarder(&[address]);
    let cut = |asked: &Message| {
        let mut answer = coded(asked, ResponseCode::NoError);
        answer.metadata.truncation = true;
        vec![answer]
    };
    let over_tcp = async {
        let (mut stream, _) = tcp.accept().await.unwrap();
        let asked = Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap();
        let mut answer = answered(&asked, "10.0.0.1");
        answer.answers = vec![answer.answers[0].clone(); 200];
        write_message(&mut stream, &answer.to_vec().unwrap())
            .await
            .unwrap();
        std::future::pending::<()>().await;
    };
    let asked = question("long.example.", RecordType::A);
    let ask = async {
        let reply = forwarder.ask(&asked).await.0;
        assert_eq!(reply.answers.len(), 200);
        assert!(reply.encode(&asked, TCP_BYTES_MAX).len() > 3_000);
    };
    tokio::select! { () = ask => {}, () = over_tcp => {}, () = server.serve(cut) => {} }
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    // It listens, and says nothing.
    let (server, address) = Server::start().await;
    let forwarder = forwarder(&[address]).patient_for(Duration::from_millis(90), Duration::from_millis(30));
    let (reply, source) = forwarder.ask(&question("a.example.", RecordType::A)).await;
    assert_eq!((reply.code, source), (ResponseCode::ServFail, Source::Nobody));
    // It was asked more than once: what was lost may have been the question.
    let mut buffer = [0; 512];
    for _ in 0..2 {
        server.socket.recv_from(&mut buffer).await.unwrap();
    }
}

#[test]
fn servers_are_configured_by_address() {
    let dns = |toml: &str| toml::from_str::<Dns>(toml);
    let good = dns("servers = [\"10.0.0.2\", \"[fd00::1]:5353\", \"fd00::2\"]").unwrap();
    let shown: Vec<String> = good.servers.iter().map(|server| server.0.to_string()).collect();
    assert_eq!(shown, ["10.0.0.2:53", "[fd00::1]:5353", "[fd00::2]:53"]);
    assert!(good.enabled && good.check().is_ok());
    assert!(toml::to_string(&good).unwrap().contains("\"10.0.0.2\""));
    let error = dns("servers = [\"ns.example\"]").unwrap_err();
    assert!(error.to_string().contains("ns.example"), "{error}");
    assert!(
        dns("servers = [\"1.1.1.1\", \"1.1.1.2\", \"1.1.1.3\", \"1.1.1.4\"]")
            .unwrap()
            .check()
            .is_err()
    );
}
