//! Owns talking to a control plane: signed requests in the ECS JSON protocol, and what of the answers is shown.
//! Never prints.

mod client;
mod queries;
mod shapes;

pub use client::{Client, ClientError};
pub use queries::{
    Found, describe_nodes, describe_task, describe_tasks, find_node, find_task, list_nodes, list_pages,
    list_pages_until, list_tasks,
};
pub use shapes::{ContainerInstance, JoinToken, Task};
