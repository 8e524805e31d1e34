//! Owns the reading of `WWW-Authenticate` (RFC 9110 §11.6.1, distribution spec token authentication). Foreign
//! input: never panics, ignores what it does not know.

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The best challenge of a header value: Bearer before Basic.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let mut found = None;
    let mut rest = header;
    while let Some((scheme, after)) = word(rest) {
        let (parameters, next) = parameters(after);
        let get = |name: &str| {
            let hit = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            hit.map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            return Some(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope"),
            });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
        rest = next;
    }
    found
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

/// The next word, and what follows it. Skips anything that can start none.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches(|c| !is_token(c));
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// `key=value` pairs up to the next scheme, which is a word not followed by `=`.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    while let Some((key, after)) = word(text) {
        let Some(value) = after.trim_start().strip_prefix('=') else {
            break;
        };
        let value = value.trim_start();
        let (value, next) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => word(value).map_or((String::new(), ""), |(value, next)| (value.to_owned(), next)),
        };
        pairs.push((key.to_owned(), value));
        text = next;
    }
    (pairs, text)
}

/// The rest of a quoted string after its opening quote, and what follows.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn real_registries_are_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        assert_eq!(
            parse(hub),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:library/nginx:pull".into()),
            })
        );
        assert_eq!(
            parse(r#"Basic realm="https://x.dkr.ecr.eu-west-1.amazonaws.com/""#),
            Some(Challenge::Basic)
        );
        let both = r#"Basic realm="a, b", Bearer realm="https://h/t\"x", service=s"#;
        assert_eq!(
            parse(both),
            Some(Challenge::Bearer {
                realm: "https://h/t\"x".into(),
                service: Some("s".into()),
                scope: None
            })
        );
        assert_eq!(parse("Negotiate"), None);
        assert_eq!(parse("Bearer"), None);
        assert_eq!(parse(""), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(header in "[ -~é]{0,120}") {
            let _ = parse(&header);
        }

        #[test]
        fn nothing_that_looks_right_panics(header in "(Bearer|Basic|[a-z,= ]|\"|\\\\|realm=\"){0,20}") {
            let _ = parse(&header);
        }
    }
}
