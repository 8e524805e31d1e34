//! `berth key`: access keys of the control plane.

use serde_json::{Value, json};

use crate::api::{Client, list_pages};
use crate::arguments::{Format, Global, KeyCommand, Role};
use crate::duration;
use crate::error::CliError;
use crate::output::{self, Table};

pub async fn run(client: &Client, global: &Global, command: KeyCommand) -> Result<u8, CliError> {
    match command {
        KeyCommand::Create { name, role } => create(client, global, &name, role).await,
        KeyCommand::List => list(client, global).await,
        KeyCommand::Revoke { key, force } => revoke(client, global, &key, force).await,
    }
}

async fn create(client: &Client, global: &Global, name: &str, role: Role) -> Result<u8, CliError> {
    let answer = client
        .berth("CreateApiKey", &json!({"name": name, "role": role.name()}))
        .await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
        return Ok(0);
    }
    let id = answer["apiKey"]["accessKeyId"].as_str().unwrap_or_default();
    let secret = answer["secretAccessKey"].as_str().unwrap_or_default();
    // As a shell takes it, so that it can go straight into a file or a secret store.
    output::print(&format!(
        "AWS_ACCESS_KEY_ID={id}\nAWS_SECRET_ACCESS_KEY={secret}\nAWS_DEFAULT_REGION={region}\n\
         AWS_ENDPOINT_URL_ECS={url}\n",
        region = client.region(),
        url = client.url().trim_end_matches('/'),
    ))?;
    eprintln!("berth: the secret is shown this once; `berth key revoke {id}` ends the key");
    Ok(0)
}

async fn list(client: &Client, global: &Global) -> Result<u8, CliError> {
    let keys = list_pages(client, "ListApiKeys", "apiKeys", json!({})).await?;
    if global.output == Format::Json {
        output::print_json(&json!({ "apiKeys": keys }))?;
        return Ok(0);
    }
    let now = duration::now_ms() as f64 / 1000.0;
    let mut table = Table::new(&["KEY", "NAME", "ROLE", "AGE", "LAST USED", "MADE BY"]);
    for key in &keys {
        let text = |name: &str| key[name].as_str().unwrap_or("-").to_owned();
        let ago = |name: &str| key[name].as_f64().map(|at| duration::short(now - at));
        let configured = key["source"] == "configuration";
        table.row(vec![
            text("accessKeyId"),
            text("name"),
            text("role"),
            ago("createdAt").unwrap_or_else(|| "-".into()),
            match ago("lastUsedAt") {
                Some(span) => format!("{span} ago"),
                None if configured => "-".into(),
                None => "never".into(),
            },
            if configured {
                "configuration".into()
            } else {
                text("createdBy")
            },
        ]);
    }
    output::print(&table.to_string())?;
    Ok(0)
}

async fn revoke(client: &Client, global: &Global, key: &str, force: bool) -> Result<u8, CliError> {
    let answer: Value = client
        .berth("DeleteApiKey", &json!({"accessKeyId": key, "force": force}))
        .await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
    } else {
        output::print_line(&format!(
            "{key} is revoked: nothing signed with it is accepted from now on"
        ))?;
    }
    Ok(0)
}
