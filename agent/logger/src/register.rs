//! Owns the handshake with the agent: hands it duplicates of the pipes' read ends, so that they outlive this process.
//! Never waits longer than [`HANDSHAKE`]: a container must start when the agent is away.
//!
//! The message is `BLG1`, the length of what follows as a little-endian u32, then this logger's arguments as
//! `key NUL value NUL …`; the two descriptors ride on it (SCM_RIGHTS; stdout first). The answer is one byte, `+`.
//! The connection then stays open for as long as the logger lives. All that is said on it is how many lines were dropped,
//! as a little-endian u64 each time there are more.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use crate::{args::Args, sys};

const MAGIC: &[u8; 4] = b"BLG1";
const ACCEPTED: u8 = b'+';
/// From the connection to the agent's answer.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Registers. None: the agent is away, or did not answer in time; the logger goes on alone.
pub fn register(args: &Args, pipes: [BorrowedFd<'_>; 2]) -> Option<UnixStream> {
    let socket = args.socket.as_ref()?;
    let started = Instant::now();
    let mut link = sys::connect(socket, HANDSHAKE).ok()?;
    sys::send_with_fds(link.as_fd(), &message(args), pipes).ok()?;
    match answer(&mut link, started) {
        Ok(ACCEPTED) => Some(link),
        Ok(_) | Err(_) => None,
    }
}

/// Tells the agent of dropped lines; an agent that is gone, or does not read, is not waited for.
pub fn tell_dropped(link: &mut UnixStream, lines: u64) {
    let _ = link.set_nonblocking(true);
    let _ = link.write(&lines.to_le_bytes());
}

fn message(args: &Args) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in args.pairs() {
        body.extend_from_slice(key.as_bytes());
        body.push(0);
        body.extend_from_slice(&value);
        body.push(0);
    }
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [MAGIC.as_slice(), &length.to_le_bytes(), &body].concat()
}

fn answer(link: &mut UnixStream, started: Instant) -> io::Result<u8> {
    let mut byte = [0];
    loop {
        let left = HANDSHAKE.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        link.set_read_timeout(Some(left))?;
        match link.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn the_message_is_the_arguments() {
        let words = ["path", "/l", "id", "c-1", "max-size", "7", "max-file", "2"];
        let args = Args::parse(words.iter().map(OsString::from), None).unwrap();
        let body = b"id\0c-1\0path\0/l\0max-size\x007\0max-file\x002\0";
        let head = [b'B', b'L', b'G', b'1', body.len() as u8, 0, 0, 0];
        assert_eq!(message(&args), [&head[..], body].concat());
    }
}
