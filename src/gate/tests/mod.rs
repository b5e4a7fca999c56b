//! The gate's promises. `model` runs on real threads, many times over, and
//! under loom in every interleaving; `real` and `held` need time or real cores.

#![allow(clippy::arithmetic_side_effects)]

mod held;
mod model;
mod real;

use std::time::Duration;

use super::sync::{Arc, AtomicUsize, Deadline, Futex, Ordering, thread};
use super::{Barrier, Dropped, Gate, Slot, Worth};

struct Scene {
    gate: Arc<Gate>,
    /// What wakes the closing side here: counts how often.
    event: Arc<Futex>,
    /// Requests below the gate, as the plugin would count them.
    working: Arc<AtomicUsize>,
    /// Requests that have been below the gate.
    done: Arc<AtomicUsize>,
}

impl Clone for Scene {
    fn clone(&self) -> Self {
        Scene {
            gate: self.gate.clone(),
            event: self.event.clone(),
            working: self.working.clone(),
            done: self.done.clone(),
        }
    }
}

impl Scene {
    fn new(barrier: Barrier) -> Self {
        let event = Arc::new(Futex::new(0));
        let signalled = event.clone();
        let signal = move || signalled.signal();
        Scene {
            gate: Arc::new(Gate::new(barrier, signal)),
            event,
            working: Arc::new(AtomicUsize::new(0)),
            done: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn request(&self, slot: &Slot, is_gone: impl Fn() -> bool) -> Result<(), Dropped> {
        let at_once = self.gate.enter_at_once(slot);
        let _pass = match at_once.or_else(|| self.gate.enter(slot)) {
            Some(pass) => pass,
            None => self.gate.wait(slot, Worth::All, is_gone)?,
        };
        // Relaxed, so that only the gate orders what is checked.
        self.working.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.working.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// The same, on a thread that comes for it and goes.
    fn start_request(
        &self,
        is_gone: impl Fn() -> bool + Send + 'static,
    ) -> thread::JoinHandle<Result<(), Dropped>> {
        let scene = self.clone();
        thread::spawn(move || scene.request(&scene.gate.take_slot(), is_gone))
    }

    fn drain(&self) {
        self.gate.close().unwrap();
        loop {
            let seen = self.event.load(Ordering::Acquire);
            if self.gate.drained() {
                return;
            }
            self.event.wait(seen, &Deadline::after(Duration::from_secs(60)));
        }
    }

    fn open(&self) {
        self.gate.open();
        self.gate.wake();
    }

    /// Between the two looks nothing may happen below a drained gate.
    fn assert_quiesced(&self) {
        assert!(self.gate.drained());
        assert_eq!(self.working.load(Ordering::Relaxed), 0, "a request is in flight");
        let before = self.done.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(self.working.load(Ordering::Relaxed), 0, "a request has passed");
        assert_eq!(self.done.load(Ordering::Relaxed), before, "a request has passed");
    }
}
