//! The program's messages: lines on standard error, each with the time since the
//! start. The modules that call it know what to say.
//!
//! A write to standard error can block forever: it may be a pipe that nobody reads,
//! a terminal that is stopped, or a file on the very disk that is paused, and poll(2)
//! does not show the last. So another process writes, and takes the lines from a
//! socket. Lines that the socket has no room for are counted.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process;
use std::time::{Duration, Instant};

use libc::{SIGTTOU, SIGXFSZ};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::stdio::{dup2_stdin, dup2_stdout};
use rustix::thread::set_name;

use crate::fork::fork;
use crate::signals::{self, ENDING};

/// How long to wait, at the end, for standard error to take what is left.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What is longer is cut off. A path has 4096 bytes at most.
const LONGEST_LINE: usize = 1 << 16;

/// Prints messages, with the time since the start.
pub struct Report {
    start: Instant,
    /// To the process that writes. It keeps lines apart.
    lines: OwnedFd,
    writer: Pid,
    /// How many lines were dropped.
    unsaid: Cell<usize>,
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
            Some(writer) => Ok(Report { start, lines: ours, writer, unsaid: Cell::new(0) }),
            None => {
                // Or the end of this program would never show.
                drop(ours);
                write_all(&its);
                process::exit(0)
            }
        }
    }

    /// Says one line. It does not wait.
    pub fn say(&self, what: impl Display) {
        self.make_up();
        let time = self.start.elapsed().as_secs_f64();
        let line = format!("nbdkit-pause: {time:.3} s: {what}\n");
        if self.unsaid.get() > 0 || !self.send(&line) {
            self.unsaid.set(self.unsaid.get().saturating_add(1));
        }
    }

    /// Says how many lines are missing, if any.
    fn make_up(&self) {
        let unsaid = self.unsaid.get();
        if unsaid == 0 {
            return;
        }
        let line = format!(
            "nbdkit-pause: lines missing here: {unsaid} (standard error was blocked for too long)\n"
        );
        if self.send(&line) {
            self.unsaid.set(0);
        }
    }

    fn send(&self, line: &str) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send(&self.lines, line.as_bytes(), flags).is_ok()
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
        let _ = shutdown(&self.lines, Shutdown::Write);
        // The other side sends nothing. It ends.
        if self.wait_for(PollFlags::IN) {
            let _ = waitpid(Some(self.writer), WaitOptions::empty());
        }
    }

    /// Whether the process that writes has got `signal`, ever. If so, all of our
    /// process group have: that process is in it, too, and nobody else sends it
    /// signals. It has it before this one can look, as the system serves the youngest
    /// of a group first.
    pub fn has_got(&self, signal: i32) -> bool {
        signals::is_pending(signal, self.writer)
    }

    fn wait_for(&self, what: PollFlags) -> bool {
        poll(&mut [PollFd::new(&self.lines, what)], Some(&PATIENCE)).is_ok_and(|ready| ready > 0)
    }
}

/// Writes all `lines` that come to standard error, however long that takes.
fn write_all(lines: &OwnedFd) {
    // These are for the others. It has something to say of them, and shows that they
    // came: see `has_got`.
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
    let mut buffer = vec![0; LONGEST_LINE];
    loop {
        match recv(lines, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => return,
            // In one piece, so that no other program writes in the middle of it. If
            // nobody is there to read it, it is lost.
            Ok((count, _)) => {
                let _ = io::stderr().write_all(buffer.get(..count).unwrap_or_default());
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
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
