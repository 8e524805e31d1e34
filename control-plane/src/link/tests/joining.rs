//! Joining by token.

use berth_proto::node::v1::{RegisterRequest, RegisterResponse};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use tonic::Code;

use super::*;
use crate::{
    join_token::Token,
    model::{JoinToken, keys},
    pki::Peer,
};

/// A host that has a key and wants to join.
pub(super) struct Host {
    pub(super) key: KeyPair,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            key: KeyPair::generate().unwrap(),
        }
    }

    pub(super) fn request(&self) -> Vec<u8> {
        // The subject is a lie, and so are the names.
        let mut params = CertificateParams::new(vec!["cp.example.org".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, id('f'));
        params.serialize_request(&self.key).unwrap().der().to_vec()
    }

    pub(super) fn register(&self, token: &str) -> RegisterRequest {
        RegisterRequest {
            token: token.into(),
            certificate_request_der: self.request(),
            description: Some(NodeDescription {
                hostname: "host-7".into(),
                ..Default::default()
            }),
            attributes: [
                ("rack".to_owned(), "host-says".to_owned()),
                ("disk".to_owned(), "ssd".to_owned()),
            ]
            .into(),
        }
    }

    pub(super) fn identity(&self, plane: &Plane, certificate_der: &[u8]) -> NodeIdentity {
        NodeIdentity {
            certificate_pem: pem(certificate_der),
            key_pem: self.key.serialize_pem(),
            authority_pem: plane.authority.certificate_pem(),
        }
    }
}

pub(super) fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|l| std::str::from_utf8(l).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

impl Plane {
    /// A client that shows no certificate.
    pub(super) async fn stranger(&self) -> NodeServiceClient<Channel> {
        client(&self.server, &self.authority.certificate_pem(), None)
            .await
            .unwrap()
    }

    pub(super) async fn token(&self, edit: impl FnOnce(&mut JoinToken)) -> String {
        let token = Token::generate().unwrap();
        let mut record = JoinToken {
            id: token.id.clone(),
            secret_sha256: token.secret_sha256(),
            cluster: CLUSTER.into(),
            attributes: [("rack".to_owned(), Some("7".to_owned()))].into(),
            uses: 1,
            uses_left: 1,
            joined: Default::default(),
            created_by: "AKIDEXAMPLE00001".into(),
            created_at: super::super::now(),
            expires_at: super::super::now() + 3_600_000,
        };
        edit(&mut record);
        let cluster = crate::model::Cluster {
            name: CLUSTER.into(),
            status: "ACTIVE".into(),
            tags: Default::default(),
            settings: vec![],
            created_at: 1,
        };
        self.put(vec![
            typed::put_json(keys::join_token(&token.id), &record).unwrap(),
            typed::put_json(keys::cluster(CLUSTER), &cluster).unwrap(),
        ])
        .await;
        token.reveal()
    }

    pub(super) async fn join(&self, host: &Host, token: &str) -> Result<RegisterResponse, Status> {
        let answer = self.stranger().await.register(host.register(token)).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn nodes(&self) -> usize {
        self.store
            .range("/nodes/", None, 100)
            .await
            .unwrap()
            .entries
            .len()
    }
}

#[tokio::test]
async fn a_host_joins_by_token_and_links_with_its_own_key() {
    let plane = Plane::start().await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let answer = plane.join(&host, &token).await.unwrap();
    assert_eq!(answer.cluster, CLUSTER);
    assert_eq!(answer.authority_der, plane.authority.trusted().certificates_der());
    let peer = Peer::from_der(&answer.certificate_der).unwrap();
    assert_eq!(
        (peer.node_id.as_str(), peer.cluster.as_str()),
        (answer.node_id.as_str(), CLUSTER)
    );
    assert_ne!(answer.node_id, id('f'), "the subject of the request is ignored");
    let (_, leaf) = x509_parser::parse_x509_certificate(&answer.certificate_der).unwrap();
    assert!(leaf.subject_alternative_name().unwrap().is_none() && !leaf.is_ca());
    let record = plane.node(&answer.node_id).await;
    assert_eq!(
        (
            record.hostname.as_str(),
            record.agent_connected,
            record.status.as_str()
        ),
        ("host-7", false, "ACTIVE")
    );
    let identity = host.identity(&plane, &answer.certificate_der);
    let client = client(&plane.server, &identity.authority_pem, Some(&identity))
        .await
        .unwrap();
    let mut link = Link::open(client).await;
    link.hello(&answer.node_id, 0).await;
    link.expect_start().await;
    let record = plane.node(&answer.node_id).await;
    assert!(record.agent_connected && record.cpu_units == 2_048);
    assert_eq!(
        record.attributes,
        [("rack".to_owned(), Some("7".to_owned()))].into(),
        "the token's attributes are put, and win over the host's"
    );
}

#[tokio::test]
async fn the_same_key_gets_the_same_node_for_one_use() {
    let plane = Plane::start().await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let first = plane.join(&host, &token).await.unwrap();
    let second = plane.join(&host, &token).await.unwrap();
    assert_eq!(first.node_id, second.node_id);
    let other = plane.join(&Host::new(), &token).await.unwrap_err();
    assert_eq!(other.code(), Code::Unauthenticated);
    assert!(other.message().contains("used up"), "{other:?}");
    assert_eq!(plane.nodes().await, 1);
}

#[tokio::test]
async fn concurrent_joins_cannot_overspend_a_token() {
    let plane = Plane::start().await;
    let token = plane.token(|token| (token.uses, token.uses_left) = (3, 3)).await;
    let joins = (0..8).map(|_| async {
        let host = Host::new();
        plane.join(&host, &token).await
    });
    let answers = futures_util::future::join_all(joins).await;
    let joined: std::collections::BTreeSet<String> = answers
        .iter()
        .flatten()
        .map(|answer| answer.node_id.clone())
        .collect();
    assert_eq!((answers.iter().flatten().count(), joined.len()), (3, 3));
    for refused in answers.into_iter().filter_map(Result::err) {
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    }
    assert_eq!(plane.nodes().await, 3);
}

#[tokio::test]
async fn tokens_that_are_not_good_are_refused_with_the_reason() {
    let plane = Plane::start().await;
    let expired = plane.token(|token| token.expires_at = 1_700_000_000_000).await;
    let good = plane.token(|_| {}).await;
    let forged = format!(
        "{}{}",
        &good[..good.len() - 43],
        &Token::generate().unwrap().reveal()[24..]
    );
    let unknown = Token::generate().unwrap().reveal();
    for (token, says) in [
        (expired.as_str(), "expired at 2023-11-14T22:13:20Z"),
        (&forged, "no such join token"),
        (&unknown, "no such join token"),
        ("", "no such join token"),
        ("nonsense", "no such join token"),
    ] {
        let status = plane.join(&Host::new(), token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token}: {status:?}");
        assert!(status.message().contains(says), "{token}: {status:?}");
    }
    assert_eq!(plane.nodes().await, 0);
    plane.join(&Host::new(), &good).await.unwrap();
}

#[tokio::test]
async fn requests_that_are_not_good_are_refused_and_use_nothing() {
    let plane = Plane::start().await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let mut stranger = plane.stranger().await;
    let good = host.register(&token);
    let mut forged = good.certificate_request_der.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let mut padded = good.certificate_request_der.clone();
    padded.push(0);
    let rsa = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/link/tests/rsa-request.der"
    ))
    .unwrap();
    for (request, says) in [
        (vec![], "not a PKCS #10 request"),
        (vec![0x30; 9_000], "over the limit"),
        (forged, "not signed by the key"),
        (padded, "not a PKCS #10 request"),
        (rsa, "ECDSA P-256"),
    ] {
        let request = RegisterRequest {
            certificate_request_der: request,
            ..good.clone()
        };
        let status = stranger.register(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(says), "{status:?}");
    }
    for (name, value) in [
        ("ecs.os-type", "linux"),
        ("berth.x", ""),
        ("trusted.zone", "a"),
        ("a b", ""),
        ("a", "\u{1}"),
    ] {
        let request = RegisterRequest {
            attributes: [(name.to_owned(), value.to_owned())].into(),
            ..good.clone()
        };
        let status = stranger.register(request).await.unwrap_err();
        assert!(
            matches!(status.code(), Code::InvalidArgument),
            "{name}: {status:?}"
        );
        assert!(status.message().contains(name), "{status:?}");
    }
    assert_eq!(plane.nodes().await, 0);
    let status = stranger.register(good).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::ResourceExhausted,
        "ten failures are enough: {status:?}"
    );
    assert!(status.message().contains("try again in"), "{status:?}");
}

#[tokio::test]
async fn keys_of_every_kind_that_is_taken_get_a_certificate_that_works() {
    let plane = Plane::start().await;
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let host = Host {
            key: KeyPair::generate_for(algorithm).unwrap(),
        };
        let token = plane.token(|_| {}).await;
        let answer = plane.join(&host, &token).await.unwrap();
        let identity = host.identity(&plane, &answer.certificate_der);
        let client = client(&plane.server, &identity.authority_pem, Some(&identity))
            .await
            .unwrap();
        let mut link = Link::open(client).await;
        link.hello(&answer.node_id, 0).await;
        link.expect_start().await;
    }
}

#[tokio::test]
async fn a_cluster_that_was_deleted_is_not_brought_back_by_a_token() {
    let plane = Plane::start().await;
    let token = plane.token(|token| token.cluster = "gone".into()).await;
    let status = plane.join(&Host::new(), &token).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("cluster gone"), "{status:?}");
}

#[tokio::test]
async fn a_stranger_may_register_and_nothing_else() {
    let plane = Plane::start().await;
    let mut stranger = plane.stranger().await;
    let (_sender, messages) = mpsc::channel::<NodeMessage>(1);
    let link = stranger.link(ReceiverStream::new(messages)).await.unwrap_err();
    let (_sender, messages) = mpsc::channel(1);
    let bulk = stranger.bulk(ReceiverStream::new(messages)).await.unwrap_err();
    let renew = stranger
        .renew(berth_proto::node::v1::RenewRequest::default())
        .await
        .unwrap_err();
    for status in [link, bulk, renew] {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains("client certificate"), "{status:?}");
    }
}

#[tokio::test]
async fn the_authority_stands_behind_the_servers_certificate() {
    let plane = Plane::start().await;
    let chain = shown_chain(&plane).await;
    assert_eq!(
        chain.last().unwrap(),
        plane.authority.trusted().active().certificate_der()
    );
}

/// What a host sees that believes nobody yet.
pub(super) async fn shown_chain(plane: &Plane) -> Vec<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    for der in plane.authority.trusted().certificates_der() {
        roots.add(der.into()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(plane.server.address())
        .await
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    certificates.iter().map(|one| one.to_vec()).collect()
}
