//! One connected controller: its socket and its session. Reads what has come
//! and writes what can be written, and never waits.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::control::session::Session;
use crate::os::{self, POLLERR, POLLHUP, POLLIN, POLLOUT, PollFd};

/// Read at most so much before others have their turn.
const CHUNK: usize = 512;

/// A controller that doesn't read its replies is not listened to beyond this.
const MOST_UNSENT: usize = 4096;

/// A connected controller.
pub struct Controller<S = UnixStream> {
    stream: S,
    name: Name,
    /// Its commands and replies.
    pub session: Session,
    active: Instant,
    /// It will send nothing more.
    input_ended: bool,
    /// It can't be sent anything more.
    vanished: bool,
    /// It is gone in both directions; what it sent before still counts.
    hung_up: bool,
}

/// How the log calls a controller.
#[derive(Clone, Copy)]
pub struct Name {
    number: u64,
    peer: Option<(libc::pid_t, libc::uid_t)>,
}

impl Controller {
    /// The `number`th controller since the start, just accepted.
    pub fn new(stream: UnixStream, number: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let peer = os::peer(&stream);
        Ok(Controller::over(stream, number, peer))
    }

    /// What to wait for.
    pub fn poll(&self) -> PollFd {
        let (fd, events) = match self.awaited() {
            Some(events) => (self.stream.as_raw_fd(), events),
            None => (-1, 0),
        };
        PollFd { fd, events, revents: 0 }
    }
}

impl<S: Read + Write> Controller<S> {
    /// The same, over any stream whose reads and writes don't wait.
    pub fn over(stream: S, number: u64, peer: Option<(libc::pid_t, libc::uid_t)>) -> Self {
        Controller {
            stream,
            name: Name { number, peer },
            session: Session::default(),
            active: Instant::now(),
            input_ended: false,
            vanished: false,
            hung_up: false,
        }
    }

    /// How the log calls it.
    pub fn name(&self) -> Name {
        self.name
    }

    /// When it last sent something.
    pub fn active(&self) -> Instant {
        self.active
    }

    /// Tells it apart from all others since the start.
    pub fn number(&self) -> u64 {
        self.name.number
    }

    /// The events to wait for. A hang-up is always reported, and again and again:
    /// where only that can come and it is known, there is nothing to wait for.
    pub fn awaited(&self) -> Option<libc::c_short> {
        let mut events = 0;
        if !self.input_ended && self.session.is_done() && self.session.replies().len() < MOST_UNSENT
        {
            events |= POLLIN;
        }
        if !self.session.replies().is_empty() {
            events |= POLLOUT;
        }
        (events != 0 || !self.hung_up).then_some(events)
    }

    /// Takes note of what `poll` has found, and reads what there is to read.
    pub fn polled(&mut self, fd: &PollFd) {
        if fd.revents & (POLLHUP | POLLERR) != 0 {
            self.hung_up = true;
        }
        if fd.revents != 0 && fd.events & POLLIN != 0 {
            self.read();
        }
    }

    /// Whether it is gone for good, so that nobody is there to hold anything.
    pub fn hung_up(&self) -> bool {
        self.hung_up || self.vanished
    }

    /// Takes what the controller has sent, up to a bound.
    fn read(&mut self) {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.input_ended = true,
            Ok(count) => {
                self.active = Instant::now();
                self.session.receive(chunk.get(..count).unwrap_or_default());
            }
            Err(e) if is_passing(&e) => {}
            Err(_) => {
                self.input_ended = true;
                self.vanished = true;
            }
        }
    }

    /// Sends what it can take of its replies.
    pub fn write(&mut self) {
        while !self.vanished && !self.session.replies().is_empty() {
            match self.stream.write(self.session.replies()) {
                // As an error: by the rules of `Write`, it will take nothing later either.
                Ok(0) => self.vanished = true,
                Ok(count) => self.session.sent(count),
                Err(e) if is_passing(&e) => return,
                // It can still have sent commands; they count.
                Err(_) => self.vanished = true,
            }
        }
        if self.vanished {
            self.session.sent(usize::MAX);
        }
    }

    /// Whether all that it sent is carried out and answered, and no more comes.
    pub fn is_finished(&self) -> bool {
        self.input_ended && self.session.is_done() && self.session.replies().is_empty()
    }
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "controller {}", self.number)?;
        if let Some((pid, uid)) = self.peer {
            write!(f, " (pid {pid}, uid {uid})")?;
        }
        Ok(())
    }
}
