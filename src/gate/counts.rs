//! How many requests are inside, counted without a cache line that threads
//! share: each thread that makes requests has a slot of its own. The gate knows
//! when to trust the counts.

use std::ops::Deref;

use super::sync::{Arc, AtomicUsize, Mutex, Ordering};

/// The count of one thread's requests inside, which only that thread writes. Alone
/// on its cache line, and on the next, which the processor fetches along with it.
#[repr(align(128))]
pub struct Slot {
    inside: AtomicUsize,
}

/// The slots of all threads that are alive.
#[derive(Clone)]
pub struct Counts {
    taken: Arc<Mutex<Vec<Arc<Slot>>>>,
}

/// A slot, taken. It is given back when this is dropped: a thread that is gone
/// leaves nothing behind.
pub struct OwnedSlot {
    slot: Arc<Slot>,
    counts: Counts,
}

impl Counts {
    /// Without slots.
    pub fn new() -> Self {
        Counts { taken: Arc::new(Mutex::new(Vec::new())) }
    }

    /// Takes a new slot, for one thread.
    pub fn take_slot(&self) -> OwnedSlot {
        let slot = Arc::new(Slot { inside: AtomicUsize::new(0) });
        // A sum after this includes the slot. A drain before this had closed the
        // gate before, and this lock makes the new thread see that.
        self.taken.lock().push(slot.clone());
        OwnedSlot { slot, counts: self.clone() }
    }

    /// Whether no request is inside. Each count is exact at the moment it is read.
    pub fn are_zero(&self) -> bool {
        // Acquire pairs with the Release of `Slot::leave`: what a request did
        // below us has happened once it is no longer counted.
        self.taken.lock().iter().all(|slot| slot.inside.load(Ordering::Acquire) == 0)
    }

    /// The requests inside, for the log.
    pub fn sum(&self) -> usize {
        self.taken.lock().iter().map(|slot| slot.inside.load(Ordering::Relaxed)).sum()
    }

    /// How many slots are taken.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.taken.lock().len()
    }
}

impl Slot {
    /// Counts a request in, and says how many of this thread's were inside
    /// before. Relaxed: the gate orders it by its barriers.
    #[inline]
    pub fn enter(&self) -> usize {
        let before = self.inside.load(Ordering::Relaxed);
        self.inside.store(before.wrapping_add(1), Ordering::Relaxed);
        before
    }

    /// Counts the request out that found `before` inside. Stored as it was
    /// then: to load it again would wait for the store just made.
    #[inline]
    pub fn leave(&self, before: usize) {
        // Release: see `Counts::are_zero`.
        self.inside.store(before, Ordering::Release);
    }
}

impl Deref for OwnedSlot {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for OwnedSlot {
    fn drop(&mut self) {
        let mut taken = self.counts.taken.lock();
        if let Some(place) = taken.iter().position(|slot| Arc::ptr_eq(slot, &self.slot)) {
            taken.swap_remove(place);
        }
    }
}
