//! Owns the few settings that say where an instance's things are, for commands that need no others. Read past all others:
//! what else is missing or wrong in the configuration must not keep a host from joining, or an instance on its host.

use std::path::{Path, PathBuf};

use berth_service::settings::{SettingsError, Sources};
use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::config::{
    check_instance, default_cgroup_parent, default_containerd, default_instance, default_run_dir,
    default_snapshotter, default_state_dir, default_task_cidr,
};

/// As in [`Config`](crate::config::Config).
#[derive(Clone, Debug, Deserialize)]
pub struct Place {
    #[serde(default = "default_instance")]
    pub instance: String,
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    #[serde(default = "default_containerd")]
    pub containerd_address: PathBuf,
    #[serde(default = "default_snapshotter")]
    pub snapshotter: String,
    #[serde(default = "default_task_cidr")]
    pub task_cidr: Ipv4Net,
    cgroup_parent: Option<String>,
}

impl Place {
    /// From the file, its drop-ins, the environment, and what the service's environment file beside it (`agent.env`)
    /// sets. No file: all defaults.
    ///
    /// # Errors
    /// A file that is no TOML, or a value of one of these keys that cannot be used.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let sources = Sources {
            file: file.into(),
            file_required: false,
            environment_prefix: "BERTH_AGENT",
            sets: service_environment(&file.with_extension("env")),
            secrets: &[],
        };
        let place = sources
            .load::<Self>()
            .map_err(|error: SettingsError| anyhow::Error::new(error))?
            .value;
        if let Err(problem) = check_instance(&place.instance) {
            anyhow::bail!("configuration: instance = {:?}: {problem}", place.instance);
        }
        Ok(place)
    }

    /// The cgroup that holds the tasks'.
    pub fn cgroup_parent(&self) -> String {
        let default = || default_cgroup_parent(&self.instance);
        self.cgroup_parent.clone().unwrap_or_else(default)
    }

    /// What a purge removes is what these say: a mistake must not become the host's root directory.
    ///
    /// # Errors
    /// Names the directory.
    pub fn check_removable(&self) -> anyhow::Result<()> {
        for (key, path) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            let deep = path.components().count() > 2;
            let plain = path
                .components()
                .all(|part| !matches!(part, std::path::Component::ParentDir));
            anyhow::ensure!(
                path.is_absolute() && deep && plain,
                "configuration: {key} = {path:?}: would be removed whole; remove it by hand"
            );
        }
        Ok(())
    }
}

/// The agent's keys in a file of systemd.exec(5), `EnvironmentFile=`, as `key=value`. The command does not run in the
/// service's environment, and must find the same instance.
fn service_environment(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let set = |line: &str| {
        let (name, value) = line.trim().strip_prefix("BERTH_AGENT__")?.split_once('=')?;
        let value = value.trim();
        let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        Some(format!(
            "{}={value}",
            name.trim().to_lowercase().replace("__", ".")
        ))
    };
    text.lines().filter_map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> anyhow::Result<Place> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        Place::load(&file)
    }

    #[test]
    fn a_configuration_that_no_agent_would_start_with_is_enough() {
        let place = load("instance = 'shop'\ncontrol_plane = 7\nunknown = true").unwrap();
        assert_eq!(
            (place.instance.as_str(), place.state_dir.to_str()),
            ("shop", Some("/var/lib/berth"))
        );
        let none = Place::load(Path::new("/nonexistent/agent.toml")).unwrap();
        assert_eq!(none.run_dir, Path::new("/run/berth"));
    }

    #[test]
    fn the_services_environment_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("agent.env"),
            "BERTH_LOG=debug\n# BERTH_AGENT__INSTANCE=no\nBERTH_AGENT__INSTANCE=\"shop\"\nBERTH_AGENT__RUN_DIR=/run/shop\n",
        )
        .unwrap();
        let place = Place::load(&dir.path().join("agent.toml")).unwrap();
        assert_eq!(place.instance, "shop");
        assert_eq!(place.run_dir, Path::new("/run/shop"));
    }

    #[test]
    fn a_directory_of_the_system_is_not_removed() {
        for text in [
            "state_dir = '/var'",
            "run_dir = '/'",
            "state_dir = 'var/lib/berth'",
            "run_dir = '/run/../etc/x'",
        ] {
            let error = load(text).unwrap().check_removable().unwrap_err().to_string();
            assert!(error.contains("_dir"), "{text}: {error}");
        }
        assert!(
            load("instance = '../x'")
                .unwrap_err()
                .to_string()
                .contains("instance")
        );
    }
}
