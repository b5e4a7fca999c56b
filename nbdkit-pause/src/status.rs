//! Exit statuses: those of timeout(1) and env(1), where these have one for the
//! case. This is the only place that turns an error into a number.

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::error::{Error, PauseError};

/// The action has succeeded.
pub const SUCCESS: u8 = 0;
/// `status`: requests don't flow at one of the servers.
pub const PAUSED: u8 = 1;
/// The program could not do its own part.
pub const FAILED: u8 = 125;

const TORN: u8 = 124;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const SIGNALLED: u8 = 128;

/// The exit status for an error.
pub fn of_error(error: &Error) -> u8 {
    match error {
        Error::Torn(_) | Error::TornAsTold => TORN,
        Error::NotStarted(_, e) if e.kind() == ErrorKind::NotFound => NOT_FOUND,
        Error::NotStarted(..) => NOT_EXECUTABLE,
        Error::Interrupted(signal) | Error::NotPaused(PauseError::Signal(signal)) => {
            of_signal(*signal)
        }
        Error::NotPaused(PauseError::Servers(_))
        | Error::NoProcess(_)
        | Error::Signals(_)
        | Error::SameSocket(..)
        | Error::NotResumed
        | Error::NoCommand
        | Error::EndMissed(..)
        | Error::NoTerminal
        | Error::Output(_)
        | Error::State(_)
        | Error::InUse(_)
        | Error::Untold(_)
        | Error::NoKeeper(_)
        | Error::NotHandedOver
        | Error::KeeperStuck(_)
        | Error::NotBegun(..)
        | Error::StillBegins(_)
        | Error::Completions(_) => FAILED,
    }
}

/// The exit status that passes on how the command has ended.
pub fn of_command(ended: ExitStatus) -> u8 {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => of_signal(signal.unwrap_or_default()),
    }
}

fn of_signal(signal: i32) -> u8 {
    SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or_default())
}
