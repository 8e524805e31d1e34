//! Owns the names of signals, as images and people write them. Never sends one.

use super::OciError;

/// SIGTERM, where an image says nothing.
pub const DEFAULT: u32 = 15;
/// The kernel's SIGRTMIN as glibc and Docker count it, and its SIGRTMAX.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// By number, from 1; the numbers of x86 and arm.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3`, `RTMAX-1`; empty is SIGTERM.
pub fn parse(text: &str) -> Result<u32, OciError> {
    if text.is_empty() {
        return Ok(DEFAULT);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name
        .parse()
        .ok()
        .or_else(|| named(name))
        .or_else(|| realtime(name));
    number
        .filter(|n| (1..=RTMAX).contains(n))
        .ok_or_else(|| OciError::StopSignal(text.to_owned()))
}

fn named(name: &str) -> Option<u32> {
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    let index = NAMES.iter().position(|known| *known == name)?;
    u32::try_from(index + 1).ok()
}

fn realtime(name: &str) -> Option<u32> {
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        text => text
            .strip_prefix(sign)?
            .parse::<u32>()
            .ok()
            .filter(|n| *n <= RTMAX - RTMIN),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(RTMIN + offset(rest, '+')?),
        (_, Some(rest)) => Some(RTMAX - offset(rest, '-')?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_name_or_a_number() {
        let good = [
            ("", 15),
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigquit", 3),
            ("3", 3),
            ("SIGWINCH", 28),
            ("SIGSYS", 31),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMIN+30", 64),
            ("RTMAX-30", 34),
            ("RTMAX-1", 63),
            ("SIGPOLL", 29),
        ];
        for (text, number) in good {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for bad in [
            "0",
            "65",
            "-1",
            "SIG",
            "SIGNOPE",
            "SIGRTMIN+31",
            "RTMAX-31",
            "RTMAX+1",
            "15 ",
        ] {
            assert_eq!(parse(bad), Err(OciError::StopSignal(bad.to_owned())), "{bad}");
        }
    }
}
