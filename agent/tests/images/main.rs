//! Images against a real containerd: pulled from a real registry and from one that misbehaves, shared, cancelled,
//! and imported from archives. Needs root, containerd, docker-registry and busybox-static.

// Helpers of tests are tests: a panic is how they fail.
#![allow(clippy::unwrap_used)]

mod archives;
mod containerd;
mod distribution;
mod faults;
mod image;
mod pulls;
mod registry;
mod sharing;

use std::time::Duration;

use berth_agent::effects::images::{ImageError, Images, ImagesConfig, Limits, RegistryCredential};
use berth_agent_core::image::ResolvedImage;
use tokio_util::sync::CancellationToken;

use crate::containerd::Containerd;

/// Impatient limits: a test of a silence does not take half a minute.
pub fn config() -> ImagesConfig {
    ImagesConfig {
        containerd_namespace: "test".into(),
        instance: "test".into(),
        resolve_ttl: Duration::ZERO,
        limits: Limits {
            attempts: 3,
            backoff: Duration::from_millis(20),
            backoff_max: Duration::from_millis(100),
            stall: Duration::from_millis(700),
            ..Limits::default()
        },
        ..ImagesConfig::default()
    }
}

pub fn images(containerd: &Containerd, config: ImagesConfig) -> Images {
    Images::new(containerd.channel.clone(), config).unwrap()
}

pub fn credential(registry: &registry::Registry, password: &str) -> RegistryCredential {
    RegistryCredential {
        host: registry.address.to_string(),
        username: registry::USER.into(),
        password: password.into(),
    }
}

pub async fn ensure(images: &Images, reference: &str) -> Result<ResolvedImage, ImageError> {
    let ensured = images.ensure(reference, CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(60), ensured)
        .await
        .expect("ensure answers in time")
}

/// The error's line, as a user would see it.
pub async fn refused(images: &Images, reference: &str) -> (String, bool) {
    let error = ensure(images, reference)
        .await
        .expect_err("this image cannot be had");
    assert_eq!(error.kind(), "CannotPullContainerError");
    (error.reason(), error.retryable())
}
