//! What `run` does, and in which order. `session` knows how to pause and resume many
//! servers at once, `command` how to start a process.

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use libc::SIGTERM;

use crate::actions::{RESUME, prepare, say_why};
use crate::args::{Options, Rules};
use crate::command::Command;
use crate::error::Error;
use crate::limit::Limit;
use crate::progress::Progress;
use crate::report::{Report, Seconds};
use crate::session::Session;
use crate::signals::{self, ENDING};
use crate::target::{How, Target};
use crate::tear::Tear;

/// A command that got a signal has this long to clean up while the servers are
/// still paused. It may never end: it may hang in a read from a paused disk.
const GRACE: Duration = Duration::from_secs(5);

/// timeout(1) sends its signal to us, and then to our process group. The same signal
/// within this time counts as one.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Pauses the servers, runs the command, resumes the servers. Returns how the
/// command has ended.
pub fn run(
    report: &Report,
    options: Options,
    rules: &Rules,
    words: &[OsString],
) -> Result<ExitStatus, Error> {
    let timeout = options.timeout;
    // Before there is a connection, and before signals are taken in.
    let mut command = Command::prepare(words)?;
    let mut session = prepare(report, options.sockets, ENDING, Target::new)?;
    let limit = session.pause(How::Hold, timeout, rules.max).inspect_err(|e| {
        say_why(report, e);
        session.resume(RESUME);
        report.say(format_args!("{command} was not run"));
    })?;
    command.start();
    accompany(&mut session, &mut command, rules, limit)
}

/// Watches the servers from the start of the command to its end, and resumes them.
fn accompany(
    session: &mut Session,
    command: &mut Command,
    rules: &Rules,
    limit: Limit,
) -> Result<ExitStatus, Error> {
    let report = session.report;
    let mut runs = false;
    let mut told = Told::default();
    let mut progress = Progress::new();
    report.count(&command.doing());
    // Why the servers have resumed before the command has ended, if they have.
    let mut early = None;
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
                report.count(&command.doing());
            }
        }
        match ended {
            Ok(None) => {}
            Ok(Some(ended)) => break Ok(ended),
            Err(e) => break Err(Error::EndMissed(command.program().to_owned(), e)),
        }
        session.watch();
        if early.is_none() {
            early = end_early(session, command, &told, limit);
        }
        let mut left = None;
        if early.is_none() && session.is_any_paused() {
            progress.say(report, command);
            left = Some(progress.left());
        }
        if early.is_none() {
            let grace = told.resume_at.map(|at| at.saturating_duration_since(Instant::now()));
            left = left.into_iter().chain(grace).chain(limit.left()).min();
        }
        session.wait(left, command.word());
    };
    report.stop_counting();
    if early.is_none() {
        session.resume(RESUME);
    }
    if let Err(Error::NotStarted(..)) = ended {
        // There is no snapshot to speak of.
        return ended;
    }
    let interrupted = told.last.map(|(signal, _)| signal);
    match (&ended, interrupted) {
        (Ok(ended), None) => report.say(format_args!("{command} ended with {ended}")),
        (Ok(ended), Some(signal)) => {
            let name = signals::name(signal);
            report.say(format_args!("interrupted by {name}: {command} ended with {ended}"));
        }
        (Err(_), _) => {}
    }
    match (session.tear().or(early), ended, interrupted) {
        (Some(tear), ended, _) => {
            if let Err(e) = ended {
                report.say(e);
            }
            Err(Error::Torn(tear))
        }
        (None, Ok(ended), Some(signal)) if ended.success() && !rules.keep_status => {
            Err(Error::Interrupted(signal))
        }
        (None, ended, _) => ended,
    }
}

/// Resumes the servers although the command has not ended, if it is time to. Returns why
/// that was.
fn end_early(session: &mut Session, command: &Command, told: &Told, limit: Limit) -> Option<Tear> {
    let report = session.report;
    if limit.is_over() {
        let max = Seconds(limit.time);
        report.say(format_args!("{command} is still running after --max ({max}): resuming"));
        report.stop_counting();
        session.resume(RESUME);
        command.signal(SIGTERM);
        report.say(format_args!("SIGTERM: sent to {command}"));
        return Some(Tear::Limit(limit.time));
    }
    if told.resume_at.is_some_and(|then| then <= Instant::now()) {
        report.say(format_args!("{command} is still running: resuming anyway"));
        report.stop_counting();
        session.resume(RESUME);
        return Some(Tear::Outlived(command.program().to_owned()));
    }
    None
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
        let has_got = match command.is_in_our_group() {
            true => report.has_got(signal),
            false => Some(false),
        };
        match has_got {
            Some(true) => return report.say(format_args!("{name}: {command} got it, too")),
            Some(false) => report.say(format_args!("{name}: passed on to {command}")),
            None => report.say(format_args!(
                "{name}: passed on to {command}, which may get it twice, as /proc is missing: \
                 mount it"
            )),
        }
        command.signal(signal);
    }
}
