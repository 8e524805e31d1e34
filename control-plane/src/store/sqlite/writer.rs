//! Owns the thread that writes: commits in groups, leases, compaction. Never reads for anybody but itself.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::mpsc;

use super::{Answer, Limits, failed, hub::Hub, number, reader::bounds, schema, sql};
use crate::store::{Committed, Compare, LeaseId, Operation, StoreError, Transaction};

/// Most commits that share one sync.
const GROUP_COMMITS_MAX: usize = 64;
/// How often leases are checked, history is trimmed, and the write-ahead log is written back.
const TICK: Duration = Duration::from_millis(250);
/// Revisions that one tick may compact by itself: it holds up commits meanwhile.
const COMPACT_REVISIONS_MAX: u64 = 5_000;

/// What can be asked.
#[derive(Debug)]
pub(super) enum Job {
    Commit(Commit),
    Compact { revision: u64, answer: Answer<()> },
    Grant { ttl: Duration, answer: Answer<LeaseId> },
    KeepAlive { lease: LeaseId, answer: Answer<()> },
    Revoke { lease: LeaseId, answer: Answer<()> },
    Close,
}

#[derive(Debug)]
pub(super) struct Commit {
    pub(super) transaction: Transaction,
    pub(super) answer: Answer<Committed>,
}

#[derive(Debug)]
pub(super) struct Writer {
    db: Connection,
    hub: Arc<Hub>,
    limits: Limits,
    revision: u64,
    /// The first revision whose changes are all in the history.
    oldest: u64,
    history_bytes: u64,
    /// Deadlines are counted by the monotonic clock; only the lease itself is stored.
    leases: HashMap<i64, Lease>,
    /// The write-ahead log holds something.
    dirty: bool,
    /// Something was committed since the last tick.
    busy: bool,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Lease {
    fn granted(ttl: Duration) -> Self {
        Self {
            ttl,
            deadline: Instant::now() + ttl,
        }
    }
}

/// What a group of commits would do, until it is synced.
#[derive(Default)]
struct Group {
    outcomes: Vec<Result<Committed, StoreError>>,
    /// Revision and keys of those that change something.
    changes: Vec<(u64, Vec<String>)>,
    bytes: u64,
}

impl Writer {
    pub(super) fn open(path: &Path, limits: Limits, hub: Arc<Hub>) -> Result<Self, StoreError> {
        let db = schema::open_writer(path)?;
        let fail = |e| failed(format!("read the state of {}", path.display()), e);
        let (oldest, revision) = bounds(&db).map_err(fail)?;
        let history_bytes = history_bytes(&db, u64::MAX).map_err(fail)?;
        let leases = read_leases(&db).map_err(fail)?;
        Ok(Self {
            db,
            hub,
            limits,
            revision,
            oldest,
            history_bytes,
            leases,
            dirty: true,
            busy: false,
        })
    }

    /// Serves until told to close, or until nobody is left to ask.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        // A runtime of its own, for this thread alone: a queue and a clock at once. Work here may block.
        match tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        {
            Ok(runtime) => runtime.block_on(self.serve(&mut jobs)),
            Err(error) => tracing::error!(%error, "the store cannot start its clock"),
        }
        jobs.close();
        self.hub.close();
    }

    async fn serve(&mut self, jobs: &mut mpsc::Receiver<Job>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Both are cancel-safe. The tick first: leases run out however busy the store is.
            tokio::select! {
                biased;
                _ = tick.tick() => self.maintain(),
                job = jobs.recv() => {
                    let Some(job) = job else { return };
                    if self.take(job, jobs).is_break() { return }
                }
            }
        }
    }

    /// Does a job, and with a commit those that wait behind it.
    fn take(&mut self, job: Job, jobs: &mut mpsc::Receiver<Job>) -> ControlFlow<()> {
        let mut next = Some(job);
        while let Some(job) = next.take() {
            match job {
                Job::Commit(first) => {
                    let mut group = vec![first];
                    while group.len() < GROUP_COMMITS_MAX {
                        match jobs.try_recv() {
                            Ok(Job::Commit(commit)) => group.push(commit),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(group);
                }
                // Callers that went away are no error.
                Job::Compact { revision, answer } => drop(answer.send(self.compact(revision))),
                Job::Grant { ttl, answer } => drop(answer.send(self.grant(ttl))),
                Job::KeepAlive { lease, answer } => drop(answer.send(self.keep_alive(lease))),
                Job::Revoke { lease, answer } => drop(answer.send(self.revoke(lease))),
                Job::Close => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn commit(&mut self, commits: Vec<Commit>) {
        let transactions: Vec<&Transaction> = commits.iter().map(|c| &c.transaction).collect();
        let outcomes = match self.commit_group(&transactions) {
            Ok(outcomes) => outcomes,
            Err(error) if commits.len() == 1 => vec![Err(error)],
            // Nothing of the group is done. One by one, so that only whom the fault concerns hears of it.
            Err(_) => transactions
                .iter()
                .map(|one| {
                    self.commit_group(&[one])
                        .and_then(|mut o| o.pop().unwrap_or(Err(StoreError::Closed)))
                })
                .collect(),
        };
        for (commit, outcome) in commits.into_iter().zip(outcomes) {
            commit.answer.send(outcome).ok();
        }
    }

    /// All of the group in one synced transaction of SQLite, or nothing. Answers only what is on disk.
    fn commit_group(
        &mut self,
        transactions: &[&Transaction],
    ) -> Result<Vec<Result<Committed, StoreError>>, StoreError> {
        let fail = |e| failed("commit", e);
        let db = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail)?;
        let (mut revision, mut group) = (self.revision, Group::default());
        for transaction in transactions {
            let outcome = apply(&db, transaction, &self.leases, &mut revision, &mut group).map_err(fail)?;
            group.outcomes.push(outcome);
        }
        if group.changes.is_empty() {
            // Nothing to sync: what the outcomes rest on was on disk before.
            return Ok(group.outcomes);
        }
        set_meta(&db, "revision", revision).map_err(fail)?;
        db.commit().map_err(fail)?;
        self.committed(revision, group.changes, group.bytes);
        Ok(group.outcomes)
    }

    fn committed(&mut self, revision: u64, changes: Vec<(u64, Vec<String>)>, bytes: u64) {
        self.revision = revision;
        self.history_bytes += bytes;
        (self.dirty, self.busy) = (true, true);
        for (revision, keys) in changes {
            self.hub.committed(revision, &keys);
        }
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let insert = "INSERT INTO leases (ttl_ms) VALUES (?1)";
        self.db
            .execute(insert, [ttl_ms])
            .map_err(|e| failed("grant a lease", e))?;
        let id = self.db.last_insert_rowid();
        self.leases.insert(id, Lease::granted(ttl));
        Ok(LeaseId(id))
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let found = self.leases.get_mut(&lease.0).ok_or(StoreError::NoLease(lease))?;
        *found = Lease::granted(found.ttl);
        Ok(())
    }

    /// Deletes a lease and its keys, in one revision.
    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        if !self.leases.contains_key(&lease.0) {
            return Err(StoreError::NoLease(lease));
        }
        let fail = |e| failed("end a lease", e);
        let db = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail)?;
        let keys = leased_keys(&db, lease).map_err(fail)?;
        let revision = self.revision + u64::from(!keys.is_empty());
        for key in &keys {
            delete(&db, key, revision).map_err(fail)?;
        }
        db.execute("DELETE FROM leases WHERE id = ?1", [lease.0])
            .map_err(fail)?;
        set_meta(&db, "revision", revision).map_err(fail)?;
        db.commit().map_err(fail)?;
        self.leases.remove(&lease.0);
        if !keys.is_empty() {
            self.committed(revision, vec![(revision, keys)], 0);
        }
        Ok(())
    }

    fn compact(&mut self, revision: u64) -> Result<(), StoreError> {
        // The current revision stays: a watch from the next one must always be possible.
        let oldest = revision.min(self.revision);
        if oldest <= self.oldest {
            return Ok(());
        }
        let fail = |e| failed("compact the history", e);
        let freed = history_bytes(&self.db, oldest).map_err(fail)?;
        let db = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail)?;
        db.execute("DELETE FROM history WHERE revision < ?1", [sql(oldest)])
            .map_err(fail)?;
        set_meta(&db, "oldest", oldest).map_err(fail)?;
        db.commit().map_err(fail)?;
        self.oldest = oldest;
        self.history_bytes = self.history_bytes.saturating_sub(freed);
        self.dirty = true;
        Ok(())
    }

    /// What has to be done without being asked. Failures are told and met again at the next tick.
    fn maintain(&mut self) {
        let now = Instant::now();
        let expired: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, l)| l.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for lease in expired {
            if let Err(error) = self.revoke(LeaseId(lease)) {
                tracing::warn!(
                    lease,
                    error = &error as &dyn std::error::Error,
                    "a lease that ran out stays for now"
                );
            }
        }
        if let Err(error) = self.trim() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the history of changes is not compacted"
            );
        }
        // Off the hot path: while commits come, the log may grow to its own limit.
        if !std::mem::take(&mut self.busy) && std::mem::take(&mut self.dirty) {
            let checkpoint = self
                .db
                .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            if let Err(error) = checkpoint {
                tracing::warn!(%error, "the write-ahead log is not written back");
                self.dirty = true;
            }
        }
    }

    fn trim(&mut self) -> Result<(), StoreError> {
        let span = self.revision.saturating_sub(self.oldest);
        let surplus = span.saturating_sub(self.limits.revisions_kept);
        let step = if self.history_bytes > self.limits.history_bytes_max {
            surplus.max(span.div_ceil(8))
        } else {
            surplus
        };
        if step == 0 {
            return Ok(());
        }
        self.compact(self.oldest + step.min(COMPACT_REVISIONS_MAX))
    }
}

#[cfg(test)]
impl Writer {
    /// From here on the database is full at that many pages.
    pub(super) fn limit_pages(&mut self, pages: i64) {
        self.db
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .unwrap();
    }
}

/// Does one transaction inside the group's. An inner error leaves no trace and concerns this transaction alone.
fn apply(
    db: &Connection,
    transaction: &Transaction,
    leases: &HashMap<i64, Lease>,
    revision: &mut u64,
    group: &mut Group,
) -> rusqlite::Result<Result<Committed, StoreError>> {
    for compare in &transaction.compare {
        if !holds(db, compare)? {
            return Ok(Ok(Committed::Conflict));
        }
    }
    for operation in &transaction.operations {
        if let Operation::Put {
            lease: Some(lease), ..
        } = operation
            && !leases.contains_key(&lease.0)
        {
            return Ok(Err(StoreError::NoLease(*lease)));
        }
    }
    let next = *revision + 1;
    let mut keys = Vec::new();
    for operation in &transaction.operations {
        let changed = match operation {
            Operation::Put { key, value, lease } => {
                group.bytes += value.len() as u64;
                put(db, key, value, *lease, next).map(|()| true)?
            }
            Operation::Delete { key } => delete(db, key, next)?,
        };
        if changed {
            keys.push(operation.key().to_owned());
        }
    }
    if !keys.is_empty() {
        *revision = next;
        group.changes.push((next, keys));
    }
    Ok(Ok(Committed::Done(*revision)))
}

fn holds(db: &Connection, compare: &Compare) -> rusqlite::Result<bool> {
    let (Compare::Exists(key) | Compare::Missing(key) | Compare::Modified(key, _)) = compare;
    let select = "SELECT modified FROM entries WHERE key = ?1";
    let modified: Option<i64> = db
        .prepare_cached(select)?
        .query_row([key], |row| row.get(0))
        .optional()?;
    Ok(match compare {
        Compare::Exists(_) => modified.is_some(),
        Compare::Missing(_) => modified.is_none(),
        Compare::Modified(_, revision) => modified.map(number) == Some(*revision),
    })
}

fn put(
    db: &Connection,
    key: &str,
    value: &[u8],
    lease: Option<LeaseId>,
    revision: u64,
) -> rusqlite::Result<()> {
    let upsert = "INSERT INTO entries (key, value, created, modified, lease) VALUES (?1, ?2, ?3, ?3, ?4)
        ON CONFLICT (key) DO UPDATE SET value = ?2, modified = ?3, lease = ?4";
    db.prepare_cached(upsert)?
        .execute(params![key, value, sql(revision), lease.map(|l| l.0)])?;
    remember(db, revision, key, Some(value))
}

fn delete(db: &Connection, key: &str, revision: u64) -> rusqlite::Result<bool> {
    let deleted = db
        .prepare_cached("DELETE FROM entries WHERE key = ?1")?
        .execute([key])?;
    if deleted == 0 {
        return Ok(false);
    }
    remember(db, revision, key, None)?;
    Ok(true)
}

fn remember(db: &Connection, revision: u64, key: &str, value: Option<&[u8]>) -> rusqlite::Result<()> {
    let insert = "INSERT INTO history (revision, key, value) VALUES (?1, ?2, ?3)";
    db.prepare_cached(insert)?
        .execute(params![sql(revision), key, value])?;
    Ok(())
}

fn set_meta(db: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    let update = "UPDATE meta SET value = ?2 WHERE name = ?1";
    db.prepare_cached(update)?.execute(params![name, sql(value)])?;
    Ok(())
}

fn leased_keys(db: &Connection, lease: LeaseId) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare_cached("SELECT key FROM entries WHERE lease = ?1 ORDER BY key")?;
    statement.query_map([lease.0], |row| row.get(0))?.collect()
}

fn read_leases(db: &Connection) -> rusqlite::Result<HashMap<i64, Lease>> {
    let mut statement = db.prepare("SELECT id, ttl_ms FROM leases")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, number(row.get(1)?))))?;
    rows.map(|row| row.map(|(id, ms)| (id, Lease::granted(Duration::from_millis(ms)))))
        .collect()
}

/// Bytes of values in the history before a revision.
fn history_bytes(db: &Connection, before: u64) -> rusqlite::Result<u64> {
    let select = "SELECT COALESCE(SUM(LENGTH(value)), 0) FROM history WHERE revision < ?1";
    db.query_row(select, [sql(before)], |row| row.get(0)).map(number)
}
