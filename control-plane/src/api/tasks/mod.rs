//! Owns the operations on tasks. Never speaks to a node: what a node is to do is written to `/desired`, and the
//! link carries it there.

pub(super) mod counts;
pub(super) mod describe;
mod launch;
pub(super) mod protection;
mod request;
mod rules;
pub(super) mod run;
mod shape;
mod spec;
pub(super) mod stop;
mod volumes;
