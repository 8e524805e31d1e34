//! Owns sizes: the spellings of task cpu and memory, the sizes FARGATE knows, bytes in log options. Never knows
//! where they stand in a definition.

/// CPU units of one core.
const CPU_UNITS_PER_VCPU: u64 = 1024;
const MIB_PER_GB: u64 = 1024;
/// Largest task memory: what fits ECS's `Integer`.
pub(crate) const MEMORY_MIB_MAX: u64 = i32::MAX as u64;
/// Least task cpu outside FARGATE.
pub(super) const TASK_CPU_UNITS_MIN: u64 = 128;
/// Most task cpu outside FARGATE: 192 cores.
pub(super) const TASK_CPU_UNITS_MAX: u64 = 196_608;

/// CPU units of `1024`, `1 vCPU` or `.25 vcpu`.
pub(super) fn parse_cpu_units(text: &str) -> Option<u64> {
    parse_scaled(text, "vcpu", CPU_UNITS_PER_VCPU)
}

/// MiB of `2048`, `2 GB` or `0.5GB`.
pub(super) fn parse_memory_mib(text: &str) -> Option<u64> {
    parse_scaled(text, "gb", MIB_PER_GB)
}

/// A plain integer, or a decimal with `unit` that comes to a whole number.
fn parse_scaled(text: &str, unit: &str, scale: u64) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let Some(amount) = text.strip_suffix(unit) else {
        return digits(&text);
    };
    let amount = amount.trim_end();
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { digits(whole)? };
    let fraction = fraction.trim_end_matches('0');
    let parts = if fraction.is_empty() { 0 } else { digits(fraction)? };
    let denominator = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let parts = parts.checked_mul(scale)?;
    if parts % denominator != 0 {
        return None;
    }
    whole.checked_mul(scale)?.checked_add(parts / denominator)
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Bytes of `65536`, `64k`, `10m` or `1g`, powers of 1024 as in Docker's log options; a `b` may follow.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (amount, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        _ => (lower, 0),
    };
    digits(amount)?.checked_mul(1 << shift)
}

/// What FARGATE offers: CPU units, then least, most and step of memory in MiB.
const FARGATE: &[(u64, u64, u64, u64)] = &[
    (256, 512, 2_048, 0), // 512, 1024 and 2048: doubling, not steps
    (512, 1_024, 4_096, 1_024),
    (1_024, 2_048, 8_192, 1_024),
    (2_048, 4_096, 16_384, 1_024),
    (4_096, 8_192, 30_720, 1_024),
    (8_192, 16_384, 61_440, 4_096),
    (16_384, 32_768, 122_880, 8_192),
];

/// Why FARGATE has no such size: about cpu, or about memory for this cpu.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoSuchSize {
    Cpu(String),
    Memory(String),
}

/// Whether FARGATE offers this size.
pub(super) fn check_fargate(cpu_units: u64, memory_mib: u64) -> Result<(), NoSuchSize> {
    let Some((_, least, most, step)) = FARGATE.iter().find(|(cpu, ..)| *cpu == cpu_units) else {
        let sizes: Vec<String> = FARGATE.iter().map(|(cpu, ..)| cpu.to_string()).collect();
        let message = format!(
            "{cpu_units} is not a size of FARGATE: use one of {}",
            sizes.join(", ")
        );
        return Err(NoSuchSize::Cpu(message));
    };
    let fits = (*least..=*most).contains(&memory_mib)
        && match step {
            0 => memory_mib.is_power_of_two(),
            step => memory_mib.is_multiple_of(*step),
        };
    if fits {
        return Ok(());
    }
    let offered = match step {
        0 => "512, 1024 or 2048".to_string(),
        step => format!("{least} to {most} in steps of {step}"),
    };
    Err(NoSuchSize::Memory(format!(
        "{memory_mib} MiB does not go with cpu {cpu_units} in FARGATE: use {offered}"
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpu_is_units_or_vcpu() {
        for (text, units) in [
            ("256", Some(256)),
            ("1 vCPU", Some(1024)),
            ("1vcpu", Some(1024)),
            (".25 vCPU", Some(256)),
            ("0.250 VCPU", Some(256)),
            ("2. vCPU", Some(2048)),
            ("0.1 vCPU", None), // 102.4 units
            ("", None),
            ("vCPU", None),
            (". vCPU", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("1 core", None),
            ("99999999999999999999", None),
            ("0.99999999999999999999999 vCPU", None),
        ] {
            assert_eq!(parse_cpu_units(text), units, "{text:?}");
        }
    }

    #[test]
    fn memory_is_mib_or_gb() {
        for (text, mib) in [
            ("512", Some(512)),
            ("2 GB", Some(2048)),
            ("0.5GB", Some(512)),
            ("1.5 gb", Some(1536)),
            ("1 MB", None),
            ("1G", None),
        ] {
            assert_eq!(parse_memory_mib(text), mib, "{text:?}");
        }
    }

    #[test]
    fn log_sizes_are_bytes_with_a_power_of_1024() {
        for (text, bytes) in [
            ("65536", Some(65_536)),
            ("64k", Some(65_536)),
            ("10m", Some(10 << 20)),
            ("10MB", Some(10 << 20)),
            ("1g", Some(1 << 30)),
            ("", None),
            ("m", None),
            ("b", None),
            ("-1", None),
            ("1t", None),
            ("99999999999g", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn fargate_offers_a_table_of_sizes() {
        for (cpu, memory, fits) in [
            (256, 512, true),
            (256, 1_024, true),
            (256, 1_536, false),
            (256, 2_048, true),
            (256, 4_096, false),
            (512, 1_024, true),
            (512, 4_096, true),
            (512, 512, false),
            (1_024, 3_072, true),
            (1_024, 3_000, false),
            (4_096, 30_720, true),
            (4_096, 31_744, false),
            (8_192, 20_480, true),
            (8_192, 17_408, false),
            (16_384, 122_880, true),
            (16_384, 36_864, false),
            (300, 512, false),
        ] {
            assert_eq!(check_fargate(cpu, memory).is_ok(), fits, "{cpu} {memory}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_none(text in any::<String>(), amount in "[0-9.+-]{0,24}", unit in "[ ]?(vcpu|GB|kb?|m|g)?") {
            for text in [&text, &format!("{amount}{unit}")] {
                let sizes = [parse_cpu_units(text), parse_memory_mib(text), parse_bytes(text)];
                let number = text.trim().starts_with(|c: char| c.is_ascii_digit() || c == '.');
                prop_assert!(number || sizes == [None; 3], "{:?}: {:?}", text, sizes);
            }
        }

        #[test]
        fn a_unit_multiplies(amount in 0..1_u64 << 32, quarters in 0..4_u64) {
            prop_assert_eq!(parse_cpu_units(&format!("{amount}")), Some(amount));
            let fraction = ["", ".25", ".50", ".750"][quarters as usize];
            prop_assert_eq!(parse_cpu_units(&format!("{amount}{fraction} vCPU")), Some(amount * 1024 + quarters * 256));
            prop_assert_eq!(parse_memory_mib(&format!("{amount}{fraction}GB")), Some(amount * 1024 + quarters * 256));
            for (unit, shift) in [("", 0), ("b", 0), ("k", 10), ("KB", 10), ("m", 20), ("g", 30)] {
                prop_assert_eq!(parse_bytes(&format!("{amount}{unit}")), Some(amount << shift));
            }
        }

        #[test]
        fn a_size_beyond_all_numbers_is_none(digits in "[1-9][0-9]{20,60}") {
            for unit in ["", " vCPU", "GB", "k", "g"] {
                let text = format!("{digits}{unit}");
                prop_assert_eq!(parse_cpu_units(&text).or(parse_memory_mib(&text)).or(parse_bytes(&text)), None);
            }
        }
    }
}
