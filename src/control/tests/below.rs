//! What is below the gate on the stage: how much was written, how much of it is
//! stable, and a flusher whose flushes end when the stage says so.

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::control::flush::Flusher;
use crate::nbdkit::FlushFailed;

/// What is below the gate.
#[derive(Default)]
pub struct Below {
    /// How much was written, and how much of it is stable.
    pub written: u64,
    pub stable: u64,
    /// Writes were lost with a connection, which was not told yet.
    pub lost: bool,
    /// A flush runs: what it makes stable.
    pub flush: Option<u64>,
    is_cancelled: bool,
    pub result: Option<Result<(), FlushFailed>>,
    /// When a loss was noticed, and when it was told.
    pub losses: Vec<(Duration, Duration)>,
    pub now: Duration,
}

impl Below {
    pub fn is_stable(&self) -> bool {
        self.written == self.stable
    }

    pub fn flushes(&self) -> bool {
        self.flush.is_some() && self.result.is_none()
    }
}

pub struct TestFlusher(pub Arc<Mutex<Below>>);

impl Flusher for TestFlusher {
    fn is_needed(&self) -> bool {
        !self.0.lock().is_stable()
    }

    fn start(&mut self) -> io::Result<()> {
        let mut below = self.0.lock();
        assert!(below.flush.is_none(), "two flushes at once");
        below.flush = Some(below.written);
        below.is_cancelled = false;
        Ok(())
    }

    fn cancel(&mut self) {
        self.0.lock().is_cancelled = true;
    }

    fn ended(&mut self) -> Option<Result<(), FlushFailed>> {
        let mut below = self.0.lock();
        let result = below.result.take()?;
        let flushed = below.flush.take();
        match &result {
            // One that was cancelled may have left something out.
            Ok(()) if below.is_cancelled => {}
            Ok(()) => below.stable = flushed.unwrap_or_default(),
            Err(_) => {
                let now = below.now;
                below.losses.push((now, Duration::MAX));
            }
        }
        Some(result)
    }

    fn has_lost_writes(&mut self) -> bool {
        let mut below = self.0.lock();
        let lost = mem::take(&mut below.lost);
        if lost {
            let now = below.now;
            below.losses.push((now, Duration::MAX));
        }
        lost
    }
}
