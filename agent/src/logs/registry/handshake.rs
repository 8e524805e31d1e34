//! Owns the message with which a logger registers (its other side is `berth-logger`'s `register.rs`): `BLG1`, a
//! little-endian u32 length, `key NUL value NUL …`, and two descriptors. Never trusts a peer that is not this user or
//! root, nor a descriptor that is not a pipe.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use nix::{
    cmsg_space,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
        stat::{SFlag, fstat},
    },
    unistd::Uid,
};
use tokio::{io::Interest, net::UnixStream};

const MAGIC: &[u8; 4] = b"BLG1";
const HEAD_BYTES: usize = 8;
/// Paths, an id and two numbers.
const BODY_BYTES_MAX: usize = 16 * 1024;
const FDS: usize = 2;
/// containerd's own limit on ids is 76.
const ID_BYTES_MAX: usize = 128;

/// A logger's pipes, and what it was started with.
#[derive(Debug)]
pub(super) struct Registration {
    /// The container's runtime id.
    pub id: String,
    /// Read ends: stdout, stderr.
    pub ends: [OwnedFd; 2],
    /// Its arguments, without what only a resumed one has.
    pub arguments: Vec<(OsString, OsString)>,
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("receive a logger's registration")]
    Receive { source: io::Error },
    #[error("user {uid} may not register loggers")]
    Foreign { uid: u32 },
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads one registration. The caller bounds the time.
pub(super) async fn receive(stream: &UnixStream) -> Result<Registration, HandshakeError> {
    let failed = |source| HandshakeError::Receive { source };
    let uid = stream.peer_cred().map_err(failed)?.uid();
    if uid != 0 && uid != Uid::effective().as_raw() {
        return Err(HandshakeError::Foreign { uid });
    }
    let (mut message, mut fds) = (Vec::new(), Vec::new());
    loop {
        if let Some(length) = body_length(&message)?
            && message.len() >= HEAD_BYTES + length
        {
            return registration(&message[HEAD_BYTES..HEAD_BYTES + length], fds);
        }
        let part = stream.async_io(Interest::READABLE, || receive_part(stream.as_raw_fd()));
        let (bytes, more) = part.await.map_err(failed)?;
        if bytes.is_empty() {
            return Err(HandshakeError::Malformed("the logger hung up"));
        }
        message.extend_from_slice(&bytes);
        fds.extend(more);
        if fds.len() > FDS || message.len() > HEAD_BYTES + BODY_BYTES_MAX {
            return Err(HandshakeError::Malformed("the registration is too long"));
        }
    }
}

/// None: the head is not whole yet.
fn body_length(message: &[u8]) -> Result<Option<usize>, HandshakeError> {
    let Some((magic, rest)) = message.split_first_chunk::<4>() else {
        return Ok(None);
    };
    if magic != MAGIC {
        return Err(HandshakeError::Malformed("not a logger"));
    }
    let Some(length) = rest.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > BODY_BYTES_MAX {
        return Err(HandshakeError::Malformed("the registration is too long"));
    }
    Ok(Some(length))
}

fn registration(body: &[u8], fds: Vec<OwnedFd>) -> Result<Registration, HandshakeError> {
    let mut words = body
        .strip_suffix(b"\0")
        .unwrap_or_default()
        .split(|&b| b == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    let arguments = pairs(&mut words).ok_or(HandshakeError::Malformed("a key without a value"))?;
    let ends =
        <[OwnedFd; FDS]>::try_from(fds).map_err(|_| HandshakeError::Malformed("not two descriptors"))?;
    Registration::new(arguments, ends)
}

impl Registration {
    /// Checks what a logger says of itself, wherever it was read.
    pub fn new(arguments: Vec<(OsString, OsString)>, ends: [OwnedFd; 2]) -> Result<Self, HandshakeError> {
        let value = |name: &str| arguments.iter().find(|(key, _)| key == name).map(|(_, v)| v);
        let id = value("id").and_then(|id| id.to_str()).unwrap_or_default();
        let id = id.to_owned();
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(HandshakeError::Malformed("no container's id"));
        }
        if value("path").is_none() {
            return Err(HandshakeError::Malformed("no log file"));
        }
        if !ends.iter().all(is_pipe) {
            return Err(HandshakeError::Malformed("a descriptor that is not a pipe"));
        }
        Ok(Self { id, ends, arguments })
    }
}

/// Key, value, key, value … None: the last key has no value. A resumed logger's own key is left out.
pub(super) fn pairs(words: &mut impl Iterator<Item = OsString>) -> Option<Vec<(OsString, OsString)>> {
    let mut pairs = Vec::new();
    while let Some(key) = words.next() {
        let value = words.next()?;
        if key.as_os_str() != OsStr::from_bytes(b"resume") {
            pairs.push((key, value));
        }
    }
    Some(pairs)
}

fn is_pipe(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO)
}

/// What is there, without waiting.
fn receive_part(socket: RawFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = [0; 4096];
    let mut control = cmsg_space!([RawFd; FDS]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket, &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            fds.extend(numbers.into_iter().map(own));
        }
    }
    let length = received.bytes;
    Ok((buffer[..length].to_vec(), fds))
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use proptest::prelude::*;

    use super::*;

    fn ends() -> Vec<OwnedFd> {
        [pipe().unwrap().0, pipe().unwrap().0].map(OwnedFd::from).into()
    }

    #[test]
    fn a_registration_names_its_container_and_file() {
        let registration = registration(b"id\0c-1\0path\0/l/x\0max-size\x009\0", ends()).unwrap();
        assert_eq!(
            (registration.id.as_str(), registration.arguments.len()),
            ("c-1", 3)
        );
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(super::registration(b"id\0c-1\0path\0/l\0", vec![null(), null()]).is_err());
        for bad in [
            &b""[..],
            b"id\0c-1",
            b"id\0c-1\0",
            b"path\0/l\0",
            b"id\0\0path\0/l\0",
            b"id\0c\0path\0",
        ] {
            assert!(super::registration(bad, ends()).is_err(), "{bad:?}");
        }
        assert!(super::registration(b"id\0c-1\0path\0/l\0", Vec::new()).is_err());
    }

    #[test]
    fn resuming_is_not_handed_on() {
        let registration = registration(b"resume\x000,1\0id\0c-1\0path\0/l\0", ends()).unwrap();
        assert_eq!(registration.arguments.len(), 2);
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(message in prop::collection::vec(any::<u8>(), 0..64), good_head: bool) {
            let message = if good_head { [&MAGIC[..], &message].concat() } else { message };
            let _ = body_length(&message);
            let _ = registration(&message, Vec::new());
        }
    }
}
