//! Owns which ports of the host the node may choose: the operator's, else the kernel's. Never looks whether one is free.

use std::{collections::BTreeSet, ops::RangeInclusive};

use berth_agent_core::ports::DynamicPorts;

use crate::config::ConfigError;

/// Those that programs do not choose, in the network namespace of whoever asks: `32768\t60999`.
const KERNEL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Those among them that are kept for something: `8080,9148-9150`.
const KERNEL_RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// # Errors
/// When `configured` is not a range of ports.
pub(super) fn dynamic(configured: Option<&str>) -> Result<DynamicPorts, ConfigError> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let range = match configured {
        Some(text) => range(text, '-').ok_or_else(|| ConfigError::Value {
            key: "dynamic_ports",
            value: text.to_owned(),
            problem: "must be FIRST-LAST, of 1 to 65535".to_owned(),
        })?,
        None => range(read(KERNEL_RANGE).trim(), '\t').unwrap_or(DynamicPorts::default().range),
    };
    let avoided = reserved(&read(KERNEL_RESERVED));
    Ok(DynamicPorts { range, avoided })
}

fn range(text: &str, by: char) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(by)?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (1..=last).contains(&first).then_some(first..=last)
}

fn reserved(text: &str) -> BTreeSet<u16> {
    let one = |part: &str| match part.parse() {
        Ok(port) => Some(port..=port),
        Err(_) => range(part, '-'),
    };
    text.trim().split(',').filter_map(one).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_and_operators_write_them() {
        assert_eq!(range("32768\t60999", '\t'), Some(32_768..=60_999));
        assert_eq!(range("49153-65535", '-'), Some(49_153..=65_535));
        for bad in ["", "1", "0-5", "5-4", "1-65536", "a-b", "1-2-3"] {
            assert_eq!(range(bad, '-'), None, "{bad}");
            assert!(dynamic(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(reserved("8080,9148-9150\n"), [8080, 9148, 9149, 9150].into());
        assert_eq!(reserved("\n"), BTreeSet::new());
    }

    #[test]
    fn the_kernels_own_is_the_default() {
        let kernel = std::fs::read_to_string(KERNEL_RANGE).unwrap();
        let own = dynamic(None).unwrap().range;
        assert_eq!(kernel.trim(), format!("{}\t{}", own.start(), own.end()));
    }
}
