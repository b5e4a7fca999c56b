//! How long to wait, and so until when. A limit of zero is none.

use std::time::{Duration, Instant};

/// How long to wait, and so until when.
#[derive(Clone, Copy)]
pub struct Limit {
    /// How long.
    pub time: Duration,
    end: Option<Instant>,
}

impl Limit {
    /// From now on. If `time` is zero, there is no limit.
    pub fn new(time: Duration) -> Self {
        Limit {
            time,
            end: match time {
                Duration::ZERO => None,
                time => Instant::now().checked_add(time),
            },
        }
    }

    /// The one of the two that ends first.
    pub fn or_before(self, other: Limit) -> Self {
        match (self.end, other.end) {
            (Some(end), Some(its)) if its < end => other,
            (None, Some(_)) => other,
            _ => self,
        }
    }

    /// Whether the time is up.
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }

    /// How much is left of it; `None` if there is no limit.
    pub fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }
}
