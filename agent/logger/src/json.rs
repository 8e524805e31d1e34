//! Owns the text of one record, as Docker's json-file driver writes it, byte for byte in its escapes. Never splits
//! lines and never writes: it fills a buffer.

use crate::clock::Timestamp;

/// Which of a container's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// One line, or one piece of a long one.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub data: &'a [u8],
    /// Give it a line end that the container did not write: the last line of a stream.
    pub add_newline: bool,
    pub stream: Stream,
    pub time: Timestamp,
}

impl Record<'_> {
    /// Appends `{"log":"…","stream":"…","time":"…"}` and a line end: the only byte 0x0a in it. `attrs` is a JSON object
    /// that goes into it, or nothing.
    pub fn encode(&self, attrs: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"log\":\"");
        escape(out, self.data);
        if self.add_newline {
            out.extend_from_slice(b"\\n");
        }
        out.extend_from_slice(b"\",\"stream\":\"");
        out.extend_from_slice(self.stream.name());
        out.push(b'"');
        if !attrs.is_empty() {
            out.extend_from_slice(b",\"attrs\":");
            out.extend_from_slice(attrs);
        }
        out.extend_from_slice(b",\"time\":\"");
        out.extend_from_slice(self.time.as_bytes());
        out.extend_from_slice(b"\"}\n");
    }
}

/// The inside of a JSON string. HTML's special characters are escaped because Docker does.
fn escape(out: &mut Vec<u8>, mut data: &[u8]) {
    while let Some(at) = data.iter().position(|&byte| is_special(byte)) {
        out.extend_from_slice(&data[..at]);
        data = &data[at..];
        if data[0] < 0x80 {
            escape_ascii(out, data[0]);
            data = &data[1..];
        } else {
            let run = data.iter().position(u8::is_ascii).unwrap_or(data.len());
            escape_unicode(out, &data[..run]);
            data = &data[run..];
        }
    }
    out.extend_from_slice(data);
}

fn is_special(byte: u8) -> bool {
    !(0x20..0x80).contains(&byte) || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&')
}

fn escape_ascii(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Bytes that are all ≥ 0x80. Every byte that is not part of a character becomes one U+FFFD, as in Go.
fn escape_unicode(out: &mut Vec<u8>, mut run: &[u8]) {
    loop {
        match std::str::from_utf8(run) {
            Ok(text) => return escape_separators(out, text),
            Err(error) => {
                let (valid, rest) = run.split_at(error.valid_up_to());
                if let Ok(text) = std::str::from_utf8(valid) {
                    escape_separators(out, text);
                }
                out.extend_from_slice(b"\\ufffd");
                run = &rest[1..];
            }
        }
    }
}

/// U+2028 and U+2029 end a line in JavaScript.
fn escape_separators(out: &mut Vec<u8>, mut text: &str) {
    while let Some(at) = text.find(['\u{2028}', '\u{2029}']) {
        out.extend_from_slice(&text.as_bytes()[..at]);
        let (separator, rest) = text[at..].split_at('\u{2028}'.len_utf8());
        out.extend_from_slice(if separator == "\u{2028}" {
            b"\\u2028"
        } else {
            b"\\u2029"
        });
        text = rest;
    }
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(data: &[u8], add_newline: bool) -> Vec<u8> {
        let (stream, time) = (Stream::Stderr, Timestamp::new(1_700_000_000, 42));
        let mut out = Vec::new();
        Record {
            data,
            add_newline,
            stream,
            time,
        }
        .encode(b"", &mut out);
        out
    }

    /// What a reader finds: every byte that is not part of a character is one U+FFFD.
    fn lossy(mut data: &[u8]) -> String {
        let mut text = String::new();
        while let Some(len) = (1..=data.len().min(4)).find(|&n| std::str::from_utf8(&data[..n]).is_ok()) {
            text.push_str(std::str::from_utf8(&data[..len]).unwrap());
            data = &data[len..];
        }
        match data {
            [] => text,
            [_, rest @ ..] => text + "\u{fffd}" + &lossy(rest),
        }
    }

    #[test]
    fn a_record_is_what_docker_writes() {
        let text = String::from_utf8(encode(b"hello \"w\"\n", false)).unwrap();
        let time = "2023-11-14T22:13:20.000000042Z";
        assert_eq!(
            text,
            format!("{{\"log\":\"hello \\\"w\\\"\\n\",\"stream\":\"stderr\",\"time\":\"{time}\"}}\n")
        );
    }

    #[test]
    fn attributes_are_where_docker_has_them() {
        let mut out = Vec::new();
        Record {
            data: b"x\n",
            add_newline: false,
            stream: Stream::Stdout,
            time: Timestamp::new(0, 0),
        }
        .encode(br#"{"tag":"web"}"#, &mut out);
        let text = String::from_utf8(out).unwrap();
        let start = r#"{"log":"x\n","stream":"stdout","attrs":{"tag":"web"},"time":"1970-"#;
        assert!(text.starts_with(start) && text.ends_with("Z\"}\n"), "{text}");
    }

    #[test]
    fn escapes_are_dockers() {
        for (data, escaped) in [
            (&b"a\tb\x00\x1f\x7f"[..], "a\\u0009b\\u0000\\u001f\x7f"),
            (b"\\ / \r", "\\\\ / \\r"),
            (b"<a>&", "\\u003ca\\u003e\\u0026"),
            ("é€😀".as_bytes(), "é€😀"),
            ("a\u{2028}b\u{2029}".as_bytes(), "a\\u2028b\\u2029"),
            (b"\xff\xfeA", "\\ufffd\\ufffdA"),
            (b"\xe2\x82A", "\\ufffd\\ufffdA"),
            (b"\xed\xa0\x80", "\\ufffd\\ufffd\\ufffd"),
            (b"\xc3\xa9\xc3", "é\\ufffd"),
            (b"\xf0\x9f\x98\x80\x80", "😀\\ufffd"),
        ] {
            let mut out = Vec::new();
            escape(&mut out, data);
            assert_eq!(String::from_utf8(out).unwrap(), escaped, "{data:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_string_is_one_line_of_json_that_reads_back(
            data in prop::collection::vec(any::<u8>(), 0..300), add_newline: bool,
        ) {
            let out = encode(&data, add_newline);
            prop_assert_eq!(out.iter().position(|&b| b == b'\n'), Some(out.len() - 1));
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let expected = lossy(&data) + if add_newline { "\n" } else { "" };
            prop_assert_eq!(value["log"].as_str().unwrap(), expected);
            prop_assert_eq!(value.as_object().unwrap().len(), 3);
        }

        #[test]
        fn text_reads_back_unchanged(text in "\\PC*|[\\x00-\\x7f\u{2020}-\u{2030}]*") {
            let value: serde_json::Value = serde_json::from_slice(&encode(text.as_bytes(), false)).unwrap();
            prop_assert_eq!(value["log"].as_str().unwrap(), text);
        }
    }
}
