//! The pure core of Berth's node agent: task state, admission, effects. Owns every decision; never touches the
//! host, a clock, a random number or an async runtime.

pub mod desired;
pub mod effect;
pub mod event;
pub mod ids;
pub mod image;
pub mod oci;
