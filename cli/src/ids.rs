//! Owns how people name tasks and nodes: by an ARN, an id, or any prefix of one that fits only one.

/// At most so many candidates are listed for an ambiguous prefix.
const CANDIDATES_SHOWN_MAX: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("no {kind} is called {given:?} in cluster {cluster}: `berth {listing}` lists them")]
    NotFound {
        kind: &'static str,
        given: String,
        cluster: String,
        listing: &'static str,
    },
    #[error("{given:?} fits several of them, write more digits:\n  {}", candidates.join("\n  "))]
    Ambiguous { given: String, candidates: Vec<String> },
    #[error("nothing is called {given:?} in cluster {cluster}: no task, no node, no task definition")]
    Nothing { given: String, cluster: String },
}

/// The last part of an ARN (`arn:…:task/default/0123…` → `0123…`); anything else as it is.
pub fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// The cluster that a task's or node's long ARN names.
pub fn cluster_of(arn: &str) -> Option<&str> {
    let mut parts = arn.strip_prefix("arn:")?.split('/');
    let (_, cluster, _) = (parts.next()?, parts.next()?, parts.next()?);
    Some(cluster)
}

/// A whole id: 32 hexadecimal digits.
pub fn is_whole(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The first twelve digits: enough for people.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The only one of `ids` that starts with `given`. An exact match wins over longer ones.
pub fn unique<'a>(given: &str, ids: &'a [String]) -> Result<Option<&'a str>, IdError> {
    let wanted = given.to_ascii_lowercase();
    let mut fits: Vec<&str> = ids
        .iter()
        .map(String::as_str)
        .filter(|id| id.starts_with(&wanted))
        .collect();
    fits.sort_unstable();
    fits.dedup();
    if wanted.is_empty() {
        return Ok(None);
    }
    if let Some(exact) = fits.iter().find(|id| **id == wanted) {
        return Ok(Some(exact));
    }
    match fits.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        several => Err(IdError::Ambiguous {
            given: given.into(),
            candidates: listed(several),
        }),
    }
}

fn listed(ids: &[&str]) -> Vec<String> {
    let mut shown: Vec<String> = ids
        .iter()
        .take(CANDIDATES_SHOWN_MAX)
        .map(|id| (*id).to_owned())
        .collect();
    if ids.len() > CANDIDATES_SHOWN_MAX {
        shown.push(format!("… and {} more", ids.len() - CANDIDATES_SHOWN_MAX));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<String> {
        ["0a11", "0a12", "0b", "0b77"]
            .map(|tail| format!("{tail}{}", "0".repeat(32 - tail.len())))
            .to_vec()
    }

    #[test]
    fn a_prefix_that_fits_one_is_enough() {
        let ids = ids();
        assert_eq!(unique("0a12", &ids), Ok(Some(ids[1].as_str())));
        assert_eq!(unique("0B77", &ids), Ok(Some(ids[3].as_str())));
        assert_eq!(unique("ff", &ids), Ok(None));
        assert_eq!(unique("", &ids), Ok(None));
    }

    #[test]
    fn an_ambiguous_prefix_lists_what_it_fits() {
        let ids = ids();
        let Err(IdError::Ambiguous { candidates, .. }) = unique("0a", &ids) else {
            panic!("not ambiguous")
        };
        assert_eq!(candidates, ids[..2]);
        let many: Vec<String> = (0..40).map(|n| format!("aa{n:030}")).collect();
        let Err(IdError::Ambiguous { candidates, .. }) = unique("aa", &many) else {
            panic!("not ambiguous")
        };
        assert_eq!(candidates.last().map(String::as_str), Some("… and 30 more"));
    }

    #[test]
    fn a_whole_id_is_itself_even_twice() {
        let twice = [ids(), ids()].concat();
        assert_eq!(unique(&ids()[2], &twice), Ok(Some(ids()[2].as_str())));
    }

    #[test]
    fn arns_name_their_cluster() {
        let arn = "arn:aws:ecs:us-east-1:000000000000:task/prod/0a11";
        assert_eq!((cluster_of(arn), last_part(arn)), (Some("prod"), "0a11"));
        assert_eq!((cluster_of("0a11"), last_part("0a11")), (None, "0a11"));
        assert_eq!(
            cluster_of("arn:aws:ecs:us-east-1:000000000000:cluster/prod"),
            None
        );
    }
}
