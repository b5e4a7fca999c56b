//! How the last pauses ended. `pause` adds to it, `status` tells it.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::controller::{Name, Peer};
use super::stage::Stage;

/// This many are remembered.
const MOST: usize = 8;

/// What has ended a pause.
#[derive(Clone, Copy)]
pub enum Cause {
    /// `r`.
    Resume(Name),
    /// The last hold was given back.
    Release(Name),
    /// The last hold has ended with its connection.
    HangUp(Name),
    /// It has lasted for as long as it may.
    Timeout,
    /// Not all could be made stable.
    Flush,
    /// The server shuts down, and has held requests that must not be dropped.
    Shutdown,
}

/// A pause that has ended.
pub struct Ended {
    /// How far it had come.
    pub stage: Stage,
    pub at: Instant,
    /// How many requests were held then.
    pub held: usize,
    pub cause: Cause,
}

impl Ended {
    /// How long the gate was closed.
    pub fn length(&self) -> Duration {
        let closed = self.stage.closed();
        closed.map(|closed| self.at.saturating_duration_since(closed.since)).unwrap_or_default()
    }
}

/// The pauses that ended last.
#[derive(Default)]
pub struct History(VecDeque<Ended>);

impl History {
    /// One more, which may push out the oldest.
    pub fn add(&mut self, ended: Ended) {
        self.0.truncate(MOST.saturating_sub(1));
        self.0.push_front(ended);
    }

    /// All that are remembered, from the last one back.
    pub fn iter(&self) -> impl Iterator<Item = &Ended> {
        self.0.iter()
    }
}

impl Cause {
    /// The command or the parameter that stands for it, as `s` tells it.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Resume(_) => "r",
            Cause::Release(_) => "-",
            Cause::HangUp(_) => "hang-up",
            Cause::Timeout => "pause-timeout",
            Cause::Flush => "pause-flush",
            Cause::Shutdown => "shutdown",
        }
    }

    /// The process and user that have ended it, if a controller did.
    pub fn peer(self) -> Option<Peer> {
        match self {
            Cause::Resume(who) | Cause::Release(who) | Cause::HangUp(who) => who.peer,
            Cause::Timeout | Cause::Flush | Cause::Shutdown => None,
        }
    }
}

/// For the log.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Resume(who) | Cause::Release(who) | Cause::HangUp(who) => {
                write!(f, "resumed by {who}")
            }
            Cause::Timeout => f.write_str("resumed by pause-timeout"),
            Cause::Flush => f.write_str("resumed by the filter"),
            Cause::Shutdown => f.write_str("resumed for the shutdown of the server"),
        }
    }
}
