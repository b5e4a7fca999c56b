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

use crate::control::Trouble;
use crate::report::{Report, Seconds, how_to_resume};
use crate::server::{Ending, How, Server};
use crate::signals::{self, Signals};
use crate::status;

/// A server that can't let us in yet is tried again after this time. There is
/// nothing to poll for.
const KNOCK: Duration = Duration::from_millis(10);

/// See the file's text.
pub struct Session {
    servers: Vec<Server>,
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
        server: impl Fn(PathBuf) -> Server,
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
        Ok(Session { servers: sockets.into_iter().map(server).collect(), signals, report })
    }

    /// Returns when all servers are paused.
    ///
    /// # Errors
    /// The exit status, where that can't be had within `timeout` or a signal
    /// comes. What was asked for is to be let go then.
    pub fn pause(&mut self, how: How, timeout: Duration) -> Result<(), u8> {
        let limit = Limit::new(timeout);
        self.until_all(limit, |server, _| server.greet())?;
        // All, before the first is waited for.
        for server in &mut self.servers {
            if let Err(trouble) = server.ask(how) {
                self.report.say(format_args!("{server}: {trouble}"));
                return Err(status::FAILED);
            }
        }
        self.until_all(limit, |server, report| {
            let before = server.is_paused();
            server.hear()?;
            if server.is_paused() && !before {
                say_paused(report, server);
            }
            Ok(server.is_paused())
        })
    }

    /// Takes steps with all servers until `step` says of each that it is done.
    fn until_all(
        &mut self,
        limit: Limit,
        step: impl Fn(&mut Server, &Report) -> Result<bool, Trouble>,
    ) -> Result<(), u8> {
        loop {
            let (mut all, mut failed) = (true, false);
            let mut waiting = Vec::new();
            for server in &mut self.servers {
                match step(server, &self.report) {
                    Ok(true) => {}
                    Ok(false) => {
                        all = false;
                        waiting.push(format!("{server}: {}", server.overdue(limit.time)));
                    }
                    Err(trouble) => {
                        failed = true;
                        self.report.say(format_args!("{server}: {trouble}"));
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
        for server in &mut self.servers {
            if let Some(ending) = server.watch() {
                good &= say(&self.report, server, &ending);
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
        let let_go: Vec<_> = self.servers.iter_mut().map(Server::let_go).collect();
        let mut good = true;
        for (server, ending) in self.servers.iter().zip(let_go) {
            if let Some(ending) = ending {
                good &= say(&self.report, server, &ending);
            }
        }
        loop {
            for server in &mut self.servers {
                let ending = match server.finish() {
                    None if limit.is_over() => server.give_up(limit.time),
                    ending => ending,
                };
                if let Some(ending) = ending {
                    good &= say(&self.report, server, &ending);
                }
            }
            if self.servers.iter().all(Server::is_over) {
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
        let limit = if self.servers.iter().any(Server::is_knocking) {
            Some(limit.map_or(KNOCK, |limit| limit.min(KNOCK)))
        } else {
            limit
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.servers
                .iter()
                .filter_map(Server::connection)
                .map(|connection| PollFd::new(connection, PollFlags::IN)),
        );
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Out of memory, say. What there is to do is tried all the same.
            Err(_) => thread::sleep(KNOCK),
        }
    }
}

fn say_paused(report: &Report, server: &Server) {
    if !server.lacks_holds() {
        report.say(format_args!("{server}: paused"));
        return;
    }
    report.say(format_args!("{server}: paused by p and r, as this server has no holds"));
    report.say(format_args!(
        "{server}: a resume by somebody else goes unnoticed; if I am killed, type: {}",
        how_to_resume(server.socket())
    ));
}

/// Says how it ended with `server`; false if that was not well.
fn say(report: &Report, server: &Server, ending: &Ending) -> bool {
    match ending {
        Ending::Untouched => {}
        Ending::Withdrawn => report.say(format_args!("{server}: not asked to pause any more")),
        Ending::Covered(time) => report.say(format_args!(
            "{server}: resumed after a pause of {} without a break",
            Seconds(*time)
        )),
        Ending::Resumed(None) => report.say(format_args!("{server}: resumed")),
        Ending::Resumed(Some(time)) => {
            report.say(format_args!("{server}: resumed after a pause of {}", Seconds(*time)))
        }
        Ending::Broken => report.say(format_args!(
            "{server}: THE PAUSE HAD A BREAK: somebody resumed, or its time ran out; nbdkit's \
             log says which"
        )),
        Ending::Lost(trouble) => {
            report.say(format_args!("{server}: THE PAUSE IS OVER TOO EARLY: {trouble}"))
        }
        Ending::Unproved(trouble) => report.say(format_args!(
            "{server}: IT MAY STILL BE PAUSED: {trouble}. It resumes by itself as soon as it \
             notices that I am gone; if it does not, type: {}",
            how_to_resume(server.socket())
        )),
        Ending::Unresumed(trouble) if !server.was_asked() => {
            report.say(format_args!("{server}: not resumed: {trouble}"));
        }
        Ending::Unresumed(trouble) => report.say(format_args!(
            "{server}: IT MAY STILL BE PAUSED: {trouble}. To resume it, type: {}",
            how_to_resume(server.socket())
        )),
    }
    matches!(
        ending,
        Ending::Untouched | Ending::Withdrawn | Ending::Covered(_) | Ending::Resumed(_)
    )
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
