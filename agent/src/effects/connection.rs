//! Owns how a task is connected to the network, as its mode has it: made of calls to `network`. Never chooses an address or a
//! port.

use berth_agent_core::{
    addresses::Address,
    desired::{NetworkMode, Protocol},
    effect::PrepareHost,
    event::Failure,
    ids::{ContainerId, TaskId},
};
use futures_util::future::{join_all, try_join_all};

use super::{
    host::network_failure,
    network::{Network, NetworkError, Owner},
};

/// Why a task is not connected.
pub(super) enum Unconnected {
    /// Another host has its address. What was made is taken away again.
    AddressTaken(Failure),
    /// The network outside of which it is to be a host is not there.
    NetworkAwaited(Failure),
    Failed(Failure),
}

/// Makes namespaces, links and addresses of a task. Idempotent. Returns the hardware address of its interface, if it has one.
pub(super) async fn connect(network: &Network, prepare: &PrepareHost) -> Result<String, Unconnected> {
    let task = &prepare.task;
    let connected = match (prepare.network, prepare.address) {
        (NetworkMode::Awsvpc, Some(address)) => {
            let attached = match &prepare.lan {
                None => network.attach(task, address).await,
                Some(lan) => network.attach_to_lan(task, address.ipv4, lan).await,
            };
            attached.map(|attached| attached.mac)
        }
        (NetworkMode::Awsvpc, None) => {
            return Err(Unconnected::Failed(Failure {
                kind: "ResourceInitializationError".into(),
                message: "the task has no address".into(),
                retryable: false,
            }));
        }
        (NetworkMode::Bridge, _) => {
            let one = |(container, address): (&ContainerId, &Address)| {
                network.attach(Owner::container(task, container), *address)
            };
            try_join_all(prepare.addresses.iter().map(one))
                .await
                .map(|_| String::new())
        }
        (NetworkMode::None, _) => network.attach_isolated(task).await.map(|_| String::new()),
        (NetworkMode::Host, _) => Ok(String::new()),
    };
    let error = match connected {
        Ok(mac) => return Ok(mac),
        Err(error) => error,
    };
    let failure = network_failure(&error);
    match error {
        NetworkError::AddressTaken { .. } => match network.detach(task).await {
            Ok(()) => Err(Unconnected::AddressTaken(failure)),
            Err(error) => Err(Unconnected::Failed(network_failure(&error))),
        },
        error if prepare.lan.is_some() && error.is_of_uplink() => Err(Unconnected::NetworkAwaited(failure)),
        _ => Err(Unconnected::Failed(failure)),
    }
}

/// Why ports of the host do not lead to a task.
pub(super) enum Unpublished {
    /// Processes of the host have these.
    Taken(Vec<(Protocol, u16)>),
    Failed(Failure),
}

/// Leads ports of the host to a task that is connected. Idempotent.
pub(super) async fn publish(network: &Network, prepare: &PrepareHost) -> Result<(), Unpublished> {
    let task = &prepare.task;
    let owners: Vec<Owner> = match prepare.network {
        NetworkMode::Bridge => prepare
            .addresses
            .keys()
            .map(|container| Owner::container(task, container))
            .collect(),
        NetworkMode::Awsvpc | NetworkMode::None | NetworkMode::Host => vec![task.into()],
    };
    match network.publish(task, &owners, &prepare.published).await {
        Ok(()) => Ok(()),
        Err(NetworkError::PortsTaken { ports }) => Err(Unpublished::Taken(ports)),
        Err(error) => Err(Unpublished::Failed(network_failure(&error))),
    }
}

/// Takes away what a task has of the network, and what leads there. Idempotent.
pub(super) async fn disconnect(
    network: &Network,
    task: &TaskId,
    containers: &[ContainerId],
) -> Result<(), NetworkError> {
    network.withdraw(task).await?;
    if containers.is_empty() {
        return network.detach(task).await;
    }
    // All of them, whatever becomes of one.
    let one = |container| network.detach(Owner::container(task, container));
    let detached = join_all(containers.iter().map(one)).await;
    detached.into_iter().collect()
}
