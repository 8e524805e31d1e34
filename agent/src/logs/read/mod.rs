//! Owns reading logs: all that is kept, the last lines, and following. Never holds more than a few batches, and never
//! drops a line it cannot read without saying so.
//!
//! New output is found by looking every [`POLL`]: a watch would cost a descriptor and a wake-up for each write of the
//! container, and people do not see the difference.

mod container;
mod file;
mod files;
mod merge;
mod record;
mod tail;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use berth_agent_core::ids::ContainerId;
use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use super::location::UnsafeName;
use merge::Reader;
pub use record::LogStream;

/// New lines are seen this late at most.
pub const POLL: Duration = Duration::from_millis(200);
/// A batch is sent when it has this many lines, or bytes.
pub const BATCH_LINES_MAX: usize = 512;
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Batches that wait for the receiver.
const BATCHES_WAITING: usize = 2;

/// What a reader is to give.
#[derive(Clone)]
pub struct LogQuery {
    /// See [`super::task_dir`].
    pub task_dir: PathBuf,
    /// Names and ids.
    pub containers: Vec<(String, ContainerId)>,
    /// Only the last so many lines of each container. Zero: all that is kept. A line that the logger had to split
    /// counts once.
    pub tail: u32,
    /// Only lines written at or after this time, Unix milliseconds.
    pub since_ms: i64,
    /// Go on with new lines until every container is gone.
    pub follow: bool,
    /// The container may still write: it has not been removed from the runtime (which waits for its logger to finish).
    /// Called every [`POLL`], on a thread that may block.
    pub alive: Arc<dyn Fn(&ContainerId) -> bool + Send + Sync>,
}

impl fmt::Debug for LogQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogQuery")
            .field("task_dir", &self.task_dir)
            .field("containers", &self.containers)
            .field("tail", &self.tail)
            .field("since_ms", &self.since_ms)
            .field("follow", &self.follow)
            .finish_non_exhaustive()
    }
}

/// One line, or one piece of a line longer than 16 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The container's name.
    pub container: String,
    pub stream: LogStream,
    /// Unix milliseconds.
    pub time_ms: i64,
    /// With its line end, unless it is a piece that others follow. Bytes that were not UTF-8 are U+FFFD.
    pub data: Vec<u8>,
}

/// What could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogReadError {
    #[error("read logs of a container")]
    Name {
        #[from]
        source: UnsafeName,
    },
    #[error("read log {path} of container {container}")]
    Read {
        container: String,
        path: PathBuf,
        source: io::Error,
    },
    /// The stream goes on behind it.
    #[error("{bytes} unreadable bytes at {offset} in log {path} of container {container}")]
    Corrupt {
        container: String,
        path: PathBuf,
        offset: u64,
        bytes: u64,
    },
    /// The stream goes on with the oldest line that is kept.
    #[error("lines of container {container} may have been rotated away before they were read")]
    Skipped { container: String },
}

impl LogReadError {
    /// Nothing follows this error.
    pub fn ends_stream(&self) -> bool {
        match self {
            Self::Name { .. } | Self::Read { .. } => true,
            Self::Corrupt { .. } | Self::Skipped { .. } => false,
        }
    }
}

/// Lines in order, or what is wrong at this place.
pub type Batch = Result<Vec<Line>, LogReadError>;

/// Reads logs. What is there already comes merged by time over all containers; after that, `follow` gives what each
/// container writes in its own order. The channel closes at the end. Dropping the receiver ends the reader within one
/// batch.
///
/// Must be called in a tokio runtime: file access runs on its blocking threads, for one batch at a time.
pub fn stream(query: LogQuery) -> mpsc::Receiver<Batch> {
    let (lines, receiver) = mpsc::channel(BATCHES_WAITING);
    // Owned by its receiver: it ends when that is dropped.
    tokio::spawn(pump(query, lines));
    receiver
}

async fn pump(query: LogQuery, lines: mpsc::Sender<Batch>) {
    let mut reader = Reader::new(query);
    loop {
        // Room first: what is read is never older than the receiver makes it.
        let Ok(permit) = lines.reserve().await else { return };
        let Ok((next, back)) = spawn_blocking(move || (reader.next(), reader)).await else {
            // The runtime is going down.
            return;
        };
        reader = back;
        match next {
            Next::Batch(batch) => permit.send(batch),
            Next::End => return,
            Next::Wait => {
                drop(permit);
                tokio::select! {
                    () = lines.closed() => return,
                    () = sleep(POLL) => {}
                }
            }
        }
    }
}

/// What a reader came to.
#[derive(Debug)]
enum Next {
    Batch(Batch),
    /// Nothing now, but there may be later.
    Wait,
    End,
}
