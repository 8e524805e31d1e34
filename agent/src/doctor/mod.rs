//! `berth-agent doctor`: owns the look at a host before it is trusted with tasks, and after something went wrong. Every
//! check says what it found and, unless all is well, what to do. Never changes anything.
//!
//! One file per subject. Checks are independent: none is left out because another failed.

mod cgroups;
mod conflicts;
mod containerd;
mod host;
mod identity;
mod network;
mod storage;

use std::{fmt, time::Duration};

use futures_util::future::join_all;
use serde::Serialize;

use crate::{
    config::{Config, ConfigError},
    sys::Chain,
};

/// One check takes no longer.
const CHECK_DEADLINE: Duration = Duration::from_secs(15);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// Tasks run; something will be missing or wrong later.
    Warning,
    /// Tasks do not run until this is mended.
    Problem,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject, one or two words.
    pub check: &'static str,
    pub outcome: Outcome,
    pub found: String,
    /// What to do about it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Warning,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Problem,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of it.
    pub fn outcome(&self) -> Outcome {
        let outcomes = self.findings.iter().map(|finding| finding.outcome);
        outcomes.max().unwrap_or(Outcome::Ok)
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.outcome == outcome)
            .count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let word = match finding.outcome {
                Outcome::Ok => "ok",
                Outcome::Warning => "warning",
                Outcome::Problem => "PROBLEM",
            };
            writeln!(f, "{word:<8} {:<15} {}", finding.check, finding.found)?;
            for line in finding.advice.lines() {
                writeln!(f, "{:>24} {line}", "->")?;
            }
        }
        let (ok, warnings) = (self.count(Outcome::Ok), self.count(Outcome::Warning));
        writeln!(
            f,
            "{ok} ok, {warnings} warnings, {} problems",
            self.count(Outcome::Problem)
        )
    }
}

/// Looks at everything: this host as `config` would use it, and the control plane it names.
pub async fn examine(config: &Config) -> Report {
    let mut checks = of_the_host(config);
    checks.push(("identity", Box::pin(identity::check(config))));
    Report {
        findings: bounded(checks).await,
    }
}

/// Looks at the host with the defaults, where the settings cannot be used: what they lack is the first finding.
pub async fn examine_without_settings(error: &ConfigError) -> Report {
    let advice = "join a control plane with the command that `berth token create` prints, or mend the file; \
                  `berth-agent config validate` checks it. What follows was looked at with the defaults";
    let mut findings = vec![Finding::problem(
        "configuration",
        Chain(error).to_string(),
        advice,
    )];
    // The one key without a default; nothing asks for it here.
    if let Ok(defaults) = toml::from_str::<Config>("control_plane = 'https://none.invalid'") {
        findings.extend(bounded(of_the_host(&defaults)).await);
    }
    Report { findings }
}

fn of_the_host(config: &Config) -> Vec<(&'static str, Checks<'_>)> {
    vec![
        ("host", Box::pin(async { host::check(config) })),
        ("cgroups", Box::pin(async { cgroups::check() })),
        ("storage", Box::pin(async { storage::check(config) })),
        ("containerd", Box::pin(containerd::check(config))),
        ("network", Box::pin(network::check(config))),
        ("conflicts", Box::pin(async { conflicts::check() })),
    ]
}

async fn bounded(checks: Vec<(&'static str, Checks<'_>)>) -> Vec<Finding> {
    let bounded = checks.into_iter().map(|(subject, check)| async move {
        match tokio::time::timeout(CHECK_DEADLINE, check).await {
            Ok(findings) => findings,
            Err(_) => vec![Finding::problem(
                subject,
                format!("no answer within {} s", CHECK_DEADLINE.as_secs()),
                "something on this host hangs: look at the system log (`dmesg`, `journalctl -b`)",
            )],
        }
    });
    join_all(bounded).await.into_iter().flatten().collect()
}

type Checks<'a> = std::pin::Pin<Box<dyn Future<Output = Vec<Finding>> + Send + 'a>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_is_the_outcome_and_advice_stands_below_its_finding() {
        let report = Report {
            findings: vec![
                Finding::ok("kernel", "6.1"),
                Finding::problem("nft", "not installed", "apt install nftables"),
                Finding::warning("clock", "not synchronised", "install chrony"),
            ],
        };
        assert_eq!(report.outcome(), Outcome::Problem);
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("PROBLEM") && lines[2].ends_with("-> apt install nftables"),
            "{text}"
        );
        assert_eq!(lines.last(), Some(&"1 ok, 1 warnings, 1 problems"));
    }

    #[tokio::test]
    async fn without_settings_the_host_is_looked_at_all_the_same() {
        let nothing = crate::settings::load(std::path::Path::new("/nonexistent/agent.toml"), &[]);
        let report = examine_without_settings(&nothing.unwrap_err()).await;
        let checks: Vec<_> = report.findings.iter().map(|finding| finding.check).collect();
        assert_eq!(checks[0], "configuration");
        assert!(
            checks.contains(&"kernel")
                && checks.contains(&"containerd")
                && !checks.contains(&"control plane"),
            "{checks:?}"
        );
        assert_eq!(report.outcome(), Outcome::Problem);
    }

    #[test]
    fn as_json_a_finding_has_its_outcome_in_words() {
        let json = serde_json::to_value(Finding::ok("kernel", "6.1")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "check": "kernel", "outcome": "ok", "found": "6.1" })
        );
    }
}
