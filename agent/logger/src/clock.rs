//! Owns the text of a point in time. Never reads the clock more than once for one batch of output.

/// Length of `2006-01-02T15:04:05.123456789Z`.
const LEN: usize = 30;
const SECONDS_PER_DAY: i64 = 86_400;

/// A time as RFC 3339 with nanoseconds, always nine digits, so that text order is time order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp([u8; LEN]);

impl Timestamp {
    /// Of a time since the Unix epoch. Years outside 0–9999 are not representable and give their nearest digit.
    pub fn new(seconds: i64, nanoseconds: u32) -> Self {
        let (year, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
        let second = seconds.rem_euclid(SECONDS_PER_DAY);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], year.clamp(0, 9999));
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second / 3600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..29], i64::from(nanoseconds));
        Self(text)
    }

    /// ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn digits(field: &mut [u8], mut value: i64) {
    for place in field.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096).div_euclid(365);
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        // From `date -u -d @N +%FT%T`.
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199, 120_000_000, "2024-02-29T23:59:59.120000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (-1, 5, "1969-12-31T23:59:59.000000005Z"),
        ] {
            assert_eq!(
                std::str::from_utf8(Timestamp::new(seconds, nanos).as_bytes()).unwrap(),
                text
            );
        }
    }
}
