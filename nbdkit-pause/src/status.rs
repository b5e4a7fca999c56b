//! Exit statuses: those of timeout(1) and env(1), where they have one for it.

use std::io::{self, ErrorKind};
use std::process::ExitStatus;

use std::os::unix::process::ExitStatusExt;

/// The pause did not last for the whole of the command.
pub const TORN: u8 = 124;
/// This program could not do its own part.
pub const FAILED: u8 = 125;

const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const SIGNALLED: u8 = 128;

/// Ended by this signal.
pub fn signal(signal: i32) -> u8 {
    SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or_default())
}

/// A command could not be started.
pub fn unstarted(e: &io::Error) -> u8 {
    match e.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}

/// A command has ended.
pub fn ended(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, number) => signal(number.unwrap_or_default()),
    }
}
