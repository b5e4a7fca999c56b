//! The stages of a pause, and when it began.

use std::fmt;
use std::time::{Duration, Instant};

/// The gate is closed in all stages but the first, as long as `asked` or any
/// hold wants it to be.
pub enum Stage {
    Running,
    /// Requests are still in flight.
    Draining(Closed),
    /// Nothing is in flight; written data is being made stable.
    Flushing(Closed),
    /// Nothing is in flight, and everything is stable that should be.
    Paused(Closed),
}

/// When the gate was closed, and when it opens at the latest.
#[derive(Clone, Copy)]
pub struct Closed {
    pub since: Instant,
    pub deadline: Option<Instant>,
}

impl Stage {
    /// When the gate was closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        match *self {
            Stage::Running => None,
            Stage::Draining(closed) | Stage::Flushing(closed) | Stage::Paused(closed) => {
                Some(closed)
            }
        }
    }

    /// Its name, for `s`.
    pub fn name(&self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::Draining(_) => "draining",
            Stage::Flushing(_) => "flushing",
            Stage::Paused(_) => "paused",
        }
    }
}

impl Closed {
    pub fn age(self, now: Instant) -> Age {
        Age(now.saturating_duration_since(self.since))
    }
}

/// How long the gate has been closed, as the log says it. Zero if one call, which
/// reads the clock once, did it all.
pub struct Age(Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("no time"),
            age => write!(f, "{age:?}"),
        }
    }
}
