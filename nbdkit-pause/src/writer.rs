//! The process that writes to standard error, however long that takes. `report` starts
//! it and sends it messages; only here it matters whether a terminal shows them.
//!
//! On a terminal, a person sees one program at a time. In a log, lines of several runs
//! stand among each other, so each has the process's id and the date.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process;
use std::time::{Duration, Instant};

use libc::{SIGTTOU, SIGXFSZ};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::getpgrp;
use rustix::stdio::{dup2_stdin, dup2_stdout};
use rustix::termios::{isatty, tcgetpgrp};
use rustix::thread::set_name;

use crate::date;
use crate::signals::{self, ENDING};

/// What is longer is cut off. A path has 4096 bytes at most.
const LONGEST_MESSAGE: usize = 1 << 16;

/// Ends what only a log shows of a message.
const TAB: u8 = b'\t';

/// A person who waits for less than this does not wonder.
const FIRST_COUNT: Duration = Duration::from_secs(5);

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line.
    Line,
    /// A line for a log alone.
    Log,
    /// From here on, a terminal shows for how long the servers are paused, and this.
    Count,
    /// The end of that.
    Stop,
}

impl Kind {
    const ALL: [(Kind, char); 4] =
        [(Kind::Line, 'L'), (Kind::Log, 'G'), (Kind::Count, 'C'), (Kind::Stop, 'S')];
}

/// A message as `report` sends it.
pub fn message(kind: Kind, text: &str) -> Vec<u8> {
    let code = Kind::ALL.iter().find(|(it, _)| *it == kind).map_or('L', |(_, code)| *code);
    format!("{code}[{}] {}\t{text}\n", process::id(), date::now()).into_bytes()
}

/// Writes what the messages on this socket say, until its other end is closed.
pub fn write_all(messages: &OwnedFd) {
    // These are for the others. It has something to say of them, and shows that they
    // came: see `Report::has_got`.
    signals::block(ENDING);
    // A terminal stops a background process that writes to it, and a limit on the
    // size of files kills.
    signals::ignore(&[SIGTTOU, SIGXFSZ]);
    // Whoever signals this program by its name does not mean this process, too.
    let _ = set_name(c"pause-stderr");
    // It may be there for longer than its parent, and these may be pipes.
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
    }
    let mut screen = Screen { is_terminal: isatty(io::stderr()), ..Screen::default() };
    let mut buffer = vec![0; LONGEST_MESSAGE];
    loop {
        // In one piece, so that no other program writes in the middle of it. If nobody is
        // there to read it, it is lost.
        let _ = io::stderr().write_all(&screen.draw());
        let left = screen.left().and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(messages, PollFlags::IN)], left.as_ref()) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        match recv(messages, &mut *buffer, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Ok((0, _)) | Err(_) => break,
            Ok((count, _)) => {
                let shown = screen.take(buffer.get(..count).unwrap_or_default());
                let _ = io::stderr().write_all(&shown);
            }
        }
    }
    let _ = io::stderr().write_all(&screen.wiped());
}

/// What standard error is, and what there is on its last line.
#[derive(Default)]
struct Screen {
    is_terminal: bool,
    count: Option<Count>,
    /// How wide the count is that it shows.
    width: usize,
}

/// How long the servers have been paused.
struct Count {
    since: Instant,
    /// When to show it.
    next: Duration,
    what: String,
}

impl Screen {
    /// What there is to write for this message.
    fn take(&mut self, message: &[u8]) -> Vec<u8> {
        let Some((&code, rest)) = message.split_first() else {
            return Vec::new();
        };
        let kind = Kind::ALL.iter().find(|(_, it)| *it == char::from(code)).map(|(kind, _)| *kind);
        let mut parts = rest.splitn(2, |&byte| byte == TAB);
        let origin = parts.next().unwrap_or_default();
        let text = parts.next().unwrap_or_default();
        match (kind, self.is_terminal) {
            (Some(Kind::Line), true) => [&self.wiped(), &b"nbdkit-pause: "[..], text].concat(),
            (Some(Kind::Line | Kind::Log), false) => [b"nbdkit-pause", origin, b" ", text].concat(),
            (Some(Kind::Count), true) => {
                let what = String::from_utf8_lossy(text).trim_end().to_owned();
                match &mut self.count {
                    Some(count) => count.what = what,
                    None => {
                        self.count = Some(Count { since: Instant::now(), next: FIRST_COUNT, what });
                    }
                }
                Vec::new()
            }
            (Some(Kind::Stop), true) => {
                self.count = None;
                self.wiped()
            }
            _ => Vec::new(),
        }
    }

    /// What takes the count away, so that a line can stand there.
    fn wiped(&mut self) -> Vec<u8> {
        match std::mem::take(&mut self.width) {
            0 => Vec::new(),
            width => format!("\r{:width$}\r", "").into_bytes(),
        }
    }

    /// What shows the count, if it is due.
    fn draw(&mut self) -> Vec<u8> {
        let Some(count) = self.count.as_mut().filter(|count| count.since.elapsed() >= count.next)
        else {
            return Vec::new();
        };
        let seconds = count.since.elapsed().as_secs();
        count.next = Duration::from_secs(seconds.saturating_add(1));
        // In the background, a person is typing something else there.
        if tcgetpgrp(io::stderr()) != Ok(getpgrp()) {
            return self.wiped();
        }
        let line = format!("nbdkit-pause: paused for {seconds} s, {}", count.what);
        let wiped = self.wiped();
        self.width = line.chars().count();
        [wiped, line.into_bytes()].concat()
    }

    /// How long until the count is due.
    fn left(&self) -> Option<Duration> {
        self.count.as_ref().map(|count| count.next.saturating_sub(count.since.elapsed()))
    }
}
