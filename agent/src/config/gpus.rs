//! Owns the settings of what counts as a GPU of the node. Never looks for one.

use std::path::PathBuf;

use berth_agent_core::cdi::Kind;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// More than any host needs.
const ENTRIES_MAX: usize = 16;

/// Which devices of CDI are GPUs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpus {
    /// Directories with CDI specifications; a later one wins over an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
    /// Kinds of devices that are GPUs, `vendor/class`.
    pub kinds: Vec<String>,
}

impl Default for Gpus {
    fn default() -> Self {
        Self {
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            kinds: vec!["nvidia.com/gpu".into(), "amd.com/gpu".into()],
        }
    }
}

impl Gpus {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, value: String, problem: &str| {
            Err(ConfigError::Value {
                key,
                value,
                problem: problem.into(),
            })
        };
        for (key, count) in [
            ("gpus.cdi_dirs", self.cdi_dirs.len()),
            ("gpus.kinds", self.kinds.len()),
        ] {
            if count > ENTRIES_MAX {
                return bad(key, count.to_string(), "must be at most 16");
            }
        }
        if let Some(path) = self.cdi_dirs.iter().find(|path| !path.is_absolute()) {
            return bad(
                "gpus.cdi_dirs",
                path.display().to_string(),
                "must be an absolute path",
            );
        }
        if let Some(kind) = self.kinds.iter().find(|kind| kind.parse::<Kind>().is_err()) {
            let problem = "must be vendor/class, such as nvidia.com/gpu";
            return bad("gpus.kinds", kind.clone(), problem);
        }
        Ok(())
    }

    /// For the host. What is no kind was refused.
    pub(crate) fn gpus(&self) -> crate::effects::gpus::Gpus {
        let kinds = self.kinds.iter().filter_map(|kind| kind.parse().ok()).collect();
        crate::effects::gpus::Gpus::new(self.cdi_dirs.clone(), kinds)
    }
}
