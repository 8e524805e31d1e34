//! Owns the decisions of the control plane: which definitions are accepted, what a task is made of, where it
//! runs. PURE: no tokio, files, clock or randomness; the same inputs give the same outputs.
//!
//! | module | decides |
//! |---|---|
//! | [`arn`] | what a name, id or ARN in a request means here |
//! | [`definition`] | whether a task definition is accepted, and how AWS would echo it |
//! | [`tags`] | whether tags are accepted |
//! | [`task`] | what a task of a definition is made of, and what it needs of a node |
//! | [`expression`] | whether a node satisfies an expression of the cluster query language |
//! | [`placement`] | which node takes a task, and why the others do not |
//! | [`subnets`] | what a subnet may be, and which part of it a node gets |
//!
//! The way of a task through here: [`definition::register`] → stored → [`task::Definition::from_echo`] →
//! [`task::Definition::requirements`] → [`placement::place`] → [`task::resolve`].

pub mod arn;
pub mod definition;
pub mod expression;
pub mod placement;
mod problems;
pub mod subnets;
pub mod tags;
pub mod task;
