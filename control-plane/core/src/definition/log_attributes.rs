//! Owns what is added to every line of a json-file log: labels of the container, and a tag. Never knows a log.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use crate::problems::shown;

/// Most bytes of names and values in every line.
const BYTES_MAX: usize = 4096;
const TAG_CHARS_MAX: usize = 255;
const REGEX_CHARS_MAX: usize = 255;
/// Of a compiled expression.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// As Docker names it.
const TAG: &str = "tag";
/// Docker's short form of an id.
const SHORT_ID_CHARS: usize = 12;
const MARKUP: &str =
    "expected a text, in which {{.ID}}, {{.FullID}}, {{.Name}} and {{.ImageName}} stand for the container's";

/// What a tag can name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub image: &'a str,
}

/// The container's labels that `labels` names and that `labels-regex` matches, as Docker takes them.
pub(crate) fn of_labels(
    options: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let named = options.get("labels").map(String::as_str).unwrap_or_default();
    let named: Vec<&str> = named.split(',').collect();
    let pattern = options
        .get("labels-regex")
        .map(|pattern| regex(pattern))
        .transpose()?;
    let wanted =
        |name: &str| named.contains(&name) || pattern.as_ref().is_some_and(|pattern| pattern.is_match(name));
    let wanted = labels.iter().filter(|(name, _)| wanted(name));
    let attributes: BTreeMap<_, _> = wanted
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let bytes: usize = attributes
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > BYTES_MAX {
        return Err(format!(
            "the labels come to {bytes} bytes in every line, the limit is {BYTES_MAX}"
        ));
    }
    Ok(attributes)
}

/// # Errors
/// What is wrong with it.
pub(crate) fn regex(pattern: &str) -> Result<Regex, String> {
    if pattern.chars().count() > REGEX_CHARS_MAX {
        return Err(format!("more than {REGEX_CHARS_MAX} characters"));
    }
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|_| format!("{} is not a regular expression", shown(pattern)))
}

/// Adds the tag of a container.
///
/// # Errors
/// It asks for what is not known of a container.
pub(crate) fn add_tag(
    attributes: &mut BTreeMap<String, String>,
    template: &str,
    container: Named<'_>,
) -> Result<(), String> {
    let tag = tag(template, container)?;
    attributes.insert(TAG.to_owned(), tag);
    Ok(())
}

pub(crate) fn tag(template: &str, container: Named<'_>) -> Result<String, String> {
    if template.chars().count() > TAG_CHARS_MAX {
        return Err(format!("more than {TAG_CHARS_MAX} characters"));
    }
    let (mut tag, mut rest) = (String::new(), template);
    while let Some((before, markup)) = rest.split_once("{{") {
        let (name, after) = markup.split_once("}}").ok_or(MARKUP)?;
        tag.push_str(before);
        tag.push_str(match name.trim() {
            ".ID" => container.id.get(..SHORT_ID_CHARS).unwrap_or(container.id),
            ".FullID" => container.id,
            ".Name" => container.name,
            ".ImageName" => container.image,
            other => return Err(format!("{} is not known here: {MARKUP}", shown(other))),
        });
        rest = after;
    }
    tag.push_str(rest);
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTAINER: Named<'_> = Named {
        id: "0123456789abcdef0123456789abcdef",
        name: "web",
        image: "nginx:1",
    };

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn labels_are_taken_by_name_and_by_expression() {
        let labels = map(&[("a", "1"), ("b", "2"), ("team.x", "3"), ("xa", "4")]);
        for (options, expected) in [
            (map(&[]), map(&[])),
            (map(&[("labels", "a,c,b")]), map(&[("a", "1"), ("b", "2")])),
            (
                map(&[("labels", "a"), ("labels-regex", "^team\\.")]),
                map(&[("a", "1"), ("team.x", "3")]),
            ),
            // Anywhere in the name, as in Docker.
            (
                map(&[("labels-regex", "a")]),
                map(&[("a", "1"), ("team.x", "3"), ("xa", "4")]),
            ),
        ] {
            assert_eq!(of_labels(&options, &labels), Ok(expected), "{options:?}");
        }
    }

    #[test]
    fn a_tag_names_the_container() {
        for (template, expected) in [
            ("plain", "plain"),
            ("{{.Name}}/{{ .ID }}", "web/0123456789ab"),
            (
                "{{.ImageName}} {{.FullID}}}}",
                "nginx:1 0123456789abcdef0123456789abcdef}}",
            ),
            ("", ""),
        ] {
            assert_eq!(tag(template, CONTAINER).as_deref(), Ok(expected));
        }
        for bad in ["{{.ImageID}}", "{{", "{{.Name", "{{}}", &"x".repeat(256)] {
            assert!(tag(bad, CONTAINER).is_err(), "{bad}");
        }
        let longest = "x".repeat(TAG_CHARS_MAX);
        assert_eq!(tag(&longest, CONTAINER).as_deref(), Ok(longest.as_str()));
        let mut attributes = map(&[("a", "1")]);
        add_tag(&mut attributes, "{{.Name}}", CONTAINER).unwrap();
        assert_eq!(attributes, map(&[("a", "1"), (TAG, "web")]));
    }

    #[test]
    fn an_expression_is_as_long_as_it_may_be() {
        regex(&"x".repeat(REGEX_CHARS_MAX)).unwrap();
        regex(&"x".repeat(REGEX_CHARS_MAX + 1)).unwrap_err();
        regex(&"x".repeat(REGEX_CHARS_MAX + 2)).unwrap_err();
    }

    #[test]
    fn what_is_in_every_line_is_bounded() {
        let labels = map(&[("a", &"x".repeat(4095))]);
        assert!(of_labels(&map(&[("labels", "a")]), &labels).is_ok());
        let labels = map(&[("a", &"x".repeat(4096))]);
        let problem = of_labels(&map(&[("labels", "a")]), &labels).unwrap_err();
        assert!(problem.contains("4097 bytes"), "{problem}");
        assert_eq!(of_labels(&map(&[]), &labels), Ok(map(&[])));
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(template in "[{}. A-Za-z]{0,20}|.{0,20}", pattern in "[\\[(a*+?{2,}|\\\\)\\]]{0,12}|.{0,20}") {
            let _ = tag(&template, CONTAINER);
            let labels = map(&[("a", "b")]);
            let _ = of_labels(&map(&[("labels-regex", &pattern)]), &labels);
        }
    }
}
