//! Two agents with one identity.

use tonic::Code;

use super::*;

fn hello_of(node: &str, run: char, boot: &str) -> Hello {
    let mut hello = Hello {
        run_id: id(run),
        ..hello(node, 0)
    };
    hello.description.as_mut().unwrap().boot_id = boot.into();
    hello
}

async fn open(plane: &Plane, hello: Hello) -> Link {
    let link = Link::open(plane.client(&hello.node_id).await).await;
    link.send(FromNode::Hello(hello)).await;
    link
}

#[tokio::test]
async fn a_second_agent_is_refused_while_the_first_talks_and_shown() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut first = open(&plane, hello_of(&node, '1', "boot-1")).await;
    first.expect_start().await;
    let started = Instant::now();
    let mut second = open(&plane, hello_of(&node, '2', "boot-2")).await;
    let status = second.end().await;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert!(
        status.message().contains("127.0.0.1") && status.message().contains("host-1"),
        "the first is named: {status:?}"
    );
    assert!(status.message().contains("boot-1"), "{status:?}");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    let heartbeat = plane.server.nodes().latest_heartbeat(&node).unwrap();
    assert!(
        heartbeat.impairments.iter().any(|text| text.contains("boot-2")),
        "the second is shown at the first: {heartbeat:?}"
    );
    first.quiet().await;
    assert!(plane.node(&node).await.agent_connected);
}

#[tokio::test]
async fn one_that_hears_from_the_first_is_refused_without_waiting() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut first = open(&plane, hello_of(&node, '1', "b")).await;
    first.expect_start().await;
    let started = Instant::now();
    let mut second = open(&plane, hello_of(&node, '2', "b")).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    first.send(FromNode::Heartbeat(Default::default())).await;
    assert_eq!(second.end().await.code(), Code::AlreadyExists);
    assert!(
        started.elapsed() < Duration::from_millis(1_800),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn the_same_agent_takes_its_place_again_at_once() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut first = open(&plane, hello_of(&node, '1', "b")).await;
    first.expect_start().await;
    let started = Instant::now();
    let mut again = open(&plane, hello_of(&node, '1', "b")).await;
    again.expect_start().await;
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(first.end().await.code(), Code::Aborted);
}

#[tokio::test]
async fn an_agent_that_was_killed_is_replaced_as_soon_as_its_connection_ends() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut first = open(&plane, hello_of(&node, '1', "b")).await;
    first.expect_start().await;
    let mut second = open(&plane, hello_of(&node, '2', "b")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    drop(first);
    second.expect_start().await;
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_first_that_is_silent_is_replaced() {
    let silence = Duration::from_millis(800);
    let plane = Plane::start_with(silence, Limits::default()).await;
    let node = id('a');
    let mut first = open(&plane, hello_of(&node, '1', "b")).await;
    first.expect_start().await;
    let mut second = open(&plane, hello_of(&node, '2', "b")).await;
    second.expect_start().await;
    let ended = first.end().await.code();
    assert!(
        matches!(ended, Code::Aborted | Code::DeadlineExceeded),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_older_agent_without_a_run_id_is_not_checked() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut first = open(&plane, hello_of(&node, '1', "b")).await;
    first.expect_start().await;
    let mut second = open(&plane, hello(&node, 0)).await;
    second.expect_start().await;
}
