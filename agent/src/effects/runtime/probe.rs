//! Owns the look at a containerd that is not used yet: whether it answers, what it is, which snapshotters it has. Never
//! makes anything in it.

use std::{path::Path, time::Duration};

use containerd_client::services::v1::{
    PluginsRequest, introspection_client::IntrospectionClient, version_client::VersionClient,
};

use super::{RuntimeError, Step, call::call};

const DEADLINE: Duration = Duration::from_secs(5);

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("connect")]
    Connect {
        source: containerd_client::tonic::transport::Error,
    },
    #[error("no connection within {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("ask")]
    Ask {
        #[from]
        source: RuntimeError,
    },
}

/// What a containerd says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containerd {
    /// As it prints it: `1.6.20~ds1`, `v2.0.1`.
    pub version: String,
    pub snapshotters: Vec<Snapshotter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    pub name: String,
    /// Why it cannot be used; `None` when it can.
    pub error: Option<String>,
}

/// Asks the containerd behind a socket, in at most some 15 s.
///
/// # Errors
/// [`ProbeError`]: nobody listens, or no answer came.
pub async fn probe(socket: &Path) -> Result<Containerd, ProbeError> {
    let channel = tokio::time::timeout(DEADLINE, containerd_client::connect(socket))
        .await
        .map_err(|_| ProbeError::Deadline)?
        .map_err(|source| ProbeError::Connect { source })?;
    let mut asked = VersionClient::new(channel.clone());
    let version = call(Step::Version, "", DEADLINE, asked.version(()))
        .await?
        .version;
    let request = PluginsRequest {
        filters: vec!["type==io.containerd.snapshotter.v1".into()],
    };
    let mut asked = IntrospectionClient::new(channel);
    let plugins = call(Step::List, "plugins", DEADLINE, asked.plugins(request))
        .await?
        .plugins;
    let snapshotters = plugins.into_iter().map(|plugin| Snapshotter {
        name: plugin.id,
        error: plugin.init_err.map(|error| error.message),
    });
    Ok(Containerd {
        version,
        snapshotters: snapshotters.collect(),
    })
}
