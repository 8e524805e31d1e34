//! Owns the settings of the runtimes that tasks may ask for by name. Never tries them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// More than any host has.
const RUNTIMES_MAX: usize = 16;
/// As the tag of a task may have it.
const NAME_BYTES_MAX: usize = 32;
/// Types whose shim starts a program of its caller's choice.
const WITH_BINARY: &str = "io.containerd.runc.";

/// One runtime.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NamedRuntime {
    /// containerd's name of it.
    #[serde(rename = "type", default = "super::default_runtime")]
    pub kind: String,
    /// The OCI runtime's program, for types that take one.
    pub binary: Option<String>,
}

/// Those of the configuration, and `runc` unless it says what that is.
pub(crate) fn with_default(configured: &BTreeMap<String, NamedRuntime>) -> BTreeMap<String, NamedRuntime> {
    let runc = NamedRuntime {
        kind: super::default_runtime(),
        // What the shim starts by itself.
        binary: None,
    };
    let mut all = BTreeMap::from([("runc".to_owned(), runc)]);
    all.extend(configured.clone());
    all
}

pub(super) fn check(runtimes: &BTreeMap<String, NamedRuntime>) -> Result<(), ConfigError> {
    let bad = |value: String, problem: &str| {
        Err(ConfigError::Value {
            key: "runtimes",
            value,
            problem: problem.into(),
        })
    };
    if runtimes.len() > RUNTIMES_MAX {
        return bad(runtimes.len().to_string(), "must be at most 16");
    }
    for (name, runtime) in runtimes {
        if !is_name(name) {
            return bad(name.clone(), "must be named with 1 to 32 of a-z, 0-9 and _ . -");
        }
        if !is_type(&runtime.kind) {
            return bad(
                format!("{name}.type = {}", runtime.kind),
                "must be a runtime's name in containerd, such as io.containerd.runc.v2",
            );
        }
        let Some(binary) = &runtime.binary else { continue };
        if !runtime.kind.starts_with(WITH_BINARY) {
            return bad(
                format!("{name}.binary = {binary}"),
                "is only for types io.containerd.runc.…: others know their program",
            );
        }
        if binary.is_empty() || (binary.contains('/') && !binary.starts_with('/')) {
            return bad(
                format!("{name}.binary = {binary}"),
                "must be a name in containerd's PATH, or an absolute path",
            );
        }
    }
    Ok(())
}

/// What a task's tag may name.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// containerd makes the name of the shim's program of it.
fn is_type(kind: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    kind.len() <= 128 && kind.split('.').count() >= 2 && kind.split('.').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        let runtimes: BTreeMap<String, NamedRuntime> = toml::from_str(text).unwrap();
        check(&runtimes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_runtime_is_runc_with_another_program_unless_it_says_otherwise() {
        let text = "[crun]\nbinary = '/usr/bin/crun'\n[runsc]\ntype = 'io.containerd.runsc.v1'\n";
        checked(text).unwrap();
        let configured: BTreeMap<String, NamedRuntime> = toml::from_str(text).unwrap();
        assert_eq!(configured["crun"].kind, "io.containerd.runc.v2");
        let all = with_default(&configured);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["crun", "runc", "runsc"]);
        assert_eq!(all["runc"].binary, None);
        let own = BTreeMap::from([("runc".to_owned(), configured["crun"].clone())]);
        assert_eq!(
            with_default(&own)["runc"].binary.as_deref(),
            Some("/usr/bin/crun")
        );
    }

    #[test]
    fn impossible_runtimes_are_refused_by_name() {
        for (text, says) in [
            ("[Crun]\n", "runtimes = \"Crun\""),
            ("[crun]\nbinary = ''\n", "absolute path"),
            ("[crun]\nbinary = 'bin/crun'\n", "absolute path"),
            ("[a]\ntype = 'runc'\n", "a.type = runc"),
            ("[a]\ntype = 'io.containerd./x.v1'\n", "a.type"),
            ("[a]\ntype = 'io..v1'\n", "a.type"),
            (
                "[a]\ntype = 'io.containerd.runsc.v1'\nbinary = 'runsc'\n",
                "a.binary",
            ),
        ] {
            let error = checked(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let many: String = (0..17).map(|n| format!("[r{n}]\n")).collect();
        assert!(checked(&many).unwrap_err().contains("at most 16"));
        toml::from_str::<BTreeMap<String, NamedRuntime>>("[a]\npath = 'x'\n").unwrap_err();
    }
}
