//! Owns `berth-agent status`: asks a running agent by its socket and says the answer in a few lines. Never changes
//! anything.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

/// The agent has so long for each answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("no agent answers at {}: is it running (`systemctl status berth-agent`)? Its socket is for root", path.display())]
    Away { path: PathBuf, source: io::Error },
    #[error("the agent at {} answers {what}", path.display())]
    Strange { path: PathBuf, what: String },
}

/// What a running agent says of itself.
#[derive(Debug)]
pub struct Summary {
    pub ready: bool,
    /// For people, several lines.
    pub text: String,
}

/// Asks the agent at `socket`.
///
/// # Errors
/// Nobody listens there, or it is no agent.
pub fn ask(socket: &Path) -> Result<Summary, StatusError> {
    let (ready, conditions) = get(socket, "/readyz?verbose")?;
    let ready = ready == 200;
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let (200, metadata) = get(socket, "/v1/metadata")? {
        let metadata = json(socket, &metadata)?;
        let of = |key: &str| metadata[key].as_str().unwrap_or_default();
        let _ = writeln!(text, "{}, node {}", of("Version"), of("ContainerInstanceArn"));
        let _ = writeln!(
            text,
            "cluster {}, {}, cgroup v{}",
            if of("Cluster").is_empty() {
                "not known yet"
            } else {
                of("Cluster")
            },
            of("Runtime"),
            metadata["CgroupVersion"]
        );
    }
    if let (200, tasks) = get(socket, "/v1/tasks")? {
        let tasks = json(socket, &tasks)?;
        text.push_str(&task_lines(tasks["Tasks"].as_array().map_or(&[], Vec::as_slice)));
    }
    text.push_str(&conditions);
    Ok(Summary { ready, text })
}

/// One line with counts, and one for each task that waits.
fn task_lines(tasks: &[Value]) -> String {
    let status = |task: &Value| task["KnownStatus"].as_str().unwrap_or_default().to_owned();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for task in tasks {
        *counts.entry(status(task)).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(status, n)| format!("{n} {status}")).collect();
    let mut text = format!(
        "tasks: {}\n",
        if counts.is_empty() {
            "none".into()
        } else {
            counts.join(", ")
        }
    );
    for task in tasks {
        if let Some(waiting) = task["Waiting"].as_str() {
            let id = task["Id"].as_str().unwrap_or_default();
            let _ = writeln!(text, "  {id} {}: {waiting}", status(task));
        }
    }
    text
}

fn json(socket: &Path, body: &str) -> Result<Value, StatusError> {
    serde_json::from_str(body).map_err(|error| StatusError::Strange {
        path: socket.into(),
        what: error.to_string(),
    })
}

/// Status code and body. HTTP/1.0 with a connection for each request: nothing to negotiate, and the end is the end.
fn get(socket: &Path, target: &str) -> Result<(u16, String), StatusError> {
    let answer = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET {target} HTTP/1.0\r\nHost: berth-agent\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer: String = answer().map_err(|source| StatusError::Away {
        path: socket.into(),
        source,
    })?;
    parse(&answer).ok_or_else(|| StatusError::Strange {
        path: socket.into(),
        what: "something that is not HTTP".into(),
    })
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some((code.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_first_and_who_waits_says_why() {
        let task = |status: &str, waiting: Option<&str>| serde_json::json!({ "Id": "1f", "KnownStatus": status, "Waiting": waiting });
        let text = task_lines(&[
            task("RUNNING", None),
            task("PENDING", Some("pulls nginx")),
            task("RUNNING", None),
        ]);
        assert_eq!(text, "tasks: 1 PENDING, 2 RUNNING\n  1f PENDING: pulls nginx\n");
        assert_eq!(task_lines(&[]), "tasks: none\n");
    }

    #[test]
    fn an_agent_that_is_away_is_said_with_its_socket() {
        let error = ask(Path::new("/nonexistent/agent.sock")).unwrap_err().to_string();
        assert!(
            error.contains("/nonexistent/agent.sock") && error.contains("systemctl"),
            "{error}"
        );
        assert_eq!(
            parse("HTTP/1.0 503 No\r\na: b\r\n\r\nwhy"),
            Some((503, "why".into()))
        );
        assert_eq!(parse("SSH-2.0"), None);
    }
}
