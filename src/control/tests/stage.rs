//! A stage for the core: controllers that come, send and leave, requests that enter
//! and leave the real gate, a flusher that ends when it is told to, and a clock that
//! is moved by hand. It does for the core what the loop around it does, without a
//! socket or a thread, and keeps what the model needs to judge it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use pause_model::{Exchange, Mark, Rules, Transcript};

use super::actor::{Actor, apart};
use super::below::{Below, TestFlusher};
use crate::control::core::Core;
use crate::control::flush::Flusher;
use crate::control::pause::Pause;
use crate::control::protocol::Offered;
use crate::gate::{Barrier, Gate, OwnedSlot, Pass};
use crate::nbdkit::FlushFailed;

/// As much is read of a controller at once, at most.
const CHUNK: usize = 512;

/// An `s` that finds as much unread is refused.
pub const MOST_UNSENT: usize = 4096;

/// Whoever is the first to connect is this process; the next one is the next.
pub const FIRST_PID: i32 = 4001;

/// The user of all of them.
pub const UID: u32 = 1000;

/// The clock moves by this with every event, so that no two are at the same time.
const TICK: Duration = Duration::from_micros(1);

/// What the gate needs for the stage to stand on; outlives it.
pub struct Ground {
    pub gate: Arc<Gate>,
    slots: Vec<OwnedSlot>,
}

impl Ground {
    /// For this many requests at once.
    pub fn new(requests: usize) -> Self {
        // Nobody runs beside us. Fences do without a system call.
        let gate = Arc::new(Gate::new(Barrier::Fences, || {}));
        let slots = (0..requests).map(|_| gate.take_slot()).collect();
        Ground { gate, slots }
    }
}

/// See the file's text.
pub struct Stage<'a> {
    ground: &'a Ground,
    pub inside: Vec<Option<Pass<'a>>>,
    pub core: Core,
    pub below: Arc<Mutex<Below>>,
    pub rules: Rules,
    pub flushes: bool,
    begin: Instant,
    now: Duration,
    pub actors: Vec<Actor>,
    /// When a request came, and whether it went in.
    pub requests: Vec<(Duration, bool)>,
    /// How many requests are inside from each time on.
    pub in_flight: Vec<(Duration, usize)>,
    /// Who was closed to make room, and when.
    pub closed: Vec<(Duration, usize)>,
    /// nbdkit has said that the server ends.
    pub ended: Option<Mark>,
    /// Replies that say that a pause is in force, where not all was stable, or the
    /// server ended.
    pub unstable: Vec<(Duration, char)>,
}

impl<'a> Stage<'a> {
    pub fn new(ground: &'a Ground, rules: Rules, flushes: bool) -> Self {
        let below = Arc::new(Mutex::new(Below::default()));
        let flusher = flushes.then(|| Box::new(TestFlusher(below.clone())) as Box<dyn Flusher>);
        let begin = Instant::now();
        let pause = Pause::new(ground.gate.clone(), flusher, rules.timeout, begin);
        let offered = Offered { holds: rules.holds, status: rules.status };
        Stage {
            ground,
            inside: ground.slots.iter().map(|_| None).collect(),
            core: Core::new(pause, offered),
            below,
            rules,
            flushes,
            begin,
            now: Duration::ZERO,
            actors: Vec::new(),
            requests: Vec::new(),
            in_flight: vec![(Duration::ZERO, 0)],
            closed: Vec::new(),
            ended: None,
            unstable: Vec::new(),
        }
    }

    fn tick(&mut self) -> Mark {
        self.now += TICK;
        self.below.lock().now = self.now;
        Mark { at: self.now, log: 0 }
    }

    pub fn clock(&self) -> Instant {
        self.begin + self.now
    }

    pub fn connect(&mut self) {
        let connected = self.tick().at;
        if self.core.is_full() {
            let id = self.core.to_close().expect("half of them can have no hold");
            let who = self.actors.iter().position(|actor| actor.id == Some(id)).unwrap();
            self.core.close(id, "a test");
            self.closed.push((connected, who));
            self.is_gone(who);
        }
        let pid = FIRST_PID + self.actors.len() as i32;
        let id = self.core.admit(Some((pid, UID)), self.clock());
        self.actors.push(Actor::new(id, Transcript::new(connected)));
    }

    /// The connection is closed on both sides.
    fn is_gone(&mut self, who: usize) {
        let now = self.tick();
        let actor = &mut self.actors[who];
        actor.id = None;
        let connection = &mut actor.connection;
        connection.gone = now;
        connection.closed.at = connection.closed.at.min(now.at);
        for command in connection.commands.iter_mut().filter(|it| it.reply.is_none()) {
            command.until = now;
        }
    }

    /// False if it can't: it has said that it sends no more.
    pub fn send(&mut self, who: usize, bytes: &[u8]) -> bool {
        let sent = self.tick();
        let actor = &mut self.actors[who];
        if actor.sends_no_more || actor.id.is_none() {
            return false;
        }
        actor.outbox.extend(bytes);
        let commands = bytes.iter().filter(|byte| !b" \t\n".contains(byte));
        actor.connection.commands.extend(commands.map(|&byte| Exchange {
            byte,
            sent,
            written: sent.at,
            reply: None,
            until: Mark::NEVER,
        }));
        true
    }

    pub fn send_no_more(&mut self, who: usize) {
        let now = self.tick();
        let actor = &mut self.actors[who];
        actor.sends_no_more = true;
        // Its hold may end with all that it has sent.
        actor.connection.closed.at = actor.connection.closed.at.min(now.at);
    }

    pub fn hang_up(&mut self, who: usize) {
        self.send_no_more(who);
        self.actors[who].is_gone = true;
        if let Some(id) = self.actors[who].id {
            self.core.hung_up(id);
        }
    }

    /// A request comes, in a place that is free, and goes in or is held.
    pub fn enter(&mut self, place: usize) -> bool {
        let now = self.tick().at;
        self.inside[place] = self.ground.gate.enter(&self.ground.slots[place]);
        let is_in = self.inside[place].is_some();
        self.requests.push((now, is_in));
        self.count(now);
        is_in
    }

    pub fn leave(&mut self, place: usize) {
        let now = self.tick().at;
        self.inside[place] = None;
        self.count(now);
    }

    fn count(&mut self, now: Duration) {
        self.in_flight.push((now, self.inside.iter().flatten().count()));
    }

    /// The flush that runs, if one does, ends.
    pub fn end_flush(&mut self, well: bool) -> bool {
        self.tick();
        let mut below = self.below.lock();
        let runs = below.flushes();
        if runs {
            let error = || Err(FlushFailed(io::Error::other("a test")));
            below.result = Some(if well { Ok(()) } else { error() });
        }
        runs
    }

    /// Time passes, and the loop wakes up at every deadline.
    pub fn wait(&mut self, time: Duration) {
        self.turn();
        let until = self.now + time;
        while let Some(deadline) = self.core.deadline() {
            let deadline = deadline.duration_since(self.begin);
            if deadline > until {
                break;
            }
            self.now = self.now.max(deadline);
            self.turn();
        }
        self.now = self.now.max(until);
        self.turn();
    }

    /// Does what the loop does, until there is nothing left to do.
    pub fn turn(&mut self) {
        while self.one_turn() {}
    }

    /// Does what the loop does once. Whether there is more to do.
    pub fn one_turn(&mut self) -> bool {
        let now = self.tick();
        let mut is_busy = self.core.has_more();
        for actor in &mut self.actors {
            let Some(id) = actor.id.filter(|&id| self.core.listens_to(id)) else { continue };
            let count = actor.outbox.len().min(CHUNK);
            let chunk: Vec<u8> = actor.outbox.drain(..count).collect();
            match chunk[..] {
                [] if actor.sends_no_more => self.core.input_ended(id),
                [] => continue,
                _ => self.core.received(id, &chunk, self.begin + self.now),
            }
            is_busy = true;
        }
        // The day of the epoch begins with the play.
        self.core.turn(self.clock(), SystemTime::UNIX_EPOCH + self.now);
        is_busy |= self.core.has_more();
        for actor in &mut self.actors {
            let Some(id) = actor.id else { continue };
            let count = self.core.replies(id).len();
            let replies = apart(self.core.replies(id));
            actor.stable.resize(replies.len(), self.below.lock().is_stable());
            if !(actor.reads || actor.is_gone) || replies.is_empty() {
                continue;
            }
            is_busy = true;
            if actor.is_gone {
                // Nobody is there: the write fails.
                self.core.unreachable(id);
                continue;
            }
            let unanswered = actor.connection.commands.iter_mut().filter(|it| it.reply.is_none());
            let lines = replies.iter().filter(|reply| reply.len() > 1);
            actor.lines.extend(lines.map(|line| String::from_utf8(line.to_vec()).expect("UTF-8")));
            let replies = replies.iter().map(|reply| reply[0]).zip(actor.stable.drain(..));
            let replies: Vec<_> = replies.collect();
            self.core.sent(id, count);
            for (command, (reply, was_stable)) in unanswered.zip(replies) {
                actor.received.push(reply);
                let is_refused = (command.byte, reply) == (b's', b'X')
                    && self.rules.status
                    && self.ended.is_none();
                assert!(!is_refused || count >= MOST_UNSENT, "an s is refused for no reason");
                (command.reply, command.until) = (Some(reply), now);
                let vouches = matches!((command.byte, reply), (b'p', b'P') | (b'+', b'+'));
                let mut below = self.below.lock();
                let untold = below.losses.iter_mut().filter(|(_, told)| *told > now.at);
                let asks = command.byte == b'p' || command.byte == b'+' && self.rules.holds;
                let is_over = self.ended.is_some_and(|end| end.at < command.sent.at);
                let mut is_wrong = is_over || self.flushes && !was_stable;
                for (noticed, told) in untold {
                    is_wrong |= *noticed < command.sent.at;
                    if asks && reply == b'X' {
                        *told = now.at;
                    }
                }
                if vouches && is_wrong {
                    self.unstable.push((now.at, reply.into()));
                }
            }
        }
        for id in self.core.part(self.clock()) {
            is_busy = true;
            let who = self.actors.iter().position(|actor| actor.id == Some(id)).unwrap();
            self.is_gone(who);
        }
        is_busy
    }

    /// Whether a command of its waits for a reply, and it would take that.
    pub fn waits(&self, who: usize) -> bool {
        let actor = &self.actors[who];
        let owed = actor.connection.commands.len() > actor.received.len();
        actor.id.is_some() && actor.reads && !actor.is_gone && owed
    }

    /// Whether the loop is not to wait for anything.
    #[cfg(test)]
    pub fn has_more(&self) -> bool {
        self.core.has_more()
    }

    /// How many bytes it has sent that nobody has read.
    #[cfg(test)]
    pub fn unread(&self, who: usize) -> usize {
        self.actors[who].outbox.len()
    }

    /// Whether a pause that is asked for can't be in force yet.
    pub fn is_at_work(&self) -> bool {
        self.inside.iter().any(Option::is_some) || self.below.lock().flushes()
    }

    /// When a flush had failed, or writes were lost, and when that was told.
    pub fn losses(&self) -> Vec<(Duration, Duration)> {
        self.below.lock().losses.clone()
    }

    /// nbdkit says that the server ends.
    pub fn end(&mut self) {
        let now = self.tick();
        self.ended.get_or_insert(now);
        self.core.server_ends();
    }

    /// What has happened to all controllers.
    pub fn history(&self) -> Vec<Transcript> {
        let connections = self.actors.iter().map(|actor| {
            let mut connection = actor.connection.clone();
            // The first without a reply has begun to wait.
            if let Some(it) = connection.commands.iter_mut().find(|it| it.reply.is_none()) {
                it.until.at = it.until.at.min(self.now);
            }
            connection
        });
        connections.collect()
    }
}
