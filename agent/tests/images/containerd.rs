//! A containerd of the test's own, in a directory of its own, and a look at what is in it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, InfoRequest, ListContentRequest, ListRequest, ListStatusesRequest,
    content_client::ContentClient,
    leases_client::LeasesClient,
    snapshots::{
        Kind, ListSnapshotsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
};
use tempfile::TempDir;
use tonic::{Request, transport::Channel};

const NAMESPACE: &str = "test";
const START: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Containerd {
    process: Child,
    directory: TempDir,
    pub channel: Channel,
}

pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", NAMESPACE.parse().unwrap());
    request
}

impl Containerd {
    pub async fn start() -> Self {
        let directory = TempDir::with_prefix("berth-images-").unwrap();
        let path = directory.path();
        let socket = path.join("c.sock");
        let configuration = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = {:?}\n[ttrpc]\n  address = {:?}\n",
            path.join("root"),
            path.join("state"),
            socket,
            path.join("t.sock"),
        );
        std::fs::write(path.join("config.toml"), configuration).unwrap();
        let log = std::fs::File::create(path.join("log")).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(path.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed");
        let channel = connect(&socket, path).await;
        Self {
            process,
            directory,
            channel,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    fn snapshotter(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub async fn leases(&self) -> Vec<String> {
        let answer = LeasesClient::new(self.channel.clone())
            .list(request(ListRequest::default()))
            .await;
        answer
            .unwrap()
            .into_inner()
            .leases
            .into_iter()
            .map(|lease| lease.id)
            .collect()
    }

    pub async fn ingests(&self) -> Vec<String> {
        let answer = self
            .content()
            .list_statuses(request(ListStatusesRequest::default()))
            .await;
        answer
            .unwrap()
            .into_inner()
            .statuses
            .into_iter()
            .map(|status| status.r#ref)
            .collect()
    }

    pub async fn blobs(&self) -> Vec<String> {
        let mut parts = self
            .content()
            .list(request(ListContentRequest::default()))
            .await
            .unwrap()
            .into_inner();
        let mut all = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            all.extend(part.info.into_iter().map(|info| info.digest));
        }
        all
    }

    pub async fn has_blob(&self, digest: &str) -> bool {
        self.content()
            .info(request(InfoRequest {
                digest: digest.to_owned(),
            }))
            .await
            .is_ok()
    }

    /// Names, with the active ones marked.
    pub async fn snapshots(&self) -> Vec<(String, bool)> {
        let message = ListSnapshotsRequest {
            snapshotter: "overlayfs".into(),
            filters: vec![],
        };
        let mut parts = self
            .snapshotter()
            .list(request(message))
            .await
            .unwrap()
            .into_inner();
        let mut all = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            all.extend(
                part.info
                    .into_iter()
                    .map(|info| (info.name, info.kind == Kind::Active as i32)),
            );
        }
        all
    }

    pub async fn remove_snapshot(&self, key: &str) {
        let message = RemoveSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: key.into(),
        };
        self.snapshotter().remove(request(message)).await.unwrap();
    }

    /// The file as a container on this image would see it, if it has it.
    pub async fn read_file(&self, chain_id: &str, path: &str) -> Option<Vec<u8>> {
        let view = format!("look-{}", uuid::Uuid::new_v4());
        let message = ViewSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: view.clone(),
            parent: chain_id.into(),
            // The collector may run at any time, and takes what nobody holds.
            labels: [(
                "containerd.io/gc.root".to_owned(),
                "2000-01-01T00:00:00Z".to_owned(),
            )]
            .into(),
        };
        let mounts = self
            .snapshotter()
            .view(request(message))
            .await
            .unwrap()
            .into_inner()
            .mounts;
        let lower: Vec<PathBuf> = match mounts[0].r#type.as_str() {
            "bind" => vec![mounts[0].source.clone().into()],
            _ => {
                let option = mounts[0]
                    .options
                    .iter()
                    .find_map(|option| option.strip_prefix("lowerdir="))
                    .unwrap();
                option.split(':').map(PathBuf::from).collect()
            }
        };
        let content = lower
            .iter()
            .find_map(|directory| std::fs::read(directory.join(path)).ok());
        self.remove_snapshot(&view).await;
        content
    }

    /// Has the garbage collector run now.
    pub async fn collect(&self) {
        let mut leases = LeasesClient::new(self.channel.clone());
        let id = format!("collect-{}", uuid::Uuid::new_v4());
        leases
            .create(request(CreateRequest {
                id: id.clone(),
                labels: Default::default(),
            }))
            .await
            .unwrap();
        leases
            .delete(request(DeleteRequest { id, sync: true }))
            .await
            .unwrap();
    }

    /// Nothing half made is left; given a moment, because giving up is asynchronous.
    pub async fn assert_nothing_half_made(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let active = self
                .snapshots()
                .await
                .into_iter()
                .filter(|(_, active)| *active)
                .collect::<Vec<_>>();
            let (leases, ingests) = (self.leases().await, self.ingests().await);
            if active.is_empty() && leases.is_empty() && ingests.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left: {active:?} {leases:?} {ingests:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing at all is left.
    pub async fn assert_empty(&self) {
        self.assert_nothing_half_made().await;
        self.collect().await;
        assert_eq!(self.blobs().await, Vec::<String>::new());
        assert_eq!(self.snapshots().await, vec![]);
    }
}

async fn connect(socket: &Path, directory: &Path) -> Channel {
    let deadline = Instant::now() + START;
    loop {
        if let Ok(channel) = containerd_client::connect(socket).await {
            let version =
                containerd_client::services::v1::version_client::VersionClient::new(channel.clone());
            if { version }.version(()).await.is_ok() {
                return channel;
            }
        }
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
            panic!("containerd did not start (these tests need root):\n{log}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        stop(&mut self.process);
    }
}

/// Ends a process that this test started, by its pid.
pub fn stop(process: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(process.id() as i32);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if matches!(process.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = process.kill();
    let _ = process.wait();
}
