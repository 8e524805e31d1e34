//! `berth token`: lets hosts join.

use serde_json::{Value, json};

use crate::api::{Client, JoinToken};
use crate::arguments::{Format, Global, TokenCommand, TokenCreateArgs};
use crate::duration;
use crate::error::CliError;
use crate::output;

pub async fn run(client: &Client, global: &Global, command: TokenCommand) -> Result<u8, CliError> {
    match command {
        TokenCommand::Create(args) => create(client, global, args).await,
        TokenCommand::List => list(client, global).await,
        TokenCommand::Delete { tokens } => delete(client, global, &tokens).await,
    }
}

async fn create(client: &Client, global: &Global, args: TokenCreateArgs) -> Result<u8, CliError> {
    let attributes: Vec<Value> = args
        .attribute
        .iter()
        .map(|(name, value)| match value {
            Some(value) => json!({"name": name, "value": value}),
            None => json!({"name": name}),
        })
        .collect();
    let body = json!({
        "cluster": global.cluster, "ttlSeconds": args.ttl.as_secs(), "uses": args.uses, "attributes": attributes,
    });
    let mut answer = client.berth("CreateJoinToken", &body).await?;
    let text = |name: &str| {
        answer
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let command = command(
        [&text("controlPlane"), &text("token"), &text("caHash")],
        &global.cluster,
        &args.attribute,
    );
    for warning in answer
        .get("warnings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        eprintln!("berth: warning: {}", warning.as_str().unwrap_or_default());
    }
    if global.output == Format::Json {
        answer["command"] = command.into();
        output::print_json(&answer)?;
        return Ok(0);
    }
    let made: JoinToken = serde_json::from_value(answer["joinToken"].take()).unwrap_or_default();
    let hosts = if made.uses == 1 {
        "one host".to_owned()
    } else {
        format!("{} hosts", made.uses)
    };
    output::print_line(&format!(
        "token {} lets {hosts} join cluster {} until {}; it is shown only now",
        made.token_id,
        made.cluster,
        duration::rfc3339(made.expires_at_ms()),
    ))?;
    output::print_line("on the host:")?;
    output::print_line(&format!("\n  {command}\n"))?;
    Ok(0)
}

/// What to type on the host, whole.
fn command(
    [control_plane, token, hash]: [&str; 3],
    cluster: &str,
    attributes: &[(String, Option<String>)],
) -> String {
    let mut command = format!(
        "sudo sh bootstrap.sh --control-plane {} --token {} --ca-hash {}",
        quoted(control_plane),
        quoted(token),
        quoted(hash)
    );
    if cluster != "default" {
        command.push_str(&format!(" --cluster {}", quoted(cluster)));
    }
    for (name, value) in attributes {
        let text = match value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        };
        command.push_str(&format!(" --attribute {}", quoted(&text)));
    }
    command
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

async fn list(client: &Client, global: &Global) -> Result<u8, CliError> {
    let found = client.berth_list("ListJoinTokens", "joinTokens").await?;
    if global.output == Format::Json {
        output::print_json(&json!({ "joinTokens": found }))?;
        return Ok(0);
    }
    let tokens: Vec<JoinToken> = found
        .into_iter()
        .map(|value| serde_json::from_value(value).unwrap_or_default())
        .collect();
    output::print(&output::join_tokens(&tokens, duration::now_ms()).to_string())?;
    Ok(0)
}

async fn delete(client: &Client, global: &Global, tokens: &[String]) -> Result<u8, CliError> {
    for token in tokens {
        let answer = client
            .berth("DeleteJoinToken", &json!({"tokenId": token}))
            .await?;
        if global.output == Format::Json {
            output::print_json(&answer)?;
        } else {
            output::print_line(&format!(
                "token {token} is deleted: nobody joins with it any more"
            ))?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_whole_and_one_word_stays_one() {
        let words = ["https://cp.example:8781", "berth1.0a.b-_c", "sha256:00"];
        assert_eq!(
            command(words, "default", &[]),
            "sudo sh bootstrap.sh --control-plane https://cp.example:8781 --token berth1.0a.b-_c --ca-hash sha256:00"
        );
        let attributes = [
            ("rack".to_owned(), Some("row 7".to_owned())),
            ("gpu".to_owned(), None),
        ];
        let long = command(words, "edge", &attributes);
        assert!(
            long.ends_with(" --cluster edge --attribute 'rack=row 7' --attribute gpu"),
            "{long}"
        );
        assert_eq!(quoted("a'b"), r"'a'\''b'");
    }
}
