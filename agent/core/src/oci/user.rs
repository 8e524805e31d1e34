//! Owns who a container runs as: `user[:group]` against the image's own accounts. Never reads them from disk.
//!
//! The rules are Docker's (`GetExecUser`), as images rely on them: a number need not be an account; a name must be;
//! the account's group and its memberships count unless a group is named.

/// The largest id Docker takes.
const ID_MAX: u32 = i32::MAX as u32;

/// Resolved numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Begins with `gid`: a process that gives up its supplementary groups must not gain by it (CVE-2022-36109).
    pub additional_gids: Vec<u32>,
}

impl User {
    /// uid 0 and gid 0, with no further groups.
    pub const ROOT: Self = Self {
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
    };
}

/// Why there is nobody of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("id {0} is above {ID_MAX}")]
    OutOfRange(String),
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Whom `user` names, given the image's `/etc/passwd` and `/etc/group`: empty text where a file is missing.
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, named_group) = user.split_once(':').unwrap_or((user, ""));
    let account = accounts(passwd).find(|account| match user {
        "" => account.uid == 0,
        _ => account.name == user || number(user) == Some(account.uid),
    });
    let (uid, gid) = match (&account, user) {
        (Some(account), _) => (account.uid, account.gid),
        (None, "") => (0, 0),
        (None, _) => (id(user, UserError::NoUser)?, 0),
    };
    let mut gids = vec![gid];
    if !named_group.is_empty() {
        let known = groups(group).find(|g| g.name == named_group || number(named_group) == Some(g.gid));
        gids = vec![known.map_or_else(|| id(named_group, UserError::NoGroup), |g| Ok(g.gid))?];
    } else if let Some(account) = &account {
        let member = |g: &Group<'_>| g.members.split(',').any(|name| name == account.name);
        gids.extend(groups(group).filter(member).map(|g| g.gid));
    }
    Ok(User {
        uid,
        gid: gids[0],
        additional_gids: gids,
    })
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

fn id(text: &str, unknown: fn(String) -> UserError) -> Result<u32, UserError> {
    match text.parse::<u64>() {
        Ok(id) => u32::try_from(id)
            .ok()
            .filter(|id| *id <= ID_MAX)
            .ok_or_else(|| UserError::OutOfRange(text.to_owned())),
        Err(_) => Err(unknown(text.to_owned())),
    }
}

/// Lines that are no account (comments, NIS markers, damage) are passed over.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some(Account {
            name,
            uid,
            gid: fields.next()?.parse().ok()?,
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nweb:x:33:34::/:/bin/false\n+nis\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,root\nweb:x:34:\nlog:x:5:other,web\nshort\n";

    #[test]
    fn a_user_is_resolved_as_docker_does() {
        let table: [(&str, (u32, &[u32])); 10] = [
            ("", (0, &[0, 4])),
            ("root", (0, &[0, 4])),
            ("web", (33, &[34, 4, 5])),
            ("33", (33, &[34, 4, 5])),
            ("web:adm", (33, &[4])),
            ("33:7", (33, &[7])),
            ("web:", (33, &[34, 4, 5])),
            (":adm", (0, &[4])),
            ("1000", (1000, &[0])),
            ("1000:1001", (1000, &[1001])),
        ];
        for (user, (uid, gids)) in table {
            let want = User {
                uid,
                gid: gids[0],
                additional_gids: gids.to_vec(),
            };
            assert_eq!(resolve(user, PASSWD, GROUP), Ok(want), "{user:?}");
        }
    }

    #[test]
    fn an_image_without_accounts_runs_numbers_only() {
        assert_eq!(resolve("", "", "").map(|u| (u.uid, u.gid)), Ok((0, 0)));
        assert_eq!(resolve("7:8", "", "").map(|u| (u.uid, u.gid)), Ok((7, 8)));
        assert_eq!(resolve("web", "", ""), Err(UserError::NoUser("web".into())));
        assert_eq!(resolve("0:web", "", ""), Err(UserError::NoGroup("web".into())));
        assert_eq!(
            resolve("4294967295", "", ""),
            Err(UserError::OutOfRange("4294967295".into()))
        );
        assert_eq!(resolve("-1", "", ""), Err(UserError::NoUser("-1".into())));
    }

    proptest! {
        #[test]
        fn any_user_of_any_image_is_somebody_or_an_error(
            user in prop_oneof![any::<String>(), "[a-z0-9:+-]{0,12}"],
            passwd in prop_oneof![any::<String>(), "([a-z#+]{0,3}:[x]?:[0-9-]{0,11}:[0-9]{0,3}:.{0,4}\n){0,4}"],
            group in prop_oneof![any::<String>(), "([a-z]{0,3}:x:[0-9]{0,11}:[a-z,]{0,6}\n){0,4}"],
        ) {
            if let Ok(resolved) = resolve(&user, &passwd, &group) {
                prop_assert_eq!(resolved.additional_gids.first(), Some(&resolved.gid));
                let named = user.split(':').nth(1).is_some_and(|group| !group.is_empty());
                prop_assert!(!named || resolved.additional_gids.len() == 1, "{:?}", resolved);
            }
        }

        #[test]
        fn a_number_is_itself_within_dockers_range(uid in any::<u64>(), gid in any::<u64>()) {
            let expected = [uid, gid].into_iter().all(|id| id <= u64::from(ID_MAX)).then_some((uid, gid));
            let resolved = resolve(&format!("{uid}:{gid}"), "", "").ok();
            prop_assert_eq!(resolved.map(|user| (user.uid.into(), user.gid.into())), expected);
        }
    }
}
