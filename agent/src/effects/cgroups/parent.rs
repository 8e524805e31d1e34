//! Owns which cgroup may hold an instance's tasks. Never makes it.

use super::error::CgroupError;

/// Directories above the tasks' own.
const SEGMENTS_MAX: usize = 4;
/// The kernel's longest file name, bytes.
const SEGMENT_BYTES_MAX: usize = 255;

/// Checks the path of a parent: absolute, below every hierarchy's root, and nobody else's by its name. Returns it without a
/// slash at its end.
///
/// # Errors
/// [`CgroupError::Parent`], with what is wrong about it.
pub fn check_parent(path: &str) -> Result<String, CgroupError> {
    let refuse = |problem| {
        Err(CgroupError::Parent {
            parent: path.chars().take(SEGMENT_BYTES_MAX).collect(),
            problem,
        })
    };
    let Some(below_root) = path.strip_prefix('/') else {
        return refuse("must begin with '/'");
    };
    let below_root = below_root.strip_suffix('/').unwrap_or(below_root);
    let segments: Vec<&str> = below_root.split('/').collect();
    if segments.len() > SEGMENTS_MAX {
        return refuse("has more than 4 parts");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | ':');
    for segment in segments {
        if segment.is_empty() || segment.len() > SEGMENT_BYTES_MAX {
            return refuse("must name a cgroup below the root, with parts of 1 to 255 characters");
        }
        if !segment.chars().all(plain) || !segment.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refuse(
                "parts are of letters, digits, '.', '_', '-', '@' and ':', and begin with a letter or digit",
            );
        }
        if segment.ends_with(".service") || segment.ends_with(".scope") {
            return refuse(
                "is inside a service or scope, which the service manager removes with all it holds: name a slice",
            );
        }
    }
    Ok(format!("/{below_root}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_an_absolute_path_of_plain_names() {
        for good in ["/berth.slice", "/berth.slice/berth-a.slice", "/x", "/a/b/c/d"] {
            assert_eq!(check_parent(good).unwrap(), good);
        }
        assert_eq!(check_parent("/berth.slice/").unwrap(), "/berth.slice");
    }

    #[test]
    fn others_are_refused_and_say_why() {
        for (bad, why) in [
            ("berth.slice", "begin"),
            ("", "begin"),
            ("/", "below the root"),
            ("//x", "below the root"),
            ("/a/../b", "begin with a letter"),
            ("/.x", "begin with a letter"),
            ("/a b", "letters"),
            ("/a/b/c/d/e", "more than"),
            ("/system.slice/berth-agent.service", "slice"),
            ("/init.scope/x", "slice"),
        ] {
            let refused = check_parent(bad).unwrap_err().to_string();
            assert!(refused.contains(why), "{bad:?}: {refused}");
        }
    }
}
