//! Owns what a probe writes: a pipe in the run directory of its container's attempt, and as much of what comes through it
//! as is kept. All of it is read, or a probe that says much would hang; what a probe says without end is read slowly.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_agent_core::health::OUTPUT_BYTES_MAX;
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::net::unix::pipe::{OpenOptions, Receiver};

const CHUNK_BYTES: usize = 64 << 10;
/// From then on a pause follows each chunk.
const QUICK_BYTES_MAX: u64 = 4 << 20;
const PAUSE: Duration = Duration::from_millis(5);
/// Said where something was left out.
const CUT: &str = "…";

/// The pipe. It is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    pipe: Receiver,
    kept: Vec<u8>,
    read_bytes: u64,
    chunk: Vec<u8>,
}

impl Output {
    /// Replaces what an earlier agent left there.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        remove(&path)?;
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // With a writer of our own it has no end: when all has come, the runtime says.
        let pipe = OpenOptions::new().read_write(true).open_receiver(&path);
        match pipe {
            Ok(pipe) => Ok(Self {
                path,
                pipe,
                kept: Vec::new(),
                read_bytes: 0,
                chunk: vec![0; CHUNK_BYTES],
            }),
            Err(error) => {
                remove(&path)?;
                Err(error)
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads for as long as it is polled.
    pub(super) async fn read(&mut self) -> io::Result<Infallible> {
        loop {
            self.pipe.readable().await?;
            self.take_chunk()?;
            if self.read_bytes > QUICK_BYTES_MAX {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// False: there is nothing to read now.
    fn take_chunk(&mut self) -> io::Result<bool> {
        let read = match self.pipe.try_read(&mut self.chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            read => read?,
        };
        // One byte more than is kept says that there was more.
        let room = (OUTPUT_BYTES_MAX + 1).saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&self.chunk[..read.min(room)]);
        self.read_bytes += read as u64;
        Ok(read > 0)
    }

    /// What was written, after what is said of it.
    pub(super) fn finish(mut self, about: &str) -> String {
        // What the pipe can hold, and no more: somebody may write on.
        for _ in 0..2 {
            match self.take_chunk() {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
        let said = String::from_utf8_lossy(&self.kept);
        let text = match (about.is_empty(), said.is_empty()) {
            (true, _) => said.into_owned(),
            (false, true) => about.to_owned(),
            (false, false) => format!("{about}: {said}"),
        };
        bounded(text)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a probe's pipe is left; it goes with its container");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// At most [`OUTPUT_BYTES_MAX`] bytes.
pub(super) fn bounded(mut text: String) -> String {
    if text.len() > OUTPUT_BYTES_MAX {
        let mut end = OUTPUT_BYTES_MAX - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn output_is_kept_as_far_as_the_bound_and_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        fs::write(&path, "left").unwrap();
        let mut output = Output::open(path.clone()).unwrap();
        let to = path.clone();
        let writer = std::thread::spawn(move || {
            let mut pipe = fs::OpenOptions::new().write(true).open(to).unwrap();
            pipe.write_all(b"first \xff ").unwrap();
            pipe.write_all(&vec![b'x'; 1 << 20]).unwrap();
        });
        while !writer.is_finished() {
            let _ = tokio::time::timeout(Duration::from_millis(10), output.read()).await;
        }
        let said = output.finish("late");
        assert!(
            said.starts_with("late: first \u{fffd} xxx") && said.ends_with("xx…"),
            "{said}"
        );
        assert_eq!(said.len(), OUTPUT_BYTES_MAX);
        assert!(!path.exists());
    }

    #[test]
    fn a_character_is_never_cut() {
        let text = bounded("é".repeat(OUTPUT_BYTES_MAX));
        assert!(text.len() <= OUTPUT_BYTES_MAX && text.ends_with("é…"));
        let exact = "a".repeat(OUTPUT_BYTES_MAX);
        assert_eq!(bounded(exact.clone()), exact);
    }

    #[tokio::test]
    async fn what_is_said_of_it_stands_alone_where_nothing_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Output::open(directory.path().join("pipe")).unwrap();
        assert_eq!(open().finish("late"), "late");
        assert_eq!(open().finish(""), "");
    }
}
