//! What `run`, `pause` and `resume` do, and in which order. `session` knows how to
//! pause and resume many servers at once.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::args::Options;
use crate::command::Command;
use crate::error::{Error, PauseError};
use crate::report::Report;
use crate::session::Session;
use crate::signals::{self, ENDING, Signals};
use crate::target::{How, Target};

/// The servers have this long to resume. A server resumes at once, unless it is
/// in trouble.
const RESUME: Duration = Duration::from_secs(10);

/// A command that got a signal has this long to clean up while the servers are
/// still paused. It may never end: it may hang in a read from a paused disk.
const GRACE: Duration = Duration::from_secs(5);

/// timeout(1) sends its signal to us, and then to our process group. The same signal
/// within this time counts as one.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Pauses the servers, runs the command, resumes the servers. Returns how the
/// command has ended.
pub fn run(report: &Report, options: Options, words: &[OsString]) -> Result<ExitStatus, Error> {
    let timeout = options.timeout;
    // Before there is a connection, and before signals are taken in.
    let mut command = Command::prepare(words)?;
    let mut session = begin(report, options, ENDING, Target::new)?;
    if let Err(e) = session.pause(How::Hold, timeout) {
        say_why(report, &e);
        session.resume(RESUME);
        report.say(format_args!("{command} was not run"));
        return Err(e.into());
    }
    command.start();
    accompany(&mut session, &mut command)
}

/// Watches the servers from the start of the command to its end, and resumes them.
fn accompany(session: &mut Session, command: &mut Command) -> Result<ExitStatus, Error> {
    let report = session.report;
    let mut runs = false;
    let mut good = true;
    let mut told = Told::default();
    let mut resumed = false;
    let ended = loop {
        while let Some(signal) = session.signals.next() {
            told.take(signal, command, report);
        }
        // After the signals, since the last of them may be the news of its end. Before
        // its start, since it says that it can't start before it ends.
        let ended = command.try_wait();
        if !runs {
            match command.has_started() {
                Ok(started) => runs = started,
                Err(e) => break Err(Error::NotStarted(command.program().to_owned(), e)),
            }
            if runs {
                report.say(format_args!("running {command}"));
            }
        }
        match ended {
            Ok(None) => {}
            Ok(Some(ended)) => break Ok(ended),
            Err(e) => break Err(Error::EndMissed(command.program().to_owned(), e)),
        }
        good &= session.watch();
        if !resumed && told.resume_at.is_some_and(|then| then <= Instant::now()) {
            report.say(format_args!("{command} is still running: resuming anyway"));
            session.resume(RESUME);
            (resumed, good) = (true, false);
            continue;
        }
        let limit = told.resume_at.filter(|_| !resumed);
        let left = limit.map(|then| then.saturating_duration_since(Instant::now()));
        session.wait(left, command.word());
    };
    if !resumed {
        good &= session.resume(RESUME);
    }
    if let Err(Error::NotStarted(..)) = ended {
        // There is no snapshot to speak of.
        return ended;
    }
    if let Ok(ended) = &ended {
        report.say(format_args!("{command} ended with {ended}"));
    }
    if good {
        return ended;
    }
    if let Err(e) = ended {
        report.say(e);
    }
    Err(Error::Torn)
}

/// The signals that the command got.
#[derive(Default)]
struct Told {
    /// The last one, and when it came.
    last: Option<(i32, Instant)>,
    /// When to resume the servers even if the command has not ended.
    resume_at: Option<Instant>,
}

impl Told {
    fn take(&mut self, signal: i32, command: &Command, report: &Report) {
        let now = Instant::now();
        let is_the_same = |(last, when): (i32, Instant)| {
            last == signal && now.saturating_duration_since(when) < ONE_SIGNAL
        };
        if self.last.is_some_and(is_the_same) {
            return;
        }
        self.last = Some((signal, now));
        // A second signal cuts the time to clean up short.
        self.resume_at = match self.resume_at {
            None => now.checked_add(GRACE),
            Some(_) => Some(now),
        };
        let name = signals::name(signal);
        if command.is_in_our_group() && report.has_got(signal) {
            report.say(format_args!("{name}: {command} got it, too"));
        } else {
            command.signal(signal);
            report.say(format_args!("{name}: passed on to {command}"));
        }
    }
}

/// Pauses all servers, or none.
pub fn pause(report: &Report, options: Options) -> Result<(), Error> {
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
pub fn resume(report: &Report, options: Options) -> Result<(), Error> {
    let timeout = options.timeout;
    // Signals may end the program: there is nothing to undo.
    let mut session = begin(report, options, &[], Target::to_resume)?;
    match session.resume(timeout) {
        true => Ok(()),
        false => Err(Error::NotResumed),
    }
}

fn begin<'a>(
    report: &'a Report,
    options: Options,
    signals: &[i32],
    target: impl Fn(PathBuf) -> Target,
) -> Result<Session<'a>, Error> {
    let signals = Signals::new(signals).map_err(Error::Signals)?;
    Session::new(report, signals, options.sockets, target)
}

/// Says why the servers are not paused, in one line for each server.
fn say_why(report: &Report, e: &PauseError) {
    match e {
        PauseError::Servers(errors) => errors.iter().for_each(|e| report.say(e)),
        PauseError::Signal(_) => report.say(e),
    }
}
