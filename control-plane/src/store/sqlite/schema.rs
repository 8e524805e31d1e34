//! Owns the tables and how a connection is set up. Never reads or writes a record.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::failed;
use crate::store::StoreError;

/// Rises with every change of the tables.
const VERSION: i64 = 1;
/// How long SQLite waits for another process's lock (a backup, a shell).
pub(super) const BUSY_MS: u64 = 5_000;
/// The write-ahead log is written back between commits; should that never get its turn, at this many pages.
const WAL_PAGES_MAX: i64 = 10_000;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
-- revision: the last committed; oldest: the first whose changes are all in the history.
INSERT INTO meta VALUES ('revision', 0), ('oldest', 1);
CREATE TABLE entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL, lease INTEGER);
CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL;
-- In the order of commits; a null value is a deletion.
CREATE TABLE history (place INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB);
CREATE INDEX history_by_revision ON history (revision);
CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);
PRAGMA user_version = 1;
";

/// The connection that writes. Creates the tables in an empty database.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let fail = |what: &str| format!("{what} {}", path.display());
    let mut db = Connection::open(path).map_err(|e| failed(fail("open"), e))?;
    let set_up = |db: &Connection| -> rusqlite::Result<i64> {
        db.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        // FULL: a commit is on disk before it is acknowledged.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update_and_check(None, "wal_autocheckpoint", WAL_PAGES_MAX, |_| Ok(()))?;
        db.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    let version = set_up(&db).map_err(|e| failed(fail("set up"), e))?;
    match version {
        0 => create(&mut db).map_err(|e| failed(fail("create the tables of"), e))?,
        VERSION => verify(&db, path)?,
        newer => return Err(other_version(newer, path)),
    }
    Ok(db)
}

/// Refuses a database whose tables are not the ones known here.
pub(super) fn expect_version(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let version = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|e| failed(format!("open {}", path.display()), e))?;
    match version {
        VERSION => Ok(()),
        other => Err(other_version(other, path)),
    }
}

fn other_version(version: i64, path: &Path) -> StoreError {
    let source = format!("its tables are of version {version}; this program knows {VERSION}");
    StoreError::Backend {
        action: format!("open {}", path.display()),
        source: source.into(),
    }
}

fn create(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    transaction.execute_batch(TABLES)?;
    transaction.commit()
}

/// Damage is found before it is served.
pub(super) fn verify(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let action = || format!("check {}", path.display());
    let found: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|e| failed(action(), e))?;
    if found == "ok" {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        action: action(),
        source: found.into(),
    })
}

/// The connection that reads: it cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
        db.pragma_update(None, "query_only", true)?;
        Ok(db)
    };
    open().map_err(|e| failed(format!("open {} to read", path.display()), e))
}
