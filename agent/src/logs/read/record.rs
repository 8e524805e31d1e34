//! Owns the meaning of one record of a json-file log. Never panics on any bytes: the file is not only ours to write.

use std::borrow::Cow;

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Which output of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    /// As in the log and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub stream: LogStream,
    /// Unix nanoseconds: finer than what is told, to merge by.
    pub time_ns: i128,
    pub data: String,
}

impl Record {
    /// It has its line's end.
    pub fn ends_line(&self) -> bool {
        self.data.ends_with('\n')
    }
}

/// As Docker's json-file driver writes it; other keys (`attrs`) are passed over.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// Reads one line of the file, with or without its line end. None: it is not a record.
pub(super) fn parse(line: &[u8]) -> Option<Record> {
    let raw: Raw<'_> = serde_json::from_slice(line).ok()?;
    let stream = match &*raw.stream {
        "stdout" => LogStream::Stdout,
        "stderr" => LogStream::Stderr,
        _ => return None,
    };
    let time = OffsetDateTime::parse(&raw.time, &Rfc3339).ok()?;
    Some(Record {
        stream,
        time_ns: time.unix_timestamp_nanos(),
        data: raw.log.into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dockers_records_are_read() {
        let line =
            br#"{"log":"a\u003cb\n","stream":"stderr","attrs":{"x":"y"},"time":"2024-02-29T23:59:59.12Z"}"#;
        let record = parse(line).unwrap();
        assert_eq!(
            (record.stream, record.data.as_str()),
            (LogStream::Stderr, "a<b\n")
        );
        assert_eq!(record.time_ns, 1_709_251_199_120_000_000);
        assert!(record.ends_line());
    }

    #[test]
    fn what_is_not_a_record_is_none() {
        let good = r#"{"log":"x\n","stream":"stdout","time":"2024-02-29T23:59:59Z"}"#;
        assert!(parse(good.as_bytes()).is_some());
        for end in 0..good.len() {
            assert_eq!(parse(&good.as_bytes()[..end]), None, "torn at {end}");
        }
        for bad in [
            good.replace("stdout", "stdin"),
            good.replace("2024", "24"),
            good.replace("log", "msg"),
            good.to_owned() + "x",
            good.replace("x\\n", "\\ud800"),
            "null".into(),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..70, flip: u8,
        ) {
            let _ = parse(&bytes);
            let mut near = br#"{"log":"x\n","stream":"stdout","time":"2024-02-29T23:59:59.123456789Z"}"#.to_vec();
            near[at] ^= flip;
            let _ = parse(&near);
        }
    }
}
