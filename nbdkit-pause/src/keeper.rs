//! The process that keeps the pauses of `begin` in force until `end`. `hooks` tells when
//! it starts, and who it talks to.
//!
//! It has no terminal and nothing of what its parent was given, so neither a closed
//! terminal nor whoever waits for the end of a pipe has anything to do with it. While
//! servers are paused it touches no file, as that could be on the paused disk.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, listen};
use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::set_name;

use crate::actions::RESUME;
use crate::limit::Limit;
use crate::report::{Report, Seconds};
use crate::session::Session;
use crate::signals;
use crate::tear::Tear;

/// As many can wait for the end at once; one is enough.
const BACKLOG: i32 = 16;

/// Leaves everything that is not ours: the session with its terminal, the standard
/// streams, and the report's own process. `null` is `/dev/null`. From here on `end` can
/// connect to `listener`.
pub fn settle(report: &Report, null: &File, listener: &OwnedFd) -> Result<(), Errno> {
    setsid()?;
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    report.remember();
    // Whoever signals this program by its name means one that runs in the foreground.
    let _ = set_name(c"pause-keeper");
    // Here, since `end` finds out by this call whose socket it is.
    listen(listener, BACKLOG)
}

/// Keeps the pauses until somebody connects to `listener`, until the limit, a signal or the
/// end of a pause, and resumes the servers. Returns the connection, and why a snapshot is
/// no good, if so.
pub fn keep(
    session: &mut Session,
    listener: &OwnedFd,
    limit: Limit,
) -> (Option<OwnedFd>, Option<Tear>) {
    let report = session.report;
    let mut caller = None;
    let early = loop {
        if let Some(signal) = session.signals.next() {
            report.say(format_args!("{}: resuming", signals::name(signal)));
            break Some(Tear::Signal(signal));
        }
        // Where one pause has ended, the others are of no use.
        if !session.watch() {
            break None;
        }
        if limit.is_over() {
            report.say(format_args!("--max ({}) is over: resuming", Seconds(limit.time)));
            break Some(Tear::Limit(limit.time));
        }
        if let Ok(connection) = accept_with(listener, SocketFlags::CLOEXEC) {
            caller = Some(connection);
            break None;
        }
        session.wait(limit.left(), Some(listener.as_fd()));
    };
    session.resume(RESUME);
    (caller, session.tear().or(early))
}
