//! Owns a private containerd with one small image, and the peer: `ctr run -d` on it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use tokio::process::{Child, Command};

/// What both sides run.
pub const IMAGE: &str = "bench.berth.test/busy:latest";
pub const ARGS: [&str; 2] = ["sleep", "3600"];
pub const MEMORY_BYTES: u64 = 64 << 20;
/// A quarter of a core.
pub const CPU_UNITS: u32 = 256;
const NAMESPACE: &str = "peer";
const START_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Host {
    dir: tempfile::TempDir,
    containerd: Child,
    /// What `ctr run` is given besides the limits.
    peer_flags: Vec<&'static str>,
}

impl Host {
    pub async fn start(peer_seccomp: bool) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock")
        );
        std::fs::write(dir.path().join("containerd.toml"), config)?;
        let log = std::fs::File::create(dir.path().join("containerd.log"))?;
        let containerd = Command::new("containerd")
            .args(["--config", &path("containerd.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start containerd: is it installed?")?;
        let host = Self {
            dir,
            containerd,
            peer_flags: if peer_seccomp { vec!["--seccomp"] } else { vec![] },
        };
        let begun = Instant::now();
        while host.ctr(&["version"]).await.is_err() {
            ensure!(
                begun.elapsed() < START_LIMIT,
                "containerd did not answer within {START_LIMIT:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::fs::create_dir(host.archives())?;
        let archive = host.archives().join("busy.tar");
        write_archive(&archive)?;
        host.ctr(&["images", "import", &archive.display().to_string()])
            .await
            .context("import the image")?;
        Ok(host)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    /// What the peer is called in the report.
    pub fn peer_name(&self) -> String {
        ["ctr run -d"]
            .iter()
            .chain(&self.peer_flags)
            .copied()
            .collect::<Vec<_>>()
            .join(" ")
            + " (host network)"
    }

    /// Where the image's archive is.
    pub fn archives(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    async fn ctr(&self, args: &[&str]) -> anyhow::Result<()> {
        let socket = self.socket().display().to_string();
        let output = Command::new("ctr")
            .args(["-a", &socket, "-n", NAMESPACE])
            .args(args)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "ctr {args:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// The peer: one container on the host's network, with the same limits.
    pub async fn peer_start(&self, id: &str) -> anyhow::Result<Duration> {
        let memory = MEMORY_BYTES.to_string();
        let cpus = format!("{}", f64::from(CPU_UNITS) / 1024.0);
        let begun = Instant::now();
        let limits = ["--net-host", "--memory-limit", &memory, "--cpus", &cpus];
        let what = [IMAGE, id];
        self.ctr(&[&["run", "-d"], &self.peer_flags[..], &limits, &what, &ARGS].concat())
            .await?;
        Ok(begun.elapsed())
    }

    pub async fn peer_remove(&self, id: &str) -> anyhow::Result<()> {
        self.ctr(&["tasks", "rm", "-f", id]).await?;
        self.ctr(&["containers", "rm", id]).await
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.containerd.id().and_then(|pid| i32::try_from(pid).ok()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
        }
        tokio::time::timeout(START_LIMIT, self.containerd.wait())
            .await
            .context("containerd did not end")??;
        Ok(())
    }
}

/// A docker archive with one layer: a static busybox and its `sleep`.
fn write_archive(path: &Path) -> anyhow::Result<()> {
    let busybox =
        std::fs::read("/bin/busybox").context("/bin/busybox: install the package busybox-static")?;
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(busybox.len() as u64);
    layer.append_data(&mut header, "bin/busybox", busybox.as_slice())?;
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    layer.append_link(&mut link, "bin/sleep", "busybox")?;
    let layer = layer.into_inner()?;
    let architecture = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sleep", "3600"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))] },
    });
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(std::fs::File::create(path)?);
    let files = [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    archive.finish()?;
    Ok(())
}
