//! `berth authority`: who signs for nodes, and how another one takes its place.

use serde_json::{Value, json};

use crate::api::Client;
use crate::arguments::{AuthorityCommand, Format, Global, RotateArgs};
use crate::duration;
use crate::error::CliError;
use crate::output;

pub async fn run(client: &Client, global: &Global, command: AuthorityCommand) -> Result<u8, CliError> {
    let step = match command {
        AuthorityCommand::Rotate(RotateArgs { begin: true, .. }) => json!({"step": "BEGIN"}),
        AuthorityCommand::Rotate(RotateArgs { activate: true, .. }) => json!({"step": "ACTIVATE"}),
        AuthorityCommand::Rotate(RotateArgs {
            finish: true, force, ..
        }) => json!({"step": "FINISH", "force": force}),
        AuthorityCommand::Status | AuthorityCommand::Rotate(_) => {
            let answer = client.berth("DescribeAuthority", &json!({})).await?;
            return show(global, &answer);
        }
    };
    let answer = client.berth("RotateAuthority", &step).await?;
    show(global, &answer)
}

fn show(global: &Global, answer: &Value) -> Result<u8, CliError> {
    if global.output == Format::Json {
        output::print_json(answer)?;
    } else {
        output::print(&text(answer))?;
    }
    Ok(0)
}

/// What there is, and what comes next.
fn text(answer: &Value) -> String {
    let mut text = String::new();
    for (role, says) in [
        ("active", "signs"),
        ("next", "is believed, too"),
        ("previous", "is still believed"),
    ] {
        let one = &answer[role];
        if let Some(hash) = one["caHash"].as_str() {
            let end = (one["notAfter"].as_f64().unwrap_or_default() * 1000.0) as i64;
            text.push_str(&format!("{hash} {says}, until {}\n", duration::rfc3339(end)));
        }
    }
    let behind = answer["nodesWithOldCertificatesCount"]
        .as_u64()
        .unwrap_or_default();
    text.push_str(&match (answer["phase"].as_str().unwrap_or_default(), behind) {
        ("BEGUN", _) => {
            "next: `berth authority rotate --activate`, so that the new one signs and nodes renew\n"
                .to_owned()
        }
        ("ACTIVATED", 0) => "every node has renewed; next: `berth authority rotate --finish`\n".to_owned(),
        ("ACTIVATED", count) => {
            format!("{count} nodes have not renewed yet; then: `berth authority rotate --finish`\n")
        }
        (_, 0) => "to replace it: `berth authority rotate --begin`\n".to_owned(),
        (_, count) => format!("{count} nodes hold certificates of another authority: register them again\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_next() {
        let answer = |phase: &str, count: u64| {
            json!({
                "phase": phase, "nodesWithOldCertificatesCount": count,
                "active": {"caHash": "sha256:aa", "notAfter": 0.0}, "next": null,
                "previous": {"caHash": "sha256:bb", "notAfter": 0.0},
            })
        };
        let waiting = text(&answer("ACTIVATED", 2));
        assert!(
            waiting.starts_with("sha256:aa signs, until 1970-01-01T00:00:00"),
            "{waiting}"
        );
        assert!(
            waiting.contains("sha256:bb is still believed") && waiting.contains("2 nodes"),
            "{waiting}"
        );
        assert!(text(&answer("ACTIVATED", 0)).contains("--finish"));
        assert!(text(&answer("STEADY", 0)).contains("--begin"));
    }
}
