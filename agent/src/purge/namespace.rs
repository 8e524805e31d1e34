//! Owns the end of an instance's namespace in containerd: images, unfinished downloads, leases, and with them layers
//! and snapshots. Never touches another namespace.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use containerd_client::services::v1::{
    AbortRequest, CreateRequest, DeleteImageRequest, DeleteNamespaceRequest, DeleteRequest,
    ListImagesRequest, ListRequest, ListStatusesRequest, content_client::ContentClient,
    images_client::ImagesClient, leases_client::LeasesClient, namespaces_client::NamespacesClient,
};
use tonic::{Code, Request, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

/// Of one call; a deletion waits for containerd's garbage collection.
const CALL: Duration = Duration::from_secs(60);
/// Until containerd has collected everything.
const EMPTY_DEADLINE: Duration = Duration::from_secs(60);
const EMPTY_POLL: Duration = Duration::from_millis(500);
/// Deleting a lease is what makes containerd collect; there may be no other.
const LAST_LEASE: &str = "berth-purge";

/// Removes all of it. What is not there is a success.
pub(super) async fn remove(channel: Channel, name: &str) -> anyhow::Result<()> {
    let of = Namespace {
        name: name.parse().context("the instance's name")?,
        channel,
    };
    of.abort_downloads().await?;
    of.delete_images().await?;
    of.delete_leases().await?;
    of.delete(name).await
}

struct Namespace {
    name: AsciiMetadataValue,
    channel: Channel,
}

impl Namespace {
    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.name.clone());
        request.set_timeout(CALL);
        request
    }

    async fn abort_downloads(&self) -> anyhow::Result<()> {
        let mut client = ContentClient::new(self.channel.clone());
        let listed = client
            .list_statuses(self.call(ListStatusesRequest::default()))
            .await;
        let listed = listed.context("list downloads")?.into_inner();
        for status in listed.statuses {
            let request = self.call(AbortRequest {
                r#ref: status.r#ref.clone(),
            });
            gone(client.abort(request).await).with_context(|| format!("abort download {}", status.r#ref))?;
        }
        Ok(())
    }

    async fn delete_images(&self) -> anyhow::Result<()> {
        let mut client = ImagesClient::new(self.channel.clone());
        let listed = client.list(self.call(ListImagesRequest::default())).await;
        for image in listed.context("list images")?.into_inner().images {
            let request = self.call(DeleteImageRequest {
                name: image.name.clone(),
                ..DeleteImageRequest::default()
            });
            gone(client.delete(request).await).with_context(|| format!("delete image {}", image.name))?;
        }
        Ok(())
    }

    async fn delete_leases(&self) -> anyhow::Result<()> {
        let mut client = LeasesClient::new(self.channel.clone());
        let last = self.call(CreateRequest {
            id: LAST_LEASE.into(),
            ..CreateRequest::default()
        });
        match client.create(last).await {
            Err(status) if status.code() != Code::AlreadyExists => {
                return Err(status).context("create lease");
            }
            _ => {}
        }
        let listed = client.list(self.call(ListRequest::default())).await;
        for lease in listed.context("list leases")?.into_inner().leases {
            let request = self.call(DeleteRequest {
                id: lease.id.clone(),
                sync: true,
            });
            gone(client.delete(request).await).with_context(|| format!("delete lease {}", lease.id))?;
        }
        Ok(())
    }

    /// containerd refuses while there is something in it.
    async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let began = Instant::now();
        loop {
            let request = self.call(DeleteNamespaceRequest { name: name.into() });
            match gone(client.delete(request).await) {
                Err(status)
                    if status.code() == Code::FailedPrecondition && began.elapsed() < EMPTY_DEADLINE =>
                {
                    tokio::time::sleep(EMPTY_POLL).await;
                }
                done => return done.with_context(|| format!("delete namespace {name}")),
            }
        }
    }
}

fn gone<T>(result: Result<Response<T>, Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}
