//! Owns reading the tar format from a stream (POSIX ustar and pax, GNU long names): names, sizes, bytes. Foreign
//! input: every length is bounded, nothing is written anywhere, nothing panics.
//!
//! The `tar` crate reads the names of GNU and pax headers into memory whatever their size; its header type is used,
//! the walk is ours.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

use super::ArchiveError;

const BLOCK: u64 = 512;
const NAME_BYTES_MAX: u64 = 4096;
const PAX_BYTES_MAX: u64 = 64 << 10;
/// Entries of one archive; the largest images have some hundred.
const ENTRIES_MAX: u32 = 16 << 10;

/// What an archive holds, in its order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Its bytes come from [`Walker::read`].
    File { path: String, size: u64 },
    /// A symbolic or hard link; `target` is a path of the archive.
    Link { path: String, target: String },
}

/// Walks an archive once.
#[derive(Debug)]
pub(super) struct Walker<R> {
    reader: R,
    /// Bytes of the current entry, and its padding, that were not read yet.
    unread: u64,
    padding: u64,
    entries: u32,
}

/// What long-name and pax headers say of the entry after them.
#[derive(Debug, Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Walker<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            unread: 0,
            padding: 0,
            entries: 0,
        }
    }

    /// The next file or link; what is left of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut overrides = Overrides::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(ArchiveError::TooMany {
                    what: "entries",
                    limit: ENTRIES_MAX as usize,
                });
            }
            let stated = header
                .entry_size()
                .map_err(|_| ArchiveError::Header("its size is no number"))?;
            match header.entry_type() {
                EntryType::GNULongName => overrides.path = Some(self.long_name(stated)?),
                EntryType::GNULongLink => overrides.target = Some(self.long_name(stated)?),
                EntryType::XHeader => self.pax(stated, &mut overrides)?,
                EntryType::Regular | EntryType::Continuous => {
                    let size = overrides.size.unwrap_or(stated);
                    self.begin(size)?;
                    return Ok(Some(Entry::File {
                        path: entry_path(&header, overrides.path)?,
                        size,
                    }));
                }
                EntryType::Symlink | EntryType::Link => {
                    self.begin(stated)?;
                    let path = entry_path(&header, overrides.path)?;
                    let target = overrides
                        .target
                        .or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                    let target = target.ok_or(ArchiveError::Header("a link without a target"))?;
                    let base = if header.entry_type() == EntryType::Symlink {
                        parent(&path)
                    } else {
                        ""
                    };
                    let target = resolve(base, &utf8(target)?)?;
                    return Ok(Some(Entry::Link { path, target }));
                }
                EntryType::GNUSparse => return Err(ArchiveError::Header("a sparse file")),
                // Directories and global headers carry nothing that is needed.
                _ => {
                    self.begin(stated)?;
                    overrides = Overrides::default();
                }
            }
        }
    }

    /// Bytes of the current file; 0 at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.unread).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match self.reader.read(&mut buffer[..wanted]) {
            Ok(0) => Err(ArchiveError::Truncated),
            Ok(count) => {
                self.unread -= count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.read(buffer),
            Err(source) => Err(ArchiveError::Read(source)),
        }
    }

    fn begin(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        if size.checked_add(padding).is_none() {
            return Err(ArchiveError::Header("its size is out of bounds"));
        }
        self.unread = size;
        self.padding = padding;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let left = self.unread + self.padding;
        (self.unread, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.reader.by_ref().take(left), &mut io::sink());
        match skipped.map_err(ArchiveError::Read)? {
            count if count == left => Ok(()),
            _ => Err(ArchiveError::Truncated),
        }
    }

    /// None at the end: a block of zeros, or the end of the file, which some writers leave it at.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read(source)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The checksum counts its own field as spaces (POSIX.1-2001, pax, ustar).
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        match header.cksum() {
            Ok(stated) if stated == expected => Ok(Some(header)),
            _ => Err(ArchiveError::Header(
                "its checksum is wrong: this is no tar archive, or a damaged one",
            )),
        }
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.small(size, NAME_BYTES_MAX)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn pax(&mut self, size: u64, overrides: &mut Overrides) -> Result<(), ArchiveError> {
        let records = self.small(size, PAX_BYTES_MAX)?;
        for record in PaxExtensions::new(&records) {
            let record = record.map_err(|_| ArchiveError::Header("a damaged pax header"))?;
            match record.key_bytes() {
                b"path" => overrides.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => overrides.target = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let value = record.value().ok().and_then(|value| value.parse().ok());
                    overrides.size = Some(value.ok_or(ArchiveError::Header("its size is no number"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn small(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > limit {
            return Err(ArchiveError::TooLarge {
                what: "header",
                limit,
            });
        }
        self.begin(size)?;
        let mut content = vec![0; size as usize];
        let mut filled = 0;
        while filled < content.len() {
            filled += self.read(&mut content[filled..])?;
        }
        Ok(content)
    }
}

fn entry_path(header: &Header, long: Option<Vec<u8>>) -> Result<String, ArchiveError> {
    let raw = long.unwrap_or_else(|| header.path_bytes().into_owned());
    resolve("", &utf8(raw)?)
}

fn utf8(raw: Vec<u8>) -> Result<String, ArchiveError> {
    String::from_utf8(raw).map_err(|_| ArchiveError::Header("a name that is not UTF-8"))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `path` seen from `base`, without `.` and `..`. A path that leaves the archive is refused.
pub(super) fn resolve(base: &str, path: &str) -> Result<String, ArchiveError> {
    let outside = || ArchiveError::Outside(super::super::digest::excerpt(path));
    if path.starts_with('/') || path.len() as u64 > NAME_BYTES_MAX || path.contains('\0') {
        return Err(outside());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(outside)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn walk(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
        let mut walker = Walker::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = walker.next()? {
            let mut content = Vec::new();
            let mut buffer = [0; 100];
            loop {
                match walker.read(&mut buffer)? {
                    0 => break,
                    count => content.extend_from_slice(&buffer[..count]),
                }
            }
            all.push((entry, content));
        }
        Ok(all)
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let long = "d/".repeat(100) + "file";
        let all = walk(&archive(&[("a", b"one"), ("./b/c", &[7; 1500]), (&long, b"far")])).unwrap();
        let names: Vec<_> = all
            .iter()
            .map(|(entry, content)| (entry, content.len()))
            .collect();
        assert_eq!(
            names[0],
            (
                &Entry::File {
                    path: "a".into(),
                    size: 3
                },
                3
            )
        );
        assert_eq!(
            names[1],
            (
                &Entry::File {
                    path: "b/c".into(),
                    size: 1500
                },
                1500
            )
        );
        assert_eq!(names[2], (&Entry::File { path: long, size: 3 }, 3));
    }

    #[test]
    fn links_are_resolved_inside_the_archive() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder
            .append_link(&mut header, "x/layer.tar", "../y/layer.tar")
            .unwrap();
        let all = walk(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(
            all[0].0,
            Entry::Link {
                path: "x/layer.tar".into(),
                target: "y/layer.tar".into()
            }
        );
    }

    #[test]
    fn what_leaves_the_archive_is_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a/b/../../../x"] {
            assert!(
                matches!(resolve("", path), Err(ArchiveError::Outside(_))),
                "{path}"
            );
        }
        assert!(resolve("a", "../../x").is_err());
        assert_eq!(resolve("a/b", "../c").unwrap(), "a/c");
    }

    #[test]
    fn a_huge_name_is_refused_without_reading_it() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(matches!(
            walk(header.as_bytes()),
            Err(ArchiveError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_truncated_archive_is_an_error_wherever_it_ends() {
        let whole = archive(&[("a", &[1; 700]), ("b", b"x")]);
        for end in [100, 512, 600, 1024 + 600, 2048 + 1] {
            assert!(walk(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = walk(&bytes);
        }

        #[test]
        fn damage_never_panics(hits in prop::collection::vec((0usize..6000, any::<u8>()), 1..20), cut in 0usize..6000) {
            let long = "d/".repeat(100) + "file";
            let mut bytes = archive(&[("a", b"one"), (&long, &[7; 1500]), ("c", b"")]);
            for (at, with) in hits {
                let at = at % bytes.len();
                bytes[at] = with;
            }
            // A damaged header with a right checksum, so that more than the checksum is tested.
            let mut header = Header::from_byte_slice(&bytes[..512]).clone();
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
            bytes.truncate(bytes.len().min(cut));
            let _ = walk(&bytes);
        }
    }
}
