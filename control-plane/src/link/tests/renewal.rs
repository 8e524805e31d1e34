//! Renew: a fresh certificate for the same node.

use berth_proto::node::v1::RenewRequest;
use tonic::Code;

use super::{joining::Host, *};
use crate::pki::Peer;

#[tokio::test]
async fn a_renewed_certificate_is_for_the_same_node_and_the_link_goes_on() {
    let plane = Plane::start().await;
    let token = plane.token(|_| {}).await;
    let host = Host::new();
    let joined = plane.join(&host, &token).await.unwrap();
    let identity = host.identity(&plane, &joined.certificate_der);
    let mut node = client(&plane.server, &identity.authority_pem, Some(&identity))
        .await
        .unwrap();
    let mut link = Link::open(node.clone()).await;
    link.hello(&joined.node_id, 0).await;
    link.expect_start().await;
    let fresh = Host::new();
    let request = RenewRequest {
        certificate_request_der: fresh.request(),
    };
    let renewed = node.renew(request).await.unwrap().into_inner();
    let peer = Peer::from_der(&renewed.certificate_der).unwrap();
    assert_eq!(
        (peer.node_id.as_str(), peer.cluster.as_str()),
        (joined.node_id.as_str(), CLUSTER)
    );
    assert_eq!(
        renewed.authority_der,
        plane.authority.trusted().certificates_der()
    );
    link.quiet().await;
    plane
        .put(vec![desired(&joined.node_id, &id('1'), DesiredStatus::Running)])
        .await;
    assert!(
        matches!(link.next().await, ToNode::Delta(_)),
        "the old link still works"
    );
    let identity = fresh.identity(&plane, &renewed.certificate_der);
    let node = client(&plane.server, &identity.authority_pem, Some(&identity))
        .await
        .unwrap();
    let mut link = Link::open(node).await;
    link.hello(&joined.node_id, 0).await;
    link.expect_start().await;
}

#[tokio::test]
async fn a_link_lives_as_long_as_its_node_renews() {
    let short = LinkConfig {
        certificate_lifetime: Duration::from_secs(3),
        ..config(SOON)
    };
    let plane = Plane::serving(short).await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let joined = plane.join(&host, &token).await.unwrap();
    let mut identity = host.identity(&plane, &joined.certificate_der);
    let connect = async |identity: &NodeIdentity| {
        let connected = client(&plane.server, &identity.authority_pem, Some(identity)).await;
        connected.unwrap()
    };
    let mut link = Link::open(connect(&identity).await).await;
    link.hello(&joined.node_id, 0).await;
    link.expect_start().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let request = RenewRequest {
            certificate_request_der: host.request(),
        };
        let renewed = connect(&identity).await.renew(request).await.unwrap();
        identity = host.identity(&plane, &renewed.into_inner().certificate_der);
        link.quiet().await;
    }
    let status = link.end().await;
    assert!(status.message().contains("has expired"), "{status:?}");
}

#[tokio::test]
async fn a_bad_request_is_refused_and_a_flood_of_renewals_too() {
    let plane = Plane::start().await;
    let mut node = plane.client(&id('a')).await;
    let mut codes = Vec::new();
    for _ in 0..11 {
        let request = RenewRequest {
            certificate_request_der: vec![1, 2, 3],
        };
        codes.push(node.renew(request).await.unwrap_err().code());
    }
    // What was renewed is shown all the same.
    node.renew(RenewRequest::default()).await.unwrap();
    assert_eq!(codes[..10], [Code::InvalidArgument; 10]);
    assert_eq!(codes[10], Code::ResourceExhausted);
}

#[tokio::test]
async fn an_expired_certificate_is_worth_nothing_even_on_a_connection_that_is_open() {
    let short = LinkConfig {
        certificate_lifetime: Duration::from_secs(2),
        ..config(SOON)
    };
    let plane = Plane::serving(short).await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let joined = plane.join(&host, &token).await.unwrap();
    let identity = host.identity(&plane, &joined.certificate_der);
    let connect = || client(&plane.server, &identity.authority_pem, Some(&identity));
    let mut node = connect().await.unwrap();
    let mut renewing = connect().await.unwrap();
    let request = || RenewRequest {
        certificate_request_der: host.request(),
    };
    renewing.renew(request()).await.unwrap();
    let mut link = Link::open(connect().await.unwrap()).await;
    link.hello(&joined.node_id, 0).await;
    link.expect_start().await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    let status = node.renew(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("has expired"), "{status:?}");
    let late = match connect().await {
        Err(_) => true,
        Ok(mut late) => late.renew(request()).await.is_err(),
    };
    assert!(late, "no handshake with an expired certificate");
    let status = timeout(Duration::from_secs(2), link.end()).await.unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("has expired"), "{status:?}");
}
