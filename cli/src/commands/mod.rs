//! Owns what each command does, one file per command; the small ones are here. Never parses arguments and never
//! signs requests.

mod audit;
mod authority;
mod env_file;
mod inspect;
mod key;
mod logs;
mod node;
mod ps;
mod run;
mod stop;
mod subnet;
mod token;
mod wait;
mod why;

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::api::{Client, ContainerInstance, describe_nodes, list_nodes};
use crate::arguments::{Cli, Command, Format, Global};
use crate::duration;
use crate::endpoint;
use crate::error::CliError;
use crate::output;

/// Runs the command; returns the exit code.
pub async fn run(cli: Cli) -> Result<u8, CliError> {
    let global = cli.global;
    match cli.command {
        Command::Dev(args) => crate::dev::run(&global, *args).await.map_err(CliError::from),
        Command::Completion { shell } => completion(shell),
        Command::Manual(manual) => {
            manual.write::<Cli>().map_err(CliError::Output)?;
            Ok(0)
        }
        Command::Version => version(&global).await,
        Command::Run(args) => run::run(&connect(&global)?, &global, *args).await,
        Command::Ps { all } => ps::run(&connect(&global)?, &global, all).await,
        Command::Logs(args) => logs::run(&connect(&global)?, &global, args).await,
        Command::Stop {
            tasks,
            reason,
            detach,
        } => stop::run(&connect(&global)?, &global, &tasks, &reason, detach).await,
        Command::Nodes => nodes(&connect(&global)?, &global).await,
        Command::Inspect { id } => inspect::run(&connect(&global)?, &global, &id).await,
        Command::Node(command) => node::run(&connect(&global)?, &global, command).await,
        Command::Authority(command) => authority::run(&connect(&global)?, &global, command).await,
        Command::Token(command) => token::run(&connect(&global)?, &global, command).await,
        Command::Key { command } => key::run(&connect(&global)?, &global, command).await,
        Command::EnvFile { command } => env_file::run(&connect(&global)?, &global, command).await,
        Command::Subnet { command } => subnet::run(&connect(&global)?, &global, command).await,
        Command::Audit(args) => audit::run(&connect(&global)?, &global, args).await,
        Command::Why { task } => why::run(&connect(&global)?, &global, &task).await,
    }
}

fn connect(global: &Global) -> Result<Client, CliError> {
    let endpoint = endpoint::resolve(global, &|name| std::env::var(name).ok())?;
    Ok(Client::new(endpoint)?)
}

async fn nodes(client: &Client, global: &Global) -> Result<u8, CliError> {
    let arns = list_nodes(client, &global.cluster).await?;
    let found = describe_nodes(client, &global.cluster, &arns).await?;
    if global.output == Format::Json {
        output::print_json(&json!({ "containerInstances": found }))?;
    } else {
        let nodes: Vec<ContainerInstance> = found
            .into_iter()
            .map(|value| serde_json::from_value(value).unwrap_or_default())
            .collect();
        let table = output::nodes(&nodes, global.output == Format::Wide, duration::now_ms());
        output::print(&table.to_string())?;
        for node in nodes
            .iter()
            .filter(|node| !node.health_status.problem().is_empty())
        {
            let id = crate::ids::short(node.id());
            output::print_line(&format!("node {id}: {}", node.health_status.problem()))?;
        }
    }
    Ok(0)
}

/// Never fails for want of a control plane.
async fn version(global: &Global) -> Result<u8, CliError> {
    let own = env!("CARGO_PKG_VERSION");
    let server = match connect(global) {
        Ok(client) => client.berth("GetServerInfo", &json!({})).await.ok(),
        Err(_) => None,
    };
    if global.output == Format::Json {
        output::print_json(&json!({ "client": { "version": own }, "server": server }))?;
        return Ok(0);
    }
    output::print_line(&format!("berth {own}"))?;
    match server
        .as_ref()
        .and_then(|answer| answer.get("version"))
        .and_then(Value::as_str)
    {
        Some(version) => output::print_line(&format!("control plane {version}"))?,
        None => output::print_line("control plane: none reached")?,
    }
    Ok(0)
}

fn completion(shell: clap_complete::Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "berth", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
