//! Who waits, in which order, and who wakes whom. `waiters` says when.
//!
//! *Each wakes the next.* To wake all at once would keep the processors from the thread
//! that has opened the gate, and from the first request. So O2 takes the first out of
//! `to_wake` and wakes them, two who sleep together; and each waiter that finds itself let
//! in does the same before anything else. The chain can't break: as long as there is
//! somebody in `to_wake`, each waiter taken out so far takes its turn, and so has O2; each
//! turn takes out one at least; so one more is taken out than was. (Two openings before
//! one O2 make no difference. A waiter that wakes up by itself adds a turn.) If the kernel
//! keeps one thread from running, the other one of the two goes on.
//!
//! *No wake-up is lost.* Two waiters sleep on an event count, a futex, that each event
//! changes before it wakes. The kernel puts a request to sleep only if the count is still
//! what it was before the request looked around.

use std::collections::VecDeque;
use std::time::Instant;

use super::sync::{Arc, AtomicUsize, Futex, Ordering};

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
    pub(super) fn join(&mut self, connection: usize) -> Arc<Waiter> {
        let others = self.held.back().map(|last| &last.events);
        let events = match others.filter(|events| Arc::strong_count(events) < TOGETHER) {
            Some(events) => events.clone(),
            None => Arc::new(Futex::new(0)),
        };
        let connection = AtomicUsize::new(connection);
        let waiter = Arc::new(Waiter { connection, events, began: Instant::now() });
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

    /// `waiter` is held no longer. Whether others of its connection relied on it.
    pub(super) fn leave(&mut self, waiter: &Arc<Waiter>) -> bool {
        let was_lookout = self.is_lookout(waiter);
        self.held.retain(|other| !Arc::ptr_eq(other, waiter));
        was_lookout
    }

    /// Whether `waiter` is the one of its connection that checks its client often.
    pub(super) fn is_lookout(&self, waiter: &Arc<Waiter>) -> bool {
        let connection = waiter.connection();
        let first = self.held.iter().find(|other| other.connection() == connection);
        connection == NONE || first.is_some_and(|first| Arc::ptr_eq(first, waiter))
    }

    /// What the next sleep on whose turn it is to be woken.
    pub(super) fn next_to_wake(&mut self) -> Option<Arc<Futex>> {
        let events = self.to_wake.pop_front()?.events.clone();
        while self.to_wake.front().is_some_and(|next| Arc::ptr_eq(&next.events, &events)) {
            self.to_wake.pop_front();
        }
        Some(events)
    }
}

/// The number of no connection.
pub(super) const NONE: usize = 0;

/// A request that waits.
pub(super) struct Waiter {
    connection: AtomicUsize,
    /// Changes with each event that its thread has to see. Shared with those who sleep
    /// together.
    pub(super) events: Arc<Futex>,
    pub(super) began: Instant,
}

impl Waiter {
    /// Whose client it looks out for.
    pub(super) fn connection(&self) -> usize {
        self.connection.load(Ordering::Relaxed)
    }

    /// It no longer looks out for anybody. Returns for whom it did.
    pub(super) fn look_no_more(&self) -> usize {
        self.connection.swap(NONE, Ordering::Relaxed)
    }
}
