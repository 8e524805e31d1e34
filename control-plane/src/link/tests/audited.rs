//! What nodes do about their identity is in the audit log, and not done without it.

use berth_proto::node::v1::RenewRequest;
use tonic::Code;

use super::{joining::Host, *};
use crate::audit::{AUDIT_FILE, Audit, Listing};

async fn plane_with(audit: Audit) -> Plane {
    let audited = LinkConfig {
        audit: Some(audit),
        ..config(SOON)
    };
    Plane::serving(audited).await
}

#[tokio::test]
async fn joining_and_renewing_are_written_with_who_and_what() {
    let directory = tempfile::tempdir().unwrap();
    let audit = Audit::open(&directory.path().join(AUDIT_FILE)).unwrap();
    let plane = plane_with(audit.clone()).await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    plane.join(&host, "berth1.nonsense.nonsense").await.unwrap_err();
    let joined = plane.join(&host, &token).await.unwrap();
    let identity = host.identity(&plane, &joined.certificate_der);
    let mut node = client(&plane.server, &identity.authority_pem, Some(&identity))
        .await
        .unwrap();
    let request = RenewRequest {
        certificate_request_der: host.request(),
    };
    node.renew(request).await.unwrap();
    let listing = Listing {
        before: None,
        since_ms: 0,
        max: 10,
    };
    let events = audit.list(listing).await.unwrap().events;
    let seen: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event["operation"].as_str().unwrap(),
                event["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("Renew", "done"),
            ("Register", "done"),
            ("Authenticate", "refused")
        ]
    );
    let node = format!("node/{}", joined.node_id);
    assert_eq!(
        (&events[0]["actor"], &events[1]["targets"]["node"]),
        (&node.into(), &joined.node_id.into())
    );
    let (id, secret) = (token.split('.').nth(1).unwrap(), token.split('.').nth(2).unwrap());
    assert_eq!(events[1]["actor"], format!("join-token/{id}"));
    assert_eq!(events[1]["from"], "127.0.0.1");
    assert!(!serde_json::to_string(&events).unwrap().contains(secret));
}

#[tokio::test]
async fn a_key_that_is_registered_registers_no_flood() {
    let directory = tempfile::tempdir().unwrap();
    let audit = Audit::open(&directory.path().join(AUDIT_FILE)).unwrap();
    let plane = plane_with(audit.clone()).await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(
            plane
                .join(&host, &token)
                .await
                .map_or_else(|status| status.code(), |_| Code::Ok),
        );
    }
    let good = codes.iter().filter(|code| **code == Code::Ok).count();
    // One more for each 6 s that this took.
    assert!((11..14).contains(&good), "{codes:?}");
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    let listing = Listing {
        before: None,
        since_ms: 0,
        max: 100,
    };
    assert_eq!(audit.list(listing).await.unwrap().events.len(), good);
}

#[tokio::test]
async fn without_the_log_no_certificate_is_handed_over() {
    let plane = plane_with(Audit::open("/dev/full".as_ref()).unwrap()).await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let status = plane.join(&host, &token).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("audit log"));
}
