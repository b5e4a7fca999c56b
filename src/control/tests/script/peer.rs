//! The far end of a controller's connection, in memory: what the controller and
//! the kernel do by the script, as the near end sees it. What would be right is
//! not known here.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::rc::Rc;

use crate::os::{POLLERR, POLLHUP, POLLIN, POLLOUT};

/// How often `G` sends a byte. One flood is enough, and a script is to be short.
const FLOOD: usize = 6_000;

/// So many reads and writes does `O` make short.
const SHORT: u8 = 10;

/// See the file's text.
#[derive(Default)]
pub struct Peer {
    pub sent: Vec<u8>,
    /// So many bytes of `sent` have been read.
    pub taken: usize,
    pub received: Vec<u8>,
    /// So many more replies fit, where there is a limit.
    pub room: Option<usize>,
    short: u8,
    interrupts_read: bool,
    interrupts_write: bool,
    pub sends_no_more: bool,
    receives_no_more: bool,
    takes_nothing: bool,
    is_gone: bool,
    is_broken: bool,
    /// What the near end was told: that no more comes, ...
    pub told_end: bool,
    /// ... that the connection has failed, ...
    pub told_failure: bool,
    /// ... that no more fits now.
    pub told_full: bool,
    /// How many reads and writes have come to anything.
    pub results: usize,
}

impl Peer {
    /// An event of the script, which may need the next byte of it.
    pub fn act(&mut self, event: u8, script: &mut impl Iterator<Item = u8>) {
        match event {
            b'I' => (self.interrupts_read, self.interrupts_write) = (true, true),
            b'O' => self.short = SHORT,
            b'0'..=b'9' => self.room = Some(usize::from(event - b'0')),
            b'W' => self.room = None,
            b'E' => self.sends_no_more = true,
            b'H' => self.is_gone = true,
            b'D' => self.receives_no_more = true,
            b'Z' => self.takes_nothing = true,
            b'C' => self.is_broken = true,
            b'G' => {
                let byte = script.next().unwrap_or(b'p');
                self.send(byte, if self.sent.len() < FLOOD { FLOOD } else { 0 });
            }
            b'Q' => self.send(script.next().unwrap_or(b'Q'), 1),
            _ => self.send(event, 1),
        }
    }

    fn send(&mut self, byte: u8, times: usize) {
        if !self.sends_no_more && !self.has_left() {
            self.sent.resize(self.sent.len() + times, byte);
        }
    }

    /// Whether it is gone in both directions.
    pub fn has_left(&self) -> bool {
        self.is_gone || self.is_broken
    }

    /// Whether a read would come to anything, be it the end.
    pub fn has_more(&self) -> bool {
        let ends = self.sends_no_more || self.has_left();
        !self.told_end && (self.taken < self.sent.len() || ends)
    }

    fn fails_writes(&self) -> bool {
        self.receives_no_more || self.takes_nothing || self.has_left()
    }

    /// Whether a write would come to anything, be it a failure.
    pub fn takes_more(&self) -> bool {
        self.fails_writes() || self.room != Some(0)
    }

    /// poll(2), for this connection alone.
    pub fn poll(&self, events: libc::c_short) -> libc::c_short {
        let mut found = 0;
        if self.has_more() {
            found |= events & POLLIN;
        }
        if self.takes_more() {
            found |= events & POLLOUT;
        }
        if self.is_gone {
            found |= POLLHUP;
        }
        if self.is_broken {
            found |= POLLERR;
        }
        found
    }

    /// The most that a read or write of `size` comes to.
    fn most(&mut self, size: usize) -> usize {
        match self.short.checked_sub(1) {
            Some(left) => {
                self.short = left;
                size.min(1)
            }
            None => size,
        }
    }
}

/// The near end.
pub struct Stream(pub Rc<RefCell<Peer>>);

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut peer = self.0.borrow_mut();
        assert!(!peer.told_end, "read again after the end");
        if mem::take(&mut peer.interrupts_read) {
            peer.results += 1;
            return Err(ErrorKind::Interrupted.into());
        }
        if !peer.has_more() {
            return Err(ErrorKind::WouldBlock.into());
        }
        peer.results += 1;
        if peer.is_broken {
            (peer.told_end, peer.told_failure) = (true, true);
            return Err(ErrorKind::ConnectionReset.into());
        }
        let start = peer.taken;
        let count = peer.most(buffer.len()).min(peer.sent.len() - start);
        buffer[..count].copy_from_slice(&peer.sent[start..start + count]);
        peer.taken += count;
        peer.told_end = count == 0;
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut peer = self.0.borrow_mut();
        assert!(!peer.told_failure, "written again after a failure");
        assert!(!buffer.is_empty(), "a write of nothing");
        if mem::take(&mut peer.interrupts_write) {
            peer.results += 1;
            peer.told_full = true;
            return Err(ErrorKind::Interrupted.into());
        }
        if !peer.takes_more() {
            peer.told_full = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        peer.results += 1;
        if peer.fails_writes() {
            peer.told_failure = true;
            return if peer.takes_nothing { Ok(0) } else { Err(ErrorKind::BrokenPipe.into()) };
        }
        let count = peer.most(buffer.len()).min(peer.room.unwrap_or(usize::MAX));
        peer.received.extend(&buffer[..count]);
        // Or a reply that is sent again and again would never be judged.
        assert!(peer.received.len() <= peer.taken, "more replies than bytes");
        peer.room = peer.room.map(|room| room - count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        panic!("a socket is not flushed")
    }
}
