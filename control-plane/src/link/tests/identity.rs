//! Who may link, and as whom.

use tonic::Code;

use super::*;

#[tokio::test]
async fn without_a_certificate_there_is_no_conversation() {
    let plane = Plane::start().await;
    refused(&plane, None).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let plane = Plane::start().await;
    let other = crate::pki::Authority::load_or_create(&plane.directory.path().join("other")).unwrap();
    refused(&plane, Some(&other.issue_node(&id('a'), CLUSTER).unwrap())).await;
    assert!(
        plane
            .store
            .get(&format!("/nodes/{CLUSTER}/{}", id('a')))
            .await
            .unwrap()
            .is_none()
    );
}

/// With TLS 1.3 a client learns of the refusal when it first reads.
async fn refused(plane: &Plane, identity: Option<&NodeIdentity>) {
    let authority = plane.authority.certificate_pem();
    let Ok(mut client) = client(&plane.server, &authority, identity).await else {
        return;
    };
    let (_sender, messages) = mpsc::channel::<NodeMessage>(1);
    let answer = timeout(SOON, client.link(ReceiverStream::new(messages)))
        .await
        .expect("an answer was due");
    let status = answer.expect_err("a stranger has a link");
    let expected: &[Code] = match identity {
        None => &[Code::Unauthenticated],
        Some(_) => &[Code::Unknown, Code::Unavailable, Code::Internal],
    };
    assert!(expected.contains(&status.code()), "{status:?}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_by_the_node() {
    let (plane, other) = (Plane::start().await, Plane::start().await);
    let identity = plane.identity(&id('a'));
    assert!(
        client(&other.server, &plane.authority.certificate_pem(), Some(&identity))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_hello_under_another_id_is_refused() {
    let plane = Plane::start().await;
    let mut link = Link::open(plane.client(&id('a')).await).await;
    link.hello(&id('b'), 0).await;
    let status = link.end().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains(&id('a')) && status.message().contains(&id('b')),
        "{status:?}"
    );
    assert!(
        plane
            .store
            .get(&format!("/nodes/{CLUSTER}/{}", id('b')))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_node_stays_in_its_cluster() {
    let plane = Plane::start().await;
    plane.connect(&id('a')).await;
    let moved = plane.authority.issue_node(&id('a'), "other").unwrap();
    let client = client(&plane.server, &plane.authority.certificate_pem(), Some(&moved))
        .await
        .unwrap();
    let mut link = Link::open(client).await;
    link.hello(&id('a'), 0).await;
    let status = link.end().await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("registered in cluster default"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_node_of_another_version_is_told_which_one_is_spoken() {
    let plane = Plane::start().await;
    let mut link = Link::open(plane.client(&id('a')).await).await;
    link.send(FromNode::Hello(Hello {
        version_min: 7,
        version_max: 9,
        ..hello(&id('a'), 0)
    }))
    .await;
    let status = link.end().await;
    assert!(status.message().contains("versions 7 to 9"), "{status:?}");
}

#[tokio::test]
async fn a_link_that_does_not_begin_with_hello_is_refused() {
    let plane = Plane::start().await;
    let mut link = Link::open(plane.client(&id('a')).await).await;
    link.send(FromNode::Heartbeat(Default::default())).await;
    assert_eq!(link.end().await.code(), Code::InvalidArgument);
    let mut link = Link::open(plane.client(&id('a')).await).await;
    link.send(FromNode::Hello(Hello {
        capacity: None,
        ..hello(&id('a'), 0)
    }))
    .await;
    let status = link.end().await;
    assert!(status.message().contains("hello without capacity"), "{status:?}");
}
