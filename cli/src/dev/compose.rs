//! Owns how a control plane and an agent become one process: their settings, and the order of start and end. The
//! only module here that knows both.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use berth_agent::app::Agent;
use berth_control_plane::api::ApiKey;
use berth_control_plane::app::ControlPlane;
use tokio::time::Instant;

use super::preflight::{Ground, private_directory};
use super::{CLUSTER, DevError, secrets};
use crate::arguments::DevArgs;
use crate::endpoint::{DEFAULT_REGION, Keys};

/// Beyond the stop timeouts of the tasks themselves.
const STOP_ALL_TIMEOUT: Duration = Duration::from_secs(60);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn start_control_plane(
    args: &DevArgs,
    ground: &Ground,
    keys: &Keys,
) -> Result<ControlPlane, DevError> {
    let keys = vec![ApiKey {
        access_key_id: keys.access_key_id.clone(),
        secret: keys.secret_access_key.clone(),
    }];
    let mut config = berth_control_plane::config::Config::new(ground.paths.control_plane(), keys);
    config.api_listen = args.listen;
    config.node_listen = args.node_listen;
    config.region = DEFAULT_REGION.into();
    ControlPlane::start(config)
        .await
        .map_err(|source| DevError::ControlPlane {
            source: source.into(),
        })
}

/// Makes the node's identity anew at each start, so that it never expires.
pub async fn start_agent(
    args: &DevArgs,
    ground: &Ground,
    control_plane: &ControlPlane,
    containerd: &Path,
) -> Result<Agent, DevError> {
    let paths = &ground.paths;
    private_directory(&paths.node())?;
    let mut node_id = secrets::node_id(&paths.node_id())?;
    let revocation = berth_control_plane::model::keys::revocation(&node_id);
    let revoked = control_plane.store().get(&revocation).await;
    if revoked
        .map_err(|source| DevError::ControlPlane {
            source: source.into(),
        })?
        .is_some()
    {
        // Deregistered, and its tasks stopped: the host begins anew, as another node.
        node_id = secrets::renew_node_id(&paths.node_id())?;
    }
    control_plane
        .authority()
        .issue_node(&node_id, CLUSTER)
        .and_then(|identity| identity.write_to(&paths.node()))
        .map_err(|source| DevError::Certificate {
            source: source.into(),
        })?;
    let config = agent_config(args, ground, control_plane.node_addr(), &node_id, containerd)?;
    Agent::start(config).await.map_err(|source| DevError::Agent {
        source: source.into(),
    })
}

/// From TOML, as the agent reads it everywhere else: what is not named here has its documented default.
fn agent_config(
    args: &DevArgs,
    ground: &Ground,
    control_plane: SocketAddr,
    node_id: &str,
    containerd: &Path,
) -> Result<berth_agent::config::Config, DevError> {
    let paths = &ground.paths;
    let mut settings = toml::Table::new();
    let mut set = |key: &str, value: toml::Value| settings.insert(key.into(), value);
    let text = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
    set("instance", args.instance.as_str().into());
    set("state_dir", text(&paths.agent()));
    set("run_dir", text(&paths.run_dir()));
    set("containerd_address", text(containerd));
    set("control_plane", format!("https://{control_plane}").into());
    set("node_id", node_id.into());
    set("certificate", text(&paths.node().join("node.pem")));
    set("key", text(&paths.node().join("node.key")));
    set("authority", text(&paths.node().join("authority.pem")));
    set("logger", text(&ground.logger));
    set("task_cidr", ground.task_cidr.to_string().into());
    if let Some(directory) = &args.images {
        set(
            "images_dir",
            text(&std::path::absolute(directory).map_err(DevError::path(directory))?),
        );
    }
    let mut registries = toml::Table::new();
    registries.insert("plain_http_hosts".into(), args.plain_http.clone().into());
    set("registries", registries.into());
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| DevError::Agent { source };
    let config: berth_agent::config::Config =
        settings.try_into().map_err(|error| refused(Box::new(error)))?;
    config.check().map_err(|error| refused(error.into()))?;
    Ok(config)
}

/// Stops what the API could not, and removes everything the agent made on this host.
pub async fn stop_all(agent: &mut Agent, reason: &str) -> Result<(), DevError> {
    let failed = |source: anyhow::Error| DevError::StopAll {
        source: source.into(),
    };
    agent.stop_all(reason, STOP_ALL_TIMEOUT).await.map_err(failed)?;
    agent.remove_traces().await.map_err(failed)
}

/// Waits until a part of the agent fails; returns why. Cancel-safe.
pub async fn failed(agent: &mut Agent) -> DevError {
    DevError::AgentFailed {
        source: agent.failed().await.into(),
    }
}

/// Ends both; tasks are left as they are. The agent first, so that its last reports are taken.
pub async fn shut_down(agent: Agent, control_plane: ControlPlane) {
    agent.shutdown(SHUTDOWN_TIMEOUT).await;
    control_plane.shutdown(Instant::now() + SHUTDOWN_TIMEOUT).await;
}
