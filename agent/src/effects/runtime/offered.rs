//! Owns which runtimes a node offers: those that run a program here, in a container such as tasks get. Never judges by a
//! version or a name, and leaves nothing behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, ListContainersRequest, StartRequest, WaitRequest,
    container,
};
use serde_json::{Value, json};

use super::{
    OciRuntime, Runtime, RuntimeError, Step,
    call::{DEADLINE, PROCESS_DEADLINE, call},
    options::spec_any,
};

/// Of the program that does nothing, once it was started.
const RUN_DEADLINE: Duration = Duration::from_secs(30);
/// Before the runtime's name: a task's containers have names of hexadecimal digits.
const PREFIX: &str = "probe-";
/// Does nothing, and is on every host.
const PROGRAM: &str = "/usr/bin/true";
/// What it has of its own.
const OWN: [&str; 2] = ["/proc", "/dev"];
/// The host's directories that the program needs.
const BINDS: [&str; 4] = ["/usr", "/bin", "/lib", "/lib64"];

/// Why a runtime is not offered.
#[derive(Debug, thiserror::Error)]
pub enum ProbeFailure {
    #[error("write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{PROGRAM} ended with {code} in it")]
    Exit { code: u32 },
}

impl Runtime {
    /// Runs a program that does nothing in each of the configured runtimes, all at once.
    pub async fn probe_runtimes(&self) -> Vec<(String, Result<(), ProbeFailure>)> {
        let config = self.config();
        if let Err(error) = self.remove_probes().await {
            tracing::warn!(error = %crate::sys::Chain(&error), "what earlier probes of runtimes left cannot be removed");
        }
        let default = OciRuntime {
            kind: config.runtime.clone(),
            binary: config.binary_name.clone(),
        };
        let probes = config.runtimes.iter().map(|(name, runtime)| {
            // What all tasks are started with needs no proof, and a node without it has other worries.
            let known = *runtime == default;
            async move {
                let result = if known {
                    Ok(())
                } else {
                    self.probe(name, runtime).await
                };
                (name.clone(), result)
            }
        });
        futures_util::future::join_all(probes).await
    }

    /// Removes what probes that were cut off left in containerd: they are in no ledger, but all are named alike.
    pub async fn remove_probes(&self) -> Result<(), RuntimeError> {
        let request = ListContainersRequest {
            filters: vec![format!("id~={:?}", format!("^{PREFIX}"))],
        };
        let mut records = self.containers();
        let listed = call(
            Step::List,
            "probes",
            DEADLINE,
            records.list(self.request(request)),
        )
        .await?;
        for container in listed.containers {
            self.remove_id(&container.id).await?;
        }
        Ok(())
    }

    async fn probe(&self, name: &str, runtime: &OciRuntime) -> Result<(), ProbeFailure> {
        // gVisor names a socket of the host by it: two instances may try it at once.
        let id = format!("{PREFIX}{}-{name}", self.config().instance);
        let directory = self.config().run_dir.join(&id);
        let result = self.run_probe(&id, &directory, runtime).await;
        let removed = self.remove_id(&id).await;
        remove_root(&directory);
        result.and(removed.map_err(Into::into))
    }

    async fn run_probe(&self, id: &str, root: &Path, runtime: &OciRuntime) -> Result<(), ProbeFailure> {
        let binds = make_root(root)?;
        let cgroup = format!("{}/{id}", self.config().cgroup_parent);
        let container = Container {
            id: id.to_owned(),
            runtime: Some(container::Runtime {
                name: runtime.kind.clone(),
                options: runtime.options(String::new()),
            }),
            spec: Some(spec_any(&spec(root, &binds, &cgroup))),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let mut records = self.containers();
        call(Step::Record, id, DEADLINE, records.create(self.request(request))).await?;
        let mut tasks = self.tasks();
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            ..CreateTaskRequest::default()
        };
        call(
            Step::Create,
            id,
            PROCESS_DEADLINE,
            tasks.create(self.request(request)),
        )
        .await?;
        let request = StartRequest {
            container_id: id.to_owned(),
            ..StartRequest::default()
        };
        call(
            Step::Start,
            id,
            PROCESS_DEADLINE,
            tasks.start(self.request(request)),
        )
        .await?;
        let request = WaitRequest {
            container_id: id.to_owned(),
            ..WaitRequest::default()
        };
        let ended = call(Step::Wait, id, RUN_DEADLINE, tasks.wait(self.request(request))).await?;
        match ended.exit_status {
            0 => Ok(()),
            code => Err(ProbeFailure::Exit { code }),
        }
    }
}

/// A root with nothing but places to mount to; those of the host's directories that there are.
fn make_root(root: &Path) -> Result<Vec<&'static str>, ProbeFailure> {
    let binds: Vec<_> = BINDS
        .into_iter()
        .filter(|path| Path::new(path).is_dir())
        .collect();
    for place in binds.iter().chain(&OWN) {
        let path = root.join(&place[1..]);
        fs::create_dir_all(&path).map_err(|source| ProbeFailure::File { path, source })?;
    }
    Ok(binds)
}

/// One empty directory after the other: what a broken runtime left mounted there is not to be emptied.
fn remove_root(root: &Path) {
    let places = BINDS.iter().chain(&OWN).map(|place| root.join(&place[1..]));
    for path in places.chain([root.to_owned()]) {
        if let Err(error) = fs::remove_dir(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove what the probe of a runtime was made in");
        }
    }
}

fn spec(root: &Path, binds: &[&str], cgroup: &str) -> Value {
    let binds = binds
        .iter()
        .map(|path| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}));
    let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
    // Runtimes make the usual devices there.
    let dev =
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]});
    let mounts: Vec<Value> = [proc, dev].into_iter().chain(binds).collect();
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": true},
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": [PROGRAM], "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"], "noNewPrivileges": true,
        },
        "mounts": mounts,
        "linux": {"cgroupsPath": cgroup, "namespaces": namespaces},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_a_place_for_every_mount() {
        let dir = tempfile::tempdir().unwrap();
        let binds = make_root(dir.path()).unwrap();
        assert!(binds.contains(&"/usr"), "{binds:?}");
        let root = dir.path();
        let spec = spec(root, &binds, "/berth.slice/probe-x");
        for mount in spec["mounts"].as_array().unwrap() {
            let destination = mount["destination"].as_str().unwrap();
            assert!(dir.path().join(&destination[1..]).is_dir(), "{destination}");
        }
        assert_eq!(spec["linux"]["cgroupsPath"], "/berth.slice/probe-x");
        fs::write(root.join("usr/kept"), "").unwrap();
        remove_root(root);
        assert!(root.join("usr/kept").exists() && !root.join("proc").exists());
        fs::remove_file(root.join("usr/kept")).unwrap();
        remove_root(root);
        assert!(!root.exists());
    }
}
