//! All tasks of a revision run the image that its first task resolved, whatever becomes of the tag.

use std::path::{Path, PathBuf};
use std::process::Command;

use berth_tests::cluster::{Cluster, Options, container};
use berth_tests::image;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A registry on loopback, ended with this.
struct Registry {
    dir: tempfile::TempDir,
    address: String,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = Self::script("start", dir.path());
        let address = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        assert!(!address.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        Self { dir, address }
    }

    fn script(command: &str, dir: &Path) -> std::process::Output {
        let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/registry"));
        Command::new(script).arg(command).arg(dir).output().unwrap()
    }

    fn stop(&self) {
        assert!(Self::script("stop", self.dir.path()).status.success());
    }

    /// Pushes an image with `VERSION` in its environment behind an index, and points the tag there. Digests of the
    /// index and of the manifest.
    async fn push(&self, tag: &str, version: &str) -> (String, String) {
        let archive = self.dir.path().join("busy.tar");
        image::busybox(&archive);
        let layer = member(&archive, "layer.tar");
        let mut config: Value = serde_json::from_slice(&member(&archive, "config.json")).unwrap();
        config["config"]["Env"] = json!(["PATH=/bin", format!("VERSION={version}")]);
        let platform = json!({"architecture": config["architecture"], "os": "linux"});
        let config = config.to_string().into_bytes();
        for blob in [&config, &layer] {
            self.push_blob(blob.clone()).await;
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = manifest.to_string().into_bytes();
        self.push_manifest(&digest(&manifest), manifest_type, &manifest)
            .await;
        let mut entry = descriptor(manifest_type, &manifest);
        entry["platform"] = platform;
        let index_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [entry]});
        let index = index.to_string().into_bytes();
        self.push_manifest(tag, index_type, &index).await;
        (digest(&index), digest(&manifest))
    }

    async fn push_blob(&self, blob: Vec<u8>) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let uploads = format!("http://{}/v2/app/blobs/uploads/", self.address);
        let begun = http.post(uploads).send().await.unwrap();
        let location = begun.headers()["location"].to_str().unwrap();
        let put = http
            .put(format!("{location}&digest={}", digest(&blob)))
            .body(blob);
        assert_eq!(put.send().await.unwrap().status(), 201);
    }

    async fn push_manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/v2/app/manifests/{reference}", self.address);
        let put = http
            .put(url)
            .header("content-type", media_type)
            .body(bytes.to_vec());
        assert_eq!(put.send().await.unwrap().status(), 201);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        Self::script("stop", self.dir.path());
    }
}

fn member(archive: &Path, name: &str) -> Vec<u8> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries
        .find(|entry| entry.path().unwrap() == Path::new(name))
        .unwrap();
    let mut bytes = Vec::new();
    std::io::copy(&mut entry, &mut bytes).unwrap();
    bytes
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// A tag is asked for at its registry at every start.
async fn cluster() -> Cluster {
    let agent_config = "[registries]\nresolve_ttl_s = 0\n".to_owned();
    Cluster::with(Options {
        agent_config,
        ..Options::default()
    })
    .await
}

/// Runs a task to its end: what the container printed, and the digest that is shown.
async fn ran(cluster: &Cluster, definition: &str) -> (String, String) {
    let task = cluster.run(definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    let shown = &stopped["containers"][0];
    assert_eq!(shown["exitCode"], 0, "{stopped:#}");
    let logs = cluster.client.logs(&task).await;
    let line = logs
        .first()
        .map(|line| line["line"].as_str().unwrap().trim().to_owned());
    (
        line.unwrap_or_default(),
        shown["imageDigest"].as_str().unwrap().to_owned(),
    )
}

fn app(image: &str, consistency: Value) -> impl FnOnce(&mut Value) {
    let mut one = container("main", "echo $VERSION");
    one["image"] = json!(image);
    one["versionConsistency"] = consistency;
    move |definition| definition["containerDefinitions"] = json!([one])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_keeps_the_image_that_its_first_task_resolved() {
    let registry = Registry::start();
    let image = format!("{}/app:v1", registry.address);
    let (_, one) = registry.push("v1", "one").await;
    let cluster = cluster().await;
    let pinned = cluster.register("", app(&image, Value::Null)).await;
    let following = cluster.register("", app(&image, json!("disabled"))).await;
    assert_eq!(ran(&cluster, &pinned).await, ("one".to_owned(), one.clone()));
    assert_eq!(ran(&cluster, &following).await, ("one".to_owned(), one.clone()));

    let (_, two) = registry.push("v1", "two").await;
    assert_eq!(ran(&cluster, &pinned).await, ("one".to_owned(), one.clone()));
    assert_eq!(ran(&cluster, &following).await, ("two".to_owned(), two.clone()));
    // A new revision resolves anew.
    let renewed = cluster.register("", app(&image, json!("enabled"))).await;
    assert_eq!(ran(&cluster, &renewed).await, ("two".to_owned(), two));

    // The image is shown as the user wrote it, and the definition says nothing of the digest.
    let task = cluster.run(&pinned).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["containers"][0]["image"], image.as_str());
    let described = json!({"taskDefinition": pinned});
    let described = cluster.client.ok("DescribeTaskDefinition", described).await;
    assert!(!described.to_string().contains("sha256:"), "{described:#}");

    // What ran here runs without its registry.
    registry.stop();
    assert_eq!(ran(&cluster, &pinned).await, ("one".to_owned(), one));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_an_archive_is_kept_for_its_revision() {
    let mut cluster = cluster().await;
    let register = async |cluster: &Cluster| cluster.register("", app(image::BUSYBOX, Value::Null)).await;
    let first = register(&cluster).await;
    let (_, before) = ran(&cluster, &first).await;
    // Another image under the same name.
    let archive = cluster.directory().join("images/busy.tar");
    image::busybox_with(&archive, "VERSION=two");
    cluster.stop_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(ran(&cluster, &first).await, (String::new(), before.clone()));
    let second = register(&cluster).await;
    let (said, after) = ran(&cluster, &second).await;
    assert_eq!(said, "two");
    assert_ne!(before, after);
}
