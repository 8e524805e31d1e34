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
async fn the_listeners_certificate_is_remade_before_it_ends() {
    let plane = Plane::start().await;
    let short = LinkConfig {
        server_lifetime: Some(Duration::from_secs(3)),
        ..config(SOON)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = LinkServer::start(listener, plane.authority.clone(), plane.store.clone(), short)
        .await
        .unwrap();
    let plane = Plane { server, ..plane };
    let mut link = plane.connect(&id('a')).await;
    let first = shown_chain(&plane).await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_ne!(shown_chain(&plane).await[0], first[0]);
    link.quiet().await;
}
