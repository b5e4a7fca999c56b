//! A duration as a person writes it: `30` and `1.5` are seconds, `500ms` and
//! `1.5ms` are milliseconds. The caller decides what zero means.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// It is not a plain decimal number, alone or followed by `ms`.
    Malformed,
    /// It has more seconds or milliseconds than a [`Duration`] can hold.
    TooLong,
    /// It is not zero, but less than a nanosecond: the clock would take it for
    /// zero, which may mean the opposite.
    TooShort,
}

/// Parses seconds, or milliseconds if `ms` follows. Both may have a fraction;
/// anything beyond a nanosecond is cut off.
///
/// # Errors
/// The text is not such a number, or the clock can't measure it.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let (number, unit): (_, fn(u64) -> Duration) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis),
        None => (text, Duration::from_secs),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !is_digits(whole) || !is_digits(fraction) {
        return Err(DurationError::Malformed);
    }
    // Only a number too large is left to fail.
    let whole = whole.parse().map(unit).map_err(|_| DurationError::TooLong)?;
    let duration = whole.checked_add(part_of(unit(1), fraction)).ok_or(DurationError::TooLong)?;
    if duration.is_zero() && number.contains(|c| ('1'..='9').contains(&c)) {
        return Err(DurationError::TooShort);
    }
    Ok(duration)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The part of `unit` that these digits after a decimal point stand for.
fn part_of(unit: Duration, digits: &str) -> Duration {
    let mut part = Duration::ZERO;
    let mut place = unit;
    for digit in digits.chars().filter_map(|c| c.to_digit(10)) {
        place = place.checked_div(10).unwrap_or_default();
        part = part.saturating_add(place.saturating_mul(digit));
    }
    part
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DurationError::Malformed => "give seconds (30, 1.5) or milliseconds (500ms)",
            DurationError::TooLong => "the duration is too long",
            DurationError::TooShort => "the duration is too short",
        })
    }
}

impl Error for DurationError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_seconds_or_milliseconds_with_or_without_a_fraction() {
        for (text, nanos) in [
            ("30", 30_000_000_000),
            ("007", 7_000_000_000),
            ("1.5", 1_500_000_000),
            ("0.25", 250_000_000),
            ("1.000000001", 1_000_000_001),
            ("500ms", 500_000_000),
            ("1.5ms", 1_500_000),
            ("0.000001ms", 1),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn zero_is_left_to_the_caller() {
        for text in ["0", "0.0", "00", "0ms", "0.000ms"] {
            assert_eq!(parse_duration(text), Ok(Duration::ZERO), "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_number_is_refused() {
        for text in [
            "", "ms", ".", ".ms", "-1", "+1", "-1ms", "1s", "1m", "30s", "500MS", "1 ms", " 1",
            "1 ", " ", "1e3", "inf", "nan", "never", ".5", "1.", "1.ms", "1.5.5", "1.+5", "0x10",
            "1,5", "1_000", "\u{661}",
        ] {
            assert_eq!(parse_duration(text), Err(DurationError::Malformed), "{text}");
        }
    }

    #[test]
    fn what_is_too_long_for_the_clock_is_refused() {
        for text in ["18446744073709551615", "18446744073709551615.9", "18446744073709551615ms"] {
            assert!(parse_duration(text).is_ok(), "{text}");
        }
        for text in ["18446744073709551616", "99999999999999999999", "99999999999999999999ms"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text}");
        }
    }

    #[test]
    fn what_is_too_short_for_the_clock_is_no_zero() {
        for text in ["0.0000000009", "0.0000000000001", "0.0000009ms"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooShort), "{text}");
        }
    }
}
