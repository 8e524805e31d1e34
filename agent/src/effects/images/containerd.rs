//! Owns the calls to containerd that concern images: leases, content, image records. Never talks to a registry.

use std::{collections::HashMap, time::Duration};

use bytes::{Bytes, BytesMut};
use containerd_client::{
    services::v1::{
        AbortRequest, CreateImageRequest, GetImageRequest, Image, InfoRequest, ListImagesRequest,
        ListStatusesRequest, ReadContentRequest, UpdateImageRequest, UpdateRequest,
        content_client::ContentClient, images_client::ImagesClient,
    },
    types,
};
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue, transport::Channel};

use super::{config::ImagesConfig, digest::Digest, document::Descriptor, error::Cause};

/// Longest unary call. Commits wait for the disk, so this is long.
const CALL: Duration = Duration::from_secs(60);
/// containerd takes messages up to 16 MiB and answers up to 4 MiB.
pub(super) const MESSAGE_BYTES: usize = 1 << 20;

/// Label on what an agent made: its instance name.
pub(super) const LABEL_INSTANCE: &str = "berth.run/instance";
/// Label on an image record: the digest its tag had at the registry (of the index, if there is one).
pub(super) const LABEL_RESOLVED: &str = "berth.run/resolved";
/// Label on an image record that came from an archive: which archive, its size and time.
pub(super) const LABEL_IMPORTED: &str = "berth.run/imported";
/// Label beside it: how many records that archive gave.
pub(super) const LABEL_IMPORTED_NAMES: &str = "berth.run/imported-names";

/// One containerd namespace, as the images effect uses it.
#[derive(Clone, Debug)]
pub(super) struct Containerd {
    channel: Channel,
    namespace: AsciiMetadataValue,
    pub snapshotter: String,
    pub instance: String,
}

impl Containerd {
    pub fn new(channel: Channel, config: &ImagesConfig) -> Result<Self, Cause> {
        let is_name = |name: &str| {
            (1..=63).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        for (what, name) in [
            ("containerd_namespace", &config.containerd_namespace),
            ("instance", &config.instance),
            ("snapshotter", &config.snapshotter),
        ] {
            if !is_name(name) {
                return Err(Cause::Config(format!(
                    "{what} {name:?} is not 1-63 characters of [A-Za-z0-9._-]"
                )));
            }
        }
        let namespace = config.containerd_namespace.parse();
        Ok(Self {
            channel,
            namespace: namespace
                .map_err(|_| Cause::Config("containerd_namespace is not ASCII".to_owned()))?,
            snapshotter: config.snapshotter.clone(),
            instance: config.instance.clone(),
        })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request in this namespace, with a deadline.
    pub fn call<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(CALL);
        request
    }

    /// A request in this namespace without a deadline: its caller has one.
    pub fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// The size of a blob, if it is here.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Cause> {
        let request = self.call(InfoRequest {
            digest: digest.to_string(),
        });
        match ContentClient::new(self.channel()).info(request).await {
            Ok(answer) => Ok(answer.into_inner().info.map(|info| info.size.max(0) as u64)),
            Err(status) => {
                absent(status).map_err(|status| Cause::containerd("stat content", digest.as_str(), status))
            }
        }
    }

    /// A small blob, if it is here.
    pub async fn read_blob(
        &self,
        digest: &Digest,
        what: &'static str,
        limit: u64,
    ) -> Result<Option<Bytes>, Cause> {
        let failed = |status| Cause::containerd("read content", digest.as_str(), status);
        let request = self.call(ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        });
        let mut answers = match ContentClient::new(self.channel()).read(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return absent(status).map_err(failed),
        };
        let mut body = BytesMut::new();
        loop {
            match answers.message().await {
                Ok(Some(part)) if (body.len() + part.data.len()) as u64 > limit => {
                    return Err(Cause::TooLarge { what, limit });
                }
                Ok(Some(part)) => body.extend_from_slice(&part.data),
                Ok(None) => return Ok(Some(body.freeze())),
                Err(status) => return absent(status).map_err(failed),
            }
        }
    }

    /// Sets labels on a blob; others stay.
    pub async fn label_blob(&self, digest: &Digest, labels: HashMap<String, String>) -> Result<(), Cause> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = containerd_client::services::v1::Info {
            digest: digest.to_string(),
            labels,
            ..Default::default()
        };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = self.call(UpdateRequest {
            info: Some(info),
            update_mask,
        });
        let answer = ContentClient::new(self.channel()).update(request).await;
        answer
            .map(drop)
            .map_err(|status| Cause::containerd("label content", digest.as_str(), status))
    }

    /// References of unfinished writes that start with `prefix`.
    pub async fn ingests(&self, prefix: &str) -> Result<Vec<String>, Cause> {
        let request = self.call(ListStatusesRequest { filters: vec![] });
        let answer = ContentClient::new(self.channel()).list_statuses(request).await;
        let answer = answer.map_err(|status| Cause::containerd("list writes", prefix, status))?;
        let names = answer
            .into_inner()
            .statuses
            .into_iter()
            .map(|status| status.r#ref);
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    /// Gives up an unfinished write.
    pub async fn abort(&self, ingest: &str) -> Result<(), Cause> {
        let request = self.call(AbortRequest {
            r#ref: ingest.to_owned(),
        });
        match ContentClient::new(self.channel()).abort(request).await {
            Ok(_) => Ok(()),
            Err(status) => gone(status).map_err(|status| Cause::containerd("abort write", ingest, status)),
        }
    }

    pub async fn image(&self, name: &str) -> Result<Option<Image>, Cause> {
        let request = self.call(GetImageRequest {
            name: name.to_owned(),
        });
        match ImagesClient::new(self.channel()).get(request).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) => absent(status).map_err(|status| Cause::containerd("get image", name, status)),
        }
    }

    /// Images of this instance with this label; `filter` is in containerd's filter syntax, quoted by the caller.
    pub async fn images_where(&self, label: &str, value: &str) -> Result<Vec<Image>, Cause> {
        let filter = format!("labels.{label:?}=={value:?}");
        let request = self.call(ListImagesRequest {
            filters: vec![filter],
        });
        let answer = ImagesClient::new(self.channel()).list(request).await;
        let answer = answer.map_err(|status| Cause::containerd("list images with", label, status))?;
        Ok(answer.into_inner().images)
    }

    /// Makes or replaces an image record. From then on it keeps its content and snapshots from being collected.
    pub async fn put_image(
        &self,
        name: &str,
        target: types::Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(), Cause> {
        let image = Image {
            name: name.to_owned(),
            labels,
            target: Some(target),
            ..Default::default()
        };
        let mut client = ImagesClient::new(self.channel());
        let create = CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: None,
        };
        match client.create(self.call(create)).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => {
                return other
                    .map(drop)
                    .map_err(|status| Cause::containerd("create image", name, status));
            }
        }
        let update = UpdateImageRequest {
            image: Some(image),
            update_mask: None,
            source_date_epoch: None,
        };
        let updated = client.update(self.call(update)).await;
        updated
            .map(drop)
            .map_err(|status| Cause::containerd("update image", name, status))
    }
}

/// `NotFound` is an answer, too.
fn absent<T>(status: Status) -> Result<Option<T>, Status> {
    if status.code() == Code::NotFound {
        Ok(None)
    } else {
        Err(status)
    }
}

/// What is to be removed may be gone already.
pub(super) fn gone(status: Status) -> Result<(), Status> {
    if status.code() == Code::NotFound {
        Ok(())
    } else {
        Err(status)
    }
}

/// As containerd takes it.
pub(super) fn descriptor(descriptor: &Descriptor, media_type: &str) -> types::Descriptor {
    types::Descriptor {
        media_type: media_type.to_owned(),
        digest: descriptor.digest.to_string(),
        // Sizes are checked against limits far below i64::MAX.
        size: descriptor.size.min(i64::MAX as u64) as i64,
        annotations: HashMap::new(),
    }
}
