//! Tasks' networks on real kernels: every test has network and mount namespaces of its own. Needs root, `ip`, `nft`,
//! `nsenter` and `unshare`.

#![allow(clippy::unwrap_used)]

mod host;
mod interfaces;
mod ipv6;
mod ipv6_host;
mod lan;
mod lifecycle;
mod others;
mod pool;
mod published;
mod ranges;
mod refusals;
mod repair;
mod traffic;
