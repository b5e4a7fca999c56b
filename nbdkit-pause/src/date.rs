//! The date and time of day, as a line in a log has it.

use std::mem::MaybeUninit;
use std::time::SystemTime;

/// The present time in UTC, as ISO 8601 has it: `2026-02-28T23:59:59Z`.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    of(since.as_secs())
}

/// The time so many seconds after the beginning of 1970.
fn of(seconds: u64) -> String {
    let seconds = libc::time_t::try_from(seconds).unwrap_or_default();
    let mut time = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: gmtime_r(3) reads one and writes the other, both of this frame; all zeroes
    // are a value of that type, if it fails.
    let time = unsafe {
        libc::gmtime_r(&raw const seconds, time.as_mut_ptr());
        time.assume_init()
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        i64::from(time.tm_year).saturating_add(1900),
        time.tm_mon.saturating_add(1),
        time.tm_mday,
        time.tm_hour,
        time.tm_min,
        time.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_utc() {
        assert_eq!(of(0), "1970-01-01T00:00:00Z");
        assert_eq!(of(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(of(1_772_323_199), "2026-02-28T23:59:59Z");
    }
}
