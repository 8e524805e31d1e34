//! Owns the SQL.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use berth_agent_core::{
    ledger::{Ledger, LedgerWrite, Owned},
    report::Report,
    task::Task,
};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::de::DeserializeOwned;

use super::{Batch, Loaded, StoreError};

/// Deleted to make room for a last word when the disk is full, bytes.
const RESERVE_BYTES: u64 = 1 << 20;
/// A spent reserve is made again once there is so much room, bytes: otherwise it would take what was just freed.
const RESERVE_AGAIN_BYTES: u64 = 16 << 20;
/// Between two looks whether there is.
const RESERVE_AGAIN_AFTER: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA cache_size = -512;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA foreign_keys = ON;
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS ledger (json TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS outbox (sequence INTEGER PRIMARY KEY, json TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS names (task TEXT PRIMARY KEY, ipv4 TEXT, ipv6 TEXT) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS node_names (task TEXT PRIMARY KEY, ipv4 TEXT, ipv6 TEXT) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS quarantine (what TEXT NOT NULL, json TEXT NOT NULL, error TEXT NOT NULL);
    PRAGMA user_version = 1;
";

#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
    reserve: std::path::PathBuf,
    /// When the reserve was given back, or was last looked for room.
    spent: Option<Instant>,
    synced: bool,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let open = |source| match classify(source, "open") {
            StoreError::Unavailable { source, .. }
                if source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
            {
                StoreError::InUse {
                    path: path.display().to_string(),
                }
            }
            StoreError::Unavailable { source, .. } => StoreError::Open {
                path: path.display().to_string(),
                source,
            },
            other => other,
        };
        keep_private(path).map_err(|error| open(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        let connection = Connection::open(path).map_err(open)?;
        connection.execute_batch(SCHEMA).map_err(open)?;
        let mut database = Self {
            connection,
            reserve: path.with_extension("reserve"),
            spent: None,
            synced: false,
        };
        let loaded = database.load().map_err(open)?;
        database.make_reserve();
        Ok((database, loaded))
    }

    /// Room that is given back when the disk is full. A host without that room has none to give back.
    fn make_reserve(&self) {
        if std::fs::metadata(&self.reserve).is_ok_and(|m| m.len() == RESERVE_BYTES) {
            return;
        }
        let zeros = vec![0u8; usize::try_from(RESERVE_BYTES).unwrap_or(0)];
        if std::fs::write(&self.reserve, zeros).is_err() {
            let _ = std::fs::remove_file(&self.reserve);
        }
    }

    /// Makes a spent reserve again, when there is room for it and more.
    fn renew_reserve(&mut self, after: Duration) {
        if self.spent.is_none_or(|since| since.elapsed() < after) {
            return;
        }
        let room = nix::sys::statvfs::statvfs(self.reserve.parent().unwrap_or(&self.reserve));
        if room.is_ok_and(|fs| fs.blocks_available() * fs.fragment_size() >= RESERVE_AGAIN_BYTES) {
            self.make_reserve();
            self.spent = None;
        } else {
            self.spent = Some(Instant::now());
        }
    }

    fn load(&mut self) -> rusqlite::Result<Loaded> {
        let mut loaded = Loaded {
            boot_id: self.meta("boot_id")?,
            names: self.names()?,
            ..Loaded::default()
        };
        let mut bad = Vec::new();
        if let Some(json) = self.meta("node")? {
            loaded.node = parse("node", json, &mut bad);
        }
        for json in self.column("SELECT json FROM tasks ORDER BY id")? {
            loaded.tasks.extend(parse::<Task>("task", json, &mut bad));
        }
        let mut owned = Vec::new();
        for json in self.column("SELECT json FROM ledger")? {
            owned.extend(parse::<Owned>("ledger", json, &mut bad));
        }
        loaded.ledger = Ledger::load(owned);
        loaded.last_reported = self.last_reported()?;
        let transaction = self.connection.transaction()?;
        for (what, json, error) in bad {
            transaction.execute(
                "INSERT INTO quarantine VALUES (?1, ?2, ?3)",
                params![what, json, error],
            )?;
            match what {
                "task" => transaction.execute("DELETE FROM tasks WHERE json = ?1", params![json])?,
                "ledger" => transaction.execute("DELETE FROM ledger WHERE json = ?1", params![json])?,
                _ => transaction.execute("DELETE FROM meta WHERE key = ?1", params![what])?,
            };
            loaded.quarantined.push(format!("{what}: {error}"));
        }
        transaction.commit()?;
        Ok(loaded)
    }

    pub(super) fn meta(&self, key: &str) -> rusqlite::Result<Option<String>> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", params![key], |row| {
                row.get(0)
            })
            .optional()
    }

    fn last_reported(&self) -> rusqlite::Result<u64> {
        let query = "SELECT coalesce(max(sequence), 0) FROM outbox";
        let last: i64 = self.connection.query_row(query, [], |row| row.get(0))?;
        Ok(u64::try_from(last).unwrap_or(0))
    }

    fn column(&self, query: &str) -> rusqlite::Result<Vec<String>> {
        self.connection
            .prepare(query)?
            .query_map([], |row| row.get(0))?
            .collect()
    }

    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let result = self.write(batch);
        match &result {
            Ok(()) => self.renew_reserve(RESERVE_AGAIN_AFTER),
            Err(StoreError::Unavailable { source, .. })
                if source.sqlite_error_code() == Some(ErrorCode::DiskFull) =>
            {
                // Its room is for this one transaction: the retry finds it.
                let _ = std::fs::remove_file(&self.reserve);
                self.spent = Some(Instant::now());
            }
            Err(_) => {}
        }
        result
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let fail = |action| move |source| classify(source, action);
        if batch.promise != self.synced {
            let level = if batch.promise { "FULL" } else { "NORMAL" };
            self.connection
                .pragma_update(None, "synchronous", level)
                .map_err(fail("set sync level"))?;
            self.synced = batch.promise;
        }
        let transaction = self.connection.transaction().map_err(fail("begin transaction"))?;
        for (id, json) in &batch.tasks {
            match json {
                Some(json) => execute(
                    &transaction,
                    "INSERT OR REPLACE INTO tasks VALUES (?1, ?2)",
                    params![id.as_str(), json],
                ),
                None => execute(
                    &transaction,
                    "DELETE FROM tasks WHERE id = ?1",
                    params![id.as_str()],
                ),
            }
            .map_err(fail("store task"))?;
        }
        if let Some(json) = &batch.node {
            let put = "INSERT OR REPLACE INTO meta VALUES ('node', ?1)";
            execute(&transaction, put, params![json]).map_err(fail("store node"))?;
        }
        if let Some(boot_id) = &batch.boot_id {
            let put = "INSERT OR REPLACE INTO meta VALUES ('boot_id', ?1)";
            execute(&transaction, put, params![boot_id]).map_err(fail("store boot id"))?;
        }
        if batch.pulse {
            let put = "INSERT OR REPLACE INTO meta VALUES ('pulse', hex(randomblob(4)))";
            execute(&transaction, put, []).map_err(fail("store a pulse"))?;
        }
        for write in &batch.ledger {
            let (sql, owned) = match write {
                LedgerWrite::Intend(owned) => ("INSERT OR REPLACE INTO ledger VALUES (?1)", owned),
                LedgerWrite::Release(owned) => ("DELETE FROM ledger WHERE json = ?1", owned),
            };
            let json = encode("ledger entry", owned)?;
            execute(&transaction, sql, params![json]).map_err(fail("write ledger"))?;
        }
        for report in &batch.reports {
            let sequence = i64::try_from(report.sequence).unwrap_or(i64::MAX);
            let put = "INSERT OR REPLACE INTO outbox VALUES (?1, ?2)";
            let json = encode("report", report)?;
            execute(&transaction, put, params![sequence, json]).map_err(fail("write outbox"))?;
        }
        if let Some(sequence) = batch.acknowledged {
            let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
            let delete = "DELETE FROM outbox WHERE sequence <= ?1";
            execute(&transaction, delete, params![sequence]).map_err(fail("empty outbox"))?;
        }
        transaction.commit().map_err(fail("commit"))
    }

    pub(super) fn outbox_length(&mut self) -> Result<u64, StoreError> {
        let fail = |source| classify(source, "count the outbox");
        let mut statement = self
            .connection
            .prepare_cached("SELECT count(*) FROM outbox")
            .map_err(fail)?;
        let count: i64 = statement.query_row([], |row| row.get(0)).map_err(fail)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    pub(super) fn outbox(&mut self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        let fail = |source| classify(source, "read outbox");
        let (after, limit) = (
            i64::try_from(after).unwrap_or(i64::MAX),
            i64::try_from(limit).unwrap_or(i64::MAX),
        );
        let query = "SELECT json FROM outbox WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
        let mut statement = self.connection.prepare_cached(query).map_err(fail)?;
        let rows = statement
            .query_map(params![after, limit], |row| row.get::<_, String>(0))
            .map_err(fail)?;
        let rows: Vec<String> = rows.collect::<Result<_, _>>().map_err(fail)?;
        let decode = |json: &String| serde_json::from_str(json);
        rows.iter()
            .map(decode)
            .collect::<Result<_, _>>()
            .map_err(|source| StoreError::Encode {
                what: "report",
                source,
            })
    }
}

/// Only its owner reads it, whoever may look into the directory: it has the environments of tasks. SQLite gives the files
/// beside it the same mode.
fn keep_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

pub(super) fn execute(
    transaction: &rusqlite::Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<usize> {
    transaction.prepare_cached(sql)?.execute(params)
}

fn encode(what: &'static str, value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Encode { what, source })
}

fn parse<T: DeserializeOwned>(
    what: &'static str,
    json: String,
    bad: &mut Vec<(&'static str, String, String)>,
) -> Option<T> {
    match serde_json::from_str(&json) {
        Ok(value) => Some(value),
        Err(error) => {
            bad.push((what, json, error.to_string()));
            None
        }
    }
}

pub(super) fn classify(source: rusqlite::Error, action: &'static str) -> StoreError {
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { source },
        _ => StoreError::Unavailable { action, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_reserve_is_made_again_and_not_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.db");
        let (mut database, _) = Database::open(&path).unwrap();
        let reserve = path.with_extension("reserve");
        std::fs::remove_file(&reserve).unwrap();
        database.renew_reserve(Duration::ZERO);
        assert!(!reserve.exists(), "it was not given back");
        database.spent = Some(Instant::now());
        database.commit(&Batch::default()).unwrap();
        assert!(!reserve.exists(), "the disk was full a moment ago");
        database.renew_reserve(Duration::ZERO);
        assert_eq!(std::fs::metadata(&reserve).unwrap().len(), RESERVE_BYTES);
        assert_eq!(database.spent, None);
    }
}
