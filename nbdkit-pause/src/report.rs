//! The program's messages: lines on standard error, each with the time since the
//! start. The modules that call it know what to say; `writer` prints it.
//!
//! A write to standard error can block forever: it may be a pipe that nobody reads,
//! a terminal that is stopped, or a file on the very disk that is paused, and poll(2)
//! does not show the last. So another process writes, and takes the lines from a
//! socket. Lines that the socket has no room for are counted.
//!
//! The keeper of `begin` has no standard error: it remembers its lines, for `end`.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Display};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, send, shutdown, socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::fork::fork;
use crate::signals;
use crate::writer::{self, Kind};

/// How long to wait, at the end, for standard error to take what is left.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A keeper that is sent signals all the time remembers no more lines than these.
const MOST_REMEMBERED: usize = 10_000;

/// Prints messages, with the time since the start.
pub struct Report {
    start: Instant,
    to: RefCell<To>,
    /// How many lines were dropped.
    unsaid: Cell<usize>,
}

/// Where the messages go.
enum To {
    /// To the process with this id, by a socket that keeps them apart.
    Writer(OwnedFd, Pid),
    Memory(Vec<Vec<u8>>),
}

impl Report {
    /// Starts the clock, and the process that writes.
    ///
    /// # Errors
    /// The system has no room for that.
    pub fn new() -> io::Result<Self> {
        let start = Instant::now();
        let kind = SocketType::SEQPACKET;
        let (ours, its) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        match fork()? {
            Some(pid) => {
                let to = RefCell::new(To::Writer(ours, pid));
                Ok(Report { start, to, unsaid: Cell::new(0) })
            }
            None => {
                // Or the end of this program would never show.
                drop(ours);
                writer::write_all(&its);
                process::exit(0)
            }
        }
    }

    /// Says one line. It does not wait.
    pub fn say(&self, what: impl Display) {
        self.pass_on(&self.message(Kind::Line, &what));
    }

    /// Says one line, unless a terminal shows it: there `count` says more. It does not
    /// wait.
    pub fn log(&self, what: impl Display) {
        self.pass_on(&self.message(Kind::Log, &what));
    }

    /// From the first call on, has a terminal show for how long the servers are paused,
    /// and this beside it.
    pub fn count(&self, what: &str) {
        let _ = self.send(&writer::message(Kind::Count, what));
    }

    /// Ends that.
    pub fn stop_counting(&self) {
        let _ = self.send(&writer::message(Kind::Stop, ""));
    }

    /// Says a line that somebody's report has remembered. It does not wait.
    pub fn pass_on(&self, message: &[u8]) {
        self.make_up();
        if self.unsaid.get() > 0 || !self.send(message) {
            self.unsaid.set(self.unsaid.get().saturating_add(1));
        }
    }

    /// From here on, remembers its lines rather than print them, and has nothing to do
    /// with the process that writes.
    pub fn remember(&self) {
        self.to.replace(To::Memory(Vec::new()));
    }

    /// What it has remembered.
    pub fn remembered(&self) -> Vec<Vec<u8>> {
        match &mut *self.to.borrow_mut() {
            To::Writer(..) => Vec::new(),
            To::Memory(messages) => std::mem::take(messages),
        }
    }

    fn message(&self, kind: Kind, what: &impl Display) -> Vec<u8> {
        let time = self.start.elapsed().as_secs_f64();
        writer::message(kind, &format!("{time:.3} s: {what}"))
    }

    /// Says how many lines are missing, if any.
    fn make_up(&self) {
        let unsaid = self.unsaid.get();
        if unsaid == 0 {
            return;
        }
        let line =
            format!("lines missing here: {unsaid} (standard error was blocked for too long)");
        if self.send(&writer::message(Kind::Line, &line)) {
            self.unsaid.set(0);
        }
    }

    fn send(&self, message: &[u8]) -> bool {
        match &mut *self.to.borrow_mut() {
            To::Writer(lines, _) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                send(&*lines, message, flags).is_ok()
            }
            To::Memory(messages) if messages.len() < MOST_REMEMBERED => {
                messages.push(message.to_owned());
                true
            }
            To::Memory(_) => false,
        }
    }

    /// Waits until there is room for another line, but not for long. Call it only
    /// when nothing is paused.
    pub fn make_room(&self) {
        if self.unsaid.get() > 0 {
            self.wait_for(PollFlags::OUT);
            self.make_up();
        }
    }

    /// Waits until everything is printed, but not for long. The rest is printed after
    /// the end of this program, if that is ever possible.
    pub fn finish(self) {
        self.make_room();
        let To::Writer(lines, writer) = &*self.to.borrow() else {
            return;
        };
        let _ = shutdown(lines, Shutdown::Write);
        // The other side sends nothing. It ends.
        if self.wait_for(PollFlags::IN) {
            let _ = waitpid(Some(*writer), WaitOptions::empty());
        }
    }

    /// Whether the process that writes has got `signal`, ever. If so, all of our
    /// process group have: that process is in it, too, and nobody else sends it
    /// signals. It has it before this one can look, as the system serves the youngest
    /// of a group first. `None` if the system does not tell.
    pub fn has_got(&self, signal: i32) -> Option<bool> {
        match &*self.to.borrow() {
            To::Writer(_, writer) => signals::is_pending(signal, *writer),
            To::Memory(_) => Some(false),
        }
    }

    fn wait_for(&self, what: PollFlags) -> bool {
        match &*self.to.borrow() {
            To::Writer(lines, _) => {
                poll(&mut [PollFd::new(lines, what)], Some(&PATIENCE)).is_ok_and(|ready| ready > 0)
            }
            To::Memory(_) => false,
        }
    }
}

/// A time as the program says it.
pub struct Seconds(pub Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0.as_secs_f64())
    }
}

/// The command line that resumes the server with this control socket, in
/// whatever folder a person types it.
pub fn how_to_resume(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    format!("nbdkit-pause resume {}", for_a_shell(&path.display().to_string()))
}

fn for_a_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_can_be_typed() {
        assert_eq!(how_to_resume(Path::new("/run/a.sock")), "nbdkit-pause resume /run/a.sock");
        assert_eq!(
            how_to_resume(Path::new("/run/it's here")),
            r"nbdkit-pause resume '/run/it'\''s here'"
        );
        // It works in any folder.
        assert!(how_to_resume(Path::new("a.sock")).contains(" /"));
    }
}
