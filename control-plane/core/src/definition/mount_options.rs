//! Owns the mount options that are one word, and what each is for. Options with a value are with what takes them.

/// What a word is said to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Every file system.
    Any,
    /// One in memory only, or what ECS takes for it and the kernel ignores.
    Memory,
    /// One in memory, in a container: whether mounts below it are seen elsewhere.
    Propagation,
    /// Another mount than one that is made.
    OtherMount,
    /// NFS (nfs(5)).
    Nfs,
}

use For::{Any, Memory, Nfs, OtherMount, Propagation};

const WORDS: [(&str, For); 54] = [
    ("ro", Any),
    ("rw", Any),
    ("suid", Any),
    ("nosuid", Any),
    ("dev", Any),
    ("nodev", Any),
    ("exec", Any),
    ("noexec", Any),
    ("sync", Any),
    ("async", Any),
    ("dirsync", Any),
    ("atime", Any),
    ("noatime", Any),
    ("diratime", Any),
    ("nodiratime", Any),
    ("relatime", Any),
    ("norelatime", Any),
    ("strictatime", Any),
    ("nostrictatime", Any),
    ("defaults", Memory),
    ("mand", Memory),
    ("nomand", Memory),
    ("unbindable", Propagation),
    ("runbindable", Propagation),
    ("private", Propagation),
    ("rprivate", Propagation),
    ("shared", Propagation),
    ("rshared", Propagation),
    ("slave", Propagation),
    ("rslave", Propagation),
    ("bind", OtherMount),
    ("rbind", OtherMount),
    ("remount", OtherMount),
    ("hard", Nfs),
    ("soft", Nfs),
    ("softerr", Nfs),
    ("softreval", Nfs),
    ("nosoftreval", Nfs),
    ("ac", Nfs),
    ("noac", Nfs),
    ("cto", Nfs),
    ("nocto", Nfs),
    ("lock", Nfs),
    ("nolock", Nfs),
    ("resvport", Nfs),
    ("noresvport", Nfs),
    ("rdirplus", Nfs),
    ("nordirplus", Nfs),
    ("sharecache", Nfs),
    ("nosharecache", Nfs),
    ("acl", Nfs),
    ("noacl", Nfs),
    ("intr", Nfs),
    ("nointr", Nfs),
];

/// What the word is for. None: it is no mount option of one word.
pub(super) fn word(name: &str) -> Option<For> {
    let found = WORDS.iter().find(|(word, _)| *word == name);
    found.map(|(_, purpose)| *purpose)
}

/// The words for one of `purposes`.
pub(super) fn words(purposes: &'static [For]) -> impl Iterator<Item = &'static str> {
    let of = WORDS.iter().filter(|(_, purpose)| purposes.contains(purpose));
    of.map(|(word, _)| *word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_has_one_purpose() {
        for (at, (word, _)) in WORDS.iter().enumerate() {
            assert!(WORDS[..at].iter().all(|(other, _)| other != word), "{word}");
        }
        assert_eq!(
            words(&[Memory]).collect::<Vec<_>>(),
            ["defaults", "mand", "nomand"]
        );
    }
}
