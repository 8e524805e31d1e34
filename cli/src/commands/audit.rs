//! `berth audit`: who changed what.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Client, list_pages_until};
use crate::arguments::{AuditArgs, Format, Global};
use crate::error::CliError;
use crate::output;

/// How often `--follow` asks.
const POLL: Duration = Duration::from_secs(1);
/// Without --since and --follow: so many of the newest.
const SHOWN: usize = 50;

pub async fn run(client: &Client, global: &Global, args: AuditArgs) -> Result<u8, CliError> {
    let since_ms = args.since.unwrap_or(0).max(0);
    let limit = match (args.limit, args.since) {
        (Some(limit), _) => limit,
        (None, Some(_)) => usize::MAX,
        (None, None) => SHOWN,
    };
    let mut seen = show(client, global, since_ms, 0, limit).await?;
    if !args.follow {
        return Ok(0);
    }
    loop {
        tokio::time::sleep(POLL).await;
        seen = show(client, global, since_ms, seen, usize::MAX).await?;
    }
}

/// Prints what is newer than `seen`, oldest first, at most `limit` of the newest; returns the newest sequence.
async fn show(
    client: &Client,
    global: &Global,
    since_ms: i64,
    seen: u64,
    limit: usize,
) -> Result<u64, CliError> {
    let sequence = |event: &Value| event["sequence"].as_u64().unwrap_or(0);
    let body = json!({"sinceMs": since_ms, "maxResults": limit.clamp(1, 100)});
    let mut events = list_pages_until(client, "ListAuditEvents", "auditEvents", body, |events| {
        events.len() >= limit || events.last().is_some_and(|event| sequence(event) <= seen)
    })
    .await?;
    events.retain(|event| sequence(event) > seen);
    events.truncate(limit);
    for event in events.iter().rev() {
        match global.output {
            // One object a line: a stream has no end to close a list with.
            Format::Json => output::print_line(&event.to_string())?,
            _ => output::print_line(&line(event, global.output == Format::Wide))?,
        }
    }
    Ok(events.first().map_or(seen, sequence))
}

fn line(event: &Value, wide: bool) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
    let mut line = format!(
        "{}  {}  {}  {}  {}",
        text("time"),
        text("actor"),
        text("from"),
        text("operation"),
        text("outcome")
    );
    if let Some(code) = event["code"].as_str() {
        line.push_str(&format!(" ({code})"));
    }
    if let Some(count) = event["count"].as_u64().filter(|count| *count > 1) {
        line.push_str(&format!(" {count} times"));
    }
    for (name, value) in event["targets"].as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Array(list) => list
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(","),
            _ => continue,
        };
        line.push_str(&format!("  {name}={value}"));
    }
    if wide {
        line.push_str(&format!("  role={}  request={}", text("role"), text("requestId")));
    }
    // A name may hold anything; a terminal must not obey it.
    line.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_did_what_to_what_and_how_it_ended() {
        let event = json!({
            "time": "2026-01-31T12:00:00Z", "actor": "BERTHAB", "from": "10.0.0.7", "operation": "StopTask",
            "outcome": "refused", "code": "AccessDeniedException", "count": 2,
            "targets": {"task": "0a1b\u{1b}[31m", "taskArns": ["a", "b"]},
        });
        assert_eq!(
            line(&event, false),
            "2026-01-31T12:00:00Z  BERTHAB  10.0.0.7  StopTask  refused (AccessDeniedException) 2 times  \
             task=0a1b [31m  taskArns=a,b"
        );
    }
}
