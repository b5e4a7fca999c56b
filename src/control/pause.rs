//! The pause itself: who wants it, how far it is, when it ends, and what the
//! log says about it. It closes and opens the gate. A part of `core`: its callers
//! give it the time, and it knows nothing of dialogues and replies.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::controller::{Id, Name};
use super::flush::{FlushError, Flusher, Flushing};
use super::history::{Cause, Ended, History};
use super::stage::{Closed, Stage};
use super::status::{Asked, Status};
use crate::gate::Gate;

/// This many holds at once: a connection with a hold is never closed to make room.
const MOST_HOLDS: usize = 32;

/// What to do about a pause that ended before those who asked for it ended it.
const TORN: &str = "discard any snapshot being taken now";

/// Owns the closing side of the gate.
pub struct Pause {
    gate: Arc<Gate>,
    flushing: Option<Flushing>,
    timeout: Option<Duration>,
    stage: Stage,
    /// When that began.
    since: Instant,
    /// Who asked for it first by `p`, if `r` was not asked for since.
    asked: Option<Asked>,
    /// The gate was opened, and the held requests are not awake yet.
    to_wake: bool,
    /// A flush has failed, or writes were lost, and no controller knows yet.
    loss: bool,
    /// The server ends: there are no pauses any more.
    pub(super) is_over: bool,
    /// Connections that asked for a hold and have not given it back.
    holds: BTreeMap<Id, Asked>,
    history: History,
}

/// The outcome of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has taken effect; a pause is in force.
    Done,
    /// Not yet; ask `progress` when the gate or the flusher has signalled.
    Pending,
    /// There is no such command or hold.
    Failed,
    /// There is no pause, at least not for this controller.
    Refused,
}

/// How the pause has moved on.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to report.
    None,
    /// The pause is in force, for all that wait for it.
    Paused,
    /// The pause is over: those that wait for it don't get it.
    Ended,
}

impl Pause {
    /// Requests flow, from `now` on. `flusher` makes written data stable before a pause
    /// is in force; `timeout` after it was closed, the gate opens by itself.
    pub fn new(
        gate: Arc<Gate>,
        flusher: Option<Box<dyn Flusher>>,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Self {
        Pause {
            gate,
            flushing: flusher.map(Flushing::new),
            timeout,
            stage: Stage::Running,
            since: now,
            asked: None,
            to_wake: false,
            loss: false,
            is_over: false,
            holds: BTreeMap::new(),
            history: History::default(),
        }
    }

    /// `p`: asks for a pause that lasts until `resume`.
    pub fn pause(&mut self, who: Name, now: Instant) -> Outcome {
        let asked = self.close(format_args!("pause requested by {who}"), now);
        if asked != Outcome::Refused {
            self.asked.get_or_insert(Asked { peer: who.peer, at: now });
        }
        asked
    }

    /// `+`: asks for a pause that lasts until the connection of `who` releases it.
    pub fn hold(&mut self, who: Name, now: Instant) -> Outcome {
        if self.holds.len() >= MOST_HOLDS && !self.is_holder(who.id) {
            info!("refused a hold to {who}: {MOST_HOLDS} connections have one");
            return Outcome::Refused;
        }
        let asked = self.close(format_args!("hold requested by {who}"), now);
        if asked != Outcome::Refused {
            self.holds.entry(who.id).or_insert(Asked { peer: who.peer, at: now });
        }
        asked
    }

    /// `-`, or the end of the connection, by `cause`: the hold is over. False if it was
    /// over before, or never was.
    pub fn let_go(&mut self, who: Name, cause: fn(Name) -> Cause, now: Instant) -> bool {
        let held = self.holds.remove(&who.id).is_some();
        if held {
            info!("{who} released its hold; {} left", self.holds.len());
        }
        if held && !self.is_wanted() {
            self.end(cause(who), now);
        }
        held
    }

    /// Whether this connection has a hold, or has asked for one.
    pub fn is_holder(&self, holder: Id) -> bool {
        self.holds.contains_key(&holder)
    }

    /// Whether anybody wants the gate closed.
    pub fn is_wanted(&self) -> bool {
        self.asked.is_some() || !self.holds.is_empty()
    }

    /// Whether the gate is closed, nothing is in flight, and everything is stable
    /// that should be.
    pub fn is_in_force(&self) -> bool {
        matches!(self.stage, Stage::Paused(_))
    }

    /// `r`: the pause and all holds are over, in force or not.
    pub fn resume(&mut self, who: Name, now: Instant) {
        let holds = self.holds.len();
        self.end(Cause::Resume(who), now);
        if holds > 0 {
            let noun = if holds == 1 { "hold" } else { "holds" };
            warn!("{who} ended {holds} {noun} early");
        }
    }

    /// Whether requests are held.
    pub fn is_closed(&self) -> bool {
        self.stage.closed().is_some()
    }

    /// Whether refusing a pause now tells the controller of a loss.
    pub fn has_loss_to_tell(&self) -> bool {
        self.loss
    }

    /// A controller has that reply.
    pub fn loss_was_told(&mut self) {
        self.loss = false;
    }

    /// Layers below may write from here on, as they learn that the server ends: no
    /// pause is left. The gate stays closed for requests that may be dropped, since the
    /// layers below may be gone before these get there: nbdkit-readahead-filter asks for
    /// more on a thread of its own that outlives them.
    pub fn end_for_good(&mut self) {
        self.is_over = true;
        self.gate.shut_down();
        if self.is_wanted() {
            self.asked = None;
            self.holds.clear();
            error!("the server is shutting down, which ends the pause; {TORN}");
        }
    }

    /// The server is shutting down. Drops held requests, and ends the pause if one
    /// waits that must not be dropped: ask `progress`.
    pub fn shut_down(&mut self) {
        self.gate.shut_down();
    }

    /// Wakes the held requests, if the gate was opened since the last call; before a
    /// message that may wait. Many threads want the processors then: send waiting
    /// controllers their replies first, which get a chance to run here.
    pub fn wake(&mut self) {
        if mem::take(&mut self.to_wake) {
            std::thread::yield_now();
            self.gate.wake();
        }
    }

    /// When to ask `progress` even if nothing was signalled.
    pub fn deadline(&self) -> Option<Instant> {
        self.stage.closed().and_then(|closed| closed.deadline)
    }

    /// Moves on as far as possible. Ask it when the gate or the flusher has
    /// signalled, and when the deadline is past.
    pub fn progress(&mut self, now: Instant) -> Progress {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.end(Cause::Timeout, now);
            self.wake();
            let limit = self.timeout.unwrap_or_default();
            error!("pause-timeout: ended the pause after {limit:?}; {TORN}");
            return Progress::Ended;
        }
        if self.gate.must_open() {
            self.end(Cause::Shutdown, now);
            self.wake();
            error!(
                "the server is shutting down with held requests that must not be dropped: \
                 ended the pause to let them through; {TORN}"
            );
            return Progress::Ended;
        }
        if self.is_over {
            return Progress::None;
        }
        match self.advance(now) {
            Ok(true) => Progress::Paused,
            Ok(false) => Progress::None,
            Err(why) => {
                self.loss = true;
                self.end(Cause::Flush, now);
                self.wake();
                error!("pause-flush: {why}; gave up the pause, requests flow");
                Progress::Ended
            }
        }
    }

    /// Closes the gate if it is open, and sees how far the pause gets at once.
    fn close(&mut self, log: fmt::Arguments<'_>, now: Instant) -> Outcome {
        if self.is_over {
            info!("{log}: refused, as the server is shutting down");
            return Outcome::Refused;
        }
        if self.loss {
            info!("{log}: refused, to report that an earlier flush failed");
            return Outcome::Refused;
        }
        match self.stage {
            Stage::Paused(_) => return Outcome::Done,
            Stage::Draining(_) | Stage::Flushing(_) => {}
            Stage::Running => {
                if let Err(e) = self.gate.close() {
                    error!("cannot pause: {e}; requests keep flowing");
                    return Outcome::Refused;
                }
                // A deadline too far away for this clock is none.
                let deadline = self.timeout.and_then(|timeout| now.checked_add(timeout));
                self.enter(Stage::Draining(Closed { since: now, deadline }), now);
            }
        }
        match self.progress(now) {
            Progress::Paused => {
                info!("{log}");
                Outcome::Done
            }
            Progress::None => {
                info!("{log}; requests in flight: {}", self.gate.in_flight());
                Outcome::Pending
            }
            Progress::Ended => Outcome::Refused,
        }
    }

    /// From stage to stage as far as possible; true in the last one.
    fn advance(&mut self, now: Instant) -> Result<bool, FlushError> {
        if let Stage::Draining(closed) = self.stage {
            if self.gate.drained() {
                self.enter(Stage::Flushing(closed), now);
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
                self.enter(Stage::Paused(closed), now);
            }
        }
        Ok(self.is_in_force())
    }

    /// Its state, for `s`.
    pub fn status(&self) -> Status<'_> {
        Status {
            stage: &self.stage,
            since: self.since,
            gate: &self.gate,
            asked: self.asked,
            holds: &self.holds,
            history: &self.history,
        }
    }

    /// Returns the stage that this one follows.
    fn enter(&mut self, stage: Stage, now: Instant) -> Stage {
        self.since = now;
        mem::replace(&mut self.stage, stage)
    }

    /// Requests flow from here on.
    fn end(&mut self, cause: Cause, now: Instant) {
        self.asked = None;
        self.holds.clear();
        let Some(closed) = self.stage.closed() else { return };
        let stage = self.enter(Stage::Running, now);
        // Before logging, which can wait.
        let held = self.gate.held();
        self.gate.open();
        self.to_wake = true;
        let age = closed.age(now);
        match &stage {
            Stage::Draining(_) => info!(
                "{cause} before the pause took effect, after {age}; requests in flight: {}, held: {held}",
                self.gate.in_flight(),
            ),
            Stage::Flushing(_) => {
                self.flushing.iter_mut().for_each(Flushing::cancel);
                info!("{cause} while flushing, after {age}; requests held: {held}");
            }
            _ => info!("{cause} after {age}; requests held: {held}"),
        }
        self.history.add(Ended { stage, at: now, held, cause });
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.wake();
    }
}
