//! `berth why`: in what state a task is, what it waits for, and until when at the latest.

use serde::Deserialize;
use serde_json::json;

use crate::api::{Client, find_task};
use crate::arguments::{Format, Global};
use crate::duration;
use crate::error::CliError;
use crate::ids::{last_part, short};
use crate::output;

pub async fn run(client: &Client, global: &Global, given: &str) -> Result<u8, CliError> {
    let task = find_task(client, &global.cluster, given).await?;
    let answer = client
        .berth("ExplainTask", &json!({"cluster": task.cluster, "task": task.id}))
        .await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
    } else {
        let explanation = Explanation::deserialize(&answer).unwrap_or_default();
        output::print(&explanation.text(duration::now_ms()))?;
    }
    Ok(0)
}

/// The answer to `BerthV1.ExplainTask`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Explanation {
    task_arn: String,
    last_status: String,
    desired_status: String,
    /// One sentence for people.
    why: String,
    stop_code: Option<String>,
    since_ms: i64,
    deadline_ms: Option<i64>,
    node: String,
    node_hostname: Option<String>,
    node_connected: bool,
    containers: Vec<Container>,
    warnings: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    last_status: String,
    exit_code: Option<i32>,
    reason: Option<String>,
    restart_count: u32,
    health: Option<Health>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Health {
    status: String,
    since_ms: Option<i64>,
    exit_code: Option<i32>,
    output: Option<String>,
}

impl Explanation {
    fn text(&self, now_ms: i64) -> String {
        let since = duration::short((now_ms - self.since_ms) as f64 / 1000.0);
        let wanted = if self.desired_status == self.last_status {
            String::new()
        } else {
            format!(", wanted {}", self.desired_status)
        };
        let id = short(last_part(&self.task_arn));
        let mut lines = vec![format!(
            "task {id} is {} for {since}{wanted}: {}",
            self.last_status, self.why
        )];
        if let Some(deadline) = self.deadline_ms {
            let left = (deadline - now_ms) as f64 / 1000.0;
            lines.push(if left > 0.0 {
                format!("at the latest in {}", duration::short(left))
            } else {
                format!("{} late", duration::short(-left))
            });
        }
        if let Some(code) = &self.stop_code {
            lines.push(format!("stop code {code}"));
        }
        let host = self.node_hostname.as_deref().unwrap_or("unknown host");
        let connected = if self.node_connected {
            "connected"
        } else {
            "not connected"
        };
        lines.push(format!("node {} ({host}) is {connected}", short(&self.node)));
        lines.extend(self.containers.iter().map(|container| container.text(now_ms)));
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines.join("\n") + "\n"
    }
}

impl Container {
    fn text(&self, now_ms: i64) -> String {
        let health = self.health.as_ref().map(|health| health.text(now_ms));
        let health = health.unwrap_or_default();
        let exit = self
            .exit_code
            .map(|code| format!(", exit code {code}"))
            .unwrap_or_default();
        let reason = self
            .reason
            .as_deref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let restarts = match self.restart_count {
            0 => String::new(),
            1 => ", restarted once".to_owned(),
            count => format!(", restarted {count} times"),
        };
        format!(
            "container {} is {}{exit}{restarts}{reason}{health}",
            self.name, self.last_status
        )
    }
}

impl Health {
    /// With what the probe said that found it so.
    fn text(&self, now_ms: i64) -> String {
        let since = self
            .since_ms
            .map(|since| format!(" for {}", duration::short((now_ms - since) as f64 / 1000.0)))
            .unwrap_or_default();
        let exit = self
            .exit_code
            .map(|code| format!(", its check ended with exit code {code}"))
            .unwrap_or_default();
        let said = self
            .output
            .as_deref()
            .map(str::trim)
            .filter(|said| !said.is_empty());
        let said = said
            .map(|said| format!(": {}", said.replace('\n', "\n    ")))
            .unwrap_or_default();
        format!("\n  health {}{since}{exit}{said}", self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_state_reason_deadline_and_containers() {
        let explanation: Explanation = serde_json::from_value(json!({
            "taskArn": format!("arn:aws:ecs:r:0:task/default/{}", "0a".repeat(16)), "lastStatus": "STOPPING",
            "desiredStatus": "STOPPED", "why": "is being stopped (no longer needed)", "sinceMs": 1_000,
            "deadlineMs": 31_000, "stopCode": "UserInitiated", "node": "0b".repeat(16), "nodeHostname": "rack-1",
            "nodeConnected": true, "newField": {},
            "containers": [{"name": "web", "lastStatus": "STOPPED", "exitCode": 1, "reason": "told to", "restartCount": 2}],
            "warnings": ["no quota"],
        }))
        .unwrap();
        assert_eq!(
            explanation.text(6_000),
            "task 0a0a0a0a0a0a is STOPPING for 5s, wanted STOPPED: is being stopped (no longer needed)\n\
             at the latest in 25s\nstop code UserInitiated\nnode 0b0b0b0b0b0b (rack-1) is connected\n\
             container web is STOPPED, exit code 1, restarted 2 times: told to\nwarning: no quota\n"
        );
        let health: Container = serde_json::from_value(json!({
            "name": "web", "lastStatus": "RUNNING",
            "health": {"status": "UNHEALTHY", "sinceMs": 1_000, "exitCode": 7, "output": "no route\nto db\n"},
        }))
        .unwrap();
        assert_eq!(
            health.text(31_000),
            "container web is RUNNING\n  health UNHEALTHY for 30s, its check ended with exit code 7: no route\n    to db"
        );
        assert!(explanation.text(40_000).contains("\n9s late\n"));
    }
}
