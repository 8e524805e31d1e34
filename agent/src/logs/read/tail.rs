//! Owns finding where the last lines of a log begin. Never reads further back than it must.

use std::{io, os::unix::fs::FileExt};

use super::{
    file::{LogFile, RECORD_BYTES_MAX},
    record,
};

const BLOCK_BYTES: usize = 64 * 1024;

/// Drops files, oldest first, and moves in the first that is left, so that `lines` lines remain. Pieces of a long line
/// count as one line with its last piece; what is no record counts as a line.
pub(super) fn keep_last(files: &mut Vec<LogFile>, lines: u32) -> io::Result<()> {
    let mut wanted = u64::from(lines);
    for index in (0..files.len()).rev() {
        if let Some(start) = start_of_last(&files[index], &mut wanted)? {
            files[index].seek(start);
            files.drain(..index);
            return Ok(());
        }
    }
    Ok(())
}

/// Where the last `wanted` lines of a file begin. None: it has fewer; `wanted` is what is missing.
fn start_of_last(file: &LogFile, wanted: &mut u64) -> io::Result<Option<u64>> {
    let mut backwards = Backwards {
        file,
        start: file.length()?,
        bytes: Vec::new(),
    };
    // What is behind the last line end is not a whole record; it is read later, whatever becomes of it.
    backwards.skip_torn()?;
    loop {
        let end = backwards.end();
        let Some(line) = backwards.previous()? else {
            return Ok(None);
        };
        let ends_line = record::parse(&line).is_none_or(|record| record.ends_line());
        if ends_line && *wanted == 0 {
            return Ok(Some(end));
        }
        // Only the end of a line counts: its pieces before it belong to it.
        *wanted -= u64::from(ends_line);
    }
}

/// Gives the lines of a file from its end.
struct Backwards<'a> {
    file: &'a LogFile,
    /// Of `bytes`, in the file.
    start: u64,
    /// Read and not given yet.
    bytes: Vec<u8>,
}

impl Backwards<'_> {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn skip_torn(&mut self) -> io::Result<()> {
        while !self.bytes.contains(&b'\n') && self.grow()? {}
        let whole = self
            .bytes
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        self.bytes.truncate(whole);
        Ok(())
    }

    /// The line before the last that was given. Of one too long to be a record, only the end.
    fn previous(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(inside) = self.bytes.len().checked_sub(1) else {
                if self.grow()? {
                    continue;
                }
                return Ok(None);
            };
            if let Some(at) = self.bytes[..inside].iter().rposition(|&b| b == b'\n') {
                return Ok(Some(self.bytes.split_off(at + 1)));
            }
            if self.bytes.len() > RECORD_BYTES_MAX {
                // Only its last byte, its line end, matters for what is counted.
                self.bytes.drain(..self.bytes.len() - 1);
                self.skip_long_line()?;
                return Ok(Some(b"\n".to_vec()));
            }
            if !self.grow()? {
                return Ok(Some(std::mem::take(&mut self.bytes)));
            }
        }
    }

    /// Passes over the rest of a line that is far too long, block by block.
    fn skip_long_line(&mut self) -> io::Result<()> {
        loop {
            self.bytes.clear();
            if !self.grow()? {
                return Ok(());
            }
            if let Some(at) = self.bytes.iter().rposition(|&b| b == b'\n') {
                self.bytes.truncate(at + 1);
                return Ok(());
            }
        }
    }

    /// Reads the block before. False: there is none.
    fn grow(&mut self) -> io::Result<bool> {
        let length = self.start.min(BLOCK_BYTES as u64);
        if length == 0 {
            return Ok(false);
        }
        let mut block = vec![0; usize::try_from(length).unwrap_or(BLOCK_BYTES)];
        match self.file.raw().read_exact_at(&mut block, self.start - length) {
            Ok(()) => {}
            // Started over while we read: there is nothing before.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        block.append(&mut self.bytes);
        self.bytes = block;
        self.start -= length;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::logs::read::file::Item;

    fn line(text: &str, end: &str) -> String {
        format!("{{\"log\":\"{text}{end}\",\"stream\":\"stdout\",\"time\":\"2024-02-29T23:59:59Z\"}}\n")
    }

    fn last(contents: &[String], lines: u32) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (index, content) in contents.iter().enumerate() {
            let path = directory.path().join(index.to_string());
            fs::write(&path, content).unwrap();
            files.push(LogFile::open(path).unwrap());
        }
        keep_last(&mut files, lines).unwrap();
        let mut texts = Vec::new();
        for mut file in files {
            loop {
                match file.next().unwrap() {
                    Item::Record(record) => texts.push(record.data.trim_end().chars().take(10).collect()),
                    Item::Corrupt { .. } => texts.push("corrupt".into()),
                    Item::Truncated | Item::End => break,
                }
            }
        }
        texts
    }

    #[test]
    fn the_last_lines_may_lie_in_several_files() {
        let lines = |range: std::ops::Range<u32>| range.map(|n| line(&n.to_string(), "\\n")).collect();
        let files: [String; 3] = [lines(0..5), lines(5..7), lines(7..10) + "torn"];
        for wanted in 1..=12_u32 {
            let expected: Vec<_> = (10_u32.saturating_sub(wanted)..10)
                .map(|n| n.to_string())
                .collect();
            assert_eq!(last(&files, wanted), expected, "{wanted}");
        }
    }

    #[test]
    fn pieces_of_a_long_line_count_once() {
        let pieces = line("p1", "") + &line("p2", "") + &line("p3", "\\n");
        let files = [line("a", "\\n") + &pieces + &line("b", "\\n")];
        assert_eq!(last(&files, 1), ["b"]);
        assert_eq!(last(&files, 2), ["p1", "p2", "p3", "b"]);
        assert_eq!(last(&files, 3), ["a", "p1", "p2", "p3", "b"]);
        assert_eq!(last(&[pieces], 1), ["p1", "p2", "p3"]);
    }

    #[test]
    fn blocks_and_oversized_lines_do_not_matter() {
        let long = line(&"x".repeat(90_000), "\\n");
        let junk = "y".repeat(700_000) + "\n";
        let files = [
            line("a", "\\n") + &junk + &long.repeat(3) + &line("b", "\\n"),
            String::new(),
        ];
        assert_eq!(last(&files, 2), ["xxxxxxxxxx", "b"]);
        assert_eq!(last(&files, 4).len(), 4);
        assert_eq!(last(&files, 5)[0], "corrupt");
        assert_eq!(last(&files, 6)[0], "a");
        assert_eq!(last(&files, 7).len(), 6);
    }
}
