//! All servers of one run: asks them all, then waits for them all; lets them
//! all go, then waits for them all; and says how it went. What happens in
//! between is decided elsewhere.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::ending::Ending;
use crate::report::{Report, how_to_resume};
use crate::signals::{self, Signals};
use crate::status;
use crate::target::{How, Target};
use crate::trouble::Trouble;

/// A server that can't let us in yet is tried again after this time. There is
/// nothing to poll for.
const RETRY: Duration = Duration::from_millis(10);

/// See the file's text.
pub struct Session {
    targets: Vec<Target>,
    /// What came in; `None` is asked for before each wait.
    pub signals: Signals,
    /// What is said.
    pub report: Report,
}

impl Session {
    /// With one server for each of `sockets`, made by `server`.
    ///
    /// # Errors
    /// One is named twice, which a server that serves one controller at a time
    /// would not survive.
    pub fn new(
        report: Report,
        signals: Signals,
        sockets: Vec<PathBuf>,
        target: impl Fn(PathBuf) -> Target,
    ) -> Result<Self, u8> {
        let mut seen = HashMap::new();
        for socket in &sockets {
            // What can't be looked at is reported when it is connected to.
            let Ok(metadata) = fs::metadata(socket) else {
                continue;
            };
            if let Some(other) = seen.insert((metadata.dev(), metadata.ino()), socket) {
                report.say(format_args!(
                    "{} and {} are the same socket: name it once",
                    other.display(),
                    socket.display()
                ));
                return Err(status::FAILED);
            }
        }
        Ok(Session { targets: sockets.into_iter().map(target).collect(), signals, report })
    }

    /// Returns when all servers are paused.
    ///
    /// # Errors
    /// The exit status, where that can't be had within `timeout` or a signal
    /// comes. What was asked for is to be let go then.
    pub fn pause(&mut self, how: How, timeout: Duration) -> Result<(), u8> {
        let limit = Limit::new(timeout);
        self.until_all(limit, |target, _| target.greet())?;
        // All, before the first is waited for.
        for target in &mut self.targets {
            if let Err(trouble) = target.ask_to_pause(how) {
                self.report.say(format_args!("{target}: {trouble}"));
                return Err(status::FAILED);
            }
        }
        self.until_all(limit, |target, report| {
            let before = target.is_paused();
            target.go_on_pausing()?;
            if target.is_paused() && !before {
                say_paused(report, target);
            }
            Ok(target.is_paused())
        })
    }

    /// Takes steps with all servers until `step` says of each that it is done.
    fn until_all(
        &mut self,
        limit: Limit,
        step: impl Fn(&mut Target, &Report) -> Result<bool, Trouble>,
    ) -> Result<(), u8> {
        loop {
            let (mut all, mut failed) = (true, false);
            let mut waiting = Vec::new();
            for target in &mut self.targets {
                match step(target, &self.report) {
                    Ok(true) => {}
                    Ok(false) => {
                        all = false;
                        waiting.push(format!("{target}: {}", target.overdue(limit.time)));
                    }
                    Err(trouble) => {
                        failed = true;
                        self.report.say(format_args!("{target}: {trouble}"));
                    }
                }
            }
            if failed {
                return Err(status::FAILED);
            }
            if let Some(signal) = self.signals.next() {
                self.report.say(format_args!("{}: giving up", signals::name(signal)));
                return Err(status::signal(signal));
            }
            if all {
                return Ok(());
            }
            if limit.is_over() {
                for line in waiting {
                    self.report.say(line);
                }
                return Err(status::FAILED);
            }
            self.wait(limit.left());
        }
    }

    /// Hears of the servers while the command runs. False if one is not paused
    /// any more.
    pub fn watch(&mut self) -> bool {
        let mut good = true;
        for target in &mut self.targets {
            if let Some(ending) = target.watch() {
                good &= note(&self.report, target, &ending);
            }
        }
        good
    }

    /// Resumes all servers, and returns when they have answered, or after
    /// `timeout`. True if all did, and their pauses have had no break as far
    /// as can be known.
    pub fn resume(&mut self, timeout: Duration) -> bool {
        let limit = Limit::new(timeout);
        // All, before anything is said: whoever reads that may be slow.
        let undone: Vec<_> = self.targets.iter_mut().map(Target::undo).collect();
        let mut good = true;
        for (target, ending) in self.targets.iter().zip(undone) {
            if let Some(ending) = ending {
                good &= note(&self.report, target, &ending);
            }
        }
        loop {
            for target in &mut self.targets {
                let ending = match target.finish() {
                    None if limit.is_over() => target.give_up(limit.time),
                    ending => ending,
                };
                if let Some(ending) = ending {
                    good &= note(&self.report, target, &ending);
                }
            }
            if self.targets.iter().all(Target::is_over) {
                return good;
            }
            // Whatever it asks for, this comes first, and is soon over.
            while let Some(signal) = self.signals.next() {
                self.report.say(format_args!("{}: resuming first", signals::name(signal)));
            }
            self.wait(limit.left());
        }
    }

    /// Waits until there is something to look after, or `limit` has passed.
    pub fn wait(&self, limit: Option<Duration>) {
        let limit = if self.targets.iter().any(Target::is_connecting) {
            Some(limit.map_or(RETRY, |limit| limit.min(RETRY)))
        } else {
            limit
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.targets
                .iter()
                .filter_map(Target::link)
                .map(|link| PollFd::new(link, PollFlags::IN)),
        );
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Out of memory, say. What there is to do is tried all the same.
            Err(_) => thread::sleep(RETRY),
        }
    }
}

fn say_paused(report: &Report, target: &Target) {
    if !target.lacks_holds() {
        report.say(format_args!("{target}: paused"));
        return;
    }
    report.say(format_args!("{target}: paused by p and r, as this server has no holds"));
    report.say(format_args!(
        "{target}: a resume by somebody else goes unnoticed; if I am killed, type: {}",
        how_to_resume(target.socket())
    ));
}

/// Says how it ended with `target`; false if that was not well.
fn note(report: &Report, target: &Target, ending: &Ending) -> bool {
    ending.say(*report, target);
    ending.is_good()
}

/// Until when to wait.
#[derive(Clone, Copy)]
struct Limit {
    time: Duration,
    end: Option<Instant>,
}

impl Limit {
    /// No limit if `time` is zero.
    fn new(time: Duration) -> Self {
        Limit {
            time,
            end: match time {
                Duration::ZERO => None,
                time => Instant::now().checked_add(time),
            },
        }
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }

    fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }
}
