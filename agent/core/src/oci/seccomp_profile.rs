//! Owns system call filters that a node's operator wrote, in Docker's JSON format: reads one, and makes the filter of a
//! container with given capabilities of it. Never reads a file, and refuses what it does not know.
//!
//! Reference: <https://docs.docker.com/engine/security/seccomp/>, <https://github.com/moby/profiles>.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Arch, HostFacts};

/// Docker's own has 14 KiB.
pub const BYTES_MAX: usize = 256 << 10;
const RULES_MAX: usize = 1_000;
const NAMES_MAX: usize = 4_000;
/// The kernel passes six.
const ARGS_MAX: u32 = 6;

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("it is longer than {BYTES_MAX} bytes")]
    TooLong,
    #[error("it is no profile in Docker's format: {0}")]
    Format(String),
    #[error("{0}: more than a filter can use")]
    TooMuch(&'static str),
    #[error("{0:?} is not a minKernel: expected MAJOR.MINOR")]
    Kernel(String),
    #[error("syscalls[{0}] has no name")]
    NoName(usize),
    #[error("syscalls[{0}].args: a call has arguments 0 to 5")]
    Argument(usize),
}

/// A filter as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    /// Docker's way to name architectures: those that go with the host's own.
    #[serde(default)]
    arch_map: Vec<Architectures>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<Flag>,
    #[serde(default)]
    syscalls: Vec<Rule>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

/// What the kernel does with a call. SCMP_ACT_NOTIFY needs somebody to ask, and is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Flag {
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Comparison {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architectures {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// The older way to name one.
    #[serde(default)]
    name: String,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Comparison,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Condition {
    arches: Vec<String>,
    caps: Vec<String>,
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads and checks a profile.
    ///
    /// # Errors
    /// [`ProfileError`]: it is not one, or it has what is not known here.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        if text.len() > BYTES_MAX {
            return Err(ProfileError::TooLong);
        }
        let profile: Self =
            serde_json::from_str(text).map_err(|error| ProfileError::Format(error.to_string()))?;
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), ProfileError> {
        if self.syscalls.len() > RULES_MAX {
            return Err(ProfileError::TooMuch("syscalls"));
        }
        if self.syscalls.iter().map(|rule| rule.names.len()).sum::<usize>() > NAMES_MAX {
            return Err(ProfileError::TooMuch("names of system calls"));
        }
        for (at, rule) in self.syscalls.iter().enumerate() {
            if rule.names().next().is_none() || rule.names().any(str::is_empty) {
                return Err(ProfileError::NoName(at));
            }
            if rule
                .args
                .iter()
                .flatten()
                .any(|argument| argument.index >= ARGS_MAX)
            {
                return Err(ProfileError::Argument(at));
            }
            for condition in [&rule.includes, &rule.excludes].into_iter().flatten() {
                if let Some(text) = &condition.min_kernel {
                    version(text).ok_or_else(|| ProfileError::Kernel(text.clone()))?;
                }
            }
        }
        Ok(())
    }

    /// The filter for a container with these capabilities, as the runtime takes it.
    pub(super) fn filter(&self, host: &HostFacts, capabilities: &[&str]) -> Value {
        let rules = self
            .syscalls
            .iter()
            .filter(|rule| rule.applies(host, capabilities));
        let mut filter = Map::new();
        filter.insert("defaultAction".into(), json!(self.default_action));
        if let Some(errno) = self.default_errno_ret {
            filter.insert("defaultErrnoRet".into(), json!(errno));
        }
        let architectures = self.architectures(host.arch);
        if !architectures.is_empty() {
            filter.insert("architectures".into(), json!(architectures));
        }
        if !self.flags.is_empty() {
            filter.insert("flags".into(), json!(self.flags));
        }
        filter.insert("syscalls".into(), rules.map(Rule::written).collect());
        filter.into()
    }

    fn architectures(&self, arch: Arch) -> Vec<&str> {
        let own = match arch {
            Arch::X86_64 { .. } => "SCMP_ARCH_X86_64",
            Arch::Aarch64 => "SCMP_ARCH_AARCH64",
            Arch::Other => "",
        };
        let mapped = self.arch_map.iter().find(|one| one.architecture == own);
        let mapped = mapped.into_iter().flat_map(|one| {
            std::iter::once(one.architecture.as_str()).chain(one.sub_architectures.iter().map(String::as_str))
        });
        mapped
            .chain(self.architectures.iter().map(String::as_str))
            .collect()
    }
}

impl Rule {
    fn names(&self) -> impl Iterator<Item = &str> {
        let old = (!self.name.is_empty()).then_some(self.name.as_str());
        self.names.iter().map(String::as_str).chain(old)
    }

    fn applies(&self, host: &HostFacts, capabilities: &[&str]) -> bool {
        let included = self.includes.as_ref().is_none_or(|condition| {
            let holds = |name: &String| capabilities.contains(&name.as_str());
            (condition.arches.is_empty() || condition.names(host.arch))
                && condition.caps.iter().all(holds)
                && condition.since(host.kernel) != Some(false)
        });
        let excluded = self.excludes.as_ref().is_some_and(|condition| {
            let holds = |name: &String| capabilities.contains(&name.as_str());
            condition.names(host.arch)
                || condition.caps.iter().any(holds)
                || condition.since(host.kernel) == Some(true)
        });
        included && !excluded
    }

    fn written(&self) -> Value {
        let mut rule = Map::new();
        rule.insert("names".into(), json!(self.names().collect::<Vec<_>>()));
        rule.insert("action".into(), json!(self.action));
        if let Some(errno) = self.errno_ret {
            rule.insert("errnoRet".into(), json!(errno));
        }
        if let Some(args) = self.args.as_ref().filter(|args| !args.is_empty()) {
            rule.insert("args".into(), json!(args));
        }
        rule.into()
    }
}

impl Condition {
    fn names(&self, arch: Arch) -> bool {
        let own = match arch {
            Arch::X86_64 { .. } => "amd64",
            Arch::Aarch64 => "arm64",
            Arch::Other => return false,
        };
        self.arches.iter().any(|name| name == own)
    }

    /// Whether the kernel is of that version or newer; none where no version is named.
    fn since(&self, kernel: (u32, u32)) -> Option<bool> {
        self.min_kernel
            .as_deref()
            .and_then(version)
            .map(|least| kernel >= least)
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Cgroups;

    const HOST: HostFacts = HostFacts {
        arch: Arch::X86_64 { x32: false },
        kernel: (6, 1),
        cgroups: Cgroups::Unified,
        swap_limit: true,
        apparmor: true,
        oom_score_adj_min: 0,
        nofile_max: u64::MAX,
        capabilities: u64::MAX,
    };

    fn profile(rules: Value) -> String {
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}).to_string()
    }

    fn names(text: &str, host: &HostFacts, capabilities: &[&str]) -> Vec<String> {
        let filter = Profile::parse(text).unwrap().filter(host, capabilities);
        let rules = filter["syscalls"].as_array().unwrap().clone();
        rules
            .iter()
            .map(|rule| rule["names"][0].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_profile_is_written_as_the_runtime_takes_it() {
        let text = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "comment": "mine",
            "archMap": [
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            ],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}, "excludes": {}},
                {"name": "socket", "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
                 "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
            ],
        });
        assert_eq!(
            Profile::parse(&text.to_string()).unwrap().filter(&HOST, &[]),
            json!({
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
                     "args": [{"index": 0, "value": 40, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
                ],
            })
        );
        let plain = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"]});
        assert_eq!(
            Profile::parse(&plain.to_string()).unwrap().filter(&HOST, &[]),
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": []})
        );
    }

    #[test]
    fn rules_are_for_some_architectures_capabilities_and_kernels() {
        let rule = |name: &str, when: &str, condition: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", when: condition});
        let text = profile(json!([
            rule("amd", "includes", json!({"arches": ["amd64"]})),
            rule("arm", "includes", json!({"arches": ["arm64"]})),
            rule("admin", "includes", json!({"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]})),
            rule("others", "excludes", json!({"caps": ["CAP_SYS_ADMIN"]})),
            rule("not-amd", "excludes", json!({"arches": ["amd64"]})),
            rule("new", "includes", json!({"minKernel": "6.1"})),
            rule("newer", "includes", json!({"minKernel": "6.2"})),
            rule("old", "excludes", json!({"minKernel": "6.1"})),
        ]));
        assert_eq!(names(&text, &HOST, &[]), ["amd", "others", "new"]);
        assert_eq!(names(&text, &HOST, &["CAP_SYS_ADMIN"]), ["amd", "new"]);
        assert_eq!(
            names(&text, &HOST, &["CAP_BPF", "CAP_SYS_ADMIN"]),
            ["amd", "admin", "new"]
        );
        let arm = HostFacts {
            arch: Arch::Aarch64,
            kernel: (5, 10),
            ..HOST
        };
        assert_eq!(names(&text, &arm, &[]), ["arm", "others", "not-amd", "old"]);
    }

    #[test]
    fn what_is_no_profile_says_why() {
        for (text, says) in [
            ("{".to_owned(), "no profile in Docker's format"),
            ("{}".to_owned(), "defaultAction"),
            (
                r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(),
                "SCMP_ACT_NOTIFY",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#.to_owned(),
                "listenerPath",
            ),
            (
                profile(json!([{"action": "SCMP_ACT_ALLOW"}])),
                "syscalls[0] has no name",
            ),
            (
                profile(json!([{"names": [""], "action": "SCMP_ACT_ALLOW"}])),
                "syscalls[0] has no name",
            ),
            (
                profile(json!([{"names": ["a"], "action": "SCMP_ACT_ALLOW",
                                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}])),
                "syscalls[0].args",
            ),
            (
                profile(
                    json!([{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6"}}]),
                ),
                "\"6\" is not a minKernel",
            ),
            (
                profile(json!(vec![
                    json!({"name": "a", "action": "SCMP_ACT_ALLOW"});
                    1001
                ])),
                "syscalls: more than",
            ),
            (
                profile(json!([{"names": vec!["a"; 4001], "action": "SCMP_ACT_ALLOW"}])),
                "names of system calls: more than",
            ),
            (" ".repeat(BYTES_MAX + 1), "longer than"),
        ] {
            let error = Profile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{error} lacks {says}");
        }
        let longest = profile(json!([]));
        Profile::parse(&format!("{longest}{}", " ".repeat(BYTES_MAX - longest.len()))).unwrap();
        Profile::parse(&profile(json!(vec![
            json!({"name": "a", "action": "SCMP_ACT_ALLOW"});
            1000
        ])))
        .unwrap();
        Profile::parse(&profile(
            json!([{"names": vec!["a"; 4000], "action": "SCMP_ACT_ALLOW"}]),
        ))
        .unwrap();
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in ".{0,200}", cut in 0usize..400) {
            let _ = Profile::parse(&text);
            let good = profile(json!([{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.1"}}]));
            let _ = Profile::parse(good.get(..cut).unwrap_or(&good));
            let mixed = good.replace("6.1", &text.replace(['"', '\\'], ""));
            if let Ok(read) = Profile::parse(&mixed) {
                read.filter(&HOST, &[]);
            }
        }
    }
}
