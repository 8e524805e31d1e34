//! Owns what the parts of the host are made with, from the agent's settings.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    config::{Config, NamedRuntime},
    dns,
    effects::{
        images::{ImagesConfig, Limits, Platform, RegistryCredential},
        quotas::Quotas,
        runtime::{OciRuntime, RuntimeConfig, init_usable},
        volumes::Volumes,
    },
    sys::{self, Chain},
};

/// Starts at a time per core: more is no faster, and each waits longer.
const STARTS_PER_CORE: usize = 3;

pub(super) fn images_config(config: &Config) -> anyhow::Result<ImagesConfig> {
    let registries = &config.registries;
    let credential = |c: &crate::config::Credential| -> anyhow::Result<RegistryCredential> {
        let password = crate::config::read_secret(&c.password_file)?;
        Ok(RegistryCredential {
            host: c.host.clone(),
            username: c.username.clone(),
            password,
        })
    };
    Ok(ImagesConfig {
        containerd_namespace: config.instance.clone(),
        instance: config.instance.clone(),
        snapshotter: config.snapshotter.clone(),
        plain_http_hosts: registries.plain_http_hosts.clone(),
        credentials: registries
            .credentials
            .iter()
            .map(credential)
            .collect::<Result<_, _>>()?,
        extra_ca_pem: registries.extra_ca.clone(),
        archives_dir: config.images_dir.clone(),
        platform: Platform::detect(),
        resolve_ttl: std::time::Duration::from_secs(registries.resolve_ttl_s.into()),
        limits: Limits::default(),
    })
}

pub(super) fn runtime_config(
    config: &Config,
    logger: PathBuf,
    cgroup_version: u8,
    volumes: Volumes,
) -> RuntimeConfig {
    RuntimeConfig {
        instance: config.instance.clone(),
        containerd: config.containerd_address.clone(),
        namespace: config.instance.clone(),
        snapshotter: config.snapshotter.clone(),
        runtime: config.runtime.clone(),
        binary_name: config.runtime_binary.clone(),
        runtimes: runtimes(config),
        seccomp_dir: config.seccomp_dir.clone(),
        gpus: config.gpus.gpus(),
        quotas: Quotas::new(&config.state_dir),
        logger,
        init: None,
        logger_socket: config.logger_socket(),
        log_dir: config.log_dir(),
        run_dir: config.run_dir.clone(),
        name_server: config.dns.enabled.then_some(dns::ADDRESS),
        cgroup_parent: config.cgroup_parent(),
        cgroup_version,
        volumes,
        start_concurrency: config
            .start_concurrency
            .unwrap_or(usize::try_from(sys::cpu_count()).unwrap_or(1) * STARTS_PER_CORE),
    }
}

/// Without it the node takes no tasks that need it, and all others.
pub(super) fn init_program(config: &Config) -> Option<PathBuf> {
    let path = config.init_path().ok()?;
    match init_usable(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "this node takes no task that needs berth-init");
            None
        }
    }
}

/// Those that tasks may ask for.
fn runtimes(config: &Config) -> BTreeMap<String, OciRuntime> {
    let all = crate::config::runtimes::with_default(&config.runtimes).into_iter();
    all.map(|(name, NamedRuntime { kind, binary })| (name, OciRuntime { kind, binary }))
        .collect()
}
