//! Logs over a bulk stream.

use berth_proto::node::v1::{
    BulkError, BulkFromNode, BulkStart, BulkToNode, LogLine, LogLines, LogRequest, OpenBulk,
    bulk_from_node::Message as Bulk, open_bulk::Request,
};
use tonic::Code;

use super::*;
use crate::nodes::NodeError;

struct BulkStream {
    sender: mpsc::Sender<BulkFromNode>,
    receiver: Streaming<BulkToNode>,
}

impl BulkStream {
    async fn open(client: &mut NodeServiceClient<Channel>, ticket: &str) -> Self {
        let (sender, messages) = mpsc::channel(1);
        let receiver = client
            .bulk(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        let stream = Self { sender, receiver };
        stream
            .send(Bulk::Start(BulkStart {
                ticket: ticket.into(),
            }))
            .await
            .unwrap();
        stream
    }

    async fn send(&self, message: Bulk) -> Result<(), mpsc::error::SendError<BulkFromNode>> {
        self.sender
            .send(BulkFromNode {
                message: Some(message),
            })
            .await
    }
}

fn line(text: &str) -> LogLine {
    LogLine {
        container_name: "web".into(),
        stream: "stdout".into(),
        time_ms: 1,
        data: text.into(),
    }
}

fn lines(texts: &[&str]) -> Bulk {
    Bulk::LogLines(LogLines {
        lines: texts.iter().map(|t| line(t)).collect(),
    })
}

async fn asked(link: &mut Link) -> OpenBulk {
    match link.next().await {
        ToNode::OpenBulk(open) => open,
        other => panic!("{other:?}"),
    }
}

fn request(task: &str) -> LogRequest {
    LogRequest {
        task_id: task.into(),
        follow: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn logs_go_from_the_node_to_the_reader() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let nodes = plane.server.nodes();
    let reading = {
        let node = node.clone();
        tokio::spawn(async move { nodes.open_logs(&node, request(&id('1'))).await })
    };
    let open = asked(&mut link).await;
    assert_eq!(open.ticket.len(), 32);
    assert_eq!(open.request, Some(Request::Logs(request(&id('1')))));
    let bulk = BulkStream::open(&mut link.client, &open.ticket).await;
    let mut reader = reading.await.unwrap().unwrap();
    bulk.send(lines(&["one\n", "two\n"])).await.unwrap();
    assert_eq!(
        reader.recv().await.unwrap().unwrap(),
        [line("one\n"), line("two\n")]
    );
    bulk.send(Bulk::Error(BulkError {
        reason: "its logs are gone".into(),
    }))
    .await
    .unwrap();
    assert_eq!(reader.recv().await.unwrap().unwrap_err(), "its logs are gone");
    assert!(reader.recv().await.is_none());

    // A ticket is good once.
    let mut again = BulkStream::open(&mut link.client, &open.ticket).await;
    let refused = timeout(SOON, again.receiver.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_slow_reader_slows_the_node_and_a_gone_one_ends_the_stream() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let nodes = plane.server.nodes();
    let reading = {
        let node = node.clone();
        tokio::spawn(async move { nodes.open_logs(&node, request(&id('1'))).await })
    };
    let open = asked(&mut link).await;
    let mut bulk = BulkStream::open(&mut link.client, &open.ticket).await;
    let mut reader = reading.await.unwrap().unwrap();
    // 64 KiB a batch: a reader that takes nothing holds up the node long before 10,000 batches.
    let text = "x".repeat(64 << 10);
    let mut sent = 0;
    while sent < 10_000 {
        match timeout(Duration::from_millis(500), bulk.send(lines(&[&text]))).await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        sent += 1;
    }
    assert!((10..1_000).contains(&sent), "{sent} batches went out to nobody");
    for _ in 0..sent {
        timeout(SOON, reader.recv()).await.unwrap().unwrap().unwrap();
    }
    drop(reader);
    let end = timeout(SOON, bulk.receiver.message())
        .await
        .expect("the node is told to stop");
    assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn a_ticket_is_for_its_node_alone_and_the_end_of_a_stream_ends_the_logs() {
    let plane = Plane::start().await;
    let (node, thief) = (id('a'), id('b'));
    let mut link = plane.connect(&node).await;
    let nodes = plane.server.nodes();
    let reading = {
        let node = node.clone();
        tokio::spawn(async move { nodes.open_logs(&node, request(&id('1'))).await })
    };
    let open = asked(&mut link).await;
    let mut thief_client = plane.client(&thief).await;
    let mut stolen = BulkStream::open(&mut thief_client, &open.ticket).await;
    let refused = timeout(SOON, stolen.receiver.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut bulk = BulkStream::open(&mut link.client, &open.ticket).await;
    let mut reader = reading.await.unwrap().unwrap();
    bulk.send(lines(&["last\n"])).await.unwrap();
    drop(bulk.sender);
    assert_eq!(reader.recv().await.unwrap().unwrap(), [line("last\n")]);
    assert!(timeout(SOON, reader.recv()).await.unwrap().is_none());
    assert!(
        timeout(SOON, bulk.receiver.message())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_node_that_is_away_or_goes_away_says_so() {
    let plane = Plane::start().await;
    let node = id('a');
    let nodes = plane.server.nodes();
    let away = nodes.open_logs(&node, request(&id('1'))).await.unwrap_err();
    assert!(matches!(away, NodeError::NotConnected(n) if n == node));
    let mut link = plane.connect(&node).await;
    let reading = {
        let node = node.clone();
        tokio::spawn(async move { nodes.open_logs(&node, request(&id('1'))).await })
    };
    asked(&mut link).await;
    drop(link);
    let gone = timeout(SOON, reading).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(gone, NodeError::NotConnected(_)), "{gone:?}");
}
