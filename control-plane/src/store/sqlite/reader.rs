//! Owns the thread that reads. Never writes, and never waits for the one that does.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::mpsc;

use super::{Answer, failed, number, schema, sql};
use crate::store::{Change, Entry, Page, StoreError};

/// A watch reads at most about this much history at once; always whole revisions.
const HISTORY_CHANGES_MAX: usize = 512;
const HISTORY_BYTES_MAX: usize = 4 << 20;
/// One page of a range holds at most about this many bytes of values, and at least one entry.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// What can be asked.
#[derive(Debug)]
pub(super) enum Query {
    Get {
        key: String,
        answer: Answer<Option<Entry>>,
    },
    Range {
        prefix: String,
        after: Option<String>,
        limit: usize,
        answer: Answer<Page>,
    },
    /// Changes under a prefix, from a revision on.
    History {
        prefix: String,
        from: u64,
        answer: Answer<History>,
    },
    /// The oldest revision in the history, and the current one.
    Bounds {
        answer: Answer<(u64, u64)>,
    },
    Close,
}

/// A piece of history.
#[derive(Debug)]
pub(super) struct History {
    /// The changes of each revision that has any, in order.
    pub(super) revisions: Vec<Vec<Change>>,
    /// Everything up to here is included.
    pub(super) read_to: u64,
}

#[derive(Debug)]
pub(super) struct Reader {
    db: Connection,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            db: schema::open_reader(path)?,
        })
    }

    /// Serves until told to close, or until nobody is left to ask. A caller that went away is no error.
    pub(super) fn run(mut self, mut queries: mpsc::Receiver<Query>) {
        while let Some(query) = queries.blocking_recv() {
            match query {
                Query::Get { key, answer } => {
                    answer
                        .send(self.get(&key).map_err(|e| failed(format!("read {key:?}"), e)))
                        .ok();
                }
                Query::Range {
                    prefix,
                    after,
                    limit,
                    answer,
                } => {
                    let page = self.range(&prefix, after.as_deref(), limit);
                    answer
                        .send(page.map_err(|e| failed(format!("read under {prefix:?}"), e)))
                        .ok();
                }
                Query::History { prefix, from, answer } => {
                    answer.send(self.history(&prefix, from)).ok();
                }
                Query::Bounds { answer } => {
                    answer
                        .send(bounds(&self.db).map_err(|e| failed("read the revision", e)))
                        .ok();
                }
                Query::Close => break,
            }
        }
    }

    fn get(&self, key: &str) -> rusqlite::Result<Option<Entry>> {
        let select = "SELECT key, value, created, modified FROM entries WHERE key = ?1";
        self.db.prepare_cached(select)?.query_row([key], entry).optional()
    }

    fn range(&mut self, prefix: &str, after: Option<&str>, limit: usize) -> rusqlite::Result<Page> {
        // One view of the database for the page and its revision.
        let view = self.db.transaction()?;
        let (_, revision) = bounds(&view)?;
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, false);
        {
            let select = "SELECT key, value, created, modified FROM entries
                WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) AND key > ?3 ORDER BY key";
            let mut statement = view.prepare_cached(select)?;
            // No key is less than "": keys under a prefix that is empty, from the first on.
            let from = if let Some(after) = after {
                after.max(prefix)
            } else {
                prefix
            };
            let exclusive = after.unwrap_or("");
            let mut rows = statement.query(params![from, end_of(prefix), exclusive])?;
            while let Some(row) = rows.next()? {
                if entries.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    more = true;
                    break;
                }
                let entry = entry(row)?;
                bytes += entry.value.len();
                entries.push(entry);
            }
        }
        view.finish()?;
        Ok(Page {
            entries,
            more,
            revision,
        })
    }

    fn history(&mut self, prefix: &str, from: u64) -> Result<History, StoreError> {
        let fail = |e| failed(format!("read the changes under {prefix:?}"), e);
        let view = self.db.transaction().map_err(fail)?;
        let (oldest, current) = bounds(&view).map_err(fail)?;
        if from < oldest {
            return Err(StoreError::Compacted { wanted: from, oldest });
        }
        let history = read_history(&view, prefix, from, current).map_err(fail)?;
        view.finish().map_err(fail)?;
        Ok(history)
    }
}

fn read_history(db: &Connection, prefix: &str, from: u64, current: u64) -> rusqlite::Result<History> {
    let select = "SELECT revision, key, value FROM history
        WHERE revision >= ?1 AND key >= ?2 AND (?3 IS NULL OR key < ?3) ORDER BY revision, place";
    let mut statement = db.prepare_cached(select)?;
    let mut rows = statement.query(params![sql(from), prefix, end_of(prefix)])?;
    let mut revisions: Vec<Vec<Change>> = Vec::new();
    let (mut last, mut changes, mut bytes) = (0, 0, 0);
    while let Some(row) = rows.next()? {
        let revision = number(row.get(0)?);
        if revision != last {
            if changes >= HISTORY_CHANGES_MAX || bytes >= HISTORY_BYTES_MAX {
                return Ok(History {
                    revisions,
                    read_to: last,
                });
            }
            revisions.push(Vec::new());
            last = revision;
        }
        let value = row.get::<_, Option<Vec<u8>>>(2)?.map(Bytes::from);
        changes += 1;
        bytes += value.as_ref().map_or(0, Bytes::len);
        if let Some(group) = revisions.last_mut() {
            group.push(Change {
                key: row.get(1)?,
                value,
                revision,
            });
        }
    }
    Ok(History {
        revisions,
        read_to: current,
    })
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get::<_, Vec<u8>>(1)?.into(),
        created: number(row.get(2)?),
        modified: number(row.get(3)?),
    })
}

/// The oldest revision in the history, and the current one.
pub(super) fn bounds(db: &Connection) -> rusqlite::Result<(u64, u64)> {
    let select = "SELECT (SELECT value FROM meta WHERE name = 'oldest'), (SELECT value FROM meta WHERE name = 'revision')";
    db.prepare_cached(select)?
        .query_row([], |row| Ok((number(row.get(0)?), number(row.get(1)?))))
}

/// The first key that is greater than every key with this prefix. None: there is no such key.
///
/// SQLite compares text by its UTF-8 bytes, which order as the characters do.
fn end_of(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        let above = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = above {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        assert_eq!(end_of("/tasks/"), Some("/tasks0".into()));
        assert_eq!(end_of("a\u{10FFFF}"), Some("b".into()));
        assert_eq!(end_of("\u{D7FF}"), Some("\u{E000}".into()));
        assert_eq!(end_of(""), None);
    }
}
