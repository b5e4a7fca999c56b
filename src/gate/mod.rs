//! The gate: requests pass it while it is open and wait while it is closed;
//! the closing side learns when the last request inside has left. It knows
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
//!   E2  look at state                  C2  look at the counts
//!       OPEN: go in                        0: drained
//!       else: back out, wait               else: wait to be woken, look again
//!       ...
//!   L1  count := count - 1
//!       -- light barrier --
//!   L2  look at state
//!       DRAINING: full fence, look at the counts
//!           0: wake the closing side
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
//! *On a weakly ordered machine* (arm64, POWER, RISC-V) the argument is the same. It
//! speaks of the point of the barrier in the *program*, not of when E1 and E2 reach
//! memory: what precedes that point is visible before C2, and what follows it sees C1,
//! on every architecture that has membarrier(2). A processor that swaps E1 and E2 does
//! so on one side of the barrier, where each side alone decides the case. What x86-64
//! gives for free is asked for by name: Release at L1 and at the opening, Acquire at E2
//! and C2. So nothing that a request does inside moves before E2 or after L1, and what
//! was done while the gate was closed has happened for whoever finds it open.
//!
//! *No drain is left waiting.* The same argument over L1 and L2: either C2 sees
//! the count gone, or L2 sees DRAINING. Those who see it sum the counts behind a full
//! fence. The one whose fence is the last sees that all others have left: those
//! behind a fence, and those that C2 saw gone. So it wakes the closing side, or C2 comes
//! later than all that and needs no waking. The wake-up carries L1 along (`Slot::leave`
//! releases, `Counts::are_zero` acquires). Backing out is leaving: it, too, may wake a
//! closing side that saw a request which was never inside. (`enter_at_once` backs out in
//! silence; the `enter` that follows speaks for it.)
//!
//! `waiters` and `queue` are about requests that have backed out, `thread_slot` about how
//! a thread finds its count, `changes` about what was changed inside and needs a flush.
//!
//! # Without membarrier
//!
//! Where there is no membarrier the state carries FENCED from the first to the
//! last request. Then no state is OPEN, every entry and exit takes the slow path,
//! and there a full fence stands between the store and a second look (E1, fence,
//! E2; L1, fence, L2), paired with the full fence of the closing side.

mod barrier;
mod changes;
mod counts;
mod queue;
mod sync;
#[cfg(test)]
mod tests;
pub mod thread_slot;
mod waiters;

use std::mem;

pub use barrier::{Barrier, BarrierFailed};
pub use changes::Changes;
pub use counts::{OwnedSlot, Slot};
pub use waiters::{Dropped, Worth};

use counts::Counts;
use queue::Waiters;
use sync::{AtomicBool, AtomicU32, AtomicUsize, Mutex, Ordering, fence, light_barrier};

/// Requests pass.
const OPEN: u32 = 0;
/// Requests wait.
const CLOSED: u32 = 1;
/// Requests may still be inside, and one that leaves has to wake the closing side.
const DRAINING: u32 = 2;
/// There is no membarrier: look again behind a fence.
const FENCED: u32 = 4;

/// See the module's text. Requests may come on any thread. There is one closing side:
/// only one thread at a time calls `close`, `drained` and `open`.
pub struct Gate {
    /// | value (beside FENCED) | meaning |
    /// |---|---|
    /// | OPEN | requests pass |
    /// | CLOSED, DRAINING | requests wait; some may still be inside |
    /// | CLOSED | requests wait; none is inside |
    /// | DRAINING alone | never |
    ///
    /// FENCED is in all of them or in none. Only written with `waiters` locked.
    state: AtomicU32,
    barrier: Barrier,
    counts: Counts,
    waiters: Mutex<Waiters>,
    /// How often the gate was opened after it was closed. Only written with `waiters`
    /// locked.
    openings: AtomicUsize,
    /// Requests that an opening has let in and that no slot counts yet.
    let_in: AtomicUsize,
    /// The server is shutting down.
    ending: AtomicBool,
    wake_closing_side: Box<dyn Fn() + Send + Sync>,
}

/// The right of one request to be inside; it leaves when this is dropped.
pub struct Pass<'a> {
    gate: &'a Gate,
    slot: &'a Slot,
    /// What the slot counted before this request.
    before: usize,
}

impl Gate {
    /// An open gate. It calls `wake_closing_side`, on a thread that makes requests,
    /// when it is time to ask [`Gate::drained`] and [`Gate::must_open`] again, and
    /// sometimes in vain. That function must not wait for anything.
    pub fn new(barrier: Barrier, wake_closing_side: impl Fn() + Send + Sync + 'static) -> Self {
        Gate {
            state: AtomicU32::new(match barrier {
                Barrier::Membarrier => OPEN,
                Barrier::Fences => OPEN | FENCED,
            }),
            barrier,
            counts: Counts::new(),
            waiters: Mutex::new(Waiters::default()),
            openings: AtomicUsize::new(0),
            let_in: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            wake_closing_side: Box::new(wake_closing_side),
        }
    }

    /// A place for the calling thread. Every thread that makes requests needs
    /// one of its own, and keeps it as long as it makes requests.
    pub fn take_slot(&self) -> OwnedSlot {
        self.counts.take_slot()
    }

    /// Goes in if the gate is open, and asks nothing that takes a call. If it says no,
    /// call `enter`: a drain may have seen this request, and `enter` tells it that it has
    /// backed out.
    ///
    /// `slot` is the calling thread's own, and of this gate.
    #[inline]
    pub fn enter_at_once<'a>(&'a self, slot: &'a Slot) -> Option<Pass<'a>> {
        let before = slot.enter(); // E1
        light_barrier();
        // E2. Acquire pairs with the Release of `open`: what was done while
        // the gate was closed has happened. The barriers do the rest.
        if self.state.load(Ordering::Acquire) == OPEN {
            return Some(Pass { gate: self, slot, before });
        }
        slot.leave(before);
        None
    }

    /// Goes in if the gate is open.
    ///
    /// `slot` is the calling thread's own, and of this gate.
    pub fn enter<'a>(&'a self, slot: &'a Slot) -> Option<Pass<'a>> {
        let pass = Pass { gate: self, slot, before: slot.enter() }; // E1
        light_barrier();
        // E2. To back out is to leave.
        (self.look_behind_fence() & CLOSED == 0).then_some(pass)
    }

    #[inline]
    fn leave(&self, slot: &Slot, before: usize) {
        slot.leave(before); // L1
        light_barrier();
        // L2. Relaxed: the barriers order it, and nothing is read through it.
        if self.state.load(Ordering::Relaxed) != OPEN {
            self.leave_slowly();
        }
    }

    #[cold]
    fn leave_slowly(&self) {
        if self.look_behind_fence() & DRAINING == 0 {
            return;
        }
        // Between L1 and the sum: of two that leave, the later one sees that both have.
        fence(Ordering::SeqCst);
        if self.is_empty() {
            (self.wake_closing_side)();
        }
    }

    /// Whether nobody is inside, or on the way there. Who was let in has a count before
    /// it leaves `let_in`.
    fn is_empty(&self) -> bool {
        self.let_in.load(Ordering::Acquire) == 0 && self.counts.are_zero()
    }

    /// E2 and L2 of the slow path.
    fn look_behind_fence(&self) -> u32 {
        if self.barrier == Barrier::Fences {
            // Pairs with the fence of `Barrier::heavy`, between C1 and C2.
            fence(Ordering::SeqCst);
        }
        // Acquire: see `enter_at_once`.
        self.state.load(Ordering::Acquire)
    }

    /// Closes the gate. Requests wait from here on; ask [`Gate::drained`] now,
    /// and each time that `wake_closing_side` was called. Closing a closed gate
    /// changes nothing.
    ///
    /// # Errors
    /// The barrier failed, so the gate is open.
    pub fn close(&self) -> Result<(), BarrierFailed> {
        {
            let _waiters = self.waiters.lock();
            let state = self.state.load(Ordering::Relaxed);
            if state & CLOSED != 0 {
                return Ok(());
            }
            // C1. Relaxed: the barrier below orders it before C2.
            self.state.store(state | CLOSED | DRAINING, Ordering::Relaxed);
        }
        self.barrier.heavy().inspect_err(|_| {
            self.open();
            self.wake();
        })
    }

    /// Whether the gate is closed and no request is inside. Once true it stays
    /// so until the gate is opened.
    pub fn drained(&self) -> bool {
        let _waiters = self.waiters.lock();
        let state = self.state.load(Ordering::Relaxed);
        if state & DRAINING == 0 {
            return state & CLOSED != 0;
        }
        // C2. A count that is zero now can only rise for a moment, by a
        // request that is about to see the mark and back out. So the counts
        // need not be read all at once.
        if !self.is_empty() {
            return false;
        }
        // A request that was counted out is done: `are_zero` has acquired.
        self.state.store(state & !DRAINING, Ordering::Relaxed);
        true
    }

    /// Opens the gate and lets in every request that waits. Opening an open gate
    /// changes nothing. New requests pass from here on; call [`Gate::wake`] soon.
    pub fn open(&self) {
        let mut waiters = self.waiters.lock();
        let state = self.state.load(Ordering::Relaxed);
        if state & CLOSED == 0 {
            return;
        }
        // O1
        self.let_in.fetch_add(waiters.let_in(), Ordering::Relaxed);
        let openings = self.openings.load(Ordering::Relaxed);
        // Release, twice: what was done while the gate was closed has
        // happened for requests that are let in, or find the gate open.
        self.openings.store(openings.wrapping_add(1), Ordering::Release);
        self.state.store(state & FENCED, Ordering::Release);
    }

    /// Wakes the first of the requests that `open` has let in, and each that wakes up
    /// wakes the next. Apart from `open`, so that the controller can get its reply before
    /// many threads want the processors.
    pub fn wake(&self) {
        let next = self.waiters.lock().next_to_wake();
        if let Some(events) = next {
            events.signal();
        }
    }

    /// How many requests are inside; for the log, it may be old at once.
    pub fn in_flight(&self) -> usize {
        self.let_in.load(Ordering::Relaxed).wrapping_add(self.counts.sum())
    }

    /// How many threads have a slot.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.counts.slots()
    }

    /// How the closing side and the requests see each other; for the log.
    pub fn barrier(&self) -> Barrier {
        self.barrier
    }
}

impl Pass<'_> {
    /// Stays inside until the slot has left (`Gate::leave`) with what is returned.
    fn keep(self) -> usize {
        let before = self.before;
        mem::forget(self);
        before
    }
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.leave(self.slot, self.before);
    }
}
