//! Owns reading an archive file on a thread of its own and passing it on in pieces. Never holds more than a few
//! pieces; the reader waits for its taker.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    super::{
        config::{LAYER_BYTES_MAX, MANIFEST_BYTES_MAX},
        digest::Digest,
    },
    ArchiveError,
    catalog::Packing,
    tarball::{Entry, Walker},
};

const PIECE_BYTES: usize = 128 << 10;
/// Unpacked size of one archive: a small file may unpack to anything.
const ARCHIVE_BYTES_MAX: u64 = 256 << 30;

/// What the reader passes on.
#[derive(Debug)]
pub(super) enum Piece {
    /// `index.json` or `manifest.json`, whole.
    Document {
        path: String,
        bytes: Vec<u8>,
    },
    Link {
        path: String,
        target: String,
    },
    /// A file begins; `Data` follows, then `End`.
    Begin {
        path: String,
        size: u64,
        packing: Packing,
    },
    Data(Bytes),
    /// sha256 of the file.
    End(Digest),
}

pub(super) type Pieces = mpsc::Receiver<Result<Piece, ArchiveError>>;
type Taker = mpsc::Sender<Result<Piece, ArchiveError>>;

/// Reads the whole archive. Ends early, and silently, if nobody takes the pieces any more.
pub(super) fn read_archive(path: &Path, taker: &Taker) {
    let read = open(path).and_then(|reader| pass_on(reader, taker));
    if let Err(error) = read {
        // The taker may be gone: then nobody wants to know.
        let _ = taker.blocking_send(Err(error));
    }
}

fn open(path: &Path) -> Result<Box<dyn Read>, ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::Read)?;
    let mut start = Vec::with_capacity(4);
    file.by_ref()
        .take(4)
        .read_to_end(&mut start)
        .map_err(ArchiveError::Read)?;
    file.rewind().map_err(ArchiveError::Read)?;
    let file = BufReader::with_capacity(PIECE_BYTES, file);
    match Packing::of(&start) {
        Packing::Plain => Ok(Box::new(Bounded {
            reader: file,
            left: ARCHIVE_BYTES_MAX,
        })),
        Packing::Gzip => Ok(Box::new(Bounded {
            reader: MultiGzDecoder::new(file),
            left: ARCHIVE_BYTES_MAX,
        })),
        Packing::Zstd => Err(ArchiveError::Zstd),
    }
}

fn pass_on(reader: impl Read, taker: &Taker) -> Result<(), ArchiveError> {
    let mut walker = Walker::new(reader);
    while let Some(entry) = walker.next()? {
        let passed = match entry {
            Entry::Link { path, target } => taker.blocking_send(Ok(Piece::Link { path, target })).is_ok(),
            Entry::File { path, size } if matches!(path.as_str(), "index.json" | "manifest.json") => {
                let bytes = whole(&mut walker, size)?;
                taker.blocking_send(Ok(Piece::Document { path, bytes })).is_ok()
            }
            Entry::File { path, .. } if is_superfluous(&path) => true,
            Entry::File { size, .. } if size > LAYER_BYTES_MAX => {
                return Err(ArchiveError::TooLarge {
                    what: "file",
                    limit: LAYER_BYTES_MAX,
                });
            }
            Entry::File { path, size } => pass_file(&mut walker, path, size, taker)?,
        };
        if !passed {
            break;
        }
    }
    Ok(())
}

/// Left over from old formats; no image refers to them.
fn is_superfluous(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    matches!(name, "VERSION" | "json" | "repositories" | "oci-layout")
}

fn whole<R: Read>(walker: &mut Walker<R>, size: u64) -> Result<Vec<u8>, ArchiveError> {
    if size > MANIFEST_BYTES_MAX {
        return Err(ArchiveError::TooLarge {
            what: "document",
            limit: MANIFEST_BYTES_MAX,
        });
    }
    let mut bytes = vec![0; size as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += walker.read(&mut bytes[filled..])?;
    }
    Ok(bytes)
}

/// False if the taker is gone.
fn pass_file<R: Read>(
    walker: &mut Walker<R>,
    path: String,
    size: u64,
    taker: &Taker,
) -> Result<bool, ArchiveError> {
    let mut hasher = Sha256::new();
    let mut first = Some(path);
    loop {
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(size).unwrap_or(PIECE_BYTES))];
        let mut filled = 0;
        while filled < piece.len() {
            match walker.read(&mut piece[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        piece.truncate(filled);
        if let Some(path) = first.take() {
            let begin = Piece::Begin {
                path,
                size,
                packing: Packing::of(&piece),
            };
            if taker.blocking_send(Ok(begin)).is_err() {
                return Ok(false);
            }
        }
        if filled == 0 {
            return Ok(taker
                .blocking_send(Ok(Piece::End(Digest::from_sha256(hasher))))
                .is_ok());
        }
        hasher.update(&piece);
        if taker.blocking_send(Ok(Piece::Data(piece.into()))).is_err() {
            return Ok(false);
        }
    }
}

/// Fails, rather than ends, when too much has been read.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other(format!(
                "it unpacks to more than {ARCHIVE_BYTES_MAX} bytes"
            )));
        }
        let count = self.reader.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    /// Reads a file to its end and returns what came of it.
    fn read(bytes: &[u8]) -> Vec<Result<Piece, ArchiveError>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(bytes).unwrap();
        let (taker, mut pieces) = mpsc::channel(100_000);
        read_archive(file.path(), &taker);
        drop(taker);
        std::iter::from_fn(|| pieces.try_recv().ok()).collect()
    }

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in [
            ("index.json", vec![b'{'; 30]),
            ("blobs/x", vec![3; 300_000]),
            ("a/VERSION", vec![1]),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder
                .append_data(&mut header, path, content.as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_gzip_archives_give_the_same_pieces() {
        for bytes in [archive(), gzip(&archive())] {
            let pieces = read(&bytes);
            assert!(matches!(&pieces[0], Ok(Piece::Document { path, .. }) if path == "index.json"));
            assert!(matches!(
                &pieces[1],
                Ok(Piece::Begin {
                    size: 300_000,
                    packing: Packing::Plain,
                    ..
                })
            ));
            assert!(
                matches!(pieces.last(), Some(Ok(Piece::End(digest))) if *digest == Digest::of(&[3; 300_000]))
            );
        }
    }

    #[test]
    fn a_reader_without_a_taker_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(&archive()).unwrap();
        let (taker, pieces) = mpsc::channel(1);
        drop(pieces);
        read_archive(file.path(), &taker);
    }

    #[test]
    fn garbage_is_an_error() {
        for garbage in [
            &b"not an archive, but long enough to be looked at"[..],
            &[0x1f, 0x8b, 1, 2, 3],
            &[0x28, 0xb5, 0x2f, 0xfd],
        ] {
            assert!(read(garbage).iter().any(Result::is_err), "{garbage:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_gzip_never_panics(at in 0usize..4000, with in any::<u8>(), cut in 0usize..4000) {
            let mut bytes = gzip(&archive());
            let (at, cut) = (at % bytes.len(), cut % bytes.len());
            bytes[at] = with;
            let _ = read(&bytes);
            let _ = read(&bytes[..cut]);
        }
    }
}
