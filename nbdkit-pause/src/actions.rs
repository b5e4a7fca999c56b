//! What `run`, `pause` and `resume` do, in which order. How to pause and resume
//! many servers at once is in `session`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::args::Options;
use crate::error::{Error, PauseError};
use crate::report::Report;
use crate::session::Session;
use crate::signals::{self, ENDING, Signals};
use crate::target::{How, Target};

/// The servers have this long to resume. A server resumes at once, unless it is
/// in trouble.
const RESUME: Duration = Duration::from_secs(10);

/// A command that was told to end has this long to clean up while the servers
/// are still paused. It may never end: it may hang in a read from a disk that
/// is paused.
const GRACE: Duration = Duration::from_secs(5);

/// Pauses the servers, runs the command, resumes the servers. Returns how the
/// command has ended.
pub fn run(report: Report, options: Options, command: &[OsString]) -> Result<ExitStatus, Error> {
    let (program, arguments) = command.split_first().ok_or(Error::NoCommand)?;
    let program = Path::new(program);
    let timeout = options.timeout;
    let mut session = begin(report, options, ENDING, Target::new)?;
    if let Err(e) = session.pause(How::Hold, timeout) {
        say_why(report, &e);
        session.resume(RESUME);
        report.say(format_args!("{} was not run", program.display()));
        return Err(e.into());
    }
    match process::Command::new(program).args(arguments).spawn() {
        Ok(child) => accompany(&mut session, program, child),
        Err(e) => {
            session.resume(RESUME);
            Err(Error::NotStarted(program.to_owned(), e))
        }
    }
}

/// Watches over the servers from the start of the command to its end, and
/// resumes them.
fn accompany(session: &mut Session, program: &Path, mut child: Child) -> Result<ExitStatus, Error> {
    let report = session.report;
    let name = program.display();
    report.say(format_args!("{name} runs"));
    let mut good = true;
    // When to resume the servers even if the command, told to end, has not.
    let mut resume_at: Option<Instant> = None;
    let mut resumed = false;
    let ended = loop {
        while let Some(signal) = session.signals.next() {
            pass_on(&child, signal);
            let now = Instant::now();
            report.say(format_args!("{} is passed on to {name}", signals::name(signal)));
            // A second signal cuts the time to clean up short.
            resume_at = match resume_at {
                None => now.checked_add(GRACE),
                Some(_) => Some(now),
            };
        }
        // After the signals, since the last of them may be the news of its end.
        // Until this call reaps it, its process id can't become another's.
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(ended)) => break Ok(ended),
            Err(e) => break Err(Error::EndMissed(program.to_owned(), e)),
        }
        good &= session.watch();
        if !resumed && resume_at.is_some_and(|then| then <= Instant::now()) {
            report.say(format_args!("{name} has not ended: resuming all the same"));
            session.resume(RESUME);
            (resumed, good) = (true, false);
            continue;
        }
        let limit = resume_at.filter(|_| !resumed);
        session.wait(limit.map(|then| then.saturating_duration_since(Instant::now())));
    };
    if !resumed {
        good &= session.resume(RESUME);
    }
    if let Ok(ended) = &ended {
        report.say(format_args!("{name} has ended: {ended}"));
    }
    if good {
        return ended;
    }
    if let Err(e) = ended {
        report.say(e);
    }
    Err(Error::Torn)
}

fn pass_on(child: &Child, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // This fails if the command is ending right now.
        let _ = kill_process(Pid::from_child(child), signal);
    }
}

/// Pauses all servers, or none.
pub fn pause(report: Report, options: Options) -> Result<(), Error> {
    let timeout = options.timeout;
    let mut session = begin(report, options, ENDING, Target::new)?;
    session.pause(How::Plain, timeout).map_err(|e| {
        say_why(report, &e);
        if session.resume(RESUME) {
            report.say("no server was paused");
        }
        e.into()
    })
}

/// Resumes as many servers as possible.
pub fn resume(report: Report, options: Options) -> Result<(), Error> {
    let timeout = options.timeout;
    // Signals may end the program: there is nothing to undo.
    let mut session = begin(report, options, &[], Target::to_resume)?;
    match session.resume(timeout) {
        true => Ok(()),
        false => Err(Error::NotResumed),
    }
}

fn begin(
    report: Report,
    options: Options,
    signals: &[i32],
    target: impl Fn(PathBuf) -> Target,
) -> Result<Session, Error> {
    let signals = Signals::new(signals).map_err(Error::Signals)?;
    Session::new(report, signals, options.sockets, target)
}

/// Says why the servers are not paused, in one line for each server.
fn say_why(report: Report, e: &PauseError) {
    match e {
        PauseError::Servers(errors) => errors.iter().for_each(|e| report.say(e)),
        PauseError::Signal(_) => report.say(e),
    }
}
