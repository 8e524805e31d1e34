//! Owns the form of netfilter's messages over netlink(7): what is malformed ends the reading. Never knows what they mean.

use std::io;

/// Of a netlink message (`nlmsghdr`), and of netfilter's after it (`nfgenmsg`).
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const NETFILTER_HEADER_BYTES: usize = 4;
/// Flags of an attribute's kind: its value is attributes, or in the network's byte order.
const KIND_FLAGS: u16 = 0xc000;

/// The messages of a datagram, each with its header (`nlmsghdr`), in the host's byte order.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        if length < HEADER_BYTES {
            return None;
        }
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// What the message is of: netfilter's subsystem in the upper byte.
pub(super) fn kind(message: &[u8]) -> u16 {
    message
        .get(4..6)
        .and_then(|kind| kind.try_into().ok())
        .map_or(0, u16::from_ne_bytes)
}

/// Attributes (`nlattr`): kind, without flags, and value.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let number = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(number(0)?), number(2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !KIND_FLAGS, value))
    })
}

/// One attribute, padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What an answer (NLMSG_ERROR, NLMSG_DONE) says: a negative error number, or that it went well.
pub(super) fn outcome(answer: &[u8]) -> io::Result<()> {
    match u32_at(answer, HEADER_BYTES).map(u32::cast_signed) {
        Some(error) if error < 0 => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Ok(()),
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_says_what_went_wrong() {
        let answer = |error: i32| [&[0; HEADER_BYTES][..], &error.to_ne_bytes()].concat();
        assert!(outcome(&answer(0)).is_ok() && outcome(&[]).is_ok());
        assert_eq!(outcome(&answer(-2)).unwrap_err().raw_os_error(), Some(2));
    }

    proptest! {
        #[test]
        fn attributes_are_read_as_they_were_written(
            all in prop::collection::vec((0..0x3fffu16, prop::collection::vec(any::<u8>(), 0..9)), 0..5)
        ) {
            let bytes: Vec<u8> = all.iter().flat_map(|(kind, value)| attribute(*kind | 0x8000, value)).collect();
            let read: Vec<_> = attributes(&bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, all);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = (kind(message), outcome(message), attributes(message).count());
            }
        }
    }
}
