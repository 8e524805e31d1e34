//! How an identity is kept while the agent runs.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use berth_proto::node::v1 as wire;
use hyper_util::client::proxy::matcher::Matcher;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{
    Identity, IdentityFiles, IdentityState, Keeper, Source, TrustOrder, certificate,
    testing::{Authority, NODE, Served},
};
use crate::{dial::Dialer, link::Target};

const LIMIT: Duration = Duration::from_secs(20);

struct Kept {
    served: Served,
    files: IdentityFiles,
    orders: mpsc::Sender<TrustOrder>,
    state: watch::Receiver<IdentityState>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A keeper of an identity that is good for `life` from now.
async fn kept(life: time::Duration) -> Kept {
    let served = Served::start().await;
    let address = served.address();
    kept_by(served, address, life).await
}

/// As [`kept`], of a control plane that is reached at `address`.
async fn kept_by(served: Served, address: String, life: time::Duration) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    let key = KeyPair::generate().unwrap().serialize_pem();
    let request = super::issued::request(&key).unwrap();
    let pem = certificate::to_pem(&[served.authority.sign(&request, NODE, life)]);
    let lock = files.lock().unwrap();
    files
        .install(&lock, &pem, &key, &[served.authority.der()], false)
        .unwrap();
    drop(lock);
    let identity = files.load().unwrap().unwrap();
    let target = Target {
        address,
        node: identity.node_id.clone(),
        source: Source::Own(files.clone()),
        dialer: Dialer::new(Matcher::builder().build()),
    };
    let (orders, received) = mpsc::channel(4);
    let (keeper, state) = Keeper::new(target, &identity, received);
    let stop = CancellationToken::new();
    tokio::spawn(keeper.run(stop.clone()));
    Kept {
        served,
        files,
        orders,
        state,
        stop,
        _dir: dir,
    }
}

impl Kept {
    fn identity(&self) -> Identity {
        self.files.load().unwrap().unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, waited).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.state.borrow());
    }

    async fn order(&self, authorities: &[CertificateDer<'_>], renew: bool) {
        let trust = wire::Trust {
            authority_der: authorities.iter().map(|der| der.to_vec()).collect(),
            renew,
        };
        let proved_by = self.served.authority.der();
        self.orders.send(TrustOrder { trust, proved_by }).await.unwrap();
    }

    fn problem(&self) -> String {
        self.state.borrow().problem.clone().unwrap_or_default()
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends_with_a_new_key() {
    let kept = kept(time::Duration::seconds(6)).await;
    let before = kept.identity();
    kept.served.answer_with(time::Duration::hours(2), &[]);
    kept.until("renewed", |k| {
        k.identity().certificate_pem != before.certificate_pem
    })
    .await;
    let after = kept.identity();
    assert_ne!(after.key_pem, before.key_pem);
    assert_eq!(after.node_id, before.node_id);
    assert!(
        before.is_valid_at(time::OffsetDateTime::now_utc()),
        "the old one had not ended"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        kept.served.renewals.lock().unwrap().len(),
        1,
        "a good one is left alone"
    );
    assert_eq!(kept.problem(), "");
}

#[tokio::test]
async fn what_was_renewed_is_shown_until_the_control_plane_knows() {
    let kept = kept(time::Duration::hours(5)).await;
    kept.served.miss_confirmations(1);
    kept.order(&[kept.served.authority.der()], true).await;
    kept.until("confirmed", |k| !k.served.confirmed.lock().unwrap().is_empty())
        .await;
    assert_eq!(kept.served.renewals.lock().unwrap().len(), 2);
    let stored = certificate::to_pem(&[CertificateDer::from(
        kept.served.confirmed.lock().unwrap()[0].clone(),
    )]);
    assert_eq!(stored, kept.identity().certificate_pem);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(kept.served.confirmed.lock().unwrap().len(), 1, "once is enough");
    assert_eq!(kept.problem(), "");
}

#[tokio::test]
async fn one_that_cannot_be_renewed_is_told_of_before_and_after_its_end() {
    let kept = kept(time::Duration::seconds(5)).await;
    kept.served.refuse(Some(Code::PermissionDenied));
    kept.until("worry", |k| k.problem().contains("could not be renewed"))
        .await;
    assert!(kept.problem().contains("not today"), "{}", kept.problem());
    kept.until("the end", |k| k.problem().contains("expired at"))
        .await;
    assert!(
        kept.problem().contains("berth-agent register --force"),
        "{}",
        kept.problem()
    );
}

#[tokio::test]
async fn it_is_renewed_at_once_when_the_control_plane_says_so() {
    let kept = kept(time::Duration::hours(5)).await;
    let before = kept.identity();
    kept.order(&before.authorities, true).await;
    kept.until("renewed", |k| {
        k.identity().certificate_pem != before.certificate_pem
    })
    .await;
}

#[tokio::test]
async fn who_else_to_believe_is_stored() {
    let kept = kept(time::Duration::hours(5)).await;
    let both = [kept.served.authority.der(), Authority::new().der()];
    kept.order(&both, false).await;
    kept.until("stored", |k| k.identity().authorities == both).await;
    kept.order(&both[..1], false).await;
    kept.until("stored", |k| k.identity().authorities == both[..1])
        .await;
    assert!(kept.served.renewals.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_bundle_that_would_lock_this_node_out_is_refused() {
    let kept = kept(time::Duration::hours(5)).await;
    let before = kept.identity().authorities;
    kept.order(&[Authority::new().der()], false).await;
    kept.until("refused", |k| k.problem().contains("whom to believe"))
        .await;
    kept.order(&[], false).await;
    kept.until("refused", |k| k.problem().contains("0 authorities"))
        .await;
    assert_eq!(kept.identity().authorities, before);
    kept.order(&before, false).await;
    kept.until("forgotten", |k| k.problem().is_empty()).await;
}

#[tokio::test]
async fn the_last_authority_goes_once_the_control_plane_answers_by_the_next() {
    let kept = kept(time::Duration::hours(5)).await;
    let old = Authority::new().der();
    let trust = wire::Trust {
        authority_der: vec![kept.served.authority.der().to_vec()],
        renew: false,
    };
    let both = [old.clone(), kept.served.authority.der()];
    kept.order(&both, false).await;
    kept.until("stored", |k| k.identity().authorities == both).await;
    // The link itself still dates from before the control plane changed its certificate.
    kept.orders
        .send(TrustOrder {
            trust,
            proved_by: old,
        })
        .await
        .unwrap();
    kept.until("stored", |k| k.identity().authorities == both[1..])
        .await;
}

#[tokio::test]
async fn what_was_decided_for_one_identity_is_not_stored_for_the_next() {
    let served = Served::start().await;
    // Its way leads over us: what comes while it asks can be told exactly.
    let way = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", way.local_addr().unwrap());
    let onward = served.address().replace("https://", "");
    let kept = kept_by(served, address, time::Duration::hours(5)).await;
    let left_behind = Authority::new();
    let both = [left_behind.der(), kept.served.authority.der()];
    let lock = kept.files.lock().unwrap();
    kept.files.store_authorities(&lock, &both).unwrap();
    drop(lock);
    let trust = wire::Trust {
        authority_der: vec![kept.served.authority.der().to_vec()],
        renew: false,
    };
    let proved_by = left_behind.der();
    kept.orders.send(TrustOrder { trust, proved_by }).await.unwrap();

    let (mut asked, _) = tokio::time::timeout(LIMIT, way.accept()).await.unwrap().unwrap();
    // Meanwhile: `register --force`, at another control plane.
    let other = Authority::new();
    let key = KeyPair::generate().unwrap();
    let pem = certificate::to_pem(&[other.node("0123456789abcdef0123456789abcdef", &key)]);
    let lock = kept.files.lock().unwrap();
    kept.files
        .install(&lock, &pem, &key.serialize_pem(), &[other.der()], true)
        .unwrap();
    drop(lock);
    let mut onward = tokio::net::TcpStream::connect(onward).await.unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut asked, &mut onward).await });
    kept.until("told", |k| !k.problem().is_empty()).await;
    let now = kept.identity();
    assert_eq!((now.certificate_pem, now.authorities), (pem, vec![other.der()]));
}
