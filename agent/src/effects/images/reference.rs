//! Owns image references: docker's short names in, one canonical name out. Never asks a registry.
//!
//! The grammar is that of distribution/reference (what `docker` and `ctr` accept); written by hand because its
//! regular expression costs more memory, compiled, than everything else the idle agent keeps for images.

use std::{fmt, net::IpAddr, str::FromStr};

use super::digest::{Digest, excerpt};

const DOCKER_HUB: &str = "docker.io";
const REFERENCE_CHARS_MAX: usize = 1024;
const REPOSITORY_CHARS_MAX: usize = 255;
const TAG_CHARS_MAX: usize = 128;

/// A parsed, normalised image reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageRef {
    /// `docker.io`, `registry.example:5000`.
    host: String,
    /// `library/nginx`.
    repository: String,
    pub selector: Selector,
}

/// Which image of a repository. A digest beside a tag wins, and the tag is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selector {
    Tag(String),
    Digest(Digest),
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {why}")]
pub(super) struct InvalidReference {
    text: String,
    why: &'static str,
}

impl ImageRef {
    /// As the reference names it, with its port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry's API is: Docker Hub answers under another name than its own.
    pub fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB {
            "registry-1.docker.io"
        } else {
            &self.host
        }
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `host/repository`, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    pub fn is_digest(&self) -> bool {
        matches!(self.selector, Selector::Digest(_))
    }
}

impl Selector {
    /// As the registry's API takes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tag(tag) => tag,
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

/// The canonical name: `docker.io/library/nginx:1.27`, `host:5000/app@sha256:…`.
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Selector::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl FromStr for ImageRef {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|why| InvalidReference {
            text: excerpt(text),
            why,
        })
    }
}

/// True of `localhost`, 127.0.0.0/8 and ::1, with or without a port.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// One name for the aliases of a registry, so that credentials for any of them are found.
pub(super) fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "https://index.docker.io/v1/" => DOCKER_HUB,
        other => other,
    }
}

fn parse(text: &str) -> Result<ImageRef, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > REFERENCE_CHARS_MAX {
        return Err("it is longer than 1024 characters");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse()
                    .map_err(|_| "its digest is no sha256 or sha512 digest")?,
            ),
        ),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag is not 1-128 characters of [A-Za-z0-9_.-]");
    }
    let (host, repository) = split_host(name);
    if !is_host(&host) {
        return Err("its registry is no host name or address");
    }
    if repository.len() > REPOSITORY_CHARS_MAX || !repository.split('/').all(is_component) {
        return Err("its repository is not lower-case words joined by one of . _ - /");
    }
    let selector = match digest {
        Some(digest) => Selector::Digest(digest),
        None => Selector::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(ImageRef {
        host,
        repository,
        selector,
    })
}

/// The first part is a registry if it cannot be part of a repository's name, or is `localhost`: docker's rule.
fn split_host(name: &str) -> (String, String) {
    if let Some((first, rest)) = name.split_once('/')
        && (first.contains(['.', ':', '['])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase()))
    {
        let host = canonical_host(first);
        let hub_official = host == DOCKER_HUB && !rest.contains('/');
        let repository = if hub_official {
            format!("library/{rest}")
        } else {
            rest.to_owned()
        };
        return (host.to_owned(), repository);
    }
    let repository = if name.contains('/') {
        name.to_owned()
    } else {
        format!("library/{name}")
    };
    (DOCKER_HUB.to_owned(), repository)
}

fn is_tag(tag: &str) -> bool {
    (1..=TAG_CHARS_MAX).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && port.strip_prefix(':').is_none_or(is_port)
            && (port.is_empty() || port.starts_with(':'));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    port.is_none_or(is_port)
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn is_port(port: &str) -> bool {
    port.len() <= 5 && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// `[a-z0-9]+` words, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !(bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word)) {
        return false;
    }
    bytes
        .split(is_word)
        .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_names_mean_what_docker_means_by_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, canonical) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            (
                "index.docker.io/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
            (
                "127.0.0.1:5000/a/b__c-d.e:v1",
                "127.0.0.1:5000/a/b__c-d.e:v1".to_owned(),
            ),
            ("[::1]:5000/app:x", "[::1]:5000/app:x".to_owned()),
            ("quay.io/org/app:v1", "quay.io/org/app:v1".to_owned()),
            (
                &format!("app:v1@{digest}"),
                format!("docker.io/library/app@{digest}"),
            ),
        ] {
            assert_eq!(
                text.parse::<ImageRef>().map(|r| r.to_string()),
                Ok(canonical),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_reason() {
        for (text, why) in [
            ("", "empty"),
            ("Nginx", "repository"),
            ("a//b", "repository"),
            ("a/../b", "repository"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a@sha256:12", "digest"),
            ("reg.example:99999/a", "registry"),
            ("reg..example/a", "registry"),
            ("a b", "repository"),
            (&"a".repeat(300), "repository"),
            (&"a".repeat(2000), "1024"),
        ] {
            let error = text.parse::<ImageRef>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn only_loopback_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.9.9.9:80",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "10.0.0.1:5000",
            "localhost.example:5000",
            "[fe80::1]:5000",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_reference_or_none(text in any::<String>()) {
            if let Ok(reference) = text.parse::<ImageRef>() {
                prop_assert!(text.is_ascii(), "{:?}", text);
                prop_assert_eq!(reference.to_string().parse::<ImageRef>(), Ok(reference));
            }
        }

        #[test]
        fn a_name_that_follows_the_grammar_is_kept(
            host in "[a-z][a-z0-9]{0,8}\\.[a-z]{2,5}(:[1-9][0-9]{0,3})?",
            repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4})?(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}",
        ) {
            prop_assume!(canonical_host(&host) == host && host != DOCKER_HUB);
            let text = format!("{host}/{repository}:{tag}");
            let reference: ImageRef = text.parse().map_err(|error| TestCaseError::fail(format!("{error}")))?;
            prop_assert_eq!((reference.host(), reference.repository()), (host.as_str(), repository.as_str()));
            prop_assert_eq!(reference.to_string(), text);
        }

        #[test]
        fn parsing_never_panics_and_is_stable(text in "[\\[\\]a-zA-Z0-9:/@._ -]{0,80}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                prop_assert_eq!(reference.to_string().parse::<ImageRef>(), Ok(reference));
            }
        }
    }
}
