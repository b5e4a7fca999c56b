//! The pause itself: who wants it, how far it is, when it ends, and what the
//! log says about it. It closes and opens the gate. A part of `core`: it is told
//! the time, and knows nothing of dialogues and replies.

use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::core::Id;
use super::flush::{FlushError, Flusher, Flushing};
use crate::gate::Gate;

/// So many holds at once. A connection with a hold is never closed to make
/// room, so there have to be places that no hold can take.
const MOST_HOLDS: usize = 32;

/// Owns the closing side of the gate.
pub struct Pause {
    gate: Arc<Gate>,
    flushing: Option<Flushing>,
    timeout: Option<Duration>,
    stage: Stage,
    /// `p` was asked for, and `r` was not since.
    asked: bool,
    /// The gate was opened, and those who were held are not awake yet.
    to_wake: bool,
    /// Connections that asked for a hold and have not given it back.
    holds: BTreeSet<Id>,
}

/// The gate is closed in all stages but the first, as long as `asked` or any
/// hold wants it to be.
enum Stage {
    Running,
    /// Requests are still in flight.
    Draining(Closed),
    /// Nothing is in flight; what was written is being made stable.
    Flushing(Closed),
    /// Nothing is in flight, and all is stable that was to be.
    Paused(Closed),
}

/// Since when the gate is closed, and until when at most.
#[derive(Clone, Copy)]
struct Closed {
    since: Instant,
    deadline: Option<Instant>,
}

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has taken effect; a pause is in force.
    Done,
    /// Not yet; ask `progress` when the bell rings.
    Pending,
    /// It could not be had, for this one at least.
    Failed,
}

/// How the pause has moved on.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to tell anyone.
    None,
    /// The pause is in force: whoever waits for it has it.
    Paused,
    /// The pause is over: whoever waits for it doesn't get it.
    Ended,
}

impl Pause {
    /// Requests flow. `flusher` makes what was written stable before a pause
    /// is in force; `timeout` after it was closed, the gate opens by itself.
    pub fn new(
        gate: Arc<Gate>,
        flusher: Option<Box<dyn Flusher>>,
        timeout: Option<Duration>,
    ) -> Self {
        Pause {
            gate,
            flushing: flusher.map(Flushing::new),
            timeout,
            stage: Stage::Running,
            asked: false,
            to_wake: false,
            holds: BTreeSet::new(),
        }
    }

    /// `p`: asks for a pause that lasts until `resume`.
    pub fn pause(&mut self, who: &dyn fmt::Display, now: Instant) -> Outcome {
        let asked = self.close(format_args!("pause requested by {who}"), now);
        self.asked |= asked != Outcome::Failed;
        asked
    }

    /// `+`: asks for a pause that lasts until connection `holder` lets go.
    pub fn hold(&mut self, holder: Id, who: &dyn fmt::Display, now: Instant) -> Outcome {
        if self.holds.len() >= MOST_HOLDS && !self.holds.contains(&holder) {
            info!("no hold for {who}: {MOST_HOLDS} are in force already");
            return Outcome::Failed;
        }
        let asked = self.close(format_args!("hold requested by {who}"), now);
        if asked != Outcome::Failed {
            self.holds.insert(holder);
        }
        asked
    }

    /// `-`, or the end of the connection: the hold is over. False if it was
    /// over before, or never was.
    pub fn let_go(&mut self, holder: Id, who: &dyn fmt::Display, now: Instant) -> bool {
        let held = self.holds.remove(&holder);
        if held {
            info!("{who} lets go: {} more holds", self.holds.len());
            if !self.is_wanted() {
                self.end(format_args!("resumed by {who}"), now);
            }
        }
        held
    }

    /// Whether this connection has a hold, or has asked for one.
    pub fn is_holder(&self, holder: Id) -> bool {
        self.holds.contains(&holder)
    }

    /// Whether anybody wants the gate closed.
    pub fn is_wanted(&self) -> bool {
        self.asked || !self.holds.is_empty()
    }

    /// Whether the gate is closed, nothing is in flight, and all is stable that
    /// was to be.
    pub fn is_in_force(&self) -> bool {
        matches!(self.stage, Stage::Paused(_))
    }

    /// `r`: the pause and all holds are over, in force or not.
    pub fn resume(&mut self, who: &dyn fmt::Display, now: Instant) {
        let holds = self.holds.len();
        self.end(format_args!("resumed by {who}"), now);
        if holds > 0 {
            warn!("{who} has ended {holds} holds before their time");
        }
    }

    /// Whether requests are held.
    pub fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    /// The server was told to end. Held requests are dropped, and the pause ends if
    /// one waits that may not be: ask `progress`.
    pub fn shut_down(&mut self) {
        self.gate.shut_down();
    }

    /// Wakes those who were held, if the gate was opened since the last call. Many
    /// threads want the processors then: let whoever waits for an answer have it first.
    pub fn wake(&mut self) {
        if mem::take(&mut self.to_wake) {
            self.gate.wake();
        }
    }

    /// When `progress` is to be asked even if nothing was signalled.
    pub fn deadline(&self) -> Option<Instant> {
        self.closed().and_then(|closed| closed.deadline)
    }

    /// Moves on as far as possible. Ask it when the gate or the flusher has
    /// signalled, and when the deadline is past.
    pub fn progress(&mut self, now: Instant) -> Progress {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.end(format_args!("resumed by pause-timeout"), now);
            error!(
                "pause-timeout: the pause is ended after {:?}; whoever relied on it must not: \
                 a snapshot that is being taken now is torn",
                self.timeout.unwrap_or_default(),
            );
            return Progress::Ended;
        }
        if self.gate.must_open() {
            self.end(format_args!("resumed by the end of the server"), now);
            error!(
                "the server was told to end, and requests that may not be dropped are held: \
                 the pause is ended for them; whoever relied on it must not: a snapshot that is \
                 being taken now is torn"
            );
            return Progress::Ended;
        }
        match self.advance(now) {
            Ok(true) => Progress::Paused,
            Ok(false) => Progress::None,
            Err(why) => {
                self.end(format_args!("resumed by the filter"), now);
                error!("pause-flush: {why}; the pause is given up");
                Progress::Ended
            }
        }
    }

    /// Closes the gate if it is open, and looks how far the pause gets at once.
    fn close(&mut self, log: fmt::Arguments<'_>, now: Instant) -> Outcome {
        match self.stage {
            Stage::Paused(_) => return Outcome::Done,
            Stage::Draining(_) | Stage::Flushing(_) => {}
            Stage::Running => {
                if let Err(e) = self.gate.close() {
                    error!("cannot pause: {e}; requests flow on");
                    return Outcome::Failed;
                }
                // Too far away to be told in this clock is no deadline.
                let deadline = self.timeout.and_then(|timeout| now.checked_add(timeout));
                self.stage = Stage::Draining(Closed { since: now, deadline });
            }
        }
        match self.progress(now) {
            Progress::Paused => {
                info!("{log}");
                Outcome::Done
            }
            Progress::None => {
                info!("{log}: {} requests in flight", self.gate.in_flight());
                Outcome::Pending
            }
            Progress::Ended => Outcome::Failed,
        }
    }

    /// From stage to stage as far as possible; true in the last one.
    fn advance(&mut self, now: Instant) -> Result<bool, FlushError> {
        if let Stage::Draining(closed) = self.stage {
            if self.gate.drained() {
                self.stage = Stage::Flushing(closed);
                if let Some(flushing) = &mut self.flushing {
                    info!("drained in {}", closed.age(now));
                    flushing.restart();
                }
            }
        }
        if let Stage::Flushing(closed) = self.stage {
            let flushed = match &mut self.flushing {
                Some(flushing) => flushing.is_done()?,
                None => true,
            };
            if flushed {
                let done = if self.flushing.is_some() { "flushed" } else { "drained" };
                info!("paused: {done} in {}", closed.age(now));
                self.stage = Stage::Paused(closed);
            }
        }
        Ok(self.is_in_force())
    }

    fn closed(&self) -> Option<Closed> {
        match self.stage {
            Stage::Running => None,
            Stage::Draining(closed) | Stage::Flushing(closed) | Stage::Paused(closed) => {
                Some(closed)
            }
        }
    }

    /// Requests flow from here on.
    fn end(&mut self, log: fmt::Arguments<'_>, now: Instant) {
        self.asked = false;
        self.holds.clear();
        let stage = mem::replace(&mut self.stage, Stage::Running);
        // What is said below can wait; requests have waited long enough.
        let held = self.gate.held();
        self.gate.open();
        self.to_wake = true;
        match stage {
            Stage::Running => {}
            Stage::Draining(closed) => info!(
                "{log}, cancelled after {}: {} requests had not finished, {held} were held",
                closed.age(now),
                self.gate.in_flight(),
            ),
            Stage::Flushing(closed) => {
                if let Some(flushing) = &mut self.flushing {
                    flushing.cancel();
                }
                info!(
                    "{log}, cancelled while flushing, after {}: {held} requests were held",
                    closed.age(now),
                );
            }
            Stage::Paused(closed) => {
                info!("{log} after {}: {held} requests were held", closed.age(now));
            }
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.wake();
    }
}

impl Closed {
    fn age(self, now: Instant) -> Age {
        Age(now.saturating_duration_since(self.since))
    }
}

/// How long the gate has been closed, as the log says it. Where one call did it all,
/// the clock was read once.
struct Age(Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("no time"),
            age => write!(f, "{age:?}"),
        }
    }
}
