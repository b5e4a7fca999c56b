//! All servers of a run together: asks all of them to pause and then waits for
//! all, resumes all and then waits for all, and reports the result. Each single
//! server is a `Target`; `run` and `keeper` know what to do while they are paused.

use std::collections::HashMap;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::ending::Ending;
use crate::error::{Error, PauseError, ServerError};
use crate::limit::Limit;
use crate::report::{Report, how_to_resume};
use crate::signals::{self, Signals};
use crate::target::{How, Target};
use crate::tear::Tear;
use crate::trouble::Trouble;

/// While a server's backlog is full we try this often to connect. There is
/// nothing to poll for.
const RETRY: Duration = Duration::from_millis(10);

/// The servers of a run, and what the program listens and talks to meanwhile.
pub struct Session<'a> {
    targets: Vec<Target>,
    doubts: Doubts,
    /// The signals that have come. A caller takes all of them before it waits.
    pub signals: Signals,
    /// Where to say what happens.
    pub report: &'a Report,
}

/// The servers whose pauses did not last, or may not have.
#[derive(Default)]
struct Doubts {
    broken: Vec<PathBuf>,
    unknown: Vec<PathBuf>,
}

impl<'a> Session<'a> {
    /// Makes a target of each of `sockets` by `target`.
    ///
    /// # Errors
    /// Two paths lead to one socket. A server that serves one controller at a time
    /// would never answer the second connection.
    pub fn new(
        report: &'a Report,
        signals: Signals,
        sockets: Vec<PathBuf>,
        target: impl Fn(PathBuf) -> Target,
    ) -> Result<Self, Error> {
        let mut seen = HashMap::new();
        for socket in &sockets {
            // If this fails, the attempt to connect says why.
            let Ok(metadata) = fs::metadata(socket) else {
                continue;
            };
            if let Some(other) = seen.insert((metadata.dev(), metadata.ino()), socket) {
                return Err(Error::SameSocket(other.to_owned(), socket.to_owned()));
            }
        }
        let targets = sockets.into_iter().map(target).collect();
        Ok(Session { targets, doubts: Doubts::default(), signals, report })
    }

    /// Returns when all servers are paused. None of them may stay so for longer than
    /// `max`, from before the first was asked: what is returned says when that is over.
    ///
    /// # Errors
    /// A server is in trouble, not all are paused within `timeout` and `max`, or a signal
    /// has come. Then `resume` has to undo what was asked for.
    pub fn pause(
        &mut self,
        how: How,
        timeout: Duration,
        max: Duration,
    ) -> Result<Limit, PauseError> {
        let limit = Limit::new(timeout);
        self.until_all(limit, |target, _| target.greet())?;
        let longest = Limit::new(max);
        // Ask all of them before waiting for the first.
        for target in &mut self.targets {
            target
                .ask_to_pause(how)
                .map_err(|trouble| PauseError::Servers(vec![server_error(target, trouble)]))?;
        }
        self.until_all(limit.or_before(longest), |target, report| {
            let before = target.is_paused();
            target.go_on_pausing()?;
            if target.is_paused() && !before {
                say_paused(report, target);
            }
            Ok(target.is_paused())
        })?;
        Ok(longest)
    }

    /// Calls `step` with all targets, and waits between two rounds, until it
    /// returns true for each of them.
    fn until_all(
        &mut self,
        limit: Limit,
        step: impl Fn(&mut Target, &Report) -> Result<bool, Trouble>,
    ) -> Result<(), PauseError> {
        loop {
            let (mut waiting, mut failed) = (Vec::new(), Vec::new());
            for target in &mut self.targets {
                match step(target, self.report) {
                    Ok(true) => {}
                    Ok(false) => waiting.push(server_error(target, target.overdue(limit.time))),
                    Err(trouble) => failed.push(server_error(target, trouble)),
                }
            }
            if !failed.is_empty() {
                return Err(PauseError::Servers(failed));
            }
            if let Some(signal) = self.signals.next() {
                return Err(PauseError::Signal(signal));
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if limit.is_over() {
                return Err(PauseError::Servers(waiting));
            }
            self.wait(limit.left(), None);
        }
    }

    /// Looks at the servers while the command runs. Returns false if the pause has
    /// ended at one of them.
    pub fn watch(&mut self) -> bool {
        let mut good = true;
        for target in &mut self.targets {
            if let Some(ending) = target.watch() {
                good &= note(self.report, target, &ending, &mut self.doubts);
            }
        }
        good
    }

    /// Resumes all servers, and returns when they have answered, or after
    /// `timeout`. Returns true if all have resumed, and nothing interrupted their
    /// pauses as far as anyone can know.
    pub fn resume(&mut self, timeout: Duration) -> bool {
        let limit = Limit::new(timeout);
        // Undo it everywhere first.
        let undone: Vec<_> = self.targets.iter_mut().map(Target::undo).collect();
        let mut good = true;
        for (target, ending) in self.targets.iter().zip(undone) {
            if let Some(ending) = ending {
                good &= note(self.report, target, &ending, &mut self.doubts);
            }
        }
        loop {
            for target in &mut self.targets {
                let ending = match target.finish() {
                    None if limit.is_over() => target.give_up(limit.time),
                    ending => ending,
                };
                if let Some(ending) = ending {
                    good &= note(self.report, target, &ending, &mut self.doubts);
                }
            }
            if self.targets.iter().all(Target::is_over) {
                return good;
            }
            // Whatever a signal asks for, this comes first, and is soon over.
            while let Some(signal) = self.signals.next() {
                self.report
                    .say(format_args!("{}: finishing the resume first", signals::name(signal)));
            }
            self.wait(limit.left(), None);
        }
    }

    /// Resumes the servers that stay paused although the process which paused them is
    /// gone: those without holds. Each has `timeout` to say whether it has holds.
    pub fn resume_left_behind(&mut self, timeout: Duration) {
        let limit = Limit::new(timeout);
        while self.targets.iter().any(Target::is_greeting) {
            for target in self.targets.iter_mut().filter(|target| target.is_greeting()) {
                let ending = match limit.is_over() {
                    false => target.take_over(),
                    true => target.give_up_greeting(limit.time),
                };
                if let Some(ending) = ending {
                    note(self.report, target, &ending, &mut self.doubts);
                }
            }
            if self.targets.iter().any(Target::is_greeting) {
                self.wait(limit.left(), None);
            }
        }
        self.resume(timeout);
    }

    /// Whether any server is paused, as far as we know.
    pub fn is_any_paused(&self) -> bool {
        self.targets.iter().any(Target::is_paused)
    }

    /// Why the pauses do not vouch for a snapshot, if they don't.
    pub fn tear(&self) -> Option<Tear> {
        let Doubts { broken, unknown } = &self.doubts;
        match (broken.is_empty(), unknown.is_empty()) {
            (false, _) => Some(Tear::Broken(broken.clone())),
            (true, false) => Some(Tear::Unknown(unknown.clone())),
            (true, true) => None,
        }
    }

    /// Waits until a server, a signal or `other` needs attention, or `limit` has
    /// passed.
    pub fn wait(&self, limit: Option<Duration>, other: Option<BorrowedFd<'_>>) {
        let limit = if self.targets.iter().any(Target::is_connecting) {
            Some(limit.map_or(RETRY, |limit| limit.min(RETRY)))
        } else {
            limit
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(other.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
        let links = self.targets.iter().filter_map(Target::link);
        fds.extend(links.map(|link| PollFd::new(link, PollFlags::IN)));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // The system may be out of memory. The caller goes on anyway.
            Err(_) => thread::sleep(RETRY),
        }
    }
}

fn server_error(target: &Target, trouble: Trouble) -> ServerError {
    ServerError { socket: target.socket().to_owned(), trouble }
}

fn say_paused(report: &Report, target: &Target) {
    if !target.lacks_holds() {
        report.say(format_args!("{target}: paused"));
        return;
    }
    report.say(format_args!("{target}: paused with p, as this server has no holds"));
    report.say(format_args!(
        "{target}: cannot notice if someone else resumes it; if nbdkit-pause is killed, type: {}",
        how_to_resume(target.socket())
    ));
}

/// Says how it ended with `target`, and keeps it in mind. Returns false if that was bad.
fn note(report: &Report, target: &Target, ending: &Ending, doubts: &mut Doubts) -> bool {
    ending.say(report, target);
    let servers = match ending.is_break() {
        true => &mut doubts.broken,
        false => &mut doubts.unknown,
    };
    let socket = target.socket();
    if !ending.is_good() && !servers.iter().any(|it| it == socket) {
        servers.push(socket.to_owned());
    }
    ending.is_good()
}
