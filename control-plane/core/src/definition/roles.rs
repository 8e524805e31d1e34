//! Owns the values of `taskRoleArn` and `executionRoleArn`: an IAM role by ARN or by name. Nothing looks here whether
//! a role exists, and nobody is given its credentials.

use super::read::{Object, text};
use crate::problems::{Problems, shown};

/// What IAM bounds: a role's name, the path before it, and an account's number.
const NAME_CHARS_MAX: usize = 64;
const PATH_CHARS_MAX: usize = 512;
const ACCOUNT_DIGITS: usize = 12;

/// The fields that name a role, in definitions and in overrides.
pub(super) const FIELDS: [&str; 2] = ["taskRoleArn", "executionRoleArn"];

/// The empty text names no role, and is what templates leave: it counts as absent.
pub(super) fn check(task: &mut Object, path: &str, problems: &mut Problems) {
    for field in FIELDS {
        match text(task, field) {
            Some("") => {
                task.remove(field);
            }
            Some(role) if !is_role(role) => {
                let expected = "expected arn:aws:iam::ACCOUNT:role/NAME with an account of 12 digits, or the role's name";
                problems.push(
                    format!("{path}{field}"),
                    format!("{} is not a role: {expected}", shown(role)),
                );
            }
            _ => {}
        }
    }
}

fn is_role(text: &str) -> bool {
    match text.strip_prefix("arn:") {
        Some(arn) => is_role_arn(arn),
        None => is_role_name(text),
    }
}

/// `PARTITION:iam::ACCOUNT:role/PATH/NAME`.
fn is_role_arn(arn: &str) -> bool {
    let mut parts = arn.splitn(5, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (partition, service, region, account, resource) = (part(), part(), part(), part(), part());
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let Some(resource) = resource.strip_prefix("role/") else {
        return false;
    };
    let (path, name) = resource.rsplit_once('/').unwrap_or(("", resource));
    (partition == "aws" || partition.starts_with("aws-"))
        && partition.bytes().all(known)
        && service == "iam"
        && region.is_empty()
        && account.len() == ACCOUNT_DIGITS
        && account.bytes().all(|b| b.is_ascii_digit())
        && path.len() < PATH_CHARS_MAX
        && path.bytes().all(|b| b.is_ascii_graphic())
        && is_role_name(name)
}

fn is_role_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_an_arn_or_a_name() {
        for good in [
            "ecsTaskRole",
            "a+b=c,d.e@f-g_h",
            "arn:aws:iam::123456789012:role/ecsTaskRole",
            "arn:aws-cn:iam::123456789012:role/x",
            "arn:aws-us-gov:iam::123456789012:role/teams/web/x",
        ] {
            assert!(is_role(good), "{good}");
        }
        let long = "x".repeat(65);
        let deep = format!("arn:aws:iam::123456789012:role/{}/x", "p".repeat(512));
        for bad in [
            "",
            "a b",
            "role/x",
            &long,
            &deep,
            "arn:",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:user/x",
            "arn:aws:iam::XXXXXXXXXXXX:role/x",
            "arn:aws:iam::12345678901:role/x",
            "arn:aws:iam:us-east-1:123456789012:role/x",
            "arn:aws:s3::123456789012:role/x",
            "arn:gcp:iam::123456789012:role/x",
            "arn:awsome:iam::123456789012:role/x",
            "arn:aws-C:iam::123456789012:role/x",
            "arn:aws:iam::123456789012:role/a b/x",
        ] {
            assert!(!is_role(bad), "{bad}");
        }
    }
}
