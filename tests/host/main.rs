//! Real hosts: root, a private containerd, a real control plane and agent. Fails, never skips, without them.

#![allow(clippy::unwrap_used)]

mod ask;
mod bad_input;
mod between_nodes;
mod cycles;
mod dns;
mod endpoints;
mod environment_files;
mod ephemeral_storage;
mod fields;
mod gpus;
mod halt;
mod health;
mod identity;
mod init;
mod interfaces;
mod lan;
mod lifecycle;
mod limits;
mod linux_parameters;
mod logging;
mod lost_data;
mod namespaces;
mod ports;
mod purge;
mod reach;
mod reboot;
mod repair;
mod restart;
mod runtimes;
mod security;
mod service;
mod survival;
mod versions;
mod vlan;
mod volumes;
