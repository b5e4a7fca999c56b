//! What `pause` and `resume` do, and what they have in common with `run` and with
//! `hooks`. `session` knows how to pause and resume many servers at once.

use std::path::PathBuf;
use std::time::Duration;

use crate::args::Options;
use crate::error::{Error, PauseError};
use crate::report::Report;
use crate::session::Session;
use crate::signals::{ENDING, Signals};
use crate::target::{How, Target};

/// The servers have this long to resume. A server resumes at once, unless it is
/// in trouble.
pub const RESUME: Duration = Duration::from_secs(10);

/// Pauses all servers, or none.
pub fn pause(report: &Report, options: Options) -> Result<(), Error> {
    let timeout = options.timeout;
    let mut session = prepare(report, options.sockets, ENDING, Target::new)?;
    session.pause(How::Plain, timeout, Duration::ZERO).map(|_| ()).map_err(|e| {
        say_why(report, &e);
        if session.resume(RESUME) {
            report.say("no server was paused");
        }
        e.into()
    })
}

/// Resumes as many servers as possible.
pub fn resume(report: &Report, options: Options) -> Result<(), Error> {
    let timeout = options.timeout;
    // Signals may end the program: there is nothing to undo.
    let mut session = prepare(report, options.sockets, &[], Target::to_resume)?;
    match session.resume(timeout) {
        true => Ok(()),
        false => Err(Error::NotResumed),
    }
}

/// Takes signals in, and has a look at these sockets.
pub fn prepare<'a>(
    report: &'a Report,
    sockets: Vec<PathBuf>,
    signals: &[i32],
    target: impl Fn(PathBuf) -> Target,
) -> Result<Session<'a>, Error> {
    let signals = Signals::new(signals).map_err(Error::Signals)?;
    Session::new(report, signals, sockets, target)
}

/// Says why the servers are not paused, in one line for each server.
pub fn say_why(report: &Report, e: &PauseError) {
    match e {
        PauseError::Servers(errors) => errors.iter().for_each(|e| report.say(e)),
        PauseError::Signal(_) => report.say(e),
    }
}
