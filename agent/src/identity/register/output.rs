//! Owns what `register` prints: lines for people, or one JSON object for scripts. Never a token, never a key.

use serde_json::{Value, json};

use super::{Joined, RegisterArgs, RegisterError};
use crate::{identity::verify::moment, sys::Chain};

#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    checks: Vec<Value>,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            checks: Vec::new(),
        }
    }

    /// Something that was looked at and is well.
    pub fn check(&mut self, name: &str, detail: String) {
        if !self.json {
            println!("ok  {name:<10} {detail}");
        }
        self.checks.push(json!({ "name": name, "detail": detail }));
    }

    pub fn joined(&self, joined: &Joined, args: &RegisterArgs) {
        let identity = &joined.identity;
        if self.json {
            let said = json!({
                "status": if joined.already { "already-registered" } else { "registered" },
                "nodeId": identity.node_id.to_string(),
                "cluster": identity.cluster,
                "controlPlane": args.control_plane,
                "identity": joined.directory,
                "notAfter": moment(identity.not_after),
                "oldIdentity": joined.kept,
                "checks": self.checks,
            });
            println!("{said}");
            return;
        }
        let how = if joined.already {
            "joined already"
        } else {
            "joined"
        };
        println!(
            "{how}: node {} of cluster {}; its certificate is renewed by the agent and good until {}",
            identity.node_id,
            identity.cluster,
            moment(identity.not_after)
        );
        if let Some(kept) = &joined.kept {
            println!("the identity before it is in {}", kept.display());
        }
        if !joined.already {
            println!(
                "next: control_plane = {:?} in the agent's configuration, then start or restart berth-agent",
                args.control_plane
            );
        }
    }

    pub fn failed(&self, error: &RegisterError) {
        let chain = Chain(error).to_string();
        if self.json {
            let said = json!({
                "status": "failed",
                "error": chain,
                "exitCode": error.exit_code(),
                "checks": self.checks,
            });
            println!("{said}");
        } else {
            eprintln!("berth-agent register: {chain}");
        }
    }
}
