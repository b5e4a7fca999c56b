//! Who waits, in which order, and who wakes whom. `waiters` says when.
//!
//! *Each wakes the next.* To wake all at once would keep the processors from the thread
//! that has opened the gate, and from the first request. So O2 takes the first who sleep
//! out of `to_wake`, two who sleep together, and wakes them; and a waiter that wakes up
//! and finds itself let in does the same, before it calls anything that could block. The
//! chain can't break: as long as there is somebody in `to_wake`, O2 and each sleeper taken
//! out so far takes its turn; each turn takes out one sleeper at least; so one more is
//! taken out than was. (Two openings before one O2 make no difference. A waiter that
//! wakes up by itself adds a turn.) A waiter that is awake needs nobody: before it sleeps
//! it sees, with the lock, that it was let in. So it is taken out without a turn of its
//! own: it could be stuck, in a look at its client that a blocked log holds up.
//!
//! *No wake-up is lost.* Two waiters sleep on an event count, a futex, that each event
//! changes before it wakes. The kernel puts a request to sleep only if the count is still
//! what it was before the request looked around.

use std::collections::VecDeque;
use std::time::Instant;

use super::sync::{Arc, AtomicBool, Futex, Ordering};

/// How many requests sleep, and wake up, together. The model makes do with one, which is
/// the harder case.
const TOGETHER: usize = if cfg!(loom) { 1 } else { 2 };

/// Those who wait, longest first.
#[derive(Default)]
pub(super) struct Waiters {
    /// For the next opening.
    pub(super) held: VecDeque<Arc<Waiter>>,
    /// Of these, those that must not be dropped.
    pub(super) undroppable: usize,
    /// For their turn to be woken, after an opening.
    to_wake: VecDeque<Arc<Waiter>>,
}

impl Waiters {
    /// One more is held.
    pub(super) fn join(&mut self) -> Arc<Waiter> {
        let others = self.held.back().map(|last| &last.events);
        let events = match others.filter(|events| Arc::strong_count(events) < TOGETHER) {
            Some(events) => events.clone(),
            None => Arc::new(Futex::new(0)),
        };
        let is_asleep = AtomicBool::new(false);
        let waiter = Arc::new(Waiter { is_asleep, events, began: Instant::now() });
        self.held.push_back(waiter.clone());
        waiter
    }

    /// An opening lets in all who are held, this many.
    pub(super) fn let_in(&mut self) -> usize {
        let held = self.held.len();
        self.to_wake.append(&mut self.held);
        self.undroppable = 0;
        held
    }

    /// `waiter` is held no longer.
    pub(super) fn leave(&mut self, waiter: &Arc<Waiter>) {
        self.held.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// What the next sleep on whose turn it is to be woken.
    pub(super) fn next_to_wake(&mut self) -> Option<Arc<Futex>> {
        let sleeper = loop {
            let next = self.to_wake.pop_front()?;
            if next.is_asleep.load(Ordering::Relaxed) {
                break next;
            }
        };
        while self.to_wake.front().is_some_and(|next| Arc::ptr_eq(&next.events, &sleeper.events)) {
            self.to_wake.pop_front();
        }
        Some(sleeper.events.clone())
    }
}

/// A request that waits.
pub(super) struct Waiter {
    /// It sleeps, or is about to. Set with the lock.
    pub(super) is_asleep: AtomicBool,
    /// Changes with each event that its thread has to see. Shared with those who sleep
    /// together.
    pub(super) events: Arc<Futex>,
    pub(super) began: Instant,
}
