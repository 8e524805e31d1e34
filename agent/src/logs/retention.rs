//! Owns the end of a task's logs. Never decides when it comes.

use std::{io, path::Path, thread, time::Duration};

use berth_agent_core::ids::TaskId;

use super::location::task_dir;

/// A logger that is just ending may still make a file while its directory is removed.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// Deletes everything that a task's loggers wrote; blocks while it does. Logs that are gone already are a success.
/// Symbolic links are removed, never followed.
///
/// # Errors
/// What the file system says; some files may be gone then. Calling again goes on.
pub fn remove_task_logs(log_dir: &Path, task: &TaskId) -> io::Result<()> {
    let directory = task_dir(log_dir, task);
    for _ in 1..TRIES {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => thread::sleep(PAUSE),
            result => return absent_is_removed(result),
        }
    }
    absent_is_removed(std::fs::remove_dir_all(&directory))
}

fn absent_is_removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tasks_own_logs_go_and_going_twice_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other]: [TaskId; 2] = ["a", "b"].map(|digit| digit.repeat(32).parse().unwrap());
        for task in [&one, &other] {
            let container = task_dir(directory.path(), task).join("web");
            std::fs::create_dir_all(&container).unwrap();
            std::fs::write(container.join("x-json.log"), "x").unwrap();
        }
        std::os::unix::fs::symlink(
            task_dir(directory.path(), &other),
            task_dir(directory.path(), &one).join("link"),
        )
        .unwrap();
        remove_task_logs(directory.path(), &one).unwrap();
        remove_task_logs(directory.path(), &one).unwrap();
        assert!(!task_dir(directory.path(), &one).exists());
        assert!(task_dir(directory.path(), &other).join("web/x-json.log").exists());
    }
}
