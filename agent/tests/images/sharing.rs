//! Many callers, one download; and what is left when callers leave.

use std::time::Duration;

use containerd_client::services::v1::{
    CreateRequest, WriteAction, WriteContentRequest,
    content_client::ContentClient,
    leases_client::LeasesClient,
    snapshots::{PrepareSnapshotRequest, snapshots_client::SnapshotsClient},
};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    containerd::{Containerd, request},
    ensure,
    image::{Image, Layer, noise},
    images,
    registry::{Fault, Registry},
};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_callers_share_one_download() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let layers = (0..6)
        .map(|n| Layer::gzip(&[(&format!("f{n}"), &noise(50_000))]))
        .collect();
    let image = Image::new(layers);
    registry.put("app", "v1", &image);
    let images = images(&containerd, config());
    let reference = registry.reference("app:v1");
    let all = join_all((0..20).map(|_| ensure(&images, &reference))).await;
    for resolved in all {
        assert_eq!(resolved.unwrap().digest, image.digest());
    }
    for layer in &image.layers {
        assert_eq!(registry.count(&layer.digest()), 1);
    }
    assert_eq!(registry.count("/manifests/"), 1);
    containerd.assert_nothing_half_made().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_a_layer_fetch_and_unpack_it_once() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let base = Layer::gzip(&[("base", &noise(400_000))]);
    let with = |name: &str| Image::new(vec![base.clone(), Layer::gzip(&[(name, &noise(300))])]);
    let all: Vec<Image> = ["a", "b", "c"].map(with).into();
    for (n, image) in all.iter().enumerate() {
        registry.put("app", &format!("v{n}"), image);
    }
    let images = images(&containerd, config());
    let references: Vec<String> = (0..3).map(|n| registry.reference(&format!("app:v{n}"))).collect();
    for resolved in join_all(references.iter().map(|reference| ensure(&images, reference))).await {
        let resolved = resolved.unwrap();
        assert!(containerd.read_file(&resolved.chain_id, "base").await.is_some());
    }
    assert_eq!(registry.count(&base.digest()), 1);
    assert_eq!(containerd.snapshots().await.len(), 4);
    containerd.assert_nothing_half_made().await;
}

/// Two agents' worth of state on one containerd: nothing but containerd coordinates them.
#[tokio::test(flavor = "multi_thread")]
async fn two_agents_may_unpack_the_same_image_at_once() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let image = Image::new(
        (0..4)
            .map(|n| Layer::gzip(&[(&format!("f{n}"), &noise(200_000))]))
            .collect(),
    );
    registry.put("app", "v1", &image);
    let reference = registry.reference("app:v1");
    let agents: Vec<_> = (0..3).map(|_| images(&containerd, config())).collect();
    for resolved in join_all(agents.iter().map(|agent| ensure(agent, &reference))).await {
        assert_eq!(resolved.unwrap().chain_id, image.chain_id());
    }
    containerd.assert_nothing_half_made().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_leaves_nothing() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let image = Image::new(vec![
        Layer::gzip(&[("a", &noise(300_000))]),
        Layer::gzip(&[("b", &noise(3_000_000))]),
    ]);
    registry.put("app", "v1", &image);
    let stuck = format!("/v2/app/blobs/{}", image.layers[1].digest());
    registry.fault(&stuck, Fault::Stall(2_000_000, 100));
    let patient = berth_agent::effects::images::Limits {
        stall: Duration::from_secs(60),
        ..config().limits
    };
    let images = images(
        &containerd,
        berth_agent::effects::images::ImagesConfig {
            limits: patient,
            ..config()
        },
    );
    let reference = registry.reference("app:v1");

    // By token, by dropping, and with a second caller who stays for a while.
    let token = CancellationToken::new();
    let pull = images.ensure(&reference, token.clone());
    let cancel = async {
        wait_for_download(&containerd).await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(pull, cancel);
    assert!(result.unwrap_err().is_cancelled());
    containerd.assert_empty().await;

    let short = Duration::from_millis(700);
    let dropped = tokio::time::timeout(short, images.ensure(&reference, CancellationToken::new()));
    let stays = tokio::time::timeout(2 * short, images.ensure(&reference, CancellationToken::new()));
    let (dropped, stays, ()) = tokio::join!(dropped, stays, async {
        tokio::time::sleep(short + short / 2).await;
        assert!(
            !containerd.ingests().await.is_empty(),
            "the download goes on while one caller stays"
        );
    });
    assert!(dropped.is_err() && stays.is_err());
    containerd.assert_empty().await;

    registry.heal();
    assert_eq!(ensure(&images, &reference).await.unwrap().digest, image.digest());
    containerd.assert_nothing_half_made().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_cancels_and_cleans_up() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let image = Image::new(vec![Layer::gzip(&[("a", &noise(500_000))])]);
    registry.put("app", "v1", &image);
    registry.fault(
        &format!("/v2/app/blobs/{}", image.layers[0].digest()),
        Fault::Slow(Duration::from_secs(60)),
    );
    let images = images(
        &containerd,
        berth_agent::effects::images::ImagesConfig {
            limits: berth_agent::effects::images::Limits {
                stall: Duration::from_secs(60),
                ..config().limits
            },
            ..config()
        },
    );
    let reference = registry.reference("app:v1");
    let close = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        images.close().await;
        containerd.assert_empty().await;
    };
    let (result, ()) = tokio::join!(ensure(&images, &reference), close);
    assert!(result.unwrap_err().is_cancelled());
    assert!(ensure(&images, &reference).await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn what_a_killed_agent_left_is_removed_and_nothing_else() {
    let containerd = Containerd::start().await;
    let mut leases = LeasesClient::new(containerd.channel.clone());
    let ours = [("berth.run/instance".to_owned(), "test".to_owned())];
    for (id, labels) in [
        ("berth-images-test-1", ours.clone().into()),
        ("somebody-elses", [].into()),
    ] {
        leases
            .create(request(CreateRequest {
                id: id.into(),
                labels,
            }))
            .await
            .unwrap();
    }
    for name in ["berth-images-test-1-sha256:x", "somebody-elses-write"] {
        let message = WriteContentRequest {
            action: WriteAction::Write as i32,
            r#ref: name.into(),
            data: b"half".to_vec(),
            ..Default::default()
        };
        let write = ContentClient::new(containerd.channel.clone());
        let mut answers = { write }
            .write(leased(tokio_stream::once(message), "somebody-elses"))
            .await
            .unwrap()
            .into_inner();
        while answers.message().await.unwrap().is_some() {}
    }
    for (key, labels) in [
        ("berth-images-test-1-chain", ours.into()),
        ("a-container", [].into()),
    ] {
        let message = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: key.into(),
            parent: String::new(),
            labels,
        };
        let snapshots = SnapshotsClient::new(containerd.channel.clone());
        { snapshots }
            .prepare(leased(message, "somebody-elses"))
            .await
            .unwrap();
    }

    assert_eq!(images(&containerd, config()).recover().await.unwrap(), 3);
    assert_eq!(containerd.leases().await, ["somebody-elses"]);
    assert_eq!(containerd.ingests().await, ["somebody-elses-write"]);
    assert_eq!(containerd.snapshots().await, [("a-container".to_owned(), true)]);
}

fn leased<T>(message: T, lease: &str) -> tonic::Request<T> {
    let mut request = request(message);
    request
        .metadata_mut()
        .insert("containerd-lease", lease.parse().unwrap());
    request
}

async fn wait_for_download(containerd: &Containerd) {
    while containerd.ingests().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}
