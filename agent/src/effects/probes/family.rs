//! Owns the end of a process with all that it has started: its descendants, and those of its session whose parent has
//! ended. Never touches a process outside the container's cgroup.

use std::{collections::BTreeSet, fs};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A family that goes on making processes while it is killed gets so many rounds; its container's end is the last word.
const ROUNDS_MAX: usize = 20;

/// Of proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    parent: i32,
    session: i32,
    is_zombie: bool,
}

/// SIGKILL to the process and its family, as far as they are in a cgroup whose path contains `cgroup`.
pub(super) fn end(pid: u32, cgroup: &str) {
    let Ok(pid) = i32::try_from(pid) else { return };
    for _ in 0..ROUNDS_MAX {
        let alive: Vec<i32> = family(pid, &processes())
            .into_iter()
            .filter(|member| !member.is_zombie && is_in(member.pid, cgroup))
            .map(|member| member.pid)
            .collect();
        if alive.is_empty() {
            return;
        }
        for member in alive {
            // One that ended meanwhile is what was wanted.
            let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
        }
    }
}

fn is_in(pid: i32, cgroup: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(cgroup))
}

fn processes() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let stat = |entry: fs::DirEntry| {
        entry.file_name().to_str()?.parse::<i32>().ok()?;
        parse(&fs::read_to_string(entry.path().join("stat")).ok()?)
    };
    entries.flatten().filter_map(stat).collect()
}

/// `pid (name) state parent group session …`; a name may contain anything.
fn parse(stat: &str) -> Option<Stat> {
    let (pid, rest) = stat.split_once(' ')?;
    let mut fields = rest.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, _, session) = (number()?, number()?, number()?);
    Some(Stat {
        pid: pid.parse().ok()?,
        parent,
        session,
        is_zombie: matches!(state, "Z" | "X"),
    })
}

fn family(pid: i32, all: &[Stat]) -> Vec<Stat> {
    let mut members = BTreeSet::from([pid]);
    loop {
        let before = members.len();
        for one in all {
            if members.contains(&one.parent) || members.contains(&one.session) {
                members.insert(one.pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    all.iter()
        .filter(|one| members.contains(&one.pid))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let stat = parse("42 (a) S 1 (x) Z 7 41 40 0 -1 4194560").unwrap();
        let expected = Stat {
            pid: 42,
            parent: 7,
            session: 40,
            is_zombie: true,
        };
        assert_eq!(stat, expected);
        assert_eq!(parse("42 (a"), None);
        assert_eq!(parse("42 (a) S 1"), None);
    }

    #[test]
    fn children_and_orphans_of_the_session_belong_to_it() {
        let one = |pid, parent, session| Stat {
            pid,
            parent,
            session,
            is_zombie: false,
        };
        // 10 is the probe; 12 is its grandchild in a session of its own; 13 an orphan; 20 and 21 are the container's.
        let all = [
            one(20, 1, 20),
            one(21, 20, 20),
            one(13, 20, 10),
            one(12, 11, 12),
            one(11, 10, 10),
            one(10, 1, 10),
        ];
        let pids: Vec<i32> = family(10, &all).iter().map(|one| one.pid).collect();
        assert_eq!(pids, [13, 12, 11, 10]);
    }

    #[test]
    fn this_process_is_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(processes().iter().any(|one| one.pid == own && !one.is_zombie));
    }
}
