//! Owns `berth-agent register`: how a host joins. Looks at everything that could keep it from joining first, says what
//! it found, and leaves either a whole identity or what was there before. Never starts the agent.

mod checks;
mod output;

#[cfg(test)]
mod tests;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::node::v1::{self as wire, node_service_client::NodeServiceClient};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Code, transport::Channel};

use super::{
    Identity, IdentityError, IdentityFiles,
    certificate::{self, CaHash},
    files::Lock,
    issued,
    verify::{PinError, moment},
};
use crate::{
    config::{self, ConfigError},
    dial::{DialError, Dialer},
    link::LinkError,
    place::Place,
    settings::DEFAULT_FILE,
    sys,
};
use checks::Reached;
use output::Output;

/// Where the token is, for who does not want it in a file. An argument could be read by everybody on the host.
pub const TOKEN_VARIABLE: &str = "BERTH_JOIN_TOKEN";
const TOKEN_PREFIX: &str = "berth1.";
const TOKEN_BYTES_MAX: u64 = 4096;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Joins this host to a control plane: gets the node's identity in exchange for a join token.
///
/// The token is read from --token-file or from the environment variable BERTH_JOIN_TOKEN, never from an argument.
/// Exit codes: 0 joined, or joined already; 1 failed, or the control plane cannot be reached; 2 wrong arguments;
/// 3 the control plane refused (a wrong, expired or used-up token); 4 the control plane is not the one of --ca-hash.
#[derive(Debug, clap::Args)]
pub struct RegisterArgs {
    /// Address of the control plane's node port, for example https://cp.example:8781.
    #[arg(long, value_name = "URL")]
    pub control_plane: String,
    /// Hash of the control plane's authority: sha256:…, as `berth token create` prints it.
    #[arg(long, value_name = "HASH")]
    pub ca_hash: CaHash,
    /// File with the join token, readable by its owner only; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Custom attribute of the node, for placement constraints. May be given more than once.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = attribute)]
    pub attributes: Vec<(String, String)>,
    /// Where the agent keeps its state; the identity goes into `identity` in it. By default what the agent's
    /// configuration says.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The agent's configuration file, TOML; only `state_dir` is read, with drop-ins and the environment.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, env = "BERTH_AGENT_CONFIG")]
    pub config: PathBuf,
    /// Join anew although there is an identity. The old one is kept aside; tasks of the old node end once the agent
    /// was restarted and has its first orders.
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub json: bool,
}

impl RegisterArgs {
    /// Where the identity goes, in the order of what counts: flag, environment, drop-ins, file, default.
    fn state_dir(&self) -> Result<PathBuf, RegisterError> {
        if let Some(directory) = &self.state_dir {
            return Ok(directory.clone());
        }
        let missing = self.config != Path::new(DEFAULT_FILE) && !self.config.exists();
        if missing {
            return Err(RegisterError::Usage {
                what: "--config",
                problem: format!("{} is not there", self.config.display()),
            });
        }
        let place = Place::load(&self.config).map_err(|source| RegisterError::Configuration {
            source: source.into(),
        })?;
        Ok(place.state_dir)
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        None if !text.is_empty() => Ok((text.into(), String::new())),
        _ => Err("must be NAME=VALUE or NAME".into()),
    }
}

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("{what}: {problem}")]
    Usage { what: &'static str, problem: String },
    #[error("the agent's configuration; give --state-dir to do without it")]
    Configuration {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the join token's file")]
    TokenFile { source: ConfigError },
    #[error("{problem}. {advice}")]
    Unreachable { problem: String, advice: String },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the control plane's certificate")]
    Untrusted { source: PinError },
    #[error("{advice}")]
    Refused {
        advice: &'static str,
        source: Box<tonic::Status>,
    },
    #[error("no usable answer; run the same command again: the token is not used twice")]
    NoAnswer { source: Box<tonic::Status> },
    #[error("no answer for {} s; run the same command again: the token is not used twice", CALL_TIMEOUT.as_secs())]
    Slow,
    #[error(
        "this host is joined already: {problem}. To join anew, add --force: the old identity is kept aside"
    )]
    Joined { problem: String },
    #[error("this node's identity")]
    Identity(#[from] IdentityError),
    #[error("connect to the control plane")]
    Link(#[from] LinkError),
    #[error("start")]
    Start { source: std::io::Error },
}

impl RegisterError {
    /// As documented in `docs/joining.md`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Configuration { .. } | Self::TokenFile { .. } => 2,
            Self::Refused { .. } => 3,
            Self::Untrusted { source } if source.is_untrusted() => 4,
            Self::Untrusted { .. }
            | Self::Unreachable { .. }
            | Self::Dial(_)
            | Self::NoAnswer { .. }
            | Self::Slow
            | Self::Joined { .. }
            | Self::Identity(_)
            | Self::Link(_)
            | Self::Start { .. } => 1,
        }
    }
}

/// How a host is joined.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub identity: Identity,
    /// Where it is.
    pub directory: PathBuf,
    /// By an earlier run.
    pub already: bool,
    /// Where the identity before it is.
    pub kept: Option<PathBuf>,
}

/// Runs the command to its end; returns the exit code.
pub async fn run(args: RegisterArgs) -> u8 {
    let mut output = Output::new(args.json);
    let token = std::env::var(TOKEN_VARIABLE).ok();
    let result = match Dialer::from_env() {
        Ok(dialer) => join(&args, token, &dialer, &mut output).await,
        Err(error) => Err(error.into()),
    };
    match &result {
        Ok(joined) => output.joined(joined, &args),
        Err(error) => output.failed(error),
    }
    result.map_or_else(|error| error.exit_code(), |_| 0)
}

pub(crate) async fn join(
    args: &RegisterArgs,
    token: Option<String>,
    dialer: &Dialer,
    output: &mut Output,
) -> Result<Joined, RegisterError> {
    let address = checks::address(&args.control_plane)?;
    let files = IdentityFiles::new(&args.state_dir()?);
    if let Some(joined) = present(&files, args)? {
        return Ok(joined);
    }
    let token = read_token(args, token)?;
    // Nothing is written before it is known whom the host joins.
    let reached = checks::reach(&address, args.ca_hash, dialer, output).await?;
    let before = files.before();
    let lock = files.lock()?;
    // Another command may have been quicker.
    if let Some(joined) = present(&files, args)? {
        return Ok(joined);
    }
    let joined = exchange(&files, &lock, reached, token, &args.attributes).await;
    if let Err(RegisterError::Refused { .. }) = &joined {
        files.undo(lock, &before)?;
    }
    joined
}

/// Gets an identity, and puts it in place.
async fn exchange(
    files: &IdentityFiles,
    lock: &Lock,
    reached: Reached,
    token: String,
    attributes: &[(String, String)],
) -> Result<Joined, RegisterError> {
    let Reached { channel, proof } = reached;
    let key = files.pending_key(lock, issued::new_key)?;
    let answer = register(channel, token, issued::request(&key)?, attributes).await;
    if let Err(RegisterError::Refused { source, .. }) = &answer
        && source.code() == Code::PermissionDenied
    {
        // The key is known as a revoked node's: the next try has another.
        files.forget_pending(lock)?;
    }
    let answer = answer?;
    let certificate = CertificateDer::from(answer.certificate_der);
    let authorities = issued::authorities(answer.authority_der)?;
    if !authorities.contains(&proof.authority) {
        let problem = "the authorities it names are without the one of the hash".into();
        return Err(IdentityError::Answer { problem }.into());
    }
    let node = answer.node_id.parse().map_err(|_| IdentityError::Answer {
        problem: format!("{:?} is not a node id", answer.node_id),
    })?;
    issued::check(&certificate, &key, &node, &authorities)?;
    let pem = certificate::to_pem(&[certificate]);
    let kept = files.install(lock, &pem, &key, &authorities, true)?;
    let identity = files.load()?.ok_or_else(|| IdentityError::Missing {
        directory: files.directory().into(),
    })?;
    Ok(Joined {
        identity,
        directory: files.directory().into(),
        already: false,
        kept,
    })
}

/// The identity that is there, if it is one of this control plane and good, and is to stay.
fn present(files: &IdentityFiles, args: &RegisterArgs) -> Result<Option<Joined>, RegisterError> {
    if args.force {
        return Ok(None);
    }
    let joined = |problem: String| RegisterError::Joined { problem };
    let identity = match files.load() {
        Ok(None) => return Ok(None),
        Ok(Some(identity)) => identity,
        Err(error) => return Err(joined(format!("but {}", sys::Chain(&error)))),
    };
    let hashes: Vec<_> = identity.authorities.iter().map(CaHash::of).collect();
    if !hashes.contains(&args.ca_hash) {
        return Err(joined(format!(
            "as node {} of another control plane ({})",
            identity.node_id, hashes[0]
        )));
    }
    if !identity.is_valid_at(OffsetDateTime::now_utc()) {
        return Err(joined(format!(
            "as node {}, but its certificate is valid from {} to {} only, and this host's clock says {}",
            identity.node_id,
            moment(identity.not_before),
            moment(identity.not_after),
            moment(OffsetDateTime::now_utc())
        )));
    }
    Ok(Some(Joined {
        identity,
        directory: files.directory().into(),
        already: true,
        kept: None,
    }))
}

fn read_token(args: &RegisterArgs, variable: Option<String>) -> Result<String, RegisterError> {
    let usage = |problem: &str| RegisterError::Usage {
        what: "join token",
        problem: problem.into(),
    };
    let token = match (&args.token_file, variable) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut text = String::new();
            let read = std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text);
            read.map_err(|_| usage("standard input cannot be read as text"))?;
            text
        }
        (Some(path), _) => config::read_secret(path).map_err(|source| RegisterError::TokenFile { source })?,
        (None, Some(token)) => token,
        (None, None) => {
            return Err(usage(
                "there is none: give --token-file FILE, or set BERTH_JOIN_TOKEN. `berth token create` on the control plane \
                 makes one",
            ));
        }
    };
    let token = token.trim();
    // Without what was given: it may be half a secret.
    if !token.starts_with(TOKEN_PREFIX)
        || token.split('.').count() != 3
        || token.contains(char::is_whitespace)
    {
        return Err(usage(
            "it does not look like berth1.ID.SECRET, as `berth token create` prints it",
        ));
    }
    Ok(token.to_owned())
}

async fn register(
    channel: Channel,
    token: String,
    request: Vec<u8>,
    attributes: &[(String, String)],
) -> Result<wire::RegisterResponse, RegisterError> {
    let asked = wire::RegisterRequest {
        token,
        certificate_request_der: request,
        description: Some(description()),
        attributes: attributes.iter().cloned().collect(),
    };
    let mut client = NodeServiceClient::new(channel).max_decoding_message_size(wire::MESSAGE_BYTES_MAX);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.register(asked)).await;
    answer
        .map_err(|_| RegisterError::Slow)?
        .map(tonic::Response::into_inner)
        .map_err(refusal)
}

fn refusal(status: tonic::Status) -> RegisterError {
    let advice = match status.code() {
        Code::Unauthenticated => {
            "the control plane refused the join token: make a new one there with `berth token create`, and use it before \
             it expires"
        }
        Code::Unimplemented => "this control plane cannot join hosts by token: it is older than this agent",
        Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::ResourceExhausted => "the control plane refused this host",
        _ => {
            return RegisterError::NoAnswer {
                source: Box::new(status),
            };
        }
    };
    RegisterError::Refused {
        advice,
        source: Box::new(status),
    }
}

/// What an operator recognises the host by. What is not known yet comes with the first link.
fn description() -> wire::NodeDescription {
    wire::NodeDescription {
        hostname: sys::hostname().unwrap_or_default(),
        boot_id: sys::boot_id().unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_version: sys::kernel_version().unwrap_or_default(),
        architecture: sys::architecture().into(),
        os: "linux".into(),
        runtime_version: String::new(),
        cgroup_version: 0,
    }
}
