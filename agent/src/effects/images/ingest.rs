//! Owns writing one blob into containerd's content store. Never holds more of it than a few messages, and never
//! decides where the bytes come from.

use std::{future::Future, pin::pin};

use bytes::Bytes;
use containerd_client::services::v1::{WriteAction, WriteContentRequest, content_client::ContentClient};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{containerd::MESSAGE_BYTES, digest::Digest, error::Cause, workspace::Workspace};

/// Messages between the source and containerd: back pressure reaches the network quickly.
const QUEUED: usize = 2;

/// What is about to be written.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    /// containerd checks the content against it, if it is known beforehand.
    pub digest: Option<&'a Digest>,
    pub size: u64,
    /// Part of the write's name; unique in its workspace.
    pub name: &'a str,
}

impl Workspace {
    /// Writes a blob and has containerd check its digest and size. A blob that is already there is a success.
    pub async fn ingest(
        &self,
        blob: Incoming<'_>,
        chunks: impl Stream<Item = Result<Bytes, Cause>>,
    ) -> Result<(), Cause> {
        let (to_containerd, messages) = mpsc::channel(QUEUED);
        // containerd sends its headers only with its first answer: feeding must not wait for the call to return.
        let mut feeding = pin!(feed(self.name(blob.name), &blob, chunks, to_containerd));
        let mut writing = pin!(self.write(messages));
        let written = tokio::select! {
            biased;
            // An early answer is a refusal, or "already here"; the source is then dropped.
            written = &mut writing => written,
            // A source that fails ends the write by dropping it; close() aborts what containerd has of it.
            fed = &mut feeding => { fed?; writing.await }
        };
        match written {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(explain(&blob, status)),
            Ok(true) => Ok(()),
            Ok(false) => Err(Cause::LostWrite(blob.name.to_owned())),
        }
    }

    /// Writes a small document.
    pub async fn ingest_bytes(&self, digest: &Digest, bytes: Bytes) -> Result<(), Cause> {
        let incoming = Incoming {
            digest: Some(digest),
            size: bytes.len() as u64,
            name: digest.as_str(),
        };
        self.ingest(incoming, futures_util::stream::iter([Ok(bytes)]))
            .await?;
        self.hold_blob(digest).await
    }

    /// True once committed.
    fn write(
        &self,
        messages: mpsc::Receiver<WriteContentRequest>,
    ) -> impl Future<Output = Result<bool, Status>> {
        let request = self.stream(ReceiverStream::new(messages));
        let mut client = ContentClient::new(self.containerd.channel());
        async move {
            let mut answers = client.write(request).await?.into_inner();
            let mut committed = false;
            while let Some(answer) = answers.message().await? {
                committed |= answer.action == WriteAction::Commit as i32;
            }
            Ok(committed)
        }
    }
}

async fn feed(
    name: String,
    blob: &Incoming<'_>,
    chunks: impl Stream<Item = Result<Bytes, Cause>>,
    to_containerd: mpsc::Sender<WriteContentRequest>,
) -> Result<(), Cause> {
    let mut offset: i64 = 0;
    let total = blob.size.min(i64::MAX as u64) as i64;
    let expected = blob.digest.map(Digest::to_string).unwrap_or_default();
    let message = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
        action: action as i32,
        r#ref: name.clone(),
        total,
        expected: expected.clone(),
        offset,
        data,
        labels: Default::default(),
    };
    // The first message opens the write: containerd says at once if the blob is already there.
    if to_containerd
        .send(message(WriteAction::Stat, 0, vec![]))
        .await
        .is_err()
    {
        return Ok(());
    }
    let mut chunks = pin!(chunks);
    while let Some(chunk) = chunks.next().await {
        let mut chunk = chunk?;
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(MESSAGE_BYTES));
            let length = part.len() as i64;
            // A closed channel means that containerd answered: its answer says why.
            if to_containerd
                .send(message(WriteAction::Write, offset, part.into()))
                .await
                .is_err()
            {
                return Ok(());
            }
            offset += length;
        }
    }
    let _ = to_containerd
        .send(message(WriteAction::Commit, offset, vec![]))
        .await;
    Ok(())
}

/// containerd names what it got in the message only.
fn explain(blob: &Incoming<'_>, status: Status) -> Cause {
    let got = |before: &str| {
        let (_, rest) = status.message().split_once(before)?;
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    if let (Some(actual), Some(expected)) = (got("unexpected commit digest "), blob.digest) {
        return Cause::DigestMismatch {
            what: "blob",
            expected: expected.clone(),
            actual,
        };
    }
    if let (Some(actual), Some(digest)) = (got("unexpected commit size "), blob.digest) {
        let detail = format!("got {actual}");
        return Cause::SizeMismatch {
            digest: digest.clone(),
            expected: blob.size,
            detail,
        };
    }
    Cause::containerd("write", blob.digest.map_or(blob.name, Digest::as_str), status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_digest_names_both() {
        let expected = Digest::of(b"right");
        let blob = Incoming {
            digest: Some(&expected),
            size: 5,
            name: "x",
        };
        let status = Status::failed_precondition(format!(
            "unexpected commit digest {}, expected {expected}: failed precondition",
            Digest::of(b"wrong")
        ));
        let text = explain(&blob, status).to_string();
        assert!(
            text.contains(expected.as_str()) && text.contains(Digest::of(b"wrong").as_str()),
            "{text}"
        );
    }
}
