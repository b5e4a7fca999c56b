//! Dates and times of day, in a log and for a person.

use std::mem::MaybeUninit;
use std::time::SystemTime;

use libc::{time_t, tm};

/// The present time in UTC, as ISO 8601 has it: `2026-02-28T23:59:59Z`.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    of(since.as_secs())
}

/// The time so many seconds after the beginning of 1970.
fn of(seconds: u64) -> String {
    let (day, clock) = parts(time_t::try_from(seconds).unwrap_or_default(), libc::gmtime_r);
    format!("{day}T{clock}Z")
}

/// The day and the time of day, as the clock on the wall has them.
pub fn local(moment: time_t) -> (String, String) {
    parts(moment, libc::localtime_r)
}

/// Both of `moment`, as one of the two functions of the C library takes it apart.
fn parts(
    moment: time_t,
    take_apart: unsafe extern "C" fn(*const time_t, *mut tm) -> *mut tm,
) -> (String, String) {
    let mut time = MaybeUninit::<tm>::zeroed();
    // SAFETY: gmtime_r(3) and localtime_r(3) read the first and write the second, both of
    // this frame; all zeroes are a value of that type, if they fail.
    let time = unsafe {
        take_apart(&raw const moment, time.as_mut_ptr());
        time.assume_init()
    };
    let (year, month) =
        (i64::from(time.tm_year).saturating_add(1900), time.tm_mon.saturating_add(1));
    (
        format!("{year:04}-{month:02}-{:02}", time.tm_mday),
        format!("{:02}:{:02}:{:02}", time.tm_hour, time.tm_min, time.tm_sec),
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
