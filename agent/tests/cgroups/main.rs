//! Tasks' cgroups and their figures on the host's real hierarchies, below a parent of the test's own. Needs root.

#![allow(clippy::unwrap_used)]

mod hog;
mod tree;
mod usage;
