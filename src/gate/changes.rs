//! Whether a connection has changed the disk since its last flush.
//!
//! A write changes the disk first and makes a note then; a flush takes the note first
//! and flushes then. If the note is already there, a write leaves it alone, so that the
//! threads of a connection share a cache line that none of them writes:
//!
//! ```text
//!   write                              flush
//!   A1  change the disk                F1  take the note
//!       -- light barrier --                -- heavy barrier --
//!   A2  look for the note              F2  flush the disk
//!       there: leave it
//!       not there: make it
//! ```
//!
//! *Each change gets a flush or leaves a note.* As with the gate, the heavy
//! barrier falls after A1 or before A2. After A1: F2 finds the change. Before A2: A2
//! finds that the note was taken, and makes it again. With plain instructions alone
//! A2 could read the note before F1, while A1 still waits in the processor's store
//! buffer as F2 is done (a litmus test finds it, once in some thousand rounds).

use super::sync::{AtomicU32, Ordering, fence, light_barrier};
use super::{Barrier, Gate};

/// Every change is flushed.
const FLUSHED: u32 = 0;
/// Nothing was changed, but a previous server may have left its writes in a cache.
const LEFT_OVER: u32 = 1;
/// Something was changed.
const CHANGED: u32 = 2;

/// See the module's text. Any thread may use it.
pub struct Changes(AtomicU32);

/// The note that a flush has taken.
pub struct Taken(u32);

impl Changes {
    /// Nothing was changed yet.
    pub fn new() -> Self {
        Changes(AtomicU32::new(FLUSHED))
    }

    /// A flush has something to do in any case: a previous server may have left its
    /// writes in a cache.
    pub fn assume_left_over(&self) {
        self.0.fetch_max(LEFT_OVER, Ordering::AcqRel);
    }

    /// A request has changed the disk, or has tried to. Call it before its pass ends.
    #[inline]
    pub fn note(&self, gate: &Gate) {
        light_barrier();
        if gate.barrier == Barrier::Fences {
            // Pairs with the fence of `Barrier::heavy`.
            fence(Ordering::SeqCst);
        }
        // Relaxed: the barriers order it, and the end of the pass releases it to the
        // side that drains the gate.
        if self.0.load(Ordering::Relaxed) != CHANGED {
            self.0.store(CHANGED, Ordering::Relaxed);
        }
    }

    /// A flush is about to begin. It covers what was changed before; what changes from
    /// here on gets a new note.
    pub fn take(&self, gate: &Gate) -> Taken {
        let taken = self.0.swap(FLUSHED, Ordering::AcqRel);
        // If the barrier fails, the flush may miss something.
        match gate.barrier.heavy() {
            Ok(()) => Taken(taken),
            Err(_) => {
                self.0.fetch_max(CHANGED, Ordering::AcqRel);
                Taken(CHANGED)
            }
        }
    }

    /// The flush has failed.
    pub fn give_back(&self, Taken(taken): Taken) {
        self.0.fetch_max(taken, Ordering::AcqRel);
    }

    /// Whether a flush has something to do.
    pub fn want_flush(&self) -> bool {
        self.0.load(Ordering::Acquire) != FLUSHED
    }

    /// Whether something has changed since the last flush.
    pub fn are_there(&self) -> bool {
        self.0.load(Ordering::Acquire) == CHANGED
    }
}
