//! The gate's promises. `model` runs on real threads, many times over, and
//! under loom in every interleaving; `real` needs time or real cores.

#![allow(clippy::arithmetic_side_effects)]

mod model;
mod real;

use std::time::Duration;

use super::sync::{Arc, AtomicUsize, Condvar, Mutex, Ordering, thread, wait};
use super::*;

/// What wakes the closing side in these tests.
struct Alarm {
    rung: Mutex<bool>,
    bell: Condvar,
}

struct Scene {
    gate: Arc<Gate>,
    alarm: Arc<Alarm>,
    /// Requests below the gate, as the plugin would count them.
    working: Arc<AtomicUsize>,
    /// Requests that have been below the gate.
    done: Arc<AtomicUsize>,
}

impl Clone for Scene {
    fn clone(&self) -> Self {
        Scene {
            gate: self.gate.clone(),
            alarm: self.alarm.clone(),
            working: self.working.clone(),
            done: self.done.clone(),
        }
    }
}

impl Scene {
    fn new(barrier: Barrier) -> Self {
        let alarm = Arc::new(Alarm {
            rung: Mutex::new(false),
            bell: Condvar::new(),
        });
        let ringing = alarm.clone();
        let ring = move || {
            *ringing.rung.lock() = true;
            ringing.bell.notify_all();
        };
        Scene {
            gate: Arc::new(Gate::new(barrier, ring)),
            alarm,
            working: Arc::new(AtomicUsize::new(0)),
            done: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn request(&self, seat: &Seat, is_gone: impl Fn() -> bool) -> Result<(), Gone> {
        let _pass = self.gate.enter(seat, is_gone)?;
        // Relaxed, so that only the gate orders what is checked.
        self.working.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.working.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn drain(&self) {
        self.gate.close().unwrap();
        while !self.gate.drained() {
            let mut rung = self.alarm.rung.lock();
            while !*rung {
                rung = wait(&self.alarm.bell, rung, Duration::from_secs(60));
            }
            *rung = false;
        }
    }

    /// Between the two looks nothing may happen below a drained gate.
    fn assert_quiesced(&self) {
        assert!(self.gate.drained());
        assert_eq!(
            self.working.load(Ordering::Relaxed),
            0,
            "a request is in flight"
        );
        let before = self.done.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(
            self.working.load(Ordering::Relaxed),
            0,
            "a request has passed"
        );
        assert_eq!(
            self.done.load(Ordering::Relaxed),
            before,
            "a request has passed"
        );
    }
}
