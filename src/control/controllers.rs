//! The connections of all controllers: reads and writes for `core`, and never
//! waits. `core` interprets the bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::controller::Id;
use super::core::Core;
use crate::os::{self, PollFlags};

/// Reads at most this much from one before others have their turn.
const CHUNK: usize = 512;

/// All connected controllers, which are exactly those that `core` knows.
pub struct Controllers {
    pub core: Core,
    /// In the order in which they connected.
    streams: Vec<(Id, UnixStream)>,
}

impl Controllers {
    /// Without any connection.
    pub fn new(core: Core) -> Self {
        Controllers { core, streams: Vec::new() }
    }

    /// A controller has connected. Its `stream` does not block.
    pub fn admit(&mut self, stream: UnixStream) {
        if self.core.is_full() {
            self.close_idlest("the limit on controllers is reached");
        }
        let id = self.core.admit(os::peer(&stream), Instant::now());
        self.streams.push((id, stream));
    }

    /// Closes the one that has to make room. False if there is none.
    pub fn close_idlest(&mut self, why: &str) -> bool {
        match self.core.to_close() {
            Some(id) => {
                self.core.close(id, why);
                self.remove(id);
                true
            }
            None => false,
        }
    }

    /// Each one, and what to poll it for. poll(2) always reports a hang-up, and again
    /// and again: if only that can come and it is known, there is nothing to poll.
    pub fn polled(&self) -> impl Iterator<Item = (Id, &UnixStream, PollFlags)> {
        self.streams.iter().filter_map(|(id, stream)| {
            let id = *id;
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, self.core.listens_to(id));
            wanted.set(PollFlags::OUT, !self.core.replies(id).is_empty());
            let is_worth_it = !wanted.is_empty() || !self.core.has_hung_up(id);
            is_worth_it.then_some((id, stream, wanted))
        })
    }

    /// poll(2) has `found` this about `id`. Reads what there is, up to a bound.
    pub fn read(&mut self, id: Id, found: PollFlags) {
        if found.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.core.hung_up(id);
        }
        if !self.core.listens_to(id) {
            return;
        }
        let Some((_, stream)) = self.streams.iter_mut().find(|(other, _)| *other == id) else {
            return;
        };
        let mut chunk = [0; CHUNK];
        match stream.read(&mut chunk) {
            Ok(0) => self.core.input_ended(id),
            Ok(count) => {
                self.core.received(id, chunk.get(..count).unwrap_or_default(), Instant::now());
            }
            Err(e) if is_passing(&e) => {}
            Err(_) => {
                self.core.input_ended(id);
                self.core.unreachable(id);
            }
        }
    }

    /// Sends what replies it can, closes the connections that are done, and wakes the
    /// requests that were held.
    pub fn write(&mut self) {
        for (id, stream) in &mut self.streams {
            let id = *id;
            while !self.core.replies(id).is_empty() {
                match stream.write(self.core.replies(id)) {
                    // An error, too: by the rules of `Write`, it will take nothing later.
                    Ok(0) => self.core.unreachable(id),
                    Ok(count) => self.core.sent(id, count),
                    Err(e) if is_passing(&e) => break,
                    Err(_) => self.core.unreachable(id),
                }
            }
        }
        for id in self.core.part(Instant::now()) {
            self.remove(id);
        }
        self.core.wake();
    }

    fn remove(&mut self, id: Id) {
        self.streams.retain(|(other, _)| *other != id);
    }
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
