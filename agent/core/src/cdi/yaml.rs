//! Owns reading YAML as the JSON it stands for, as far as CDI specifications need it: one document, no tags, no anchors
//! and aliases, which let a small text stand for a huge one. Never looks at what the values mean.
//!
//! Numbers are what Kubernetes' and the CDI project's own reader take for numbers (YAML 1.1): a leading zero is octal.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Mappings and sequences in one another.
const DEPTH_MAX: usize = 32;
/// Values in all.
const VALUES_MAX: usize = 100_000;

/// What is open while its members are read.
enum Open {
    Sequence(Vec<Value>),
    Mapping(Map<String, Value>, Option<String>),
}

/// Reads one document.
///
/// # Errors
/// For people: what is wrong, and where the text is not YAML.
pub(super) fn read(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    let mut document = None;
    let mut values = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        values += 1;
        if values > VALUES_MAX {
            return Err(format!("it has more than {VALUES_MAX} values"));
        }
        let line = span.start.line();
        let closed = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(_) if document.is_some() => return Err("it has a second document".into()),
            Event::DocumentStart(_) => continue,
            Event::Alias(_) => return Err(format!("line {line} has an alias")),
            Event::Scalar(_, _, 1.., _) | Event::SequenceStart(1.., _) | Event::MappingStart(1.., _) => {
                return Err(format!("line {line} has an anchor"));
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => return Err(format!("line {line} has a tag")),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEPTH_MAX => {
                return Err(format!("line {line} is more than {DEPTH_MAX} levels deep"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::Sequence(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Mapping(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::Sequence(members)) => Value::Array(members),
                Some(Open::Mapping(members, _)) => Value::Object(members),
                None => return Err(format!("line {line} ends what was not begun")),
            },
            Event::Scalar(text, style, ..) => {
                // A name is text, whatever it looks like.
                if let Some(Open::Mapping(members, name @ None)) = open.last_mut() {
                    if members.contains_key(&*text) {
                        return Err(format!("line {line} has {text:?} again"));
                    }
                    *name = Some(text.into_owned());
                    continue;
                }
                scalar(&text, style)
            }
        };
        match open.last_mut() {
            None => document = Some(closed),
            Some(Open::Sequence(members)) => members.push(closed),
            Some(Open::Mapping(members, name)) => match name.take() {
                Some(name) => drop(members.insert(name, closed)),
                None => return Err(format!("line {line} has a name that is no text")),
            },
        }
    }
    document.ok_or_else(|| "it is empty".into())
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => integer(text).map_or_else(|| text.into(), Value::from),
    }
}

/// No value of a CDI specification has a fraction.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    i64::from_str_radix(digits, radix).ok()?.checked_mul(sign)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_values_are_what_they_look_like_and_quoted_ones_are_text() {
        let text = "---\na: 438\nb: 0666\nc: 0x1f\nd: -1\ne: \"0\"\nf: '1'\ng: true\nh: ~\ni: 0.5.0\nj: rwm\nk:\n- x\n- {y: z, 1: 2}\n- []\nl: 1.5\nm: |\n  a\n  b\n0: 9\n";
        let expected = json!({
            "a": 438, "b": 438, "c": 31, "d": -1, "e": "0", "f": "1", "g": true, "h": null, "i": "0.5.0", "j": "rwm",
            "k": ["x", {"y": "z", "1": 2}, []], "l": "1.5", "m": "a\nb\n", "0": 9,
        });
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("{\"a\": [1, \"2\"]}").unwrap(), json!({"a": [1, "2"]}));
    }

    #[test]
    fn what_could_grow_or_mean_something_else_is_refused() {
        let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
        let wide = format!("[{}]", "1,".repeat(VALUES_MAX));
        for (text, says) in [
            ("", "it is empty"),
            ("a: &x 1", "has an anchor"),
            ("a: &x [1]\nb: *x", "has an anchor"),
            ("a: !!str 1", "has a tag"),
            ("a: 1\n---\nb: 2", "second document"),
            ("a: 1\na: 2", "has \"a\" again"),
            ("[a]: 1", "a name that is no text"),
            ("a: [1", ""),
            (&deep, "levels deep"),
            (&wide, "more than 100000 values"),
        ] {
            let problem = read(text).expect_err(text);
            assert!(problem.contains(says), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-a-c0-9:\\[\\]{}&*!'\"|>#,\n\t \\PC]{0,80}") {
            let _ = read(&text);
        }

        #[test]
        fn json_is_read_as_json_reads_it(value in json_value()) {
            let text = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(read(&text).unwrap(), value);
        }
    }

    /// With what CDI specifications are made of.
    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-zA-Z0-9/=._ -]{0,10}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-zA-Z0-9]{0,6}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }
}
