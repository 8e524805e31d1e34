//! One authority replaces another, while nodes are linked.

use berth_proto::node::v1::RenewRequest;
use tonic::Code;

use super::{
    joining::{Host, pem, shown_chain},
    *,
};

impl Link {
    async fn told(&mut self) -> Trust {
        match self.next().await {
            ToNode::Trust(trust) => trust,
            other => panic!("{other:?}"),
        }
    }
}

impl Plane {
    pub(super) async fn known(&self, node: &str) -> crate::model::Identity {
        let key = crate::model::keys::identity(node);
        typed::get_json(&*self.store, &key).await.unwrap().unwrap().value
    }
}

/// Says over a connection of its own that this certificate has arrived.
async fn confirm(plane: &Plane, identity: &NodeIdentity) {
    let believed = plane.authority.certificate_pem();
    let mut node = client(&plane.server, &believed, Some(identity)).await.unwrap();
    let answer = node.renew(RenewRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.certificate_der, b"");
    assert_eq!(answer.authority_der, plane.authority.trusted().certificates_der());
}

/// A connection by who believes these authorities and shows this certificate.
async fn connects(plane: &Plane, believes: &[Vec<u8>], identity: &NodeIdentity) -> bool {
    let authorities: String = believes.iter().map(|der| pem(der)).collect();
    match client(&plane.server, &authorities, Some(identity)).await {
        Err(_) => false,
        Ok(client) => {
            let mut client = client;
            let status = client
                .renew(RenewRequest {
                    certificate_request_der: vec![0],
                })
                .await
                .unwrap_err();
            status.code() == Code::InvalidArgument
        }
    }
}

/// The listener takes a moment to change its certificate.
async fn shows(plane: &Plane, certificates: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + SOON;
    loop {
        let chain = shown_chain(plane).await;
        if chain.len() == certificates {
            return chain;
        }
        assert!(Instant::now() < deadline, "{} certificates", chain.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_rotation_drops_no_link_and_leaves_no_node_behind() {
    let plane = Plane::start().await;
    let node = id('a');
    let first = plane.authority.trusted().certificates_der();
    let before = plane.identity(&node);
    let channel = client(&plane.server, &before.authority_pem, Some(&before))
        .await
        .unwrap();
    let mut link = Link::open(channel.clone()).await;
    link.hello(&node, 0).await;
    link.expect_start().await;
    assert_eq!(link.trust.clone().unwrap().authority_der, first);
    assert!(!link.trust.clone().unwrap().renew);

    plane.authority.begin().unwrap();
    let both = plane.authority.trusted().certificates_der();
    let told = link.told().await;
    assert_eq!(
        (told.authority_der.as_slice(), told.renew),
        (both.as_slice(), false)
    );
    assert_eq!(both.len(), 2);

    plane.authority.activate().unwrap();
    let told = link.told().await;
    assert_eq!((told.authority_der.len(), told.renew), (2, true));
    let hashes = [
        plane.authority.trusted().other().unwrap().fingerprint(),
        plane.authority.trusted().active().fingerprint(),
    ];
    let chain = shows(&plane, 4).await;
    assert!(
        both.iter().all(|one| chain.contains(one)),
        "a host that joins finds either hash"
    );
    assert!(
        connects(&plane, &first, &before).await,
        "who missed it all still believes the listener"
    );
    assert!(
        connects(&plane, &both[1..], &before).await,
        "and so does who knows the new one alone"
    );

    let host = Host::new();
    let request = RenewRequest {
        certificate_request_der: host.request(),
    };
    let renewed = channel.clone().renew(request).await.unwrap().into_inner();
    let after = host.identity(&plane, &renewed.certificate_der);
    assert_eq!(
        plane.known(&node).await.authority,
        hashes[0],
        "it may not have it"
    );
    confirm(&plane, &after).await;
    assert_eq!(plane.known(&node).await.authority, hashes[1]);

    plane.authority.finish().unwrap();
    let told = link.told().await;
    let second = plane.authority.trusted().certificates_der();
    assert_eq!(
        (told.authority_der.as_slice(), told.renew),
        (second.as_slice(), false)
    );
    assert_eq!(second, both[1..]);
    shows(&plane, 2).await;
    assert!(connects(&plane, &second, &after).await);
    assert!(
        !connects(&plane, &second, &before).await,
        "the old certificate is worth nothing"
    );
    plane
        .put(vec![desired(&node, &id('1'), DesiredStatus::Running)])
        .await;
    assert!(
        matches!(link.next().await, ToNode::Delta(_)),
        "the link of before still works"
    );
    let host = Host::new();
    let request = RenewRequest {
        certificate_request_der: host.request(),
    };
    channel
        .clone()
        .renew(request)
        .await
        .expect("it renewed, so its connection counts");
}

#[tokio::test]
async fn a_node_that_did_not_renew_is_told_to_go_when_the_old_authority_is_forgotten() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    plane.authority.begin().unwrap();
    plane.authority.activate().unwrap();
    plane.authority.finish().unwrap();
    let status = link.end().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("register the host again"), "{status:?}");
    let (_sender, messages) = mpsc::channel::<NodeMessage>(1);
    let status = link.client.link(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}

#[tokio::test]
async fn a_certificate_that_did_not_arrive_is_not_the_nodes() {
    let plane = Plane::start().await;
    let token = plane.token(|_| {}).await;
    let host = Host::new();
    let joined = plane.join(&host, &token).await.unwrap();
    let node = joined.node_id.as_str();
    let before = host.identity(&plane, &joined.certificate_der);
    let old = plane.authority.trusted().active().fingerprint();
    let told = plane.known(node).await;
    plane.authority.begin().unwrap();
    plane.authority.activate().unwrap();
    let new = plane.authority.trusted().active().fingerprint();

    // Neither a renewal whose answer is lost nor another attempt to join is an arrival.
    let believed = plane.authority.certificate_pem();
    let mut channel = client(&plane.server, &believed, Some(&before)).await.unwrap();
    let request = RenewRequest {
        certificate_request_der: host.request(),
    };
    channel.renew(request).await.unwrap();
    confirm(&plane, &before).await;
    let known = plane.known(node).await;
    assert_eq!((&known.authority, known.not_after), (&old, told.not_after));
    assert_eq!(known.pending.as_ref().map(|one| &one.authority), Some(&new));
    let again = plane.join(&host, &token).await.unwrap();
    assert_eq!(plane.known(node).await.authority, old);
    let mut link = Link::open(channel).await;
    link.hello(node, 0).await;
    link.expect_start().await;
    assert!(link.trust.take().unwrap().renew, "it is told once more");
    drop(link);
    plane.until_connected(node, false).await;

    // A link by the new one is.
    let after = host.identity(&plane, &again.certificate_der);
    let mut link = Link::open(client(&plane.server, &believed, Some(&after)).await.unwrap()).await;
    link.hello(node, 0).await;
    link.expect_start().await;
    assert!(!link.trust.take().unwrap().renew);
    let known = plane.known(node).await;
    assert_eq!((known.authority, known.pending), (new, None));
    assert_eq!(known.joined_with, told.joined_with);
}

#[test]
fn what_earlier_control_planes_wrote_of_a_certificate_is_read() {
    let text =
        r#"{"node":"n","cluster":"c","authority":"a","not_after":7,"joined_with":null,"changed_at":1}"#;
    let known: crate::model::Identity = serde_json::from_str(text).unwrap();
    assert_eq!((known.not_after, known.pending.as_ref()), (Some(7), None));
    assert_eq!(serde_json::to_string(&known).unwrap(), text, "and by them again");
}

#[tokio::test]
async fn the_listeners_certificate_is_remade_before_it_ends() {
    let short = LinkConfig {
        server_lifetime: Some(Duration::from_secs(3)),
        ..config(SOON)
    };
    let plane = Plane::serving(short).await;
    let mut link = plane.connect(&id('a')).await;
    let first = shown_chain(&plane).await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_ne!(shown_chain(&plane).await[0], first[0]);
    link.quiet().await;
}
