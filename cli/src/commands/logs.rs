//! `berth logs`: lines of a task's containers, as the control plane streams them from the node.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::api::{Client, Found, describe_task, find_task};
use crate::arguments::{Format, Global, LogsArgs};
use crate::duration;
use crate::error::CliError;
use crate::output;

/// After its log has ended a task has only its clean-up to do.
pub const STOP_AFTER_LOG_TIMEOUT: Duration = Duration::from_secs(120);
/// A line of log is at most 16 KiB and escaping at most doubles it: more is not a log.
const LINE_BYTES_MAX: usize = 1 << 20;

pub async fn run(client: &Client, global: &Global, mut args: LogsArgs) -> Result<u8, CliError> {
    let task = find_task(client, &global.cluster, &args.task).await?;
    args.task.clone_from(&task.id);
    if global.output == Format::Json {
        stream_with(client, &task, &args, &mut |_, raw| output::print_line(raw)).await?;
    } else {
        stream(client, &task, &args).await?;
    }
    Ok(0)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(default)]
    container: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    time_ms: i64,
    #[serde(default)]
    line: String,
    error: Option<String>,
}

/// Prints lines for people: standard error to standard error, each with its container's name if there are several.
pub async fn stream(client: &Client, task: &Found, args: &LogsArgs) -> Result<(), CliError> {
    let named = match describe_task(client, task).await? {
        Some((state, _)) => args.container.is_none() && state.containers.len() > 1,
        None => false,
    };
    let mut format = Formatter {
        named,
        timestamps: args.timestamps,
        open: HashMap::new(),
    };
    stream_with(client, task, args, &mut |line, _| {
        let text = format.format(line);
        if line.stream == "stderr" {
            eprint!("{text}");
            Ok(())
        } else {
            output::print(&text)
        }
    })
    .await
}

async fn stream_with(
    client: &Client,
    task: &Found,
    args: &LogsArgs,
    each: &mut dyn FnMut(&Line, &str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut request = json!({"cluster": task.cluster, "task": task.id, "follow": args.follow});
    if let Some(container) = &args.container {
        request["container"] = json!(container);
    }
    if let Some(lines) = args.tail {
        request["tailLines"] = json!(lines);
    }
    if let Some(since) = args.since {
        request["sinceMs"] = json!(since);
    }
    let mut response = client.berth_stream("StreamLogs", &request).await?;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| broken(task, error.without_url().to_string()))?
    {
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let raw: Vec<u8> = rest.drain(..=end).collect();
            let raw = String::from_utf8_lossy(&raw[..end]);
            if raw.is_empty() {
                continue;
            }
            let line: Line = serde_json::from_str(&raw).map_err(|error| broken(task, error.to_string()))?;
            if let Some(reason) = line.error {
                return Err(broken(task, reason));
            }
            each(&line, &raw)?;
        }
        if rest.len() > LINE_BYTES_MAX {
            return Err(broken(task, format!("a line longer than {LINE_BYTES_MAX} bytes")));
        }
    }
    Ok(())
}

fn broken(task: &Found, reason: String) -> CliError {
    CliError::LogBroken {
        task: crate::ids::short(&task.id).into(),
        reason,
    }
}

/// Puts names and times before lines, but not inside a line that comes in pieces.
struct Formatter {
    named: bool,
    timestamps: bool,
    /// Containers and streams whose last piece had no line end.
    open: HashMap<(String, String), bool>,
}

impl Formatter {
    fn format(&mut self, line: &Line) -> String {
        let open = self
            .open
            .entry((line.container.clone(), line.stream.clone()))
            .or_default();
        let mut text = String::new();
        if !*open {
            if self.timestamps {
                let _ = write!(text, "{} ", duration::rfc3339(line.time_ms));
            }
            if self.named {
                let _ = write!(text, "{} | ", line.container);
            }
        }
        text.push_str(&line.line);
        *open = !line.line.ends_with('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(container: &str, text: &str) -> Line {
        Line {
            container: container.into(),
            stream: "stdout".into(),
            time_ms: 1_500,
            line: text.into(),
            error: None,
        }
    }

    #[test]
    fn lines_are_named_and_dated_once() {
        let mut format = Formatter {
            named: true,
            timestamps: true,
            open: HashMap::new(),
        };
        let text: String = ["one\n", "two, ", "in pieces\n", "three\n"]
            .iter()
            .map(|text| format.format(&line("web", text)))
            .collect();
        assert_eq!(
            text,
            "1970-01-01T00:00:01.5Z web | one\n1970-01-01T00:00:01.5Z web | two, in pieces\n\
             1970-01-01T00:00:01.5Z web | three\n"
        );
    }

    #[test]
    fn a_line_alone_is_as_the_container_wrote_it() {
        let mut format = Formatter {
            named: false,
            timestamps: false,
            open: HashMap::new(),
        };
        assert_eq!(format.format(&line("web", "as it is\n")), "as it is\n");
    }
}
