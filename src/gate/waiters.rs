//! The waiters: requests that found the gate closed and have backed out wait here to be
//! let in, or are dropped.
//!
//! A request becomes a waiter under a lock that closing and opening take as well. So it
//! becomes one either before an opening or after it. *An opening lets in all waiters*,
//! even if the gate closes again at once:
//!
//! ```text
//!   request                            closing side
//!   W1  lock: join `held`,             O1  lock: let_in += held, `held` joins `to_wake`,
//!       since := openings                  openings += 1, state := OPEN
//!   W2  openings = since: sleep        O2  wake the next, soon
//!       else: wake the next,           C2  let_in, then the counts:
//!       count := count + 1                 all 0: drained
//!   W3  let_in -= 1
//! ```
//!
//! `queue` says who wakes whom. From O1 to W3 a waiter is counted in `let_in`, from W2 on
//! in its slot, so that no drain in between can miss it: C2 reads `let_in` first, and where it finds W3
//! done (release, acquire), W2 is done, too.
//!
//! *Which requests may be dropped.* A request checks its client once it waits. If the
//! client is there, the request is dropped when the client goes away before it is let
//! in, or when the server ends. If the client has already gone, or goes at once
//! ([`SETTLED`]), its request is carried out, however long that takes: it was sent
//! before the client left. When the server ends, such a request can't wait for an
//! operator, and has the gate opened.

use std::time::{Duration, Instant};

use super::queue::Waiter;
use super::sync::{Arc, Deadline, Ordering, fence};
use super::{CLOSED, DRAINING, Gate, Pass, Slot};

/// A held request checks its client this often ...
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// ... or less often where many are held, so that they check this far apart together ...
const LOOK_EACH: Duration = Duration::from_micros(3_500);

/// ... but at least this often: the thread of a dead client is free within a second.
const LOOK_AT_LAST: Duration = Duration::from_millis(900);

/// A client that is there when its request begins to wait may have disconnected
/// already, and close its socket a moment later: what a layer above us then does for
/// itself looks like a request of that client. One that is still there after this
/// time counts as connected.
pub(super) const SETTLED: Duration = Duration::from_millis(10);

/// What is lost if a request isn't carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Something that its client relies on.
    All,
    /// Nothing: it may be dropped whenever the server ends.
    Nothing,
}

/// How a wait can end before the gate opens.
enum Early<'a> {
    /// The client goes away while its request waits, or the server ends. A client
    /// that had gone before makes no difference.
    ClientGoes(Worth, &'a dyn Fn() -> bool),
    /// There is nothing left to do inside.
    Done(&'a dyn Fn() -> bool),
}

/// The request waited, and was dropped; it never was inside.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped;

impl Gate {
    /// What to do if `enter` says no: waits for the next opening. The request is
    /// dropped if its client goes away meanwhile, or if the server ends, but never if
    /// the client had gone before.
    ///
    /// `is_gone` says whether the client has gone. The gate asks when the request
    /// begins to wait, every 100 to 900 ms, and before it goes in.
    pub fn wait<'a>(
        &'a self,
        slot: &'a Slot,
        worth: Worth,
        is_gone: impl Fn() -> bool,
    ) -> Result<Pass<'a>, Dropped> {
        self.wait_for_opening(slot, &Early::ClientGoes(worth, &is_gone))
    }

    /// The same for work that is needed only as long as `is_done` says no, which the
    /// gate asks every 100 to 900 ms. `None` if it was done meanwhile.
    pub fn wait_unless<'a>(
        &'a self,
        slot: &'a Slot,
        is_done: impl Fn() -> bool,
    ) -> Option<Pass<'a>> {
        self.wait_for_opening(slot, &Early::Done(&is_done)).ok()
    }

    /// W1: `Err` has who waits, and the openings so far. `Ok` if the gate was opened a
    /// moment ago: the request is counted in, and that is what the slot counted before.
    fn begin_to_wait(&self, slot: &Slot) -> Result<usize, (Arc<Waiter>, usize)> {
        let mut waiters = self.waiters.lock();
        if self.state.load(Ordering::Relaxed) & CLOSED == 0 {
            // No barrier: closing the gate takes the lock first.
            return Ok(slot.enter());
        }
        let waiter = waiters.join();
        Err((waiter, self.openings.load(Ordering::Relaxed)))
    }

    #[cold]
    fn wait_for_opening<'a>(&'a self, slot: &'a Slot, early: &Early) -> Result<Pass<'a>, Dropped> {
        let pass = |before| Pass { gate: self, slot, before };
        let (waiter, since) = match self.begin_to_wait(slot) {
            Ok(before) => return Ok(pass(before)),
            Err(waits) => waits,
        };
        let has_gone = match early {
            Early::ClientGoes(_, is_gone) => {
                is_gone() || self.leaves_at_once(&waiter, since, is_gone)
            }
            Early::Done(_) => false,
        };
        if has_gone && matches!(early, Early::ClientGoes(Worth::All, _)) {
            self.count_as_undroppable(since);
        }
        loop {
            // Acquire, here and below: it pairs with `open` and `shut_down`.
            let seen = waiter.events.load(Ordering::Acquire);
            // In this order, so that we see a client that had gone when the gate
            // was opened.
            let is_let_in = self.openings.load(Ordering::Acquire) != since;
            if is_let_in {
                // Before we ask about our client, which can take a while.
                self.wake();
            }
            let is_over = match early {
                Early::ClientGoes(Worth::All, _) if has_gone => false,
                Early::ClientGoes(_, is_gone) => {
                    self.ending.load(Ordering::Acquire) || !has_gone && is_gone()
                }
                Early::Done(is_done) => is_done(),
            };
            if is_over {
                self.end_to_wait(&waiter, since);
                return Err(Dropped);
            }
            if is_let_in {
                let before = slot.enter(); // W2
                // W3. Release: see the file's text.
                self.let_in.fetch_sub(1, Ordering::Release);
                return Ok(pass(before));
            }
            if let Some(limit) = self.may_sleep(&waiter, since) {
                waiter.events.wait(seen, &Deadline::after(limit));
                waiter.is_asleep.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Whether the client of a request that waits since `since` leaves before it has settled.
    fn leaves_at_once(&self, waiter: &Waiter, since: usize, is_gone: &dyn Fn() -> bool) -> bool {
        let is_ending = || self.ending.load(Ordering::Acquire);
        // A futex may wake up for no reason, and this time is to be whole.
        let sleep = |limit| {
            let deadline = Deadline::after(limit);
            let mut is_over = false;
            while !is_over && !is_ending() {
                let seen = waiter.events.load(Ordering::Acquire);
                if self.may_sleep(waiter, since).is_none() {
                    // Its turn, before it asks about its client.
                    return self.wake();
                }
                // `shut_down` counts its event after it has set what `is_ending` reads.
                is_over = is_ending() || waiter.events.wait_briefly(seen, &deadline);
                waiter.is_asleep.store(false, Ordering::Relaxed);
            }
        };
        sleep(SETTLED);
        if is_ending() || !is_gone() {
            return false;
        }
        // The end of the server looks like that of a client until `shut_down` is called.
        sleep(LOOK_AGAIN);
        !is_ending()
    }

    /// A request that waits since `since` must not be dropped.
    fn count_as_undroppable(&self, since: usize) {
        {
            let mut waiters = self.waiters.lock();
            if self.openings.load(Ordering::Relaxed) != since {
                return;
            }
            waiters.undroppable = waiters.undroppable.wrapping_add(1);
        }
        // Either `shut_down` has seen it, or it sees here what `shut_down` has done.
        if self.ending.load(Ordering::Acquire) {
            (self.wake_closing_side)();
        }
    }

    /// A request that waits since `since` is dropped.
    fn end_to_wait(&self, waiter: &Arc<Waiter>, since: usize) {
        let is_draining = {
            let mut waiters = self.waiters.lock();
            if self.openings.load(Ordering::Relaxed) == since {
                waiters.leave(waiter);
                return;
            }
            self.let_in.fetch_sub(1, Ordering::Release);
            self.state.load(Ordering::Relaxed) & DRAINING != 0
        };
        // It was let in meanwhile, and may have been woken for that.
        self.wake();
        if is_draining {
            // The drain may have counted it. As in `leave_slowly`: of one that leaves and
            // this one, the later sees that both have gone.
            fence(Ordering::SeqCst);
            (self.wake_closing_side)();
        }
    }

    /// The server is shutting down. Held requests that may be dropped are, now and
    /// later; if one waits that must not be, [`Gate::must_open`] says so.
    pub fn shut_down(&self) {
        {
            let _waiters = self.waiters.lock();
            self.ending.store(true, Ordering::Release);
        }
        self.stir();
    }

    /// Has all who are held look around.
    pub(super) fn stir(&self) {
        let held = self.waiters.lock().held.clone();
        held.iter().for_each(|waiter| waiter.events.signal());
    }

    /// How long to sleep before the next check of the client; nothing if the request was
    /// let in meanwhile. Whoever takes the waiter out of the queue wakes it from here on.
    fn may_sleep(&self, waiter: &Waiter, since: usize) -> Option<Duration> {
        let waiters = self.waiters.lock();
        if self.openings.load(Ordering::Relaxed) != since {
            return None;
        }
        waiter.is_asleep.store(true, Ordering::Relaxed);
        let held = u32::try_from(waiters.held.len()).unwrap_or(u32::MAX);
        Some(LOOK_EACH.saturating_mul(held).clamp(LOOK_AGAIN, LOOK_AT_LAST))
    }

    /// Whether the server ends and a request waits that must not be dropped: only
    /// an opening gets it out of the way.
    pub fn must_open(&self) -> bool {
        self.ending.load(Ordering::Acquire) && self.waiters.lock().undroppable > 0
    }

    /// How many requests wait; for the log, it may be old at once.
    pub fn held(&self) -> usize {
        self.waiters.lock().held.len()
    }

    /// When the request began to wait that waits for the longest time, if one does.
    pub fn oldest_held(&self) -> Option<Instant> {
        self.waiters.lock().held.front().map(|waiter| waiter.began)
    }
}
