//! `berth env-file`: environment files that the control plane stores.

use std::io::Read;
use std::path::Path;

use serde_json::json;

use crate::api::{Client, list_pages};
use crate::arguments::{EnvFileCommand, Format, Global};
use crate::duration;
use crate::error::CliError;
use crate::output::{self, Table};

const ARN_PREFIX: &str = "arn:aws:s3:::";
/// More than the control plane takes, which says how much that is.
const BYTES_MAX: u64 = 1 << 20;

pub async fn run(client: &Client, global: &Global, command: EnvFileCommand) -> Result<u8, CliError> {
    match command {
        EnvFileCommand::Put { name, file } => put(client, global, &name, &file).await,
        EnvFileCommand::List => list(client, global).await,
        EnvFileCommand::Delete { names } => delete(client, global, &names).await,
    }
}

/// As task definitions spell it.
fn arn(name: &str) -> String {
    if name.starts_with("arn:") {
        return name.to_owned();
    }
    format!("{ARN_PREFIX}{name}")
}

/// `-` is the standard input.
fn read(path: &Path) -> Result<String, CliError> {
    let failed = |source| CliError::ReadFile {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(text)
}

async fn put(client: &Client, global: &Global, name: &str, file: &Path) -> Result<u8, CliError> {
    let content = read(file)?;
    let body = json!({"arn": arn(name), "content": content});
    let answer = client.berth("PutEnvironmentFile", &body).await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
        return Ok(0);
    }
    let file = &answer["environmentFile"];
    output::print_line(&format!(
        "{} is stored, with {} variables: tasks that start from now on have them",
        file["arn"].as_str().unwrap_or_default(),
        file["variables"],
    ))?;
    Ok(0)
}

async fn list(client: &Client, global: &Global) -> Result<u8, CliError> {
    let files = list_pages(client, "ListEnvironmentFiles", "environmentFiles", json!({})).await?;
    if global.output == Format::Json {
        output::print_json(&json!({ "environmentFiles": files }))?;
        return Ok(0);
    }
    let now = duration::now_ms() as f64 / 1000.0;
    let mut table = Table::new(&["FILE", "VARIABLES", "BYTES", "CHANGED", "BY"]);
    for file in &files {
        let text = |name: &str| file[name].as_str().unwrap_or("-").to_owned();
        let changed = file["changedAt"].as_f64().map(|at| duration::short(now - at));
        table.row(vec![
            text("arn"),
            file["variables"].to_string(),
            file["bytes"].to_string(),
            changed.map_or_else(|| "-".into(), |span| format!("{span} ago")),
            text("changedBy"),
        ]);
    }
    output::print(&table.to_string())?;
    Ok(0)
}

async fn delete(client: &Client, global: &Global, names: &[String]) -> Result<u8, CliError> {
    for name in names {
        let arn = arn(name);
        let answer = client
            .berth("DeleteEnvironmentFile", &json!({ "arn": arn }))
            .await?;
        if global.output == Format::Json {
            output::print_json(&answer)?;
        } else {
            output::print_line(&format!(
                "{arn} is deleted: no task starts with it any more; those that run have its variables still"
            ))?;
        }
    }
    Ok(0)
}
