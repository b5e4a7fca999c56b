//! The gate: requests pass it while it is open and wait while it is closed;
//! whoever closed it learns when the last request inside has left. It knows
//! nothing of nbdkit, of sockets or of logging.
//!
//! # The idea and its cost
//!
//! A request is the common case and a pause is rare, so the pause pays. Each
//! thread counts its requests in a place that only it writes; entering and
//! leaving are a plain store and a plain load each, with no locked instruction
//! and no shared cache line that anybody writes. Closing costs one
//! `membarrier(2)` and a walk over the counts of all threads.
//!
//! # Why it is right
//!
//! ```text
//!   request                            closing side
//!   E1  count := count + 1             C1  state := CLOSED | DRAINING
//!       -- light barrier --                -- heavy barrier --
//!   E2  look at state                  C2  sum the counts
//!       OPEN: go in                        0: drained
//!       else: back out, wait               else: wait to be woken, sum again
//!       ...
//!   L1  count := count - 1
//!       -- light barrier --
//!   L2  look at state
//!       DRAINING: wake the closing side
//! ```
//!
//! *No request passes a closed and drained gate.* The heavy barrier makes each
//! other thread pass a full barrier at some point of its program while the
//! closing side is between C1 and C2. The light barrier keeps the compiler from
//! swapping E1 and E2, so for a given entry that point lies either after E1 or
//! before E2. After E1: the count has been made visible before C2, which sees
//! it: the gate isn't drained. Before E2: E2 comes after C1 and sees the gate
//! closed: the request backs out. There is no third case, and a plain store is
//! enough for E1, since it is the kernel that drains the store buffer, when it
//! matters. A thread that isn't running has passed a full barrier when it was
//! switched off, and passes one when it is switched on.
//!
//! *No drain is left waiting.* The same argument over L1 and L2: either C2 sees
//! the count gone, or L2 sees DRAINING and wakes the closing side, which sums
//! again; the wake-up carries L1 along (`Seat::leave` releases, `Counts::sum`
//! acquires). Backing out is leaving: it, too, may wake a closing side that saw
//! a request which was never inside.
//!
//! *No wake-up is lost.* Requests sleep on the state itself, a futex: the kernel
//! puts a request to sleep only if the state is still the one it saw, and
//! opening changes the state before it wakes.
//!
//! Where there is no membarrier the state carries FENCED from the first to the
//! last request. Then no state is OPEN, every entry and exit takes the slow path,
//! and there a full fence stands between the store and a second look (E1, fence,
//! E2; L1, fence, L2), paired with the full fence of the closing side.

mod barrier;
mod counts;
mod sync;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use barrier::{Barrier, BarrierFailed};
pub use counts::{Seat, TakenSeat};

use counts::Counts;
use sync::{AtomicUsize, Futex, Mutex, Ordering, fence, light_barrier};

/// Requests pass.
const OPEN: u32 = 0;
/// Requests wait.
const CLOSED: u32 = 1;
/// Requests may still be inside, and who leaves has to wake the closing side.
const DRAINING: u32 = 2;
/// There is no membarrier: look again behind a fence.
const FENCED: u32 = 4;

/// A held request looks at least this often whether waiting is still of use.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// See the module's text. All methods may be called from any thread.
pub struct Gate {
    /// | value (beside FENCED) | meaning |
    /// |---|---|
    /// | OPEN | requests pass |
    /// | CLOSED, DRAINING | requests wait; some may still be inside |
    /// | CLOSED | requests wait; none is inside |
    /// | DRAINING alone | never |
    ///
    /// FENCED is in all of them or in none. Only written with `switch` locked.
    state: Futex,
    /// How often the gate was opened, the first time included. Next to `state`,
    /// since every request reads both.
    openings: AtomicUsize,
    barrier: Barrier,
    switch: Mutex<()>,
    counts: Counts,
    held: AtomicUsize,
    wake_closing_side: Box<dyn Fn() + Send + Sync>,
}

/// The right of one request to be inside; it leaves when this is dropped.
pub struct Pass<'a> {
    gate: &'a Gate,
    seat: &'a Seat,
    /// What the seat counted before this request.
    before: usize,
}

/// Waiting was of no use any more; the request did not go in.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Gate {
    /// An open gate. `wake_closing_side` is called, on a thread that makes
    /// requests, when it is time to ask [`Gate::drained`] again; it may be
    /// called in vain, and must not wait for anything.
    pub fn new(barrier: Barrier, wake_closing_side: impl Fn() + Send + Sync + 'static) -> Self {
        Gate {
            state: Futex::new(match barrier {
                Barrier::Membarrier => OPEN,
                Barrier::Fences => OPEN | FENCED,
            }),
            openings: AtomicUsize::new(1),
            barrier,
            switch: Mutex::new(()),
            counts: Counts::new(),
            held: AtomicUsize::new(0),
            wake_closing_side: Box::new(wake_closing_side),
        }
    }

    /// A place for the calling thread. Every thread that makes requests needs
    /// one of its own, and keeps it as long as it makes requests.
    pub fn take_seat(&self) -> TakenSeat {
        self.counts.take_seat()
    }

    /// Goes in, or waits until that is possible. `is_gone` is asked when the
    /// request starts to wait, every 100 ms while it waits, and once more
    /// before it goes on: where it says yes, the request never goes in.
    ///
    /// `seat` is the calling thread's own, and of this gate.
    #[inline]
    pub fn enter<'a>(
        &'a self,
        seat: &'a Seat,
        is_gone: impl Fn() -> bool,
    ) -> Result<Pass<'a>, Gone> {
        let before = seat.enter(); // E1
        light_barrier();
        // E2. Acquire pairs with the Release of `open`: what was done while
        // the gate was closed has happened. The barriers do the rest.
        if self.state.load(Ordering::Acquire) != OPEN {
            self.enter_slowly(seat, before, &is_gone)?;
        }
        Ok(Pass { gate: self, seat, before })
    }

    /// What `enter` does where the state isn't OPEN; counted in already.
    #[cold]
    fn enter_slowly(
        &self,
        seat: &Seat,
        before: usize,
        is_gone: &dyn Fn() -> bool,
    ) -> Result<(), Gone> {
        while self.look_behind_fence() & CLOSED != 0 {
            self.leave(seat, before);
            self.wait_until_open(is_gone)?;
            seat.enter(); // E1
            light_barrier();
        }
        Ok(())
    }

    fn wait_until_open(&self, is_gone: &dyn Fn() -> bool) -> Result<(), Gone> {
        self.held.fetch_add(1, Ordering::Relaxed);
        let result = loop {
            if is_gone() {
                break Err(Gone);
            }
            // Acquire: see `enter`.
            let state = self.state.load(Ordering::Acquire);
            if state & CLOSED == 0 {
                break Ok(());
            }
            self.state.wait(state, LOOK_AGAIN);
        };
        self.held.fetch_sub(1, Ordering::Relaxed);
        result
    }

    #[inline]
    fn leave(&self, seat: &Seat, before: usize) {
        seat.leave(before); // L1
        light_barrier();
        // L2. Relaxed: the barriers order it, and nothing is read through it.
        if self.state.load(Ordering::Relaxed) != OPEN {
            self.leave_slowly();
        }
    }

    #[cold]
    fn leave_slowly(&self) {
        if self.look_behind_fence() & DRAINING != 0 {
            (self.wake_closing_side)();
        }
    }

    /// E2 and L2 of the slow path.
    fn look_behind_fence(&self) -> u32 {
        if self.barrier == Barrier::Fences {
            // Pairs with the fence of `Barrier::heavy`, between C1 and C2.
            fence(Ordering::SeqCst);
        }
        // Acquire: see `enter`.
        self.state.load(Ordering::Acquire)
    }

    /// Closes the gate. Requests wait from here on; ask [`Gate::drained`] now,
    /// and each time that `wake_closing_side` was called. Closing a closed gate
    /// changes nothing.
    ///
    /// # Errors
    /// The gate is open where the barrier could not be had.
    pub fn close(&self) -> Result<(), BarrierFailed> {
        {
            let _switch = self.switch.lock();
            let state = self.state.load(Ordering::Relaxed);
            if state & CLOSED != 0 {
                return Ok(());
            }
            // C1. Relaxed: the barrier below orders it before C2.
            self.state.store(state | CLOSED | DRAINING, Ordering::Relaxed);
        }
        self.barrier.heavy().inspect_err(|_| self.open())
    }

    /// Whether the gate is closed and no request is inside. Once true it stays
    /// so until the gate is opened.
    pub fn drained(&self) -> bool {
        let _switch = self.switch.lock();
        let state = self.state.load(Ordering::Relaxed);
        if state & DRAINING == 0 {
            return state & CLOSED != 0;
        }
        // C2. A count that is zero now can only rise for a moment, by a
        // request that is about to see the mark and back out. So the counts
        // need not be read all at once.
        if self.counts.sum() != 0 {
            return false;
        }
        // A request that was counted out is done: `sum` has acquired.
        self.state.store(state & !DRAINING, Ordering::Relaxed);
        true
    }

    /// Opens the gate and wakes every request that waits. Opening an open gate
    /// changes nothing.
    pub fn open(&self) {
        let _switch = self.switch.lock();
        let state = self.state.load(Ordering::Relaxed);
        let openings = self.openings.load(Ordering::Relaxed);
        self.openings.store(openings.wrapping_add(1), Ordering::Relaxed);
        // Release: see `enter`.
        self.state.store(state & FENCED, Ordering::Release);
        self.state.wake_all();
    }

    /// How often the gate was opened, at least once. Who is inside sees every opening up
    /// to the one that let it in (`open` releases, `enter` acquires).
    #[inline]
    pub fn openings(&self) -> usize {
        self.openings.load(Ordering::Relaxed)
    }

    /// How many requests are inside; for the log, it may be old at once.
    pub fn in_flight(&self) -> usize {
        self.counts.sum()
    }

    /// How many requests wait; for the log, it may be old at once.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How many threads have a seat.
    #[cfg(test)]
    pub fn seats(&self) -> usize {
        self.counts.seats()
    }

    /// How the closing side and the requests see each other; for the log.
    pub fn barrier(&self) -> Barrier {
        self.barrier
    }
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.leave(self.seat, self.before);
    }
}
