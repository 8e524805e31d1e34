//! Owns the quotas of tasks on the node's file systems: a project for each task that asks for one, its number, and what may be
//! written under it. Never makes a directory of a task, and never decides how much a task may write.
//!
//! A project is a number that directories and files carry, inherited by all that is made below; the file system counts by it
//! (ext4 with the feature `project`, XFS). Which task has which number is in `<state_dir>/quotas/<number>`, written before the
//! number is used and removed after its limits are; so it is no other task's meanwhile, whatever became of the agent.

mod kernel;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use berth_agent_core::ids::TaskId;
use serde::{Deserialize, Serialize};

pub use kernel::Enforcement;

/// Numbers that tasks get: away from those that people write into /etc/projid, which are small.
const PROJECTS: std::ops::Range<u32> = 0x4265_0000..0x4266_0000;

/// Why a quota cannot be set or taken back.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    #[error("{step} {}", path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("all {} numbers of projects are in use", PROJECTS.len())]
    Exhausted,
}

/// What a file of `quotas` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    task: TaskId,
    /// Directories on the file systems that have limits for it; they outlive the task.
    anchors: BTreeSet<PathBuf>,
}

/// The quotas of one agent. Clones are the same.
#[derive(Clone, Debug)]
pub struct Quotas {
    directory: PathBuf,
    /// Numbers are chosen one after the other.
    choosing: Arc<Mutex<()>>,
}

impl Quotas {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("quotas"),
            choosing: Arc::default(),
        }
    }

    /// Bounds what the task writes below `directories`, which are empty and on the file system of `anchor`, a directory above
    /// them that outlives it; all that it has there counts together. Idempotent. A text where the file system cannot: why,
    /// and what to do.
    ///
    /// # Errors
    /// What failed although the file system can.
    pub fn bound(
        &self,
        task: &TaskId,
        bytes: u64,
        anchor: &Path,
        directories: &[PathBuf],
    ) -> Result<Option<String>, QuotaError> {
        match kernel::enforcement(anchor) {
            Ok(Enforcement::Full) => {}
            Ok(Enforcement::None(why)) => return Ok(Some(format!("{}: {why}", anchor.display()))),
            Err(source) => return Err(failed("look at the quotas of", anchor)(source)),
        }
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let project = self.project(task, anchor)?;
        kernel::set_limit(anchor, project, bytes).map_err(failed("set a quota on", anchor))?;
        for directory in directories {
            kernel::set_project(directory, project).map_err(failed("set the project of", directory))?;
        }
        Ok(None)
    }

    /// The task's number, for that file system too; a new one if it has none.
    fn project(&self, task: &TaskId, anchor: &Path) -> Result<u32, QuotaError> {
        let records = self.records()?;
        if let Some((project, record)) = records.iter().find(|(_, record)| record.task == *task) {
            let mut record = record.clone();
            if record.anchors.insert(anchor.to_owned()) {
                self.write(*project, &record)?;
            }
            return Ok(*project);
        }
        let taken: BTreeSet<u32> = records.iter().map(|(project, _)| *project).collect();
        for project in PROJECTS.filter(|project| !taken.contains(project)) {
            // What is counted under it is somebody else's, or is still being removed.
            let used = kernel::used(anchor, project).map_err(failed("read the quotas of", anchor))?;
            if used == 0 {
                let anchors = BTreeSet::from([anchor.to_owned()]);
                let task = task.clone();
                self.write(project, &Record { task, anchors })?;
                return Ok(project);
            }
        }
        Err(QuotaError::Exhausted)
    }

    /// What the task has written where it is bounded, bytes. None: nothing bounds it.
    ///
    /// # Errors
    /// The records or the file system cannot be read.
    pub fn used(&self, task: &TaskId) -> Result<Option<u64>, QuotaError> {
        let records = self.records()?;
        let Some((project, record)) = records.into_iter().find(|(_, record)| record.task == *task) else {
            return Ok(None);
        };
        // Several may be on one file system, which counts once.
        let mut file_systems = BTreeMap::new();
        for anchor in &record.anchors {
            match fs::metadata(anchor) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => {
                    file_systems.insert(found.map_err(failed("look at", anchor))?.dev(), anchor);
                }
            }
        }
        let mut used = 0;
        for anchor in file_systems.values() {
            used += kernel::used(anchor, project).map_err(failed("read the quotas of", anchor))?;
        }
        Ok((!file_systems.is_empty()).then_some(used))
    }

    /// Takes back the limits of a task of which nothing is left. What is not there is a success.
    ///
    /// # Errors
    /// What is left; trying again goes on.
    pub fn release(&self, task: &TaskId) -> Result<(), QuotaError> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        for (project, record) in self.records()? {
            if record.task != *task {
                continue;
            }
            for anchor in record.anchors.iter().filter(|anchor| anchor.exists()) {
                match kernel::set_limit(anchor, project, 0) {
                    // Its quotas were switched off meanwhile.
                    Err(error) if kernel::is_unsupported(&error) => {}
                    set => set.map_err(failed("take back a quota on", anchor))?,
                }
            }
            let path = self.path(project);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// Tasks that have one.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn tasks(&self) -> Result<BTreeSet<TaskId>, QuotaError> {
        let records = self.records()?;
        Ok(records.into_iter().map(|(_, record)| record.task).collect())
    }

    fn path(&self, project: u32) -> PathBuf {
        self.directory.join(project.to_string())
    }

    /// Whole or not at all.
    fn write(&self, project: u32, record: &Record) -> Result<(), QuotaError> {
        fs::create_dir_all(&self.directory).map_err(failed("make", &self.directory))?;
        let text =
            serde_json::to_vec(record).map_err(|error| failed("write", &self.directory)(error.into()))?;
        let (path, new) = (self.path(project), self.directory.join("new"));
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("write", &path))
    }

    fn records(&self) -> Result<Vec<(u32, Record)>, QuotaError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.directory))?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            let Some(project) = number else { continue };
            let text = fs::read(&path).map_err(failed("read", &path))?;
            let record =
                serde_json::from_slice(&text).map_err(|error| failed("read", &path)(error.into()))?;
            records.push((project, record));
        }
        records.sort_by_key(|(project, _)| *project);
        Ok(records)
    }
}

/// The directory of all snapshots, of the writable layer of an overlay: `SNAPSHOTS/NUMBER/fs` and `/work`. None for what is
/// no overlay.
pub fn overlay_layer(options: &[String]) -> Option<(PathBuf, [PathBuf; 2])> {
    let option = |name: &str| {
        let value = options.iter().find_map(|option| option.strip_prefix(name));
        value.map(PathBuf::from)
    };
    let (upper, work) = (option("upperdir=")?, option("workdir=")?);
    let (own, all) = (upper.parent()?, upper.parent()?.parent()?);
    (work.parent() == Some(own)).then(|| (all.to_owned(), [upper.clone(), work]))
}

/// What a task is told where it is not bounded.
pub fn warning(place: &str, why: &str) -> String {
    format!("ephemeralStorage is not enforced {place}: {why}")
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> QuotaError + use<'a> {
    move |source| QuotaError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(digit: char) -> TaskId {
        digit.to_string().repeat(32).parse().unwrap()
    }

    #[test]
    fn a_number_is_one_tasks_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let quotas = Quotas::new(dir.path());
        assert!(quotas.records().unwrap().is_empty());
        let anchors = BTreeSet::from([PathBuf::from("/gone")]);
        let first = PROJECTS.start;
        let record = Record {
            task: task('a'),
            anchors,
        };
        quotas.write(first, &record).unwrap();
        fs::write(dir.path().join("quotas/new"), "half").unwrap();
        // It keeps its number, for another file system too.
        assert_eq!(quotas.project(&task('a'), Path::new("/other")).unwrap(), first);
        assert_eq!(quotas.records().unwrap()[0].1.anchors.len(), 2);
        assert_eq!(quotas.tasks().unwrap(), BTreeSet::from([task('a')]));
        assert_eq!(
            quotas.used(&task('a')).unwrap(),
            None,
            "its file systems are gone"
        );
        quotas.release(&task('b')).unwrap();
        assert_eq!(quotas.records().unwrap().len(), 1);
        quotas.release(&task('a')).unwrap();
        assert!(quotas.records().unwrap().is_empty());
        quotas.release(&task('a')).unwrap();
    }

    #[test]
    fn a_file_system_without_project_quotas_is_told_with_what_to_do() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let quotas = Quotas::new(dir.path());
        let why = quotas
            .bound(&task('a'), 1 << 30, dir.path(), &[])
            .unwrap()
            .unwrap();
        assert!(
            why.contains("no project quota") && why.contains("prjquota"),
            "{why}"
        );
        assert!(quotas.records().unwrap().is_empty());
    }

    #[test]
    fn the_writable_layer_of_an_overlay_is_found_by_its_options() {
        let options = |all: &[&str]| all.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        let found = overlay_layer(&options(&[
            "index=off",
            "workdir=/c/snapshots/7/work",
            "upperdir=/c/snapshots/7/fs",
            "lowerdir=/c/snapshots/1/fs",
        ]));
        let (all, [upper, work]) = found.unwrap();
        assert_eq!(all, Path::new("/c/snapshots"));
        assert_eq!(
            (upper.to_str(), work.to_str()),
            (Some("/c/snapshots/7/fs"), Some("/c/snapshots/7/work"))
        );
        for other in [
            &["rw", "rbind"][..],
            &["upperdir=/a/fs"],
            &["upperdir=/a/b/fs", "workdir=/x/y/work"],
            &["upperdir=/", "workdir=/"],
        ] {
            assert_eq!(overlay_layer(&options(other)), None, "{other:?}");
        }
    }
}
