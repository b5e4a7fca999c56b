//! How many requests are inside, counted without a cache line that threads
//! share: each thread that makes requests has a seat of its own. When the
//! counts may be believed is the gate's affair.

use std::ops::Deref;

use super::sync::{Arc, AtomicUsize, Mutex, Ordering};

/// One thread's requests inside, which only that thread writes. Alone on its
/// cache line, and on the next, which the processor fetches along with it.
#[repr(align(128))]
pub struct Seat {
    inside: AtomicUsize,
}

/// The seats of all threads that are alive.
#[derive(Clone)]
pub struct Counts {
    taken: Arc<Mutex<Vec<Arc<Seat>>>>,
}

/// A seat, taken. It is given back when this is dropped: a thread that is gone
/// leaves nothing behind.
pub struct TakenSeat {
    seat: Arc<Seat>,
    counts: Counts,
}

impl Counts {
    /// Nobody has a seat yet.
    pub fn new() -> Self {
        Counts { taken: Arc::new(Mutex::new(Vec::new())) }
    }

    /// Takes a new seat, for one thread.
    pub fn take_seat(&self) -> TakenSeat {
        let seat = Arc::new(Seat { inside: AtomicUsize::new(0) });
        // Who sums after this finds the seat. Who drained before had closed the
        // gate before, and this lock makes the newcomer see that.
        self.taken.lock().push(seat.clone());
        TakenSeat { seat, counts: self.clone() }
    }

    /// The requests inside. Each count is exact at the moment it is read.
    pub fn sum(&self) -> usize {
        // Acquire pairs with the Release of `Seat::leave`: what a request did
        // below us has happened once it isn't counted any more.
        self.taken.lock().iter().map(|seat| seat.inside.load(Ordering::Acquire)).sum()
    }

    /// How many seats are taken.
    #[cfg(test)]
    pub fn seats(&self) -> usize {
        self.taken.lock().len()
    }
}

impl Seat {
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
        // Release: see `Counts::sum`.
        self.inside.store(before, Ordering::Release);
    }
}

impl Deref for TakenSeat {
    type Target = Seat;

    fn deref(&self) -> &Seat {
        &self.seat
    }
}

impl Drop for TakenSeat {
    fn drop(&mut self) {
        let mut taken = self.counts.taken.lock();
        if let Some(place) = taken.iter().position(|seat| Arc::ptr_eq(seat, &self.seat)) {
            taken.swap_remove(place);
        }
    }
}
