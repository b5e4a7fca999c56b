//! The process that writes to standard error, however long that takes. `report` starts
//! it and sends it messages; only here it matters whether a terminal shows them.
//!
//! On a terminal, a person sees one program at a time. In a log, lines of several runs
//! stand among each other, so each has the process's id and the date.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process;

use libc::{SIGTTOU, SIGXFSZ};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::stdio::{dup2_stdin, dup2_stdout};
use rustix::termios::isatty;
use rustix::thread::set_name;

use crate::date;
use crate::signals::{self, ENDING};

/// What is longer is cut off. A path has 4096 bytes at most.
const LONGEST_MESSAGE: usize = 1 << 16;

/// Ends what only a log shows of a message.
const TAB: u8 = b'\t';

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line.
    Line,
}

/// A message as `report` sends it.
pub fn message(kind: Kind, text: &str) -> Vec<u8> {
    let kind = match kind {
        Kind::Line => 'L',
    };
    format!("{kind}[{}] {}\t{text}\n", process::id(), date::now()).into_bytes()
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
    let is_terminal = isatty(io::stderr());
    let mut buffer = vec![0; LONGEST_MESSAGE];
    loop {
        match recv(messages, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => return,
            // In one piece, so that no other program writes in the middle of it. If
            // nobody is there to read it, it is lost.
            Ok((count, _)) => {
                let shown = shown(buffer.get(..count).unwrap_or_default(), is_terminal);
                let _ = io::stderr().write_all(&shown);
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// What there is to see of a message.
fn shown(message: &[u8], is_terminal: bool) -> Vec<u8> {
    let Some((_kind, rest)) = message.split_first() else {
        return Vec::new();
    };
    let mut parts = rest.splitn(2, |&byte| byte == TAB);
    let origin = parts.next().unwrap_or_default();
    let text = parts.next().unwrap_or_default();
    match is_terminal {
        true => [b"nbdkit-pause: ", text].concat(),
        false => [b"nbdkit-pause", origin, b" ", text].concat(),
    }
}
