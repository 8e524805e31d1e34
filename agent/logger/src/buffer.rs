//! Owns what waits for a disk that is slow or stuck, so that the container does not: a bounded queue, and the thread
//! that writes it. Never holds more than its limit, but for one batch: what does not fit is dropped and counted.
//!
//! While the disk keeps up nothing waits here: a batch is written before its bytes leave the container's pipe, and
//! SIGKILL loses nothing. Only when a write takes longer than [`PATIENCE`] are bytes in this process's memory alone.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::writer::{Writer, lines};

/// How long the container may be kept waiting by a write, and once more by a buffer that is full: until then it is an
/// ordinary delay. After that nobody waits until the disk has moved.
const PATIENCE: Duration = Duration::from_millis(500);
/// The writer needs little of it.
const STACK_BYTES: usize = 128 * 1024;
/// Why lines are dropped that found no room.
const FULL: &str = "the disk is slower than the output, and the buffer was full";

/// The writer behind its buffer.
#[derive(Debug)]
pub struct Buffer {
    shared: Arc<Shared>,
    thread: JoinHandle<Writer>,
    bytes_max: usize,
    /// A write took too long, and not all is written since.
    late: bool,
    /// How many batches were written when there was no room in time: nobody waits for room before it is more.
    stuck_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something was put in or taken out.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Batch>,
    /// Of all batches that are not written yet, the one that is being written among them.
    bytes: usize,
    /// Batches written so far.
    written: u64,
    /// The writer is at work.
    busy: bool,
    /// Records dropped behind the last batch.
    dropped: u64,
    /// Dropped for want of room, and the agent was not told yet.
    untold: u64,
    /// The log does not tell yet of all that were dropped.
    owes_report: bool,
    report_wanted: bool,
    /// A buffer to fill again.
    spare: Vec<u8>,
    closed: bool,
}

#[derive(Debug)]
struct Batch {
    /// Records dropped before these.
    dropped_before: u64,
    records: Vec<u8>,
}

impl Buffer {
    /// Starts the writer, which opens the log; waits for that no longer than for a write.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(writer: Writer, bytes_max: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().busy = true;
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || theirs.serve(writer))?;
        let late = shared.wait(shared.lock(), |state| state.busy).is_behind();
        Ok(Self {
            shared,
            thread,
            bytes_max,
            late,
            stuck_at: None,
        })
    }

    /// Takes whole records and leaves an empty buffer. They are then written, or kept here, or counted.
    pub fn put(&mut self, records: &mut Vec<u8>) {
        let mut state = self.shared.lock();
        if self.late && state.is_behind() {
            if state.bytes + records.len() > self.bytes_max && self.stuck_at != Some(state.written) {
                let (max, more) = (self.bytes_max, records.len());
                state = self.shared.wait(state, |s| s.bytes > 0 && s.bytes + more > max);
                if state.bytes > 0 && state.bytes + more > max {
                    self.stuck_at = Some(state.written);
                }
            }
            let room = self.bytes_max.saturating_sub(state.bytes);
            let kept = whole_within(records, room);
            // A copy, so that it is as large as what is in it.
            state.push(records[..kept].to_vec());
            state.drop_lines(lines(&records[kept..]));
            self.shared.changed.notify_all();
            records.clear();
            return;
        }
        state.push(mem::take(records));
        self.shared.changed.notify_all();
        let mut state = self.shared.wait(state, State::is_behind);
        self.late = state.is_behind();
        *records = mem::take(&mut state.spare);
    }

    /// The log does not tell yet of all that were dropped.
    pub fn owes_report(&self) -> bool {
        self.shared.lock().owes_report
    }

    /// Has the count of dropped records written, as soon as the writer can.
    pub fn want_report(&self) {
        self.shared.lock().report_wanted = true;
        self.shared.changed.notify_all();
    }

    /// How many records were dropped since this was asked.
    pub fn take_untold(&self) -> u64 {
        mem::take(&mut self.shared.lock().untold)
    }

    /// Waits until all is written, however long that takes. None: the writer is gone.
    pub fn finish(self) -> Option<Writer> {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        self.thread.join().ok()
    }
}

impl State {
    /// Something is not written yet.
    fn is_behind(&self) -> bool {
        self.busy || !self.queue.is_empty()
    }

    fn push(&mut self, records: Vec<u8>) {
        if !records.is_empty() {
            self.bytes += records.len();
            let dropped_before = mem::take(&mut self.dropped);
            self.queue.push_back(Batch {
                dropped_before,
                records,
            });
        }
    }

    fn drop_lines(&mut self, lines: u64) {
        self.dropped += lines;
        self.untold += lines;
        self.owes_report |= lines > 0;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as `waits` says so and patience lasts.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        mut waits: impl FnMut(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| waits(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The writer's thread: until it is closed and all is written.
    fn serve(&self, mut writer: Writer) -> Writer {
        writer.open();
        let mut state = self.lock();
        state.busy = false;
        self.changed.notify_all();
        loop {
            if let Some(mut batch) = state.queue.pop_front() {
                state.busy = true;
                drop(state);
                let bytes = batch.records.len();
                writer.note_dropped(batch.dropped_before, FULL);
                writer.write(&batch.records);
                batch.records.clear();
                state = self.lock();
                state.bytes -= bytes;
                state.written += 1;
                if state.spare.capacity() == 0 {
                    state.spare = batch.records;
                }
            } else if state.dropped > 0 || state.report_wanted {
                state.busy = true;
                state.report_wanted = false;
                let dropped = mem::take(&mut state.dropped);
                drop(state);
                writer.note_dropped(dropped, FULL);
                writer.report();
                state = self.lock();
            } else if state.closed {
                return writer;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.busy = false;
            state.untold += writer.take_untold();
            state.owes_report = writer.owes_report() || state.dropped > 0;
            self.changed.notify_all();
        }
    }
}

/// How many bytes of whole records are no more than `room`.
fn whole_within(records: &[u8], room: usize) -> usize {
    if records.len() <= room {
        return records.len();
    }
    records[..room]
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_records_are_kept() {
        let records = b"ab\ncd\ne\n";
        for (room, kept) in [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (7, 6), (8, 8), (9, 8)] {
            assert_eq!(whole_within(records, room), kept, "{room}");
        }
    }
}
