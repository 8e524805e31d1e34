//! Containers on a real containerd: private to each test, with its own root, state and socket. Needs root, containerd,
//! runc, ctr, ip and a static busybox; fails without them.

// Helpers of tests are tests too: clippy's own exception covers only functions marked as such.
#![allow(clippy::unwrap_used)]

#[path = "runtime/cgroups.rs"]
mod cgroups;
#[path = "runtime/failing.rs"]
mod failing;
#[path = "runtime/host.rs"]
mod host;
#[path = "runtime/image.rs"]
mod image;
#[path = "runtime/inside.rs"]
mod inside;
#[path = "runtime/latency.rs"]
mod latency;
#[path = "runtime/lifecycle.rs"]
mod lifecycle;
#[path = "runtime/observing.rs"]
mod observing;
#[path = "runtime/shims.rs"]
mod shims;
