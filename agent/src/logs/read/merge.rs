//! Owns the order in which the lines of several containers are given: by time for what is there already, then as they
//! come. Never waits: it says when there is nothing to do.

use std::collections::VecDeque;

use berth_agent_core::ids::ContainerId;

use super::{
    BATCH_BYTES_MAX, BATCH_LINES_MAX, Line, LogQuery, LogReadError, Next,
    container::{ContainerLog, Entry},
    record::Record,
};
use crate::logs::location::container_log;

/// Reads one query's logs.
#[derive(Debug)]
pub(super) struct Reader {
    query: LogQuery,
    phase: Phase,
    sources: Vec<Source>,
    /// To be told before anything else.
    trouble: VecDeque<LogReadError>,
    /// Who is read first in the next batch of new lines.
    turn: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Past,
    Follow,
    Done,
}

#[derive(Debug)]
struct Source {
    id: ContainerId,
    log: ContainerLog,
    /// Read, and not yet the oldest of all.
    head: Option<Record>,
    /// The last line given is not whole: its next piece comes before anything of other containers.
    inside_line: bool,
    /// The container was gone before the log was read for the last time.
    gone: bool,
    /// There is no more to come in this phase.
    ended: bool,
}

/// Lines on their way out.
#[derive(Default)]
struct Lines {
    lines: Vec<Line>,
    bytes: usize,
}

impl Lines {
    fn push(&mut self, line: Line) {
        self.bytes += line.data.len();
        self.lines.push(line);
    }

    fn full(&self) -> bool {
        self.lines.len() >= BATCH_LINES_MAX || self.bytes >= BATCH_BYTES_MAX
    }
}

impl Reader {
    /// Opens nothing yet.
    pub fn new(query: LogQuery) -> Self {
        Self {
            query,
            phase: Phase::Open,
            sources: Vec::new(),
            trouble: VecDeque::new(),
            turn: 0,
        }
    }

    /// One batch; blocks only on the disk.
    pub fn next(&mut self) -> Next {
        loop {
            if let Some(error) = self.trouble.pop_front() {
                if error.ends_stream() {
                    self.phase = Phase::Done;
                }
                return Next::Batch(Err(error));
            }
            let mut lines = Lines::default();
            let step = match self.phase {
                Phase::Open => self.open().map(|()| false),
                Phase::Past => self.read_past(&mut lines).map(|()| false),
                Phase::Follow => self.read_new(&mut lines),
                Phase::Done => return Next::End,
            };
            // An error comes behind the lines that were read before it.
            let wait = step.unwrap_or_else(|error| {
                self.trouble.push_back(error);
                false
            });
            if !lines.lines.is_empty() {
                return Next::Batch(Ok(lines.lines));
            }
            if wait {
                return Next::Wait;
            }
        }
    }

    fn open(&mut self) -> Result<(), LogReadError> {
        let query = &self.query;
        for (name, id) in &query.containers {
            let path = container_log(&query.task_dir, name, id)?;
            let log = ContainerLog::open(name.clone(), path, query.tail, query.since_ms)?;
            self.sources.push(Source {
                id: id.clone(),
                log,
                head: None,
                inside_line: false,
                gone: false,
                ended: false,
            });
        }
        self.phase = Phase::Past;
        Ok(())
    }

    /// What was there when the logs were opened, by time.
    fn read_past(&mut self, lines: &mut Lines) -> Result<(), LogReadError> {
        while !lines.full() {
            for source in &mut self.sources {
                source.fill_head()?;
            }
            let Some(oldest) = self.oldest() else {
                self.end_past()?;
                return Ok(());
            };
            oldest.give_head(lines);
        }
        Ok(())
    }

    fn oldest(&mut self) -> Option<&mut Source> {
        let waiting = self.sources.iter_mut().filter(|source| source.head.is_some());
        waiting.min_by_key(|source| {
            let time = source.head.as_ref().map_or(0, |head| head.time_ns);
            (!source.inside_line, time)
        })
    }

    fn end_past(&mut self) -> Result<(), LogReadError> {
        self.phase = if self.query.follow {
            Phase::Follow
        } else {
            Phase::Done
        };
        for source in &mut self.sources {
            source.ended = false;
            if !self.query.follow && !(self.query.alive)(&source.id) {
                self.trouble.extend(source.log.torn()?);
            }
        }
        Ok(())
    }

    /// What was written since, container by container. True: nothing now.
    fn read_new(&mut self, lines: &mut Lines) -> Result<bool, LogReadError> {
        let count = self.sources.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let source = &mut self.sources[index];
            source.read_new(lines, &mut self.trouble, &self.query)?;
            if lines.full() || !self.trouble.is_empty() {
                // The others are not kept waiting by one that writes without end.
                self.turn = (index + 1) % count;
                return Ok(false);
            }
        }
        let over = self.sources.iter().all(|source| source.ended);
        if over {
            self.phase = Phase::Done;
        }
        Ok(!over)
    }
}

impl Source {
    fn fill_head(&mut self) -> Result<(), LogReadError> {
        if self.head.is_none() && !self.ended {
            match self.log.next(false)? {
                Entry::Record(record) => self.head = Some(record),
                Entry::Trouble(error) => return Err(error),
                Entry::End => self.ended = true,
            }
        }
        Ok(())
    }

    fn give_head(&mut self, lines: &mut Lines) {
        if let Some(record) = self.head.take() {
            self.give(record, lines);
        }
    }

    fn give(&mut self, record: Record, lines: &mut Lines) {
        self.inside_line = !record.ends_line();
        lines.push(self.log.line(record));
    }

    fn read_new(
        &mut self,
        lines: &mut Lines,
        trouble: &mut VecDeque<LogReadError>,
        query: &LogQuery,
    ) -> Result<(), LogReadError> {
        while !self.ended && !lines.full() {
            match self.log.next(true)? {
                Entry::Record(record) => self.give(record, lines),
                Entry::Trouble(error) => {
                    trouble.push_back(error);
                    return Ok(());
                }
                Entry::End if self.gone => {
                    self.ended = true;
                    trouble.extend(self.log.torn()?);
                }
                // Asked after the end was seen, and read once more: what it wrote last is not missed.
                Entry::End => {
                    self.gone = !(query.alive)(&self.id);
                    if !self.gone {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}
