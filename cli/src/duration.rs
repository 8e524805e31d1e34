//! Owns how people write and read spans of time. Never asks for the time itself.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds in the units people write.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];

/// Parses `90s`, `10m`, `2h`, `1d`; a bare number is seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.chars().last() {
        Some(last) if last.is_ascii_alphabetic() => (&text[..text.len() - 1], last),
        _ => (text, 's'),
    };
    let seconds = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, seconds)| *seconds);
    match (digits.parse::<u64>(), seconds) {
        (Ok(count), Some(seconds)) => Ok(Duration::from_secs(count.saturating_mul(seconds))),
        _ => Err(format!(
            "{text:?} is not a span of time: write 90s, 10m, 2h or 1d"
        )),
    }
}

/// A point in the past: a span before now, or an RFC 3339 time. In milliseconds since the Unix epoch.
pub fn parse_since(text: &str, now_ms: i64) -> Result<i64, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok((at.unix_timestamp_nanos() / 1_000_000) as i64);
    }
    let span = parse(text).map_err(|_| {
        format!("{text:?} is neither a span of time (10m, 2h) nor a time (2026-01-31T12:00:00Z)")
    })?;
    Ok(now_ms.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
}

/// [`parse_since`] of now.
pub fn parse_since_now(text: &str) -> Result<i64, String> {
    parse_since(text, now_ms())
}

/// A span in its largest whole unit: `45s`, `12m`, `3h`, `2d`.
pub fn short(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (unit, size) = UNITS
        .iter()
        .rev()
        // Two of a unit at least, as "1h" for 119 minutes says too little.
        .find(|(_, size)| seconds >= 2 * size)
        .unwrap_or(&UNITS[0]);
    format!("{}{unit}", seconds / size)
}

/// A point in time as RFC 3339 in UTC, milliseconds included.
pub fn rfc3339(ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| ms.to_string())
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_with_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("7", 7)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "1w", "-1s", "1.5h", "ä"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn since_takes_a_span_or_a_time() {
        assert_eq!(parse_since("1m", 100_000), Ok(40_000));
        assert_eq!(parse_since("1970-01-01T00:00:01.5Z", 0), Ok(1_500));
        assert!(parse_since("yesterday", 0).is_err());
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (-3.0, "0s"),
            (59.0, "59s"),
            (119.9, "119s"),
            (120.0, "2m"),
            (7200.0, "2h"),
            (1e6, "11d"),
        ] {
            assert_eq!(short(seconds), text);
        }
    }
}
