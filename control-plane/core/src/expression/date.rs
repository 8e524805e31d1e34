//! Owns the dates `registeredAt` is compared with: `2018-06-18`, `2018-06-18T22:28:28`, with `Z` or `+02:00`.
//! Never knows what time it is.

const DAY_MS: i64 = 86_400_000;

/// The span the text names, from and (excluded) to, in milliseconds since the Unix epoch: one day, or one
/// second. UTC when no offset is given.
pub(super) fn parse_span(text: &str) -> Option<(i64, i64)> {
    if !text.is_ascii() {
        return None;
    }
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let midnight_ms = days(date)? * DAY_MS;
    let Some(time) = time else {
        return Some((midnight_ms, midnight_ms + DAY_MS));
    };
    let (clock, offset_minutes) = split_offset(time)?;
    let from_ms = midnight_ms + clock_seconds(clock)? * 1_000 - offset_minutes * 60_000;
    Some((from_ms, from_ms + 1_000))
}

/// Days from 1970-01-01 to a date of the years 1970 to 9999.
fn days(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (
        digits(parts.next()?, 4)?,
        digits(parts.next()?, 2)?,
        digits(parts.next()?, 2)?,
    );
    let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    let length = match month {
        2 => 28 + i64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=length).contains(&day) {
        return None;
    }
    // Days since 1 March of the year 0: leap days then fall at the end of a year.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let since_march_0 = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    Some(since_march_0 - 719_468)
}

fn clock_seconds(clock: &str) -> Option<i64> {
    let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
    let mut parts = clock.splitn(3, ':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |s| digits(s, 2))?;
    (hour < 24 && minute < 60 && second < 60).then_some(hour * 3_600 + minute * 60 + second)
}

/// The time of day, and how far its zone is ahead of UTC in minutes.
fn split_offset(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = time.find(['+', '-']) else {
        return Some((time, 0));
    };
    let (hour, minute) = time[at + 1..].split_once(':')?;
    let (hour, minute) = (digits(hour, 2)?, digits(minute, 2)?);
    let sign = if time[at..].starts_with('-') { -1 } else { 1 };
    (hour < 24 && minute < 60).then_some((&time[..at], sign * (hour * 60 + minute)))
}

fn digits(s: &str, width: usize) -> Option<i64> {
    let plain = s.len() == width && s.bytes().all(|b| b.is_ascii_digit());
    if plain { s.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_a_day_and_a_time_a_second() {
        for (text, from_s, seconds) in [
            ("1970-01-01", 0, 86_400),
            ("2000-02-29", 951_782_400, 86_400),
            ("2018-06-18", 1_529_280_000, 86_400),
            ("2018-06-18T22:28:28", 1_529_360_908, 1),
            ("2018-06-18T22:28:28Z", 1_529_360_908, 1),
            ("2018-06-18T22:28:28.123Z", 1_529_360_908, 1),
            ("2018-06-18T22:28:28+00:00", 1_529_360_908, 1),
            ("2018-06-19T00:28:28+02:00", 1_529_360_908, 1),
            ("2018-06-18T20:58-01:30", 1_529_360_880, 1),
        ] {
            assert_eq!(
                parse_span(text),
                Some((from_s * 1_000, (from_s + seconds) * 1_000)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "today",
            "2018-13-01",
            "2017-02-29",
            "2018-6-1",
            "2018-06-18T25:00",
            "1969-12-31",
            "2018-06-18T1",
        ] {
            assert_eq!(parse_span(text), None, "{text}");
        }
    }
}
