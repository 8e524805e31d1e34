//! Owns the arguments: options, `--`, and what is to be run. The agent writes them; a person may read them in `ps`.

use std::{ffi::OsString, fmt};

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// Standard input is a pipe that nobody writes to and nobody closes.
    pub open_stdin: bool,
    /// Stay, as the process that the container's own program and all that it leaves behind have above them.
    pub init: bool,
    /// Run nothing: be there, for the namespaces.
    pub hold: bool,
    /// Program and arguments; none if and only if it holds.
    pub command: Vec<OsString>,
}

/// What is wrong with the arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ArgsError {
    Unknown(OsString),
    NoCommand,
    Superfluous,
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(option) => write!(f, "option {} is not known", option.display()),
            Self::NoCommand => write!(
                f,
                "usage: berth-init [--open-stdin] [--init] -- PROGRAM [ARGUMENT…], or --hold"
            ),
            Self::Superfluous => write!(f, "--hold goes with nothing else"),
        }
    }
}

impl Args {
    /// Without the program's own name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut arguments = arguments.into_iter();
        let mut args = Self::default();
        for option in arguments.by_ref() {
            match option.to_str() {
                Some("--open-stdin") => args.open_stdin = true,
                Some("--init") => args.init = true,
                Some("--hold") => args.hold = true,
                Some("--") => break,
                _ => return Err(ArgsError::Unknown(option)),
            }
        }
        args.command = arguments.collect();
        match (args.hold, args.command.is_empty()) {
            (true, true) if !args.init && !args.open_stdin => Ok(args),
            (true, _) => Err(ArgsError::Superfluous),
            (false, true) => Err(ArgsError::NoCommand),
            (false, false) => Ok(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let args = parse("--open-stdin -- sh -c --").unwrap();
        assert!(args.open_stdin && !args.init);
        assert!(parse("--init -- x").unwrap().init);
        assert_eq!(args.command, ["sh", "-c", "--"]);
        assert!(!parse("-- x").unwrap().open_stdin);
        assert_eq!(parse(""), Err(ArgsError::NoCommand));
        assert_eq!(parse("--open-stdin --"), Err(ArgsError::NoCommand));
        assert!(parse("--hold").unwrap().hold);
        assert_eq!(parse("--hold -- x"), Err(ArgsError::Superfluous));
        assert_eq!(parse("--hold --init"), Err(ArgsError::Superfluous));
        assert_eq!(parse("sh"), Err(ArgsError::Unknown("sh".into())));
    }

    proptest::proptest! {
        #[test]
        fn a_command_is_taken_as_it_is(command in proptest::collection::vec(".*", 1..5)) {
            let command: Vec<OsString> = command.into_iter().map(OsString::from).collect();
            let arguments = [OsString::from("--")].into_iter().chain(command.clone());
            proptest::prop_assert_eq!(Args::parse(arguments).unwrap().command, command);
        }

        #[test]
        fn whatever_is_given_there_is_an_answer(arguments in proptest::collection::vec("(--[a-z-]*|.*)", 0..5)) {
            let _ = Args::parse(arguments.into_iter().map(OsString::from));
        }
    }
}
