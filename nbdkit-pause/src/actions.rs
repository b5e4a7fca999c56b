//! What the program does: `run`, `pause` and `resume`. Each returns the exit
//! status.

use std::ffi::OsString;
use std::path::{self, Path, PathBuf};
use std::process::{self, Child};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::args::Options;
use crate::report::Report;
use crate::session::Session;
use crate::signals::{self, ENDING, Signals};
use crate::status;
use crate::target::{How, Target};

/// A server resumes at once, unless it is in trouble.
const RESUME: Duration = Duration::from_secs(10);

/// A command that was told to end has this long to clean up while the servers
/// are still paused. It may never end: think of one that hangs in a read from
/// a disk that is paused.
const GRACE: Duration = Duration::from_secs(5);

/// Pauses, runs the command, resumes.
pub fn run(options: Options, command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else {
        return status::FAILED;
    };
    let name = Path::new(program).display();
    let (mut session, timeout) = match begin(options, ENDING, Target::new) {
        Ok(session) => session,
        Err(status) => return status,
    };
    if let Err(status) = session.pause(How::Hold, timeout) {
        session.resume(RESUME);
        session.report.say(format_args!("{name} was not run"));
        return status;
    }
    match process::Command::new(program).args(arguments).spawn() {
        Ok(child) => accompany(&mut session, name, child),
        Err(e) => {
            session.resume(RESUME);
            session.report.say(format_args!("{name} was not run: {e}"));
            status::unstarted(&e)
        }
    }
}

/// From the start of the command to its end, and beyond.
fn accompany(session: &mut Session, program: path::Display<'_>, mut child: Child) -> u8 {
    session.report.say(format_args!("{program} runs"));
    let mut good = true;
    // Once it was told to end, the servers are resumed by then.
    let mut resume_at: Option<Instant> = None;
    let mut resumed = false;
    let ended = loop {
        while let Some(signal) = session.signals.next() {
            pass_on(&child, signal);
            let now = Instant::now();
            session.report.say(format_args!("{} is passed on to {program}", signals::name(signal)));
            // Who insists wants no grace.
            resume_at = match resume_at {
                None => now.checked_add(GRACE),
                Some(_) => Some(now),
            };
        }
        // After the signals, whose last one may be the news of its end. Only here
        // is it waited for, so until then its id is its own.
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(ended)) => break Ok(ended),
            Err(e) => break Err(e),
        }
        good &= session.watch();
        if !resumed && resume_at.is_some_and(|then| then <= Instant::now()) {
            session.report.say(format_args!("{program} has not ended: resuming all the same"));
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
    let status = match ended {
        Ok(ended) => {
            session.report.say(format_args!("{program} has ended: {ended}"));
            status::ended(ended)
        }
        Err(e) => {
            session.report.say(format_args!("{program}: its end was missed: {e}"));
            status::FAILED
        }
    };
    if good {
        return status;
    }
    session
        .report
        .say("DO NOT USE THE SNAPSHOT: it is not known to lie within a pause of all the servers");
    status::TORN
}

fn pass_on(child: &Child, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // It may be ending right now.
        let _ = kill_process(Pid::from_child(child), signal);
    }
}

/// Pauses all or none.
pub fn pause(options: Options) -> u8 {
    let (mut session, timeout) = match begin(options, ENDING, Target::new) {
        Ok(session) => session,
        Err(status) => return status,
    };
    match session.pause(How::Plain, timeout) {
        Ok(()) => 0,
        Err(status) => {
            if session.resume(RESUME) {
                session.report.say("no server was paused");
            }
            status
        }
    }
}

/// Resumes as many as possible.
pub fn resume(options: Options) -> u8 {
    // Whoever gives up waiting may: there is nothing to undo.
    let (mut session, timeout) = match begin(options, &[], Target::to_resume) {
        Ok(session) => session,
        Err(status) => return status,
    };
    match session.resume(timeout) {
        true => 0,
        false => status::FAILED,
    }
}

fn begin(
    options: Options,
    signals: &[i32],
    target: impl Fn(PathBuf) -> Target,
) -> Result<(Session, Duration), u8> {
    let report = Report::new();
    let signals = Signals::new(signals).map_err(|e| {
        report.say(format_args!("cannot listen to signals: {e}"));
        status::FAILED
    })?;
    let session = Session::new(report, signals, options.sockets, target)?;
    Ok((session, options.timeout))
}
