//! Owns a container's environment at the border: what it sets, and its files.

use berth_agent_core::environment::{EnvironmentFile, Variables};
use berth_environment_file::{FILE_BYTES_MAX, VARIABLES_MAX};
use berth_proto::node::v1 as wire;
use reqwest::Url;
use wire::environment_file::Source;

use super::{Refusal, refuse};

const FILES_MAX: usize = 10;
const URL_BYTES_MAX: usize = 2_048;

pub(super) fn variables(field: &str, wire: Vec<wire::KeyValue>) -> Result<Vec<(String, String)>, Refusal> {
    let variable = |pair: wire::KeyValue| {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) || pair.value.contains('\0') {
            return refuse(
                field,
                format!("{:?} is not a usable name or has a NUL in its value", pair.key),
            );
        }
        Ok((pair.key, pair.value))
    };
    wire.into_iter().map(variable).collect()
}

pub(super) fn files(wire: Vec<wire::EnvironmentFile>) -> Result<Vec<EnvironmentFile>, Refusal> {
    if wire.len() > FILES_MAX {
        return refuse(
            "environment_files",
            format!("{} are more than {FILES_MAX}", wire.len()),
        );
    }
    wire.into_iter().map(file).collect()
}

fn file(wire: wire::EnvironmentFile) -> Result<EnvironmentFile, Refusal> {
    match wire.source {
        Some(Source::Variables(all)) => {
            let all = all.variables;
            let bytes: usize = all.iter().map(|pair| pair.key.len() + pair.value.len()).sum();
            if all.len() > VARIABLES_MAX || bytes > FILE_BYTES_MAX {
                let count = all.len();
                let bound = format!(
                    "{count} variables of {bytes} bytes are more than {VARIABLES_MAX} or {FILE_BYTES_MAX}"
                );
                return refuse("environment_files.variables", bound);
            }
            let all = variables("environment_files.variables", all)?;
            Ok(EnvironmentFile::Variables(Variables(all)))
        }
        Some(Source::Url(url)) => {
            let parsed = Url::parse(&url).ok().filter(|_| url.len() <= URL_BYTES_MAX);
            let usable = |url: &Url| {
                ["http", "https"].contains(&url.scheme())
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
            };
            if !parsed.as_ref().is_some_and(usable) {
                // Not shown: it may hold a secret.
                return refuse(
                    "environment_files.url",
                    format!(
                        "is not http or https with a host, without a user, in at most {URL_BYTES_MAX} bytes"
                    ),
                );
            }
            Ok(EnvironmentFile::Url(url))
        }
        None => refuse("environment_files", "one is neither variables nor a URL"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(count: usize, value: &str) -> Source {
        let pair = |n| wire::KeyValue {
            key: format!("V{n}"),
            value: value.into(),
        };
        Source::Variables(wire::Variables {
            variables: (0..count).map(pair).collect(),
        })
    }

    fn url(url: &str) -> Source {
        Source::Url(url.into())
    }

    fn one(source: Option<Source>) -> Result<Vec<EnvironmentFile>, Refusal> {
        files(vec![wire::EnvironmentFile { source }])
    }

    #[test]
    fn files_are_taken_over_in_their_order() {
        let wire = [
            url("https://a.example/b?c"),
            pairs(1, "x"),
            url("http://[::1]:80"),
        ];
        let wire = wire.map(|source| wire::EnvironmentFile { source: Some(source) });
        let expected = [
            EnvironmentFile::Url("https://a.example/b?c".into()),
            EnvironmentFile::Variables(Variables(vec![("V0".into(), "x".into())])),
            EnvironmentFile::Url("http://[::1]:80".into()),
        ];
        assert_eq!(files(wire.into()).unwrap(), expected);
        assert!(one(Some(pairs(VARIABLES_MAX, ""))).is_ok());
    }

    #[test]
    fn each_bound_is_told_by_its_field() {
        let url_field = "environment_files.url";
        let variables_field = "environment_files.variables";
        for (source, field) in [
            (None, "environment_files"),
            (Some(url("")), url_field),
            (Some(url("a.env")), url_field),
            (Some(url("file:///etc/shadow")), url_field),
            (Some(url("https://me@a.example/")), url_field),
            (Some(url("https://:secret@a.example/")), url_field),
            (Some(url(&format!("https://a/{}", "x".repeat(2_039)))), url_field),
            (Some(pairs(VARIABLES_MAX + 1, "")), variables_field),
            (Some(pairs(2, &"x".repeat(FILE_BYTES_MAX / 2))), variables_field),
            (Some(pairs(1, "a\0")), variables_field),
        ] {
            let refusal = one(source).unwrap_err();
            assert_eq!(refusal.field, field);
            assert!(!refusal.problem.contains("secret"), "{refusal}");
        }
        let many = vec![
            wire::EnvironmentFile {
                source: Some(url("https://a"))
            };
            FILES_MAX + 1
        ];
        assert_eq!(files(many).unwrap_err().field, "environment_files");
    }
}
