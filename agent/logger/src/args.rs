//! Owns what the logger is told at its start: key, value pairs, as containerd makes them from the query of a
//! `binary://` URI, in no particular order. Never guesses: an unknown key is refused.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// More files than this would make a rotation slow.
const MAX_FILE_LIMIT: u32 = 1000;

/// As Docker's: what is kept in memory while the disk does not keep up.
const MAX_BUFFER_SIZE: u64 = 1 << 20;

/// Who waits for a disk that does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The container.
    Blocking,
    /// Nobody: what finds no room in the buffer is dropped.
    NonBlocking,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::NonBlocking => "non-blocking",
        }
    }
}

/// Everything the logger needs to know.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// The runtime's id of the container: what the agent knows it by.
    pub id: String,
    /// The current log file; rotated ones are `path.1` (newest) to `path.N`.
    pub path: PathBuf,
    /// No file grows past this, bytes. Zero: no limit.
    pub max_size: u64,
    /// Files kept in all, the current one among them. At least one.
    pub max_file: u32,
    pub mode: Mode,
    /// Bytes of records that wait for the disk at most, in mode non-blocking.
    pub max_buffer_size: usize,
    /// A JSON object that is added to every record; empty: nothing.
    pub attrs: Vec<u8>,
    /// Nothing is kept.
    pub discard: bool,
    /// The agent's socket. None: nobody to register with.
    pub socket: Option<PathBuf>,
    /// Set when the agent starts the logger in place of one that died: the descriptors to go on from.
    pub resume: Option<[i32; 2]>,
}

/// Why the arguments were refused.
#[derive(Debug, PartialEq, Eq)]
pub enum ArgsError {
    Unknown(OsString),
    NoValue(OsString),
    Missing(&'static str),
    Bad { key: &'static str, value: OsString },
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(key) => write!(f, "unknown key {key:?}"),
            Self::NoValue(key) => write!(f, "key {key:?} has no value"),
            Self::Missing(key) => write!(f, "no value for {key}"),
            Self::Bad { key, value } => write!(f, "bad value for {key}: {value:?}"),
        }
    }
}

impl Args {
    /// Reads `key value key value …`. The container's id may come from the environment instead.
    pub fn parse(
        mut words: impl Iterator<Item = OsString>,
        container_id: Option<OsString>,
    ) -> Result<Self, ArgsError> {
        let (mut id, mut path, mut socket, mut resume) = (container_id, None, None, None);
        let (mut max_size, mut max_file) = (0, 1);
        let (mut mode, mut max_buffer_size) = (Mode::NonBlocking, MAX_BUFFER_SIZE);
        let (mut attrs, mut discard) = (Vec::new(), false);
        while let Some(key) = words.next() {
            let value = words.next().ok_or_else(|| ArgsError::NoValue(key.clone()))?;
            match key.as_bytes() {
                b"id" => id = Some(value),
                b"path" => path = Some(absolute("path", value)?),
                b"socket" => socket = Some(absolute("socket", value)?),
                b"max-size" => max_size = number("max-size", &value)?,
                b"max-file" => max_file = number("max-file", &value)?,
                b"mode" => mode = of_mode(&value)?,
                b"max-buffer-size" => max_buffer_size = number("max-buffer-size", &value)?,
                b"attrs" => attrs = object(value)?,
                b"discard" => discard = yes(&value)?,
                b"resume" => resume = Some(fds(&value)?),
                _ => return Err(ArgsError::Unknown(key)),
            }
        }
        let id = id.ok_or(ArgsError::Missing("id"))?.into_string();
        let max_file = u32::try_from(max_file).unwrap_or(MAX_FILE_LIMIT);
        Ok(Self {
            id: id.map_err(|value| ArgsError::Bad { key: "id", value })?,
            path: path.ok_or(ArgsError::Missing("path"))?,
            max_size,
            max_file: max_file.clamp(1, MAX_FILE_LIMIT),
            mode,
            max_buffer_size: usize::try_from(max_buffer_size).unwrap_or(usize::MAX),
            attrs,
            discard,
            socket,
            resume,
        })
    }

    /// The arguments of a logger that goes on from this one.
    pub fn pairs(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut pairs = vec![
            ("id", self.id.as_bytes().to_vec()),
            ("path", bytes(&self.path)),
            ("max-size", self.max_size.to_string().into_bytes()),
            ("max-file", self.max_file.to_string().into_bytes()),
        ];
        // What an older logger does not know is said only where it is needed.
        if self.mode != Mode::NonBlocking {
            pairs.push(("mode", self.mode.name().into()));
        }
        if self.max_buffer_size as u64 != MAX_BUFFER_SIZE {
            pairs.push(("max-buffer-size", self.max_buffer_size.to_string().into_bytes()));
        }
        if !self.attrs.is_empty() {
            pairs.push(("attrs", self.attrs.clone()));
        }
        if self.discard {
            pairs.push(("discard", b"yes".to_vec()));
        }
        pairs.extend(self.socket.as_ref().map(|socket| ("socket", bytes(socket))));
        pairs
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn absolute(key: &'static str, value: OsString) -> Result<PathBuf, ArgsError> {
    let path = PathBuf::from(value);
    if path.is_absolute() && path.file_name().is_some() {
        Ok(path)
    } else {
        Err(ArgsError::Bad {
            key,
            value: path.into(),
        })
    }
}

/// The agent made it. A line end in it would make two records of one.
fn object(value: OsString) -> Result<Vec<u8>, ArgsError> {
    let bytes = value.as_bytes();
    if bytes.starts_with(b"{") && bytes.ends_with(b"}") && !bytes.contains(&b'\n') {
        return Ok(bytes.to_vec());
    }
    Err(ArgsError::Bad { key: "attrs", value })
}

fn yes(value: &OsStr) -> Result<bool, ArgsError> {
    if value == "yes" {
        return Ok(true);
    }
    Err(ArgsError::Bad {
        key: "discard",
        value: value.into(),
    })
}

fn number(key: &'static str, value: &OsStr) -> Result<u64, ArgsError> {
    let parsed = value.to_str().and_then(|digits| digits.parse().ok());
    parsed.ok_or_else(|| ArgsError::Bad {
        key,
        value: value.into(),
    })
}

fn of_mode(value: &OsStr) -> Result<Mode, ArgsError> {
    let known = [Mode::Blocking, Mode::NonBlocking].into_iter();
    let found = known.into_iter().find(|mode| value == mode.name());
    found.ok_or_else(|| ArgsError::Bad {
        key: "mode",
        value: value.into(),
    })
}

/// Two descriptors, `OUT,ERR`.
fn fds(value: &OsStr) -> Result<[i32; 2], ArgsError> {
    let pair = value.to_str().and_then(|v| v.split_once(','));
    let parsed = pair.and_then(|(out, err)| Some([out.parse().ok()?, err.parse().ok()?]));
    let good = parsed.filter(|[out, err]| *out >= 0 && *err >= 0 && out != err);
    good.ok_or_else(|| ArgsError::Bad {
        key: "resume",
        value: value.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, ArgsError> {
        Args::parse(words.iter().map(OsString::from), Some("from-env".into()))
    }

    #[test]
    fn pairs_come_in_any_order_and_have_defaults() {
        let args = parse(&[
            "max-file", "3", "path", "/l/x.log", "max-size", "1000", "id", "c-1",
        ])
        .unwrap();
        assert_eq!((args.id.as_str(), args.max_size, args.max_file), ("c-1", 1000, 3));
        assert_eq!((args.socket, args.resume), (None, None));
        let args = parse(&["path", "/l/x.log"]).unwrap();
        assert_eq!(
            (args.id.as_str(), args.max_size, args.max_file),
            ("from-env", 0, 1)
        );
        assert_eq!(parse(&["path", "/x", "max-file", "0"]).unwrap().max_file, 1);
        assert_eq!(
            parse(&["path", "/x", "max-file", "99999999999"])
                .unwrap()
                .max_file,
            1000
        );
        assert_eq!(
            parse(&["path", "/x", "resume", "0,1"]).unwrap().resume,
            Some([0, 1])
        );
    }

    #[test]
    fn what_it_does_not_know_it_refuses() {
        for bad in [
            &["path", "/x", "colour", "red"][..],
            &["path"],
            &["id", "x"],
            &["path", "x.log"],
            &["path", "/"],
            &["path", "/x", "max-size", "10m"],
            &["path", "/x", "max-size", "-1"],
            &["path", "/x", "mode", "maybe"],
            &["path", "/x", "max-buffer-size", "1m"],
            &["path", "/x", "attrs", "x"],
            &["path", "/x", "attrs", "{\n}"],
            &["path", "/x", "discard", "no"],
            &["path", "/x", "resume", "0"],
            &["path", "/x", "resume", "3,3"],
            &["path", "/x", "socket", "agent.sock"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pairs_give_the_same_arguments_again() {
        let args = parse(&[
            "path",
            "/l/x.log",
            "max-size",
            "9",
            "mode",
            "blocking",
            "max-buffer-size",
            "77",
            "attrs",
            "{\"a\":\"b\"}",
            "discard",
            "yes",
            "socket",
            "/run/a.sock",
            "id",
            "c-1",
        ])
        .unwrap();
        let words = args.pairs().into_iter().flat_map(|(key, value)| {
            [
                OsString::from(key),
                OsString::from(String::from_utf8(value).unwrap()),
            ]
        });
        assert_eq!(Args::parse(words, None).unwrap(), args);
    }
}
