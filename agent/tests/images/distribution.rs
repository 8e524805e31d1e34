//! The real registry (docker-registry) on loopback, and pushing to it through its API.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Client, StatusCode};
use tempfile::TempDir;

use crate::{
    containerd::stop,
    image::{Image, digest},
};

#[derive(Debug)]
pub struct Distribution {
    process: Child,
    _directory: TempDir,
    pub host: String,
    base: String,
    client: Client,
}

impl Distribution {
    pub async fn start() -> Self {
        Self::launch(None).await
    }

    /// With TLS: PEM files of its certificate and key.
    pub async fn with_tls(certificate: &Path, key: &Path) -> Self {
        Self::launch(Some((certificate, key))).await
    }

    async fn launch(tls: Option<(&Path, &Path)>) -> Self {
        let directory = TempDir::with_prefix("berth-registry-").unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let mut configuration = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            directory.path().join("data").display()
        );
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder().no_proxy();
        if let Some((certificate, key)) = tls {
            let (certificate, key) = (certificate.display(), key.display());
            configuration.push_str(&format!(
                "  tls:\n    certificate: {certificate}\n    key: {key}\n"
            ));
            let pem = std::fs::read(certificate.to_string()).unwrap();
            client = client.tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()]);
        }
        let file = directory.path().join("config.yml");
        std::fs::write(&file, configuration).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{host}/v2/");
        let this = Self {
            process,
            _directory: directory,
            host,
            base,
            client: client.build().unwrap(),
        };
        this.wait().await;
        this
    }

    async fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.client.get(&self.base).send().await.is_err() {
            assert!(Instant::now() < deadline, "docker-registry did not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(repository, blob).await;
        }
        self.push_manifest(repository, tag, image.media_type, &image.manifest)
            .await;
    }

    async fn push_blob(&self, repository: &str, blob: Vec<u8>) {
        let begin = self
            .client
            .post(format!("{}{repository}/blobs/uploads/", self.base))
            .send()
            .await
            .unwrap();
        let location = begin.headers()["location"].to_str().unwrap().to_owned();
        let url = format!("{location}&digest={}", digest(&blob));
        let put = self.client.put(url).body(blob).send().await.unwrap();
        assert_eq!(put.status(), StatusCode::CREATED);
    }

    pub async fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: &[u8]) {
        let put = self
            .client
            .put(format!("{}{repository}/manifests/{tag}", self.base));
        let put = put
            .header("content-type", media_type)
            .body(manifest.to_vec())
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), StatusCode::CREATED, "{}", put.text().await.unwrap());
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        stop(&mut self.process);
    }
}
