//! Owns the values of `environmentFiles`: where a file may be. Never reads one: its format is `berth-environment-file`'s.

use std::fmt;

use super::read::{Object, objects, text};
use crate::problems::{Problems, shown};

/// Most files of one container, as in ECS.
pub const ENVIRONMENT_FILES_MAX: usize = 10;
/// As in S3.
const BUCKET_CHARS: std::ops::RangeInclusive<usize> = 3..=63;
/// S3 has 1024; the store's own keys are longer than these.
const KEY_BYTES_MAX: usize = 512;
const URL_CHARS_MAX: usize = 2_048;
const SUFFIX: &str = ".env";
const PARTITIONS: [&str; 3] = ["arn:aws:s3:::", "arn:aws-cn:s3:::", "arn:aws-us-gov:s3:::"];

/// The name of a file in the control plane's own store, as S3 spells names of objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredFile {
    pub bucket: String,
    pub key: String,
}

impl StoredFile {
    /// From an ARN of S3, whatever its partition.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_arn(arn: &str) -> Result<Self, String> {
        let expected = "expected arn:aws:s3:::BUCKET/KEY.env";
        let name = PARTITIONS
            .iter()
            .find_map(|partition| arn.strip_prefix(partition));
        let Some((bucket, key)) = name.and_then(|name| name.split_once('/')) else {
            return Err(format!("{} is not the ARN of a file: {expected}", shown(arn)));
        };
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if !BUCKET_CHARS.contains(&bucket.len()) || !bucket.bytes().all(allowed) {
            let bucket = shown(bucket);
            return Err(format!(
                "{bucket} is not a bucket's name: 3 to 63 of a-z, 0-9, - and ."
            ));
        }
        if key.len() > KEY_BYTES_MAX {
            let bytes = key.len();
            return Err(format!("a key of {bytes} bytes, the limit is {KEY_BYTES_MAX}"));
        }
        if key.chars().any(char::is_control) {
            return Err("its key has a control character".to_owned());
        }
        if !key.ends_with(SUFFIX) {
            return Err(format!("{} does not end in {SUFFIX}: {expected}", shown(key)));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// As an ARN.
impl fmt::Display for StoredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", PARTITIONS[0], self.bucket, self.key)
    }
}

/// Where an environment file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvironmentSource {
    /// In the control plane's own store.
    Stored(StoredFile),
    /// Its node fetches it when the task starts.
    Url(String),
}

impl EnvironmentSource {
    /// As `environmentFiles[].value` spells it.
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        if value.starts_with("arn:") {
            return StoredFile::from_arn(value).map(Self::Stored);
        }
        let rest = value
            .strip_prefix("https://")
            .or_else(|| value.strip_prefix("http://"));
        let Some(rest) = rest else {
            return Err(format!(
                "{} is no environment file: expected arn:aws:s3:::BUCKET/KEY.env, which `berth env-file put` stores, or \
                 an https:// URL, which the node fetches",
                shown(value)
            ));
        };
        if value.len() > URL_CHARS_MAX {
            return Err(format!(
                "a URL of {} characters, the limit is {URL_CHARS_MAX}",
                value.len()
            ));
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        // Never shown: it may hold a password.
        if authority.contains('@') {
            return Err("a URL with a user: nodes log in nowhere; leave it out".to_owned());
        }
        let plain = |b: u8| b.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&b);
        if !value.bytes().all(plain) || !is_authority(authority) {
            return Err("is not a URL: expected https://HOST[:PORT]/PATH of letters, digits and -._~:/?[]@!$&'()*+,;=%, without #".to_owned());
        }
        Ok(Self::Url(value.to_owned()))
    }

    /// Whoever is on the way reads and changes what it says.
    pub(crate) fn is_open(&self) -> bool {
        let Self::Url(url) = self else { return false };
        let host = url.strip_prefix("http://").map(|rest| {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            host_of(authority)
        });
        host.is_some_and(|host| !["localhost", "127.0.0.1", "[::1]"].contains(&host))
    }
}

fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    }
}

fn is_authority(authority: &str) -> bool {
    let host = host_of(authority);
    let port = &authority[host.len()..];
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_good = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            (1..=253).contains(&host.len()) && host.bytes().all(name)
        }
    };
    let port_is_good = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok_and(|port| port > 0)
        }
        None => port.is_empty(),
    };
    host_is_good && port_is_good
}

pub(super) fn check(path: &str, container: &Object, problems: &mut Problems) {
    let path = format!("{path}.environmentFiles");
    let count = container
        .get("environmentFiles")
        .and_then(|files| files.as_array())
        .map_or(0, Vec::len);
    if count > ENVIRONMENT_FILES_MAX {
        problems.push(
            path.as_str(),
            format!("{count} files, the limit is {ENVIRONMENT_FILES_MAX}"),
        );
    }
    for (at, file) in objects(container, "environmentFiles") {
        if let Some(Err(problem)) = text(file, "value").map(EnvironmentSource::parse) {
            problems.push(format!("{path}[{at}].value"), problem);
        }
    }
}
