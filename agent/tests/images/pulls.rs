//! Pulls that succeed.

use std::time::{Duration, Instant};

use berth_agent::effects::images::ImagesConfig;
use serde_json::json;

use crate::{
    config,
    containerd::Containerd,
    distribution::Distribution,
    ensure,
    image::{DOCKER_MANIFEST, Image, Layer, OCI_INDEX, OCI_MANIFEST, architecture, noise},
    images,
    registry::Registry,
};

#[tokio::test]
async fn an_image_of_a_real_registry_is_unpacked_and_kept() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Distribution::start());
    let image = Image::busybox();
    registry.push("team/app", "v1", &image).await;
    let images = images(&containerd, config());
    let reference = format!("{}/team/app:v1", registry.host);

    let resolved = ensure(&images, &reference).await.unwrap();
    assert_eq!(resolved.reference, reference);
    assert_eq!(resolved.digest, image.digest());
    assert_eq!(resolved.chain_id, image.chain_id());
    assert_eq!(resolved.config.entrypoint, ["/bin/busybox"]);
    assert_eq!(resolved.config.cmd, ["echo", "hi"]);
    assert_eq!(resolved.config.env, ["A=1", "B=two words"]);
    assert_eq!(resolved.config.working_dir, "/tmp");
    assert_eq!(resolved.config.user, "1000:1000");
    assert_eq!(resolved.config.stop_signal, "SIGQUIT");
    containerd.assert_nothing_half_made().await;

    containerd.collect().await;
    assert_eq!(
        containerd
            .read_file(&resolved.chain_id, "etc/over")
            .await
            .unwrap(),
        b"above"
    );
    assert_eq!(
        containerd
            .read_file(&resolved.chain_id, "bin/busybox")
            .await
            .unwrap(),
        std::fs::read("/bin/busybox").unwrap()
    );
    for blob in image.layers.iter().map(Layer::digest).chain([image.digest()]) {
        assert!(containerd.has_blob(&blob).await, "{blob} was collected");
    }
    // A digest needs no registry, also under an agent that has just started.
    let by_digest = format!("{}/team/app@{}", registry.host, image.digest());
    drop(registry);
    let fresh = crate::images(&containerd, config());
    assert_eq!(
        ensure(&fresh, &by_digest).await.unwrap().chain_id,
        resolved.chain_id
    );
}

#[tokio::test]
async fn docker_and_oci_manifests_and_indexes_are_understood() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Distribution::start());
    let layers = || {
        vec![
            Layer::gzip(&[("a", &noise(900))]),
            Layer::plain(&[("b", &noise(900))]),
        ]
    };
    let docker = Image::of(layers(), DOCKER_MANIFEST, architecture());
    let ours = Image::of(layers(), OCI_MANIFEST, architecture());
    let foreign = Image::of(layers(), OCI_MANIFEST, "s390x");
    registry.push("app", "docker", &docker).await;
    registry.push("app", "ours", &ours).await;
    registry.push("app", "foreign", &foreign).await;
    let entry = |image: &Image, architecture: &str| {
        let mut entry = image.descriptor();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [entry(&foreign, "s390x"), entry(&ours, architecture())],
    });
    registry
        .push_manifest("app", "multi", OCI_INDEX, index.to_string().as_bytes())
        .await;

    let images = images(&containerd, config());
    let at = |tag: &str| format!("{}/app:{tag}", registry.host);
    assert_eq!(
        ensure(&images, &at("docker")).await.unwrap().chain_id,
        docker.chain_id()
    );
    let multi = ensure(&images, &at("multi")).await.unwrap();
    assert_eq!((multi.digest, multi.chain_id), (ours.digest(), ours.chain_id()));
    let (line, retryable) = crate::refused(&images, &at("foreign")).await;
    assert!(
        line.contains("s390x") && line.contains(architecture()) && !retryable,
        "{line}"
    );
    containerd.assert_nothing_half_made().await;
}

#[tokio::test]
async fn a_tag_is_asked_for_again_only_after_its_time() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let (old, new) = (Image::small(), Image::small());
    registry.put("app", "v1", &old);
    let reference = registry.reference("app:v1");
    // What no name leads to, containerd removes in its own time: it would have to be asked for again.
    registry.put("app", "kept", &old);
    let patient = images(
        &containerd,
        ImagesConfig {
            resolve_ttl: Duration::from_secs(600),
            ..config()
        },
    );
    ensure(&patient, &reference).await.unwrap();
    assert_eq!(registry.total(), 3, "manifest, configuration, layer");
    ensure(&patient, &registry.reference("app:kept")).await.unwrap();
    let pulled = registry.total();

    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(ensure(&patient, &reference).await.unwrap().digest, old.digest());
    }
    let each = began.elapsed() / 20;
    assert_eq!(registry.total(), pulled);
    assert!(each < Duration::from_millis(20), "a cached image took {each:?}");

    // Without that time every start asks, with one HEAD.
    let strict = images(&containerd, config());
    assert_eq!(ensure(&strict, &reference).await.unwrap().digest, old.digest());
    assert_eq!(registry.total(), pulled + 1);
    registry.put("app", "v1", &new);
    assert_eq!(ensure(&strict, &reference).await.unwrap().digest, new.digest());
    assert_eq!(ensure(&patient, &reference).await.unwrap().digest, old.digest());
}

#[tokio::test]
async fn a_lost_snapshot_is_unpacked_again_without_the_registry() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let image = Image::small();
    registry.put("app", "v1", &image);
    let images = images(
        &containerd,
        ImagesConfig {
            resolve_ttl: Duration::from_secs(600),
            ..config()
        },
    );
    let reference = registry.reference("app:v1");
    let resolved = ensure(&images, &reference).await.unwrap();
    registry.stop().await;
    containerd.remove_snapshot(&resolved.chain_id).await;
    assert_eq!(ensure(&images, &reference).await.unwrap(), resolved);
    assert!(containerd.read_file(&resolved.chain_id, "noise").await.is_some());
    containerd.assert_nothing_half_made().await;
}

#[tokio::test]
async fn tls_is_spoken_with_the_configured_authority_and_refused_without() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (
        directory.path().join("cert.pem"),
        directory.path().join("key.pem"),
    );
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (containerd, registry) =
        tokio::join!(Containerd::start(), Distribution::with_tls(&certificate, &key));
    let image = Image::small();
    registry.push("app", "v1", &image).await;
    let reference = format!("{}/app:v1", registry.host);

    let (line, retryable) = crate::refused(&images(&containerd, config()), &reference).await;
    assert!(
        line.contains("certificate is not trusted") && line.contains("registries.extra_ca") && !retryable,
        "{line}"
    );
    let trusting = images(
        &containerd,
        ImagesConfig {
            extra_ca_pem: vec![certificate],
            ..config()
        },
    );
    assert_eq!(
        ensure(&trusting, &reference).await.unwrap().digest,
        image.digest()
    );
}

#[tokio::test]
async fn progress_is_published_while_layers_arrive() {
    let (containerd, registry) = tokio::join!(Containerd::start(), Registry::start());
    let image = Image::new(vec![Layer::plain(&[("big", &noise(8 << 20))])]);
    registry.put("app", "v1", &image);
    let images = images(&containerd, config());
    let mut progress = images.progress();
    let reference = registry.reference("app:v1");
    let watching = async {
        let mut most = 0;
        loop {
            progress.changed().await.unwrap();
            let now = progress.borrow_and_update();
            let Some(layer) = now.images.first().and_then(|image| image.layers.first()) else {
                return most;
            };
            assert_eq!(layer.bytes_total, image.layers[0].blob.len() as u64);
            most = most.max(layer.bytes_done);
        }
    };
    let (resolved, most) = tokio::join!(ensure(&images, &reference), watching);
    resolved.unwrap();
    assert_eq!(most, image.layers[0].blob.len() as u64);
}
