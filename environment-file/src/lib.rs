//! Owns the format of environment files: what the control plane stores and what nodes fetch is read by the same rules.
//! Never touches a file, and never says in an error what a line holds: it may be a secret.
//!
//! As in ECS: each line is `VARIABLE=VALUE`; a line that begins with `#` is a comment; nothing is interpolated, and spaces
//! and quotation marks are part of the value. Where ECS skips a line that it does not understand, this refuses the file;
//! and `VARIABLE=` sets an empty value, where ECS skips it.

/// Largest file.
pub const FILE_BYTES_MAX: usize = 64 << 10;
/// Most variables of one file.
pub const VARIABLES_MAX: usize = 1_000;

/// What the editors of some systems begin a file with.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("it has {0} bytes, the limit is {FILE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("line {0} is not UTF-8")]
    Encoding(usize),
    #[error("line {0} has no =: expected VARIABLE=VALUE, or # before a comment")]
    NoEquals(usize),
    #[error("line {0} begins with =: expected VARIABLE=VALUE")]
    NoName(usize),
    #[error(
        "line {0} has a space or a tab before its =: expected VARIABLE=VALUE, without quotes around it and without \"export\""
    )]
    Space(usize),
    #[error("line {0} has a NUL character")]
    Nul(usize),
    #[error("it defines more than {VARIABLES_MAX} variables")]
    TooMany,
}

/// The variables of a file in the order of their first lines; the last value of one holds.
///
/// # Errors
/// What is wrong with the first line that is not understood, or with the file as a whole.
pub fn parse(file: &[u8]) -> Result<Vec<(String, String)>, Invalid> {
    if file.len() > FILE_BYTES_MAX {
        return Err(Invalid::TooLarge(file.len()));
    }
    let file = file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(file);
    let mut variables: Vec<(String, String)> = Vec::new();
    for (at, line) in file.split(|byte| *byte == b'\n').enumerate() {
        let Some((name, value)) = variable(at + 1, line)? else {
            continue;
        };
        match variables.iter().position(|(other, _)| other == name) {
            Some(earlier) => value.clone_into(&mut variables[earlier].1),
            None if variables.len() == VARIABLES_MAX => return Err(Invalid::TooMany),
            None => variables.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(variables)
}

/// `None`: a comment, or nothing.
fn variable(number: usize, line: &[u8]) -> Result<Option<(&str, &str)>, Invalid> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") || line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let line = std::str::from_utf8(line).map_err(|_| Invalid::Encoding(number))?;
    if line.contains('\0') {
        return Err(Invalid::Nul(number));
    }
    let (name, value) = line.split_once('=').ok_or(Invalid::NoEquals(number))?;
    if name.is_empty() {
        return Err(Invalid::NoName(number));
    }
    if name.contains(char::is_whitespace) {
        return Err(Invalid::Space(number));
    }
    Ok(Some((name, value)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse(text.as_bytes()).unwrap()
    }

    fn variables(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn values_are_taken_as_they_are() {
        for (line, value) in [
            ("A=b", "b"),
            ("A=", ""),
            ("A=b=c", "b=c"),
            ("A= b ", " b "),
            ("A=\"b\"", "\"b\""),
            ("A='b' # c", "'b' # c"),
            ("A=$HOME ${B} \\n", "$HOME ${B} \\n"),
            ("A=b\r", "b"),
            ("\u{feff}A=b", "b"),
        ] {
            assert_eq!(parsed(line), variables(&[("A", value)]), "{line:?}");
        }
    }

    #[test]
    fn comments_and_blank_lines_are_skipped_and_the_last_of_a_name_holds() {
        let text = "# A=1\n\nA=2\r\n \t\nB.x-y=3\n#\nA=4";
        assert_eq!(parsed(text), variables(&[("A", "4"), ("B.x-y", "3")]));
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn what_is_not_understood_is_told_by_its_line_and_never_shown() {
        for (text, invalid) in [
            (&b"A=1\nsecret"[..], Invalid::NoEquals(2)),
            (b"=secret", Invalid::NoName(1)),
            (b"export A=secret", Invalid::Space(1)),
            (b" # secret=1", Invalid::Space(1)),
            (b"A =secret", Invalid::Space(1)),
            (b"A=secret\0", Invalid::Nul(1)),
            (b"\nA=secret\xff", Invalid::Encoding(2)),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, invalid);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_file_is_bounded() {
        let line = "A=".to_owned() + &"x".repeat(FILE_BYTES_MAX - 2);
        assert_eq!(parsed(&line).len(), 1);
        let over = parse(format!("{line}y").as_bytes());
        assert_eq!(over, Err(Invalid::TooLarge(FILE_BYTES_MAX + 1)));
        let many = |count: usize| (0..count).map(|n| format!("V{n}=\n")).collect::<String>();
        assert_eq!(parsed(&many(VARIABLES_MAX)).len(), VARIABLES_MAX);
        assert_eq!(parse(many(VARIABLES_MAX + 1).as_bytes()), Err(Invalid::TooMany));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_file_or_an_error(file in prop::collection::vec(any::<u8>(), 0..300)) {
            for (name, value) in parse(&file).unwrap_or_default() {
                prop_assert!(!name.is_empty() && !name.contains('='), "{name:?}");
                prop_assert!(!name.contains(char::is_whitespace) && !value.contains(['\n', '\0']));
            }
        }

        /// Of lines that are much like those of a file.
        #[test]
        fn near_valid_files_too(lines in prop::collection::vec("[#= \tAab\"\r]{0,6}", 0..8)) {
            let text = lines.join("\n");
            let bad = lines.iter().any(|line| {
                let line = line.strip_suffix('\r').unwrap_or(line);
                let skipped = line.starts_with('#') || line.trim_ascii().is_empty();
                let name = line.split_once('=').map_or("", |(name, _)| name);
                !skipped && (name.is_empty() || name.contains(char::is_whitespace))
            });
            prop_assert_eq!(parse(text.as_bytes()).is_err(), bad, "{:?}", text);
        }

        #[test]
        fn what_is_written_is_read(
            pairs in prop::collection::btree_map("[A-Za-z_][A-Za-z0-9_.-]{0,9}", "[^\n\r\0]{0,20}", 0..20)
        ) {
            let pairs: Vec<_> = pairs.into_iter().collect();
            let text: String = pairs.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            prop_assert_eq!(parsed(&text), pairs);
        }
    }
}
