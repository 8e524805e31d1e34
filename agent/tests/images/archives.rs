//! Archives, for sites without a registry.

use std::{fs, path::Path};

use berth_agent::effects::images::{Images, ImagesConfig};
use serde_json::json;

use crate::{
    config,
    containerd::Containerd,
    ensure,
    image::{Image, Layer, gzip, noise, tar_of},
    images,
};

fn with_archives(containerd: &Containerd) -> (Images, std::path::PathBuf) {
    let directory = containerd.path().join("archives");
    fs::create_dir_all(&directory).unwrap();
    let images = images(
        containerd,
        ImagesConfig {
            archives_dir: Some(directory.clone()),
            ..config()
        },
    );
    (images, directory)
}

/// The names each file gave; every import succeeds.
async fn import(images: &Images) -> Vec<(String, Vec<String>)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let results = images.import_archives().await.into_iter();
    results
        .map(|(path, result)| {
            (
                name(&path),
                result.unwrap_or_else(|error| panic!("{}", error.reason())),
            )
        })
        .collect()
}

#[tokio::test]
async fn both_kinds_of_archive_serve_a_site_without_a_registry() {
    let containerd = Containerd::start().await;
    let (agent, directory) = with_archives(&containerd);
    let (layout, docker, zipped, unnamed) =
        (Image::busybox(), Image::busybox(), Image::small(), Image::small());
    let annotations = json!({"org.opencontainers.image.ref.name": "registry.invalid:5000/team/app:v1"});
    fs::write(directory.join("1-layout.tar"), layout.layout(annotations)).unwrap();
    fs::write(
        directory.join("2-docker.tar"),
        docker.docker_save(&["shop:1", "registry.invalid/shop:1"]),
    )
    .unwrap();
    fs::write(
        directory.join("3-zipped.tar.gz"),
        gzip(&zipped.docker_save(&["zipped:1"])),
    )
    .unwrap();
    fs::write(directory.join("4-unnamed.tgz"), gzip(&unnamed.layout(json!({})))).unwrap();
    fs::write(directory.join("read.me"), "not an archive").unwrap();

    let expected = [
        ("1-layout.tar", vec!["registry.invalid:5000/team/app:v1"]),
        (
            "2-docker.tar",
            vec!["docker.io/library/shop:1", "registry.invalid/shop:1"],
        ),
        ("3-zipped.tar.gz", vec!["docker.io/library/zipped:1"]),
        ("4-unnamed.tgz", vec!["docker.io/library/4-unnamed:latest"]),
    ];
    let expected =
        expected.map(|(file, names)| (file.to_owned(), names.into_iter().map(str::to_owned).collect()));
    assert_eq!(import(&agent).await, expected);
    containerd.assert_nothing_half_made().await;
    containerd.collect().await;

    // The agent that imported, and one that only finds what is there. `.invalid` never resolves.
    for agent in [agent, images(&containerd, config())] {
        let found = ensure(&agent, "registry.invalid:5000/team/app:v1").await.unwrap();
        assert_eq!(
            (found.digest, found.chain_id),
            (layout.digest(), layout.chain_id())
        );
        for reference in ["shop:1", "registry.invalid/shop:1"] {
            let found = ensure(&agent, reference).await.unwrap();
            assert_eq!(found.chain_id, docker.chain_id());
            assert_eq!(found.config.entrypoint, ["/bin/busybox"]);
            assert_eq!(
                containerd.read_file(&found.chain_id, "etc/over").await.unwrap(),
                b"above"
            );
        }
        assert_eq!(
            ensure(&agent, "zipped:1").await.unwrap().chain_id,
            zipped.chain_id()
        );
        let by_digest = format!("registry.invalid:5000/team/app@{}", layout.digest());
        assert_eq!(
            ensure(&agent, &by_digest).await.unwrap().chain_id,
            layout.chain_id()
        );
    }
}

#[tokio::test]
async fn an_archive_is_read_again_only_if_it_changed() {
    let containerd = Containerd::start().await;
    let (agent, directory) = with_archives(&containerd);
    let path = directory.join("app.tar");
    let (first, second) = (Image::small(), Image::small());
    let name = json!({"org.opencontainers.image.ref.name": "v1"});
    fs::write(&path, first.layout(name.clone())).unwrap();
    let expected = vec![("app.tar".to_owned(), vec!["docker.io/library/app:v1".to_owned()])];
    assert_eq!(import(&agent).await, expected);

    // Unreadable content under the same size and time: it is not looked at.
    let before = fs::metadata(&path).unwrap();
    fs::write(&path, vec![0xff; before.len() as usize]).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(import(&images_like(&containerd, &directory)).await, expected);
    assert_eq!(ensure(&agent, "app:v1").await.unwrap().chain_id, first.chain_id());

    fs::write(&path, second.layout(name)).unwrap();
    assert_eq!(import(&agent).await, expected);
    assert_eq!(
        ensure(&agent, "app:v1").await.unwrap().chain_id,
        second.chain_id()
    );
}

fn images_like(containerd: &Containerd, directory: &Path) -> Images {
    images(
        containerd,
        ImagesConfig {
            archives_dir: Some(directory.to_owned()),
            ..config()
        },
    )
}

#[tokio::test]
async fn bad_archives_are_refused_one_by_one_and_leave_nothing() {
    let containerd = Containerd::start().await;
    let (agent, directory) = with_archives(&containerd);
    let image = Image::new(vec![Layer::plain(&[("a", &noise(300_000))])]);
    let whole = image.layout(json!({"org.opencontainers.image.ref.name": "v1"}));
    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 0xff;
    let mut escaping = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..12].copy_from_slice(b"../../escape");
    header.set_size(0);
    header.set_cksum();
    escaping.append(&header, &[][..]).unwrap();
    let missing = json!([{"Config": "gone.json", "Layers": ["gone/layer.tar"]}]).to_string();
    let list: [(&str, Vec<u8>, &str); 8] = [
        ("a-damaged.tar", damaged, "expected sha256:"),
        (
            "b-truncated.tar",
            whole[..whole.len() / 2].to_vec(),
            "ends in the middle",
        ),
        (
            "c-truncated.tar.gz",
            gzip(&whole)[..5000].to_vec(),
            "cannot be read",
        ),
        ("d-noise.tar", noise(5000), "checksum"),
        (
            "e-escaping.tar",
            escaping.into_inner().unwrap(),
            "leaves the archive",
        ),
        ("f-empty.tar", tar_of(&[("x", b"y")]), "lacks index.json"),
        (
            "g-missing.tar",
            tar_of(&[("manifest.json", missing.as_bytes())]),
            "gone.json",
        ),
        ("h-zstd.tar", vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0], "zstd"),
    ];
    for (name, bytes, _) in &list {
        fs::write(directory.join(name), bytes).unwrap();
    }
    let results = agent.import_archives().await;
    assert_eq!(results.len(), list.len());
    for ((path, result), (name, _, why)) in results.iter().zip(&list) {
        let error = result.as_ref().expect_err(name);
        let line = error.reason();
        assert!(
            path.ends_with(name) && line.contains(name) && line.contains(why),
            "{name}: {line}"
        );
        assert!(!error.retryable(), "{line}");
    }
    containerd.assert_empty().await;

    for (name, ..) in &list {
        fs::remove_file(directory.join(name)).unwrap();
    }
    fs::write(directory.join("good.tar"), whole).unwrap();
    assert_eq!(import(&agent).await.len(), 1);
}

#[tokio::test]
async fn a_missing_directory_is_an_error_and_none_is_no_work() {
    let containerd = Containerd::start().await;
    assert!(images(&containerd, config()).import_archives().await.is_empty());
    let results = images_like(&containerd, Path::new("/nonexistent/archives"))
        .import_archives()
        .await;
    assert!(
        results[0]
            .1
            .as_ref()
            .unwrap_err()
            .reason()
            .contains("/nonexistent/archives")
    );
}
