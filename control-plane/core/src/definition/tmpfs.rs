//! Owns the values of `sharedMemorySize` and `tmpfs`: file systems in memory. Never mounts one.

use super::mount_options::{For, word, words};
use super::read::{Object, integer, objects, text, texts};
use crate::problems::{Problems, hint, shown};

/// File systems in memory of one container: what nodes take.
const TMPFS_MAX: usize = 100;
/// ECS's options that are one word.
const WORDS: &[For] = &[For::Any, For::Memory, For::Propagation];
/// ECS's options that have a value.
const WITH_VALUE: [&str; 6] = ["mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

/// `path` is that of `linuxParameters`.
pub(super) fn check(path: &str, parameters: &Object, problems: &mut Problems) {
    if let Some(size) = integer(parameters, "sharedMemorySize").filter(|size| *size < 1) {
        let path = format!("{path}.sharedMemorySize");
        problems.push(path, format!("{size} is below the minimum of 1 MiB"));
    }
    let mut places = Vec::new();
    for (at, tmpfs) in objects(parameters, "tmpfs") {
        let path = format!("{path}.tmpfs[{at}]");
        if let Some(size) = integer(tmpfs, "size").filter(|size| *size < 1) {
            problems.push(
                format!("{path}.size"),
                format!("{size} is below the minimum of 1 MiB"),
            );
        }
        if let Some(place) = text(tmpfs, "containerPath") {
            if let Err(message) = check_place(place) {
                problems.push(format!("{path}.containerPath"), message);
            } else if places.contains(&place) {
                problems.push(
                    format!("{path}.containerPath"),
                    format!("{} is there twice", shown(place)),
                );
            }
            places.push(place);
        }
        for (at, option) in texts(tmpfs, "mountOptions") {
            if let Err(message) = check_option(option) {
                problems.push(format!("{path}.mountOptions[{at}]"), message);
            }
        }
    }
    if places.len() > TMPFS_MAX {
        let message = format!("{} entries, the limit is {TMPFS_MAX}", places.len());
        problems.push(format!("{path}.tmpfs"), message);
    }
}

fn check_place(place: &str) -> Result<(), String> {
    let parts: Vec<&str> = place
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if !place.starts_with('/') || parts.contains(&"..") {
        return Err(format!("{} is not an absolute path without ..", shown(place)));
    }
    match parts.first() {
        None => Err("/ is the image's: use readonlyRootFilesystem and other paths".into()),
        Some(&"proc") => Err(format!("{} is the kernel's", shown(place))),
        Some(_) => Ok(()),
    }
}

pub(super) fn check_option(option: &str) -> Result<(), String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (name, value) = option
        .split_once('=')
        .map_or((option, None), |(name, value)| (name, Some(value)));
    let good = match (name, value) {
        (name, _) if word(name) == Some(For::OtherMount) => {
            return Err(format!("{name} makes no file system in memory"));
        }
        (name, None) if WITH_VALUE.contains(&name) => {
            return Err(format!("{name} needs a value, as in {name}=…"));
        }
        (name, None) => word(name).is_some_and(|purpose| WORDS.contains(&purpose)),
        ("mode", Some(value)) => {
            (1..=4).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit() && b < b'8')
        }
        ("uid" | "gid", Some(value)) => digits(value) && value.parse::<u32>().is_ok(),
        ("nr_inodes" | "nr_blocks", Some(value)) => digits(value.trim_end_matches(['k', 'm', 'g'])),
        ("mpol", Some(value)) => {
            !value.is_empty()
                && value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b":-_".contains(&b))
        }
        _ => false,
    };
    if good {
        return Ok(());
    }
    // Where the name is right it is the value that is not.
    let hint = match WITH_VALUE.contains(&name) {
        true => String::new(),
        false => hint(name, words(WORDS).chain(WITH_VALUE)),
    };
    Err(format!(
        "{} is not a mount option of ECS for a tmpfs{hint}",
        shown(option)
    ))
}
