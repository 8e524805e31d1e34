//! Owns what is known of AppArmor on the node: whether it is enabled, and which profiles are loaded. Never loads one.

use std::{fs::File, io, io::Read as _};

/// "Y", where the kernel has it and was booted with it.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// A line for each loaded profile: its name, and in parentheses its mode.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Of that list; some thousand profiles.
const PROFILES_BYTES_MAX: u64 = 1 << 20;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    #[error("read {PROFILES}")]
    Read { source: io::Error },
    #[error(
        "it is not loaded on this node; apparmor_parser loads it, and apparmor.service at every boot what is in /etc/apparmor.d"
    )]
    NotLoaded,
}

pub(super) fn is_enabled() -> bool {
    std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y")
}

/// That a profile of that name is loaded, in whichever mode.
pub(super) fn check(name: &str) -> Result<(), AppArmorError> {
    let failed = |source| AppArmorError::Read { source };
    let mut list = String::new();
    let file = File::open(PROFILES).map_err(failed)?;
    file.take(PROFILES_BYTES_MAX)
        .read_to_string(&mut list)
        .map_err(failed)?;
    if is_listed(&list, name) {
        Ok(())
    } else {
        Err(AppArmorError::NotLoaded)
    }
}

fn is_listed(list: &str, name: &str) -> bool {
    let names = list
        .lines()
        .filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name));
    names.into_iter().any(|listed| listed == name)
}

#[cfg(test)]
mod tests {
    use super::is_listed;

    #[test]
    fn a_profile_is_known_by_its_whole_name() {
        let list = "nvidia_modprobe (enforce)\nnvidia_modprobe//kmod (enforce)\n/usr/bin/man (complain)\ntwo words (unconfined)\n";
        for (name, listed) in [
            ("nvidia_modprobe", true),
            ("/usr/bin/man", true),
            ("two words", true),
            ("nvidia", false),
            ("kmod", false),
            ("man (complain)", false),
            ("", false),
        ] {
            assert_eq!(is_listed(list, name), listed, "{name}");
        }
    }
}
