//! Owns a copy of a database that others may be writing to. Never writes to the original.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{failed, number, schema};
use crate::{
    model::StoreIdentity,
    store::{StoreError, typed::IDENTITY_KEY},
};

/// Of what moment a copy is.
#[derive(Clone, Debug)]
pub struct CopyFacts {
    pub identity: StoreIdentity,
    pub revision: u64,
}

/// Copies the database at `from`, as of one moment between two commits, into the empty file `to`. Blocks, for as long as
/// it takes to read it; writers are not held up.
///
/// # Errors
/// [`StoreError::Corrupt`] if it is damaged or no store; [`StoreError::Backend`] if it cannot be read, or `to` not written.
pub fn copy(from: &Path, to: &Path) -> Result<CopyFacts, StoreError> {
    let db = open(from)?;
    schema::expect_version(&db, from)?;
    let target = to.to_string_lossy();
    db.execute("VACUUM INTO ?1", [&*target])
        .map_err(|e| failed(format!("copy {} to {target}", from.display()), e))?;
    drop(db);
    let copy = open(to)?;
    schema::verify(&copy, to)?;
    facts(&copy)
        .map_err(|e| failed(format!("read {target}"), e))?
        .ok_or_else(|| StoreError::Corrupt {
            action: format!("read the identity in {}", from.display()),
            source: "the store has none, so no control plane used it yet".into(),
        })
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)
        .map_err(|e| failed(format!("open {}", path.display()), e))?;
    db.busy_timeout(std::time::Duration::from_millis(schema::BUSY_MS))
        .map_err(|e| failed(format!("set up {}", path.display()), e))?;
    Ok(db)
}

fn facts(db: &Connection) -> rusqlite::Result<Option<CopyFacts>> {
    let revision = db.query_row("SELECT value FROM meta WHERE name = 'revision'", [], |row| {
        row.get(0)
    })?;
    let identity: Option<Vec<u8>> = db
        .query_row(
            "SELECT value FROM entries WHERE key = ?1",
            [IDENTITY_KEY],
            |row| row.get(0),
        )
        .optional()?;
    let identity = identity.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(identity.map(|identity| CopyFacts {
        identity,
        revision: number(revision),
    }))
}
