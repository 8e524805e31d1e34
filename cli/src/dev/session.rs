//! Owns a running `berth dev` from its first process to its last trace.

use berth_agent::app::Agent;
use berth_control_plane::app::ControlPlane;
use reqwest::Url;
use serde_json::json;

use super::containerd::Containerd;
use super::environment::DevEnvironment;
use super::preflight::{Ground, private_directory};
use super::{CLUSTER, DevError, compose, leftovers, secrets, tasks};
use crate::api::Client;
use crate::arguments::DevArgs;
use crate::endpoint::{DEFAULT_REGION, Endpoint};
use crate::error::Chain;

const REASON: &str = "berth dev ended";

#[derive(Debug)]
pub struct Session {
    pub ground: Ground,
    pub environment: DevEnvironment,
    /// None with --containerd.
    containerd: Option<Containerd>,
    agent: Agent,
    control_plane: ControlPlane,
    client: Client,
}

impl Session {
    /// Starts everything and waits until the node takes tasks. What was started before a failure is ended again.
    pub async fn start(args: &DevArgs, ground: Ground) -> Result<Self, DevError> {
        let mut containerd = match args.containerd {
            Some(_) => None,
            None => Some(Containerd::start(&ground.paths).await?),
        };
        match Self::start_on(args, &ground, containerd.as_ref()).await {
            Ok((environment, agent, control_plane, client)) => Ok(Self {
                ground,
                environment,
                containerd,
                agent,
                control_plane,
                client,
            }),
            Err(error) => {
                // One that a predecessor left has that one's tasks.
                if let Some(containerd) = containerd.as_mut().filter(|containerd| containerd.is_fresh()) {
                    containerd.stop().await;
                }
                Err(error)
            }
        }
    }

    async fn start_on(
        args: &DevArgs,
        ground: &Ground,
        containerd: Option<&Containerd>,
    ) -> Result<(DevEnvironment, Agent, ControlPlane, Client), DevError> {
        let paths = &ground.paths;
        private_directory(&paths.run_dir())?;
        let keys = secrets::keys(&paths.keys())?;
        let control_plane = compose::start_control_plane(args, ground, &keys).await?;
        let environment = DevEnvironment {
            endpoint_url: format!("http://{}", control_plane.api_addr()),
            region: DEFAULT_REGION.into(),
            keys,
            ca_file: None,
        };
        let client = Client::new(endpoint(&environment)?)?;
        client
            .ecs("CreateCluster", &json!({"clusterName": CLUSTER}))
            .await?;
        let socket = match (containerd, &args.containerd) {
            (Some(own), _) => own.socket(),
            (None, Some(given)) => given.clone(),
            (None, None) => paths.containerd_socket(),
        };
        let agent = compose::start_agent(args, ground, &control_plane, &socket).await?;
        tasks::wait_for_node(&client).await?;
        secrets::write_private(&paths.dev_env(), &environment.render())?;
        Ok((environment, agent, control_plane, client))
    }

    /// Starts a containerd that died again.
    pub async fn supervise(&mut self) -> Result<(), DevError> {
        match &mut self.containerd {
            Some(containerd) => containerd.supervise().await,
            None => Ok(()),
        }
    }

    /// Waits until the agent fails, which it does not by itself; returns why. Cancel-safe.
    pub async fn agent_failed(&mut self) -> DevError {
        compose::failed(&mut self.agent).await
    }

    /// Ends everything; returns what it could not remove from this host.
    pub async fn end(mut self, args: &DevArgs) -> Result<Vec<String>, DevError> {
        let paths = self.ground.paths.clone();
        // Nobody shall talk to an address where nobody is.
        let _ = std::fs::remove_file(paths.dev_env());
        if args.keep_tasks {
            compose::shut_down(self.agent, self.control_plane).await;
            return Ok(Vec::new());
        }
        // Through the API first, so that every task's record says why it stopped.
        if let Err(error) = tasks::stop_all(&self.client, REASON).await {
            eprintln!(
                "berth: stopping tasks through the API: {}: the agent stops them",
                Chain(&error)
            );
        }
        if let Err(error) = compose::stop_all(&mut self.agent, REASON).await {
            eprintln!("berth: {}", Chain(&error));
        }
        compose::shut_down(self.agent, self.control_plane).await;
        let private = self.containerd.is_some();
        if let Some(mut containerd) = self.containerd {
            containerd.stop().await;
        }
        if private {
            leftovers::unmount(&paths.state_dir);
        }
        let left = leftovers::find(&paths.state_dir, &args.instance);
        if left.is_empty() {
            let _ = std::fs::remove_dir_all(paths.run_dir());
            if args.purge {
                std::fs::remove_dir_all(&paths.state_dir).map_err(DevError::path(&paths.state_dir))?;
            }
        }
        Ok(left)
    }
}

fn endpoint(environment: &DevEnvironment) -> Result<Endpoint, DevError> {
    let url: Url = environment
        .endpoint_url
        .parse()
        .map_err(|error: <Url as std::str::FromStr>::Err| DevError::ControlPlane { source: error.into() })?;
    Ok(Endpoint {
        url,
        region: environment.region.clone(),
        keys: environment.keys.clone(),
        ca_file: None,
    })
}
