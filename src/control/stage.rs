//! How far a pause is, and since when.

use std::fmt;
use std::time::{Duration, Instant};

/// The gate is closed in all stages but the first, as long as `asked` or any
/// hold wants it to be.
pub enum Stage {
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
pub struct Closed {
    pub since: Instant,
    pub deadline: Option<Instant>,
}

impl Stage {
    /// Since when the gate is closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        match *self {
            Stage::Running => None,
            Stage::Draining(closed) | Stage::Flushing(closed) | Stage::Paused(closed) => {
                Some(closed)
            }
        }
    }
}

impl Closed {
    pub fn age(self, now: Instant) -> Age {
        Age(now.saturating_duration_since(self.since))
    }
}

/// How long the gate has been closed, as the log says it. Where one call did it all,
/// the clock was read once.
pub struct Age(Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("no time"),
            age => write!(f, "{age:?}"),
        }
    }
}
