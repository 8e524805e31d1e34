//! A node with a good certificate that speaks for others, lies about itself, or floods. `a` is hostile, `b` its victim.

use berth_proto::node::v1::{
    BulkFromNode, BulkStart, ContainerState, DesiredAck, Heartbeat, LogRequest, RenewRequest, StateChange,
    TaskState, TaskStatus, bulk_from_node::Message as Bulk,
};
use tonic::Code;

use super::{joining::Host, *};
use crate::pki::Peer;

fn stopped(task: &str) -> TaskState {
    TaskState {
        task_id: task.into(),
        status: TaskStatus::Stopped.into(),
        stopped_reason: "says the wrong node".into(),
        ..Default::default()
    }
}

impl Link {
    async fn change(&mut self, sequence: u64, task: TaskState) {
        self.send(FromNode::StateChange(StateChange {
            sequence,
            task: Some(task),
        }))
        .await;
        loop {
            match self.next().await {
                ToNode::StateAck(ack) if ack.sequence >= sequence => return,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn it_cannot_report_on_tasks_of_another_node() {
    let plane = Plane::start().await;
    let (bad, victim, task) = (id('a'), id('b'), id('1'));
    let mut link = plane.connect(&bad).await;
    let _other = plane.connect(&victim).await;
    plane.place(&victim, &task).await;
    let before = plane.task(&task).await.unwrap();
    link.change(1, stopped(&task)).await;
    let after = plane.task(&task).await.unwrap();
    assert_eq!(
        (after.last_status, after.version),
        (before.last_status, before.version)
    );
    assert!(plane.node(&victim).await.allocations.contains_key(&task));
    assert!(plane.spec(&victim, &task).await.is_some());
}

#[tokio::test]
async fn it_cannot_report_on_tasks_of_another_cluster() {
    let plane = Plane::start().await;
    let (bad, task) = (id('a'), id('1'));
    let mut record = task_record(&bad, &task);
    record.cluster = "other".into();
    let key = format!("/tasks/other/{task}");
    plane
        .put(vec![typed::put_json(key.clone(), &record).unwrap()])
        .await;
    let mut link = plane.connect(&bad).await;
    for (sequence, name) in [
        (1, task.clone()),
        (2, format!("../other/{task}")),
        (3, String::new()),
    ] {
        link.change(sequence, stopped(&name)).await;
    }
    let after = typed::get_json::<Task>(&*plane.store, &key)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(after.value.last_status, "PROVISIONING");
}

#[tokio::test]
async fn it_cannot_be_another_node() {
    let plane = Plane::start().await;
    let (bad, victim) = (id('a'), id('b'));
    let mut real = plane.connect(&victim).await;
    let mut link = Link::open(plane.client(&bad).await).await;
    link.hello(&victim, 0).await;
    assert_eq!(link.end().await.code(), Code::InvalidArgument);
    real.quiet().await;
    assert!(plane.node(&victim).await.agent_connected);
    // A request may name whom it likes: the certificate is for who asked.
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, victim.clone());
    let request = params.serialize_request(&Host::new().key).unwrap();
    let request = RenewRequest {
        certificate_request_der: request.der().to_vec(),
    };
    let renewed = plane
        .client(&bad)
        .await
        .renew(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(Peer::from_der(&renewed.certificate_der).unwrap().node_id, bad);
}

#[tokio::test]
async fn it_cannot_use_the_ticket_of_another_node_nor_spoil_it() {
    let plane = Plane::start().await;
    let (bad, victim) = (id('a'), id('b'));
    let _link = plane.connect(&bad).await;
    let mut real = plane.connect(&victim).await;
    let nodes = plane.server.nodes();
    let node = victim.clone();
    let logs = tokio::spawn(async move { nodes.open_logs(&node, LogRequest::default()).await });
    let ToNode::OpenBulk(open) = real.next().await else {
        panic!("no ticket")
    };
    let open_bulk = async |client: &mut NodeServiceClient<Channel>, ticket: &str| {
        let (sender, messages) = mpsc::channel(4);
        let start = Bulk::Start(BulkStart {
            ticket: ticket.into(),
        });
        sender.send(BulkFromNode { message: Some(start) }).await.unwrap();
        let answers = client
            .bulk(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        (sender, answers)
    };
    for ticket in [open.ticket.as_str(), "", &"f".repeat(32), &"x".repeat(1 << 20)] {
        let (_sender, mut answers) = open_bulk(&mut plane.client(&bad).await, ticket).await;
        let status = answers.message().await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    let (_sender, _answers) = open_bulk(&mut plane.client(&victim).await, &open.ticket).await;
    timeout(SOON, logs)
        .await
        .unwrap()
        .unwrap()
        .expect("the ticket is still good for its node");
}

#[tokio::test]
async fn it_cannot_give_itself_what_constraints_trust() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = Link::open(plane.client(&node).await).await;
    let mut lies = hello(&node, 0);
    lies.attributes.insert("trusted.zone".into(), "vault".into());
    link.send(FromNode::Hello(lies)).await;
    link.expect_start().await;
    let record = plane.node(&node).await;
    assert!(!record.node_attributes.contains_key("trusted.zone"));
    assert!(record.node_attributes.contains_key("ecs.os-type"));
}

#[tokio::test]
async fn a_hello_beyond_all_bounds_is_refused_and_leaves_no_record() {
    let plane = Plane::start().await;
    let node = id('a');
    type Lie = fn(&mut Hello);
    let lies: [(&str, Lie); 6] = [
        ("capacity", |hello| {
            hello.capacity.as_mut().unwrap().cpu_units = u32::MAX
        }),
        ("capacity", |hello| {
            hello.capacity.as_mut().unwrap().memory_bytes = u64::MAX
        }),
        ("reserved ports", |hello| {
            hello.capacity.as_mut().unwrap().reserved_udp_ports = vec![1; 10_000];
        }),
        ("attributes", |hello| {
            hello.attributes = (0..1_000).map(|n| (n.to_string(), String::new())).collect();
        }),
        ("text in an attribute", |hello| {
            hello.attributes.insert("a".into(), "x".repeat(100_000));
        }),
        ("features", |hello| hello.features = vec!["x".repeat(100_000)]),
    ];
    for (what, lie) in lies {
        let mut link = Link::open(plane.client(&node).await).await;
        let mut hello = hello(&node, 0);
        lie(&mut hello);
        link.send(FromNode::Hello(hello)).await;
        let status = link.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        assert!(status.message().contains(what), "{what}: {status:?}");
    }
    let key = format!("/nodes/{CLUSTER}/{node}");
    assert!(plane.store.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn what_it_says_of_its_own_task_is_cut_to_size() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    let long = "x".repeat(3 << 19);
    let container = ContainerState {
        container_id: id('c'),
        status: TaskStatus::Stopped.into(),
        reason: long.clone(),
        ..Default::default()
    };
    let state = TaskState {
        stopped_reason: long,
        ipv4_address: "10.0.0.1; drop table".into(),
        ipv6_address: "fd00::1 and more".into(),
        started_at_ms: i64::MIN,
        stopped_at_ms: i64::MAX,
        containers: vec![container],
        ..stopped(&task)
    };
    link.change(u64::MAX, state).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(record.last_status, "STOPPED");
    assert_eq!(record.stopped_reason.unwrap().len(), 1_024);
    assert_eq!(record.containers[0].reason.as_ref().unwrap().len(), 1_024);
    assert_eq!((record.ipv4_address, record.started_at), (None, None));
    assert_eq!(record.ipv6_address, None);
    let day = 24 * 3_600_000 + 60_000;
    assert!(
        record.stopped_at.unwrap() < super::super::now() + day,
        "it is forgotten one day"
    );
}

#[tokio::test]
async fn a_flood_of_everything_bothers_nobody_else() {
    let plane = Plane::start().await;
    let (bad, good, task) = (id('a'), id('b'), id('1'));
    let link = plane.connect(&bad).await;
    let mut other = plane.connect(&good).await;
    plane.place(&good, &task).await;
    assert!(matches!(other.next().await, ToNode::Delta(_)));
    let sender = link.sender.clone();
    let flood = tokio::spawn(async move {
        for sequence in 1.. {
            let messages = [
                FromNode::StateChange(StateChange {
                    sequence,
                    task: Some(stopped(&id('9'))),
                }),
                FromNode::DesiredAck(DesiredAck {
                    position: None,
                    refused_reason: format!("{sequence}{}", "x".repeat(10_000)),
                    confirmable: false,
                }),
                FromNode::Heartbeat(Heartbeat {
                    impairments: vec!["y".repeat(1_000); 100],
                    ..Default::default()
                }),
            ];
            for message in messages {
                let message = NodeMessage {
                    message: Some(message),
                };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        }
    });
    // Its own acknowledgements are left unread, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let started = Instant::now();
    other.change(1, stopped(&task)).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(plane.task(&task).await.unwrap().last_status, "STOPPED");
    if let Some(kept) = plane.server.nodes().latest_heartbeat(&bad) {
        assert!(kept.impairments.len() <= 32 && kept.impairments.iter().all(|text| text.len() <= 256));
    }
    drop(link);
    flood.abort();
}

#[tokio::test]
async fn a_request_is_not_read_beyond_what_one_can_be() {
    let plane = Plane::start().await;
    let node = id('a');
    let request = RenewRequest {
        certificate_request_der: vec![0; 70_000],
    };
    let status = plane.client(&node).await.renew(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("65536 bytes"), "{status:?}");
    let request = berth_proto::node::v1::RegisterRequest {
        token: "x".repeat(70_000),
        ..Default::default()
    };
    let status = plane.client(&node).await.register(request).await.unwrap_err();
    assert!(status.message().contains("65536 bytes"), "{status:?}");
}

/// Begins a call and sends no message; what it is answered.
async fn silent_call(plane: &Plane, identity: &NodeIdentity, call: &'static str) -> Status {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&identity.authority_pem))
        .identity(Identity::from_pem(&identity.certificate_pem, &identity.key_pem));
    let endpoint = Endpoint::from_shared(format!("https://{}", plane.server.address())).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let nothing = tokio_stream::pending::<RenewRequest>();
    let codec = tonic_prost::ProstCodec::<RenewRequest, berth_proto::node::v1::RenewResponse>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(call);
    let answer = grpc.streaming(tonic::Request::new(nothing), path, codec);
    timeout(SOON * 2, answer)
        .await
        .expect("an answer was due")
        .map(|_| ())
        .expect_err("a call without a message is no call")
}

#[tokio::test]
async fn who_is_revoked_is_refused_before_it_says_anything_and_nobody_holds_a_call_open() {
    let plane = Plane::start().await;
    let (identity, other) = (plane.identity(&id('a')), plane.identity(&id('b')));
    plane.put(vec![super::revocation::revocation(&id('a'))]).await;
    for call in [
        "/berth.node.v1.NodeService/Renew",
        "/berth.node.v1.NodeService/Link",
    ] {
        let status = silent_call(&plane, &identity, call).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{call}: {status:?}");
    }
    let status = silent_call(&plane, &other, "/berth.node.v1.NodeService/Renew").await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn linking_anew_does_not_bring_a_new_share_of_the_store() {
    let plane = Plane::start().await;
    let node = id('a');
    let client = plane.client(&node).await;
    let revision = async || plane.store.range("/nodes/", None, 1).await.unwrap().revision;
    let (before, started) = (revision().await, Instant::now());
    while started.elapsed() < Duration::from_secs(3) {
        let mut link = Link::open(client.clone()).await;
        link.hello(&node, 0).await;
        // Taken or superseded, what counts is what it wrote.
        timeout(Duration::from_millis(500), link.receive()).await.ok();
    }
    let written = revision().await - before;
    // A burst of 200, then 50 a second.
    let seconds = started.elapsed().as_secs() + 1;
    assert!(
        written <= 200 + 50 * seconds,
        "{written} transactions in {seconds} s"
    );
}

#[tokio::test]
async fn connections_of_one_node_are_bounded_and_others_still_get_in() {
    let plane = Plane::start().await;
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..24 {
        match client(
            &plane.server,
            &plane.authority.certificate_pem(),
            Some(&plane.identity(&id('a'))),
        )
        .await
        {
            Ok(mut client) => {
                let request = RenewRequest {
                    certificate_request_der: vec![0],
                };
                match client.renew(request).await.unwrap_err().code() {
                    Code::InvalidArgument | Code::ResourceExhausted => open.push(client),
                    _ => refused += 1,
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert_eq!((open.len(), refused), (16, 8));
    plane.connect(&id('b')).await;
}
