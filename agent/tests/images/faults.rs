//! Registries that are down, slow, closed, or lie.

use std::time::{Duration, Instant};

use berth_agent::effects::images::ImagesConfig;

use crate::{
    config,
    containerd::Containerd,
    credential, ensure,
    image::{Image, Layer, digest, noise},
    images, refused,
    registry::{Auth, Fault, PASSWORD, Registry},
};

async fn both() -> (Containerd, Registry) {
    tokio::join!(Containerd::start(), Registry::start())
}

#[tokio::test]
async fn a_lie_about_a_layer_names_both_digests_and_is_not_tried_again() {
    let (containerd, registry) = both().await;
    let image = Image::new(vec![Layer::gzip(&[("a", &noise(100_000))])]);
    registry.put("app", "v1", &image);
    let layer = image.layers[0].digest();
    registry.fault(&format!("/v2/app/blobs/{layer}"), Fault::WrongBytes);
    let images = images(&containerd, config());
    let reference = registry.reference("app:v1");
    let (line, retryable) = refused(&images, &reference).await;
    let lie: Vec<u8> = image.layers[0]
        .blob
        .iter()
        .map(|byte| byte.wrapping_add(1))
        .collect();
    for part in [
        "CannotPullContainerError: pull ",
        &reference,
        &layer,
        &digest(&lie),
    ] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
    assert!(!retryable);
    assert_eq!(registry.count(&layer), 1);
    containerd.assert_empty().await;
}

#[tokio::test]
async fn a_lie_about_a_manifest_names_both_digests() {
    let (containerd, registry) = both().await;
    let image = Image::small();
    registry.put("app", "v1", &image);
    let images = images(&containerd, config());
    let other = digest(b"something else");
    registry.fault("/v2/app/manifests/v1", Fault::WrongHeader(other.clone()));
    let (line, retryable) = refused(&images, &registry.reference("app:v1")).await;
    assert!(
        line.contains(&other) && line.contains(&image.digest()) && !retryable,
        "{line}"
    );

    registry.fault(
        &format!("/v2/app/manifests/{}", image.digest()),
        Fault::WrongBytes,
    );
    let by_digest = registry.reference(&format!("app@{}", image.digest()));
    let (line, retryable) = refused(&images, &by_digest).await;
    assert!(
        line.contains(&image.digest()) && line.contains("expected") && !retryable,
        "{line}"
    );
    assert_eq!(registry.count("/manifests/"), 2);
    containerd.assert_empty().await;
}

/// The configuration promises other layers than the manifest has: found when they are unpacked.
#[tokio::test]
async fn a_layer_that_unpacks_to_something_else_is_refused() {
    let (containerd, registry) = both().await;
    let mut image = Image::new(vec![Layer::gzip(&[("a", &noise(1000))])]);
    let promised = digest(&image.layers[0].tar);
    let other = Layer::gzip(&[("a", &noise(1000))]);
    let unpacked = digest(&other.tar);
    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let text = text.replace(&image.layers[0].digest(), &other.digest());
    let text = text.replace(
        &format!("\"size\":{}", image.layers[0].blob.len()),
        &format!("\"size\":{}", other.blob.len()),
    );
    image.manifest = text.into_bytes();
    image.layers = vec![other];
    registry.put("app", "v1", &image);
    let (line, retryable) = refused(&images(&containerd, config()), &registry.reference("app:v1")).await;
    assert!(
        line.contains(&promised) && line.contains(&unpacked) && !retryable,
        "{line}"
    );
    containerd.assert_empty().await;
}

#[tokio::test]
async fn documents_without_end_are_refused() {
    let (containerd, registry) = both().await;
    let image = Image::small();
    registry.put("app", "v1", &image);
    registry.fault("/v2/app/manifests/v1", Fault::Endless);
    let images = images(&containerd, config());
    let (line, retryable) = refused(&images, &registry.reference("app:v1")).await;
    assert!(line.contains("larger than 4194304 bytes") && !retryable, "{line}");
    registry.heal();
    registry.fault(
        &format!("/v2/app/blobs/{}", digest(&image.config)),
        Fault::Endless,
    );
    let (line, retryable) = refused(&images, &registry.reference("app:v1")).await;
    assert!(line.contains("sends more") && !retryable, "{line}");
    containerd.assert_empty().await;
}

#[tokio::test]
async fn bearer_and_basic_are_answered_and_wrong_passwords_not_tried_twice() {
    for auth in [Auth::Bearer, Auth::Basic] {
        let (containerd, registry) = tokio::join!(Containerd::start(), Registry::with_auth(auth.clone()));
        let image = Image::busybox();
        registry.put("app", "v1", &image);
        let reference = registry.reference("app:v1");
        let with = |password: &str| {
            images(
                &containerd,
                ImagesConfig {
                    credentials: vec![credential(&registry, password)],
                    ..config()
                },
            )
        };

        let (line, retryable) = refused(&images(&containerd, config()), &reference).await;
        assert!(
            line.contains("access denied (401)") && line.contains("credentials") && !retryable,
            "{line}"
        );
        let before = registry.total();
        let (line, retryable) = refused(&with("wrong"), &reference).await;
        assert!(line.contains("access denied (401)") && !retryable, "{line}");
        assert_eq!(registry.total() - before, 2, "{auth:?}: asked, answered, refused");
        assert!(!line.contains("wrong\""), "{line}");

        assert_eq!(
            ensure(&with(PASSWORD), &reference).await.unwrap().digest,
            image.digest()
        );
        let tokens = if auth == Auth::Bearer { 3 } else { 0 };
        assert_eq!(
            registry.count("/token"),
            tokens,
            "one token serves the whole pull"
        );
        containerd.assert_nothing_half_made().await;
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_not_there() {
    let (containerd, registry) = both().await;
    let images = images(&containerd, config());
    let (line, retryable) = refused(&images, &registry.reference("app:v9")).await;
    let expected = format!(
        "CannotPullContainerError: pull {0}/app:v9 from {0}: manifest unknown: MANIFEST_UNKNOWN manifest unknown \
         (check the name and the tag)",
        registry.address
    );
    assert_eq!(line, expected);
    assert!(!retryable);
    assert_eq!(registry.total(), 1);
    let (line, retryable) = refused(&images, "Not A Reference").await;
    assert!(line.contains("is not an image reference") && !retryable, "{line}");
    containerd.assert_empty().await;
}

#[tokio::test]
async fn a_passing_failure_passes_and_a_lasting_one_does_not() {
    let (containerd, registry) = both().await;
    let image = Image::small();
    registry.put("app", "v1", &image);
    let images = images(&containerd, config());
    let layer = format!("/v2/app/blobs/{}", image.layers[0].digest());
    registry.fault("/v2/app/manifests/v1", Fault::Status(503, 2));
    registry.fault(&layer, Fault::Status(429, 2));
    assert_eq!(
        ensure(&images, &registry.reference("app:v1"))
            .await
            .unwrap()
            .digest,
        image.digest()
    );
    assert_eq!(registry.count("/manifests/"), 3);
    assert_eq!(registry.count(&layer), 3);

    registry.put("other", "v1", &Image::small());
    registry.fault("/v2/other/manifests/v1", Fault::Status(500, 100));
    let (line, retryable) = refused(&images, &registry.reference("other:v1")).await;
    assert!(line.contains("answered 500") && retryable, "{line}");
    assert_eq!(registry.count("/v2/other/"), 3);
    registry.fault("/v2/other/manifests/v1", Fault::Status(403, 100));
    let (line, retryable) = refused(&images, &registry.reference("other:v1")).await;
    assert!(line.contains("access denied (403)") && !retryable, "{line}");
    assert_eq!(registry.count("/v2/other/"), 4);
    containerd.assert_nothing_half_made().await;
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    for fault in [Fault::Cut(200_000, 2), Fault::Stall(200_000, 2)] {
        let (containerd, registry) = both().await;
        let image = Image::new(vec![Layer::gzip(&[("a", &noise(1_000_000))])]);
        registry.put("app", "v1", &image);
        let layer = format!("/v2/app/blobs/{}", image.layers[0].digest());
        registry.fault(&layer, fault);
        let images = images(&containerd, config());
        assert_eq!(
            ensure(&images, &registry.reference("app:v1"))
                .await
                .unwrap()
                .chain_id,
            image.chain_id()
        );
        let ranges = registry.ranges(&layer);
        let resumed = |bytes: &str| Some(format!("bytes={bytes}-"));
        assert_eq!(ranges, [None, resumed("200000"), resumed("400000")]);
        containerd.assert_nothing_half_made().await;
    }
}

#[tokio::test]
async fn a_silent_registry_is_given_up() {
    let (containerd, registry) = both().await;
    let image = Image::small();
    registry.put("app", "v1", &image);
    registry.fault(
        &format!("/v2/app/blobs/{}", image.layers[0].digest()),
        Fault::Stall(10, 100),
    );
    // It makes no progress after the first bytes: every answer to a range is silent at once.
    registry.fault("/v2/app/manifests/v1", Fault::Stall(0, 100));
    let began = Instant::now();
    let (line, retryable) = refused(&images(&containerd, config()), &registry.reference("app:v1")).await;
    assert!(line.contains("silent") && retryable, "{line}");
    assert!(began.elapsed() < Duration::from_secs(10));
    containerd.assert_empty().await;
}

#[tokio::test]
async fn a_registry_that_is_down_is_an_error_unless_the_image_is_here() {
    let (containerd, registry) = both().await;
    let image = Image::small();
    registry.put("app", "v1", &image);
    let images = images(&containerd, config());
    let (here, elsewhere) = (registry.reference("app:v1"), registry.reference("app:v2"));
    let resolved = ensure(&images, &here).await.unwrap();
    registry.fault("/v2/app/manifests/v1", Fault::Status(502, 100));
    assert_eq!(
        ensure(&images, &here).await.unwrap(),
        resolved,
        "a broken registry is as good as none"
    );
    registry.stop().await;

    let began = Instant::now();
    assert_eq!(ensure(&images, &here).await.unwrap(), resolved);
    assert!(began.elapsed() < Duration::from_secs(5));
    let (line, retryable) = refused(&images, &elsewhere).await;
    assert!(
        line.contains("cannot be reached") && line.contains("refused") && retryable,
        "{line}"
    );
    let after_restart = crate::images(&containerd, config());
    assert_eq!(ensure(&after_restart, &here).await.unwrap(), resolved);
    containerd.assert_nothing_half_made().await;
}

/// Access that was taken away is not answered from the image that is still here.
#[tokio::test]
async fn a_refusal_is_not_an_absence() {
    let (containerd, registry) = both().await;
    registry.put("app", "v1", &Image::small());
    let images = images(&containerd, config());
    let reference = registry.reference("app:v1");
    ensure(&images, &reference).await.unwrap();
    registry.fault("/v2/app/manifests/v1", Fault::Status(403, 100));
    let (line, _) = refused(&images, &reference).await;
    assert!(line.contains("access denied (403)"), "{line}");
}
