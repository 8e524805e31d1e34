//! Owns the question whether a link carries packets.

use futures_util::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};

use super::{Link, Netlink, failed};
use crate::effects::network::error::NetworkError;

/// Whether a link carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Carrier {
    There,
    /// It is up and nothing speaks against it, but its driver said nothing yet (IF_OPER_UNKNOWN, operstates.rst of the kernel).
    Unsaid,
    None,
}

impl Carrier {
    fn of(message: &LinkMessage) -> Self {
        let said = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::OperState(state) => Some(*state),
            _ => None,
        });
        match said {
            Some(State::Up) => Self::There,
            Some(State::Unknown) if message.header.flags.contains(LinkFlags::LowerUp) => Self::Unsaid,
            _ => Self::None,
        }
    }
}

impl Netlink {
    /// Whether the link carries packets by now. The kernel notices a carrier in its own time, up to a second after the
    /// link is up, and drops what is sent before. Since 6.8 it looks at once when it is asked.
    pub(in super::super) async fn carrier(&self, link: &Link) -> Result<Carrier, NetworkError> {
        let mut links = self.handle.link().get().match_index(link.index).execute();
        let message = links.try_next().await.map_err(failed("look at", &link.name))?;
        Ok(message.map_or(Carrier::None, |message| Carrier::of(&message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_says_nothing_of_its_carrier_has_one_as_far_as_its_link_is_up() {
        let message = |state: Option<State>, flags: LinkFlags| {
            let mut message = LinkMessage::default();
            message.header.flags = flags;
            message.attributes.extend(state.map(LinkAttribute::OperState));
            Carrier::of(&message)
        };
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        assert_eq!(message(Some(State::Up), up), Carrier::There);
        assert_eq!(message(Some(State::Unknown), up), Carrier::Unsaid);
        assert_eq!(message(Some(State::Unknown), LinkFlags::Up), Carrier::None);
        assert_eq!(message(Some(State::Down), up), Carrier::None);
        assert_eq!(message(None, up), Carrier::None);
    }
}
