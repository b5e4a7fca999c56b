//! How many requests are inside, counted without a shared cache line: each
//! thread that makes requests has a count of its own, which only it writes.
//! Whether those counts may be believed at a given moment is the gate's affair.

use super::sync::{Arc, AtomicUsize, Mutex, Ordering};

/// One thread's requests inside. Alone on its cache line and on the next,
/// which the processor fetches along with it.
#[repr(align(128))]
struct Count(AtomicUsize);

/// All counts of the threads that are alive.
#[derive(Clone)]
pub struct Counts {
    seated: Arc<Mutex<Vec<Arc<Count>>>>,
}

/// A thread's place in the counts. It is given back when dropped: a thread
/// that is gone leaves nothing behind.
pub struct Seat {
    count: Arc<Count>,
    counts: Counts,
}

impl Counts {
    pub fn new() -> Self {
        Counts {
            seated: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// Takes a new count, for one thread.
    pub fn seat(&self) -> Seat {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        // Whoever sums after this sees the count; who summed before has closed
        // the gate before, and this lock makes the newcomer see that.
        self.seated.lock().push(count.clone());
        Seat {
            count,
            counts: self.clone(),
        }
    }

    /// The requests inside. Each count is exact at the moment it is read.
    pub fn sum(&self) -> usize {
        // Acquire pairs with the Release of `Seat::leave`: what a request did
        // below us has happened once it isn't counted any more.
        self.seated
            .lock()
            .iter()
            .map(|count| count.0.load(Ordering::Acquire))
            .sum()
    }

    /// The threads that have a count.
    #[cfg(test)]
    pub fn seats(&self) -> usize {
        self.seated.lock().len()
    }
}

impl Seat {
    /// Counts a request in. Relaxed: the gate orders it by its barriers.
    #[inline]
    pub fn enter(&self) {
        let inside = self.count.0.load(Ordering::Relaxed);
        self.count
            .0
            .store(inside.wrapping_add(1), Ordering::Relaxed);
    }

    /// Counts a request out.
    #[inline]
    pub fn leave(&self) {
        let inside = self.count.0.load(Ordering::Relaxed);
        // Release: see `Counts::sum`.
        self.count
            .0
            .store(inside.wrapping_sub(1), Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seated = self.counts.seated.lock();
        if let Some(place) = seated
            .iter()
            .position(|count| Arc::ptr_eq(count, &self.count))
        {
            seated.swap_remove(place);
        }
    }
}
