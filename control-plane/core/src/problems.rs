//! Owns how bad input is told: every problem with its path, all at once. Never decides what is bad.

use std::fmt;

/// Problems kept of one input; further ones are only counted.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, as `containerDefinitions[1].memory`. Empty: the input as a whole.
    pub path: String,
    /// What, for people: `3 is below the minimum of 6 MiB`.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

/// Everything that is wrong with an input, in the order it was found; at least one as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    kept: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// The problems kept.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.kept.iter()
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many problems there are, those not kept included.
    pub fn len(&self) -> usize {
        self.kept.len() + self.more
    }

    /// `Ok` with the value if nothing is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    pub(crate) fn push(&mut self, path: impl Into<String>, message: impl Into<String>) {
        if self.kept.len() == PROBLEMS_MAX {
            self.more += 1;
        } else {
            self.kept.push(Problem {
                path: path.into(),
                message: message.into(),
            });
        }
    }

    /// Takes over a problem, unless the same is already said.
    pub(crate) fn add(&mut self, problem: Problem) {
        if !self.kept.contains(&problem) {
            self.push(problem.path, problem.message);
        }
    }

    /// Whether something is already said about this very path: what is wrong there must not be said twice.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.kept.iter().any(|p| p.path == path)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.kept.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "; " })?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// Input as it is shown in a message: quoted, without control characters, at most 64 characters.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

/// `path.name`; names that would be misread in a path are quoted.
pub(crate) fn child(path: &str, name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return format!("{path}[{}]", shown(name));
    }
    if path.is_empty() {
        name.to_string()
    } else {
        format!("{path}.{name}")
    }
}

/// The candidate that was most likely meant, by edit distance; case does not count.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const NAME_CHARS_MAX: usize = 64;
    let lower: Vec<char> = name.to_lowercase().chars().collect();
    if lower.len() > NAME_CHARS_MAX {
        return None;
    }
    let distance = |c: &str| edit_distance(&lower, &c.to_lowercase().chars().collect::<Vec<_>>());
    let (nearest, edits) = candidates
        .map(|c| (c, distance(c)))
        .min_by_key(|(_, edits)| *edits)?;
    // A third of the name may be wrong, but never all of it.
    (edits <= (lower.len() / 3).max(1) && edits < lower.len()).then_some(nearest)
}

/// ` (did you mean NAME?)` or nothing.
pub(crate) fn hint<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    did_you_mean(name, candidates).map_or(String::new(), |c| format!(" (did you mean {c}?)"))
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_what_was_meant() {
        let known = ["memory", "memoryReservation", "healthCheck", "command", "cpu"];
        for (name, meant) in [
            ("memmory", Some("memory")),
            ("mermoy", Some("memory")),
            ("healthcheck", Some("healthCheck")),
            ("HealthCheck", Some("healthCheck")),
            ("comand", Some("command")),
            ("cpus", Some("cpu")),
            ("replicas", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(name, known.into_iter()), meant, "{name}");
        }
    }

    #[test]
    fn odd_names_are_quoted_in_paths() {
        assert_eq!(child("", "cpu"), "cpu");
        assert_eq!(child("a[0]", "cpu"), "a[0].cpu");
        assert_eq!(child("labels", "com.example/x"), "labels[\"com.example/x\"]");
        assert_eq!(child("labels", "a\nb"), "labels[\"a\\nb\"]");
    }

    #[test]
    fn problems_beyond_the_limit_are_counted() {
        let mut problems = Problems::default();
        (0..PROBLEMS_MAX + 3).for_each(|at| problems.push(format!("a[{at}]"), "bad"));
        assert_eq!(problems.len(), PROBLEMS_MAX + 3);
        assert!(problems.to_string().ends_with("a[99]: bad; and 3 more"));
    }
}
