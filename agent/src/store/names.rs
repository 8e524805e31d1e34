//! Owns the SQL of the names of tasks: told by the control plane, and told again after every connect. Those at their nodes'
//! addresses have a table of their own, which an agent of before does not know.

use rusqlite::params;

use super::{
    NamesWrite, StoreError,
    sqlite::{Database, classify, execute},
};
use crate::dns::{Addresses, Key};

impl Database {
    /// What cannot be read is left out: it is told again.
    pub(super) fn names(&self) -> rusqlite::Result<NamesWrite> {
        let all = "SELECT task, ipv4, ipv6, FALSE FROM names UNION ALL SELECT task, ipv4, ipv6, TRUE FROM node_names";
        let mut query = self.connection.prepare(all)?;
        let text = |row: &rusqlite::Row<'_>, column| row.get::<_, Option<String>>(column);
        let rows = query.query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                text(row, 1)?,
                text(row, 2)?,
                row.get(3)?,
            ))
        })?;
        let mut changed = Vec::new();
        for row in rows {
            let (task, ipv4, ipv6, of_node) = row?;
            let addresses = Addresses {
                ipv4: ipv4.and_then(|text| text.parse().ok()),
                ipv6: ipv6.and_then(|text| text.parse().ok()),
                of_node,
            };
            changed.extend(Key::parse(&task).map(|key| (key, addresses)));
        }
        Ok(NamesWrite {
            cluster: self.meta("names_cluster")?.unwrap_or_default(),
            whole: true,
            changed,
            removed: vec![],
        })
    }

    pub(super) fn write_names(&mut self, write: &NamesWrite) -> Result<(), StoreError> {
        let fail = |action| move |source| classify(source, action);
        let transaction = self.connection.transaction().map_err(fail("begin transaction"))?;
        if write.whole {
            for all in ["DELETE FROM names", "DELETE FROM node_names"] {
                execute(&transaction, all, []).map_err(fail("forget names"))?;
            }
            let put = "INSERT OR REPLACE INTO meta VALUES ('names_cluster', ?1)";
            execute(&transaction, put, params![write.cluster])
                .map_err(fail("store whose names there are"))?;
        }
        let changed = write.changed.iter().map(|(task, _)| task);
        for task in write.removed.iter().chain(changed) {
            for delete in [
                "DELETE FROM names WHERE task = ?1",
                "DELETE FROM node_names WHERE task = ?1",
            ] {
                execute(&transaction, delete, params![task.to_string()]).map_err(fail("forget name"))?;
            }
        }
        for (task, addresses) in &write.changed {
            let ipv4 = addresses.ipv4.map(|address| address.to_string());
            let ipv6 = addresses.ipv6.map(|address| address.to_string());
            let put = match addresses.of_node {
                false => "INSERT INTO names VALUES (?1, ?2, ?3)",
                true => "INSERT INTO node_names VALUES (?1, ?2, ?3)",
            };
            execute(&transaction, put, params![task.to_string(), ipv4, ipv6]).map_err(fail("store name"))?;
        }
        transaction.commit().map_err(fail("commit names"))
    }
}
