//! Owns what can be written on the command line. Parsed once, here; nothing else looks at `argv`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where `berth dev` keeps its state, and where other commands look for a running one.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/berth-dev";

/// Runs Amazon-ECS-style tasks on hosts you own.
///
/// Commands other than `dev` talk to a control plane: the one --endpoint-url or BERTH_ENDPOINT_URL names, else
/// the `berth dev` that runs on this host, else the control plane of this host (as root). Tasks and nodes are named by any unique prefix of their id.
#[derive(Debug, Parser)]
#[command(name = "berth", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the control plane refused or failed; 2 wrong usage; 3 no such thing, or several; \
4 no control plane to talk to, or keys not accepted; 5 this host cannot run `berth dev`; 6 the task did not \
come up, or failed; 130 interrupted. `berth run --follow` ends with the exit code of the container.";

#[derive(Debug, Args)]
pub struct Global {
    /// The ECS API to talk to [default: AWS_ENDPOINT_URL_ECS, else the one of this host]
    #[arg(long, global = true, env = "BERTH_ENDPOINT_URL", value_name = "URL")]
    pub endpoint_url: Option<String>,
    /// Authorities to believe the control plane with, PEM [default: AWS_CA_BUNDLE, else the system's]
    #[arg(long, global = true, env = "BERTH_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// State of `berth dev`: its address and keys are in dev.env there
    #[arg(long, global = true, env = "BERTH_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    #[arg(
        long,
        global = true,
        env = "BERTH_CLUSTER",
        value_name = "NAME",
        default_value = "default"
    )]
    pub cluster: String,
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For people with wide screens: whole ids and more columns
    Wide,
    /// For programs: the answer of the ECS API
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a control plane and a node on this host, in the foreground (needs root)
    Dev(Box<DevArgs>),
    /// Run a task, from an image or a task definition file
    Run(Box<RunArgs>),
    /// List tasks
    Ps {
        /// Stopped tasks too
        #[arg(short, long)]
        all: bool,
    },
    /// Show what a task's containers wrote
    Logs(LogsArgs),
    /// Stop tasks and wait until nothing of them is left
    Stop {
        #[arg(required = true, value_name = "TASK")]
        tasks: Vec<String>,
        /// Kept with the task, for people
        #[arg(long, default_value = "stopped with `berth stop`")]
        reason: String,
        /// Do not wait
        #[arg(short, long)]
        detach: bool,
    },
    /// List nodes
    Nodes,
    /// Show everything about a task, a node or a task definition, as JSON
    Inspect {
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Say why a task is in the state it is in, and what it waits for
    Why {
        #[arg(value_name = "TASK")]
        task: String,
    },
    /// Take a node out for good
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show or replace the authority that signs for nodes
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Let hosts join: make, list and delete join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make, list and revoke access keys of the control plane
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Store, list and delete environment files for task definitions
    EnvFile {
        #[command(subcommand)]
        command: EnvFileCommand,
    },
    /// Make, list and delete the ranges of which tasks have addresses
    Subnet {
        #[command(subcommand)]
        command: SubnetCommand,
    },
    /// Show who changed what, oldest first
    Audit(AuditArgs),
    /// Print the version, and the control plane's if there is one
    Version,
    /// Print a completion script: `source <(berth completion bash)`
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write man pages and shell completions: for packaging
    #[command(hide = true)]
    Manual(berth_manual::Manual),
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Believe nothing signed for this node any more, and end its link; what it runs is not stopped
    Revoke {
        #[arg(value_name = "NODE")]
        node: String,
        /// Kept with the node and its tasks, for people
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a node stop what it holds running because its control plane lost word of it
    Confirm {
        #[arg(value_name = "NODE")]
        node: String,
        /// Do it; without this, say what it would mean
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Show the authority, and where its replacement stands
    Status,
    /// Replace it, in three steps; without a flag, say which one is next
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Make a new authority; nodes are told to believe both
    #[arg(long, group = "step")]
    pub begin: bool,
    /// Let the new one sign; nodes are told to renew
    #[arg(long, group = "step")]
    pub activate: bool,
    /// Believe the old one no longer
    #[arg(long, group = "step")]
    pub finish: bool,
    /// Finish although nodes still hold certificates of the old one: they have to be registered again
    #[arg(long, requires = "finish")]
    pub force: bool,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print the command for the host that joins with it
    Create(TokenCreateArgs),
    /// List tokens; their secrets are known to nobody here
    List,
    /// Delete tokens: nobody joins with them any more
    Delete {
        #[arg(required = true, value_name = "TOKEN-ID")]
        tokens: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// How long hosts can join with it
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = crate::duration::parse)]
    pub ttl: std::time::Duration,
    /// How many hosts can join with it
    #[arg(long, value_name = "HOSTS", default_value_t = 1)]
    pub uses: u32,
    /// Attribute that each of these nodes gets, whatever it says of itself; several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = attribute)]
    pub attribute: Vec<(String, Option<String>)>,
}

/// NAME=VALUE, or NAME alone. The control plane says what may be in them.
fn attribute(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value).filter(|value| !value.is_empty())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("write NAME=VALUE, or NAME".into());
    }
    Ok((name.to_owned(), value.map(str::to_owned)))
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it: the secret is shown this once
    Create {
        /// Whose it is, for people: 1 to 64 letters, digits and +=,.@_-
        #[arg(long)]
        name: String,
        #[arg(long, value_enum)]
        role: Role,
    },
    /// List the keys, without their secrets
    List,
    /// End a key, at once and for good
    Revoke {
        #[arg(value_name = "KEY")]
        key: String,
        /// Also the last admin key, and the one that signs this call
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum SubnetCommand {
    /// Make a subnet of the cluster: every node gets a part of it
    Create(SubnetCreateArgs),
    /// List the cluster's subnets; with -o wide, which node has which part
    List,
    /// Delete subnets of which no task has an address
    Delete {
        #[arg(required = true, value_name = "SUBNET")]
        subnets: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct SubnetCreateArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The range, IPv4: 10.64.0.0/16
    #[arg(long, value_name = "RANGE")]
    pub cidr: String,
    /// Below it, tasks have IPv6 addresses too: fd12:3456:789a:1::/64
    #[arg(long, value_name = "RANGE")]
    pub ipv6_cidr_block: Option<String>,
    /// Size of a node's part, as a prefix length; a /24, or what leaves room for 16 nodes
    #[arg(long, value_name = "BITS")]
    pub node_prefix: Option<u8>,
    /// How tasks are connected; all but routed: as hosts of a network that is there
    #[arg(long, value_name = "KIND", value_parser = ["routed", "macvlan", "vlan", "interface"])]
    pub kind: Option<String>,
    /// The link that nodes have to that network, of kinds macvlan and vlan: eth0
    #[arg(long, value_name = "LINK")]
    pub uplink: Option<String>,
    /// Of kind vlan: 1 to 4094
    #[arg(long, value_name = "ID")]
    pub vlan_id: Option<u16>,
    /// Where tasks send what is for others than that network's hosts: 192.168.1.1
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<String>,
    /// Of that network's addresses, those that tasks get: 192.168.1.128/26
    #[arg(long, value_name = "RANGE")]
    pub range: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum EnvFileCommand {
    /// Store a file, or another content of it: tasks that start from now on have it
    Put {
        /// BUCKET/KEY.env, or arn:aws:s3:::BUCKET/KEY.env
        #[arg(value_name = "NAME")]
        name: String,
        /// Lines of VARIABLE=VALUE; - is the standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List the files, without what they hold
    List,
    /// Delete files: no task starts with them any more
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Everything
    Admin,
    /// Only what changes nothing
    ReadOnly,
}

impl Role {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ReadOnly => "read-only",
        }
    }
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only since then: 10m, 2h, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = crate::duration::parse_since_now)]
    pub since: Option<i64>,
    /// At most so many of the newest [default: 50, with --since all]
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub limit: Option<usize>,
    /// Go on as they come
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A network namespace and an address of its own
    Awsvpc,
    /// The host's network
    Host,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// For example 127.0.0.1:5000/nginx:latest
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub image: Option<String>,
    /// Arguments for the image's entry point (its command is replaced)
    #[arg(last = true, value_name = "ARGS", conflicts_with = "file")]
    pub command: Vec<String>,
    /// Register this task definition (JSON, as `aws ecs register-task-definition` takes it) and run it
    #[arg(short, long, value_name = "TASKDEF.JSON", conflicts_with_all = DEFINITION_FLAGS)]
    pub file: Option<PathBuf>,
    /// Name of the container and of the definition's family [default: the image's]
    #[arg(long)]
    pub name: Option<String>,
    /// Limit: CPU units, 1024 are one core; or cores: "0.5 vCPU"
    #[arg(long, default_value = "256")]
    pub cpu: String,
    /// Limit: MiB; or "1 GB"
    #[arg(long, default_value = "512")]
    pub memory: String,
    /// NAME=VALUE, or NAME to take the value it has here
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A port the container listens on: PORT or PORT/udp
    #[arg(short, long, value_name = "PORT[/PROTOCOL]")]
    pub port: Vec<String>,
    #[arg(long, value_enum, default_value_t = Network::Awsvpc)]
    pub network: Network,
    /// Replaces the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// USER[:GROUP] instead of the image's
    #[arg(long)]
    pub user: Option<String>,
    /// Directory to start in instead of the image's
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The container cannot write to its image
    #[arg(long)]
    pub read_only: bool,
    /// From the stop signal to SIGKILL
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
    /// Do not wait until the task runs: print its id
    #[arg(short, long, conflicts_with = "follow")]
    pub detach: bool,
    /// Show the output until the task stops, and end with the container's exit code
    #[arg(long)]
    pub follow: bool,
    /// How long to wait until the task runs
    #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = crate::duration::parse)]
    pub timeout: std::time::Duration,
}

/// What a definition file says itself.
const DEFINITION_FLAGS: [&str; 11] = [
    "name",
    "cpu",
    "memory",
    "env",
    "port",
    "network",
    "entrypoint",
    "user",
    "workdir",
    "read_only",
    "stop_timeout",
];

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[arg(value_name = "TASK")]
    pub task: String,
    /// Only this container's [default: all, each line with its container's name]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Go on until the task stops
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many lines of each container
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Only lines since then: 10m, 2h, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = crate::duration::parse_since_now)]
    pub since: Option<i64>,
    /// When each line was written
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Address of the API; plain HTTP, so only loopback
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS:PORT")]
    pub listen: std::net::SocketAddr,
    /// Address for nodes: gRPC with mutual TLS
    #[arg(long, default_value = "127.0.0.1:7071", value_name = "ADDRESS:PORT")]
    pub node_listen: std::net::SocketAddr,
    /// Addresses for tasks [default: the first /24 of 10.89.0.0/16 that this host has no route to]
    #[arg(long, value_name = "CIDR")]
    pub task_cidr: Option<ipnet::Ipv4Net>,
    /// Use this containerd instead of a private one
    #[arg(long, value_name = "SOCKET")]
    pub containerd: Option<PathBuf>,
    /// Names everything made on this host: nftables table, cgroup, links, containerd namespace
    #[arg(long, default_value = "berth-dev")]
    pub instance: String,
    /// Registry hosts (HOST:PORT) to talk plain HTTP to; loopback ones are anyway
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http: Vec<String>,
    /// Import OCI and docker archives from here
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// The berth-logger program [default: beside this one]
    #[arg(long, value_name = "FILE", env = "BERTH_LOGGER")]
    pub logger: Option<PathBuf>,
    /// Leave tasks and their containerd running at the end
    #[arg(long, conflicts_with = "stop_all")]
    pub keep_tasks: bool,
    /// Stop what an earlier `berth dev` left (after a kill -9, say), leave nothing on the host, and end
    #[arg(long)]
    pub stop_all: bool,
    /// At the end remove the state directory too: databases, images, logs, keys
    #[arg(long, conflicts_with = "keep_tasks")]
    pub purge: bool,
    /// error, warn, info, debug, trace, or directives such as berth_agent=debug
    #[arg(long, default_value = "warn", env = "BERTH_LOG", value_name = "LEVEL")]
    pub log_level: String,
}
