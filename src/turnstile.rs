//! Lets the threads of one connection go one after the other, where many have
//! to end a request for a client that is gone.
//!
//! nbdkit (1.32 measured, `raw_send_socket: Assertion "sock >= 0" failed`) ends
//! the whole server if two threads answer a dead client at the same moment: the
//! first to fail closes the socket under the other. Held requests would do just
//! that, up to 16 at once. A thread that has failed to answer ends, and what it
//! keeps here ends with it; from then on nbdkit answers nobody on that
//! connection, and the next thread may go.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Who has to be waited for no longer than this is stuck in its answer, to a
/// client that lives and does not read: nobody closes the socket then.
const LIMIT: Duration = Duration::from_millis(100);

thread_local! {
    /// The turn of a thread that has gone through, until it ends or is back.
    static TURN: Cell<Option<Turn>> = const { Cell::new(None) };
}

/// See the file's text.
pub struct Turnstile {
    limit: Duration,
    taken: Mutex<bool>,
    free: Condvar,
}

impl Default for Turnstile {
    fn default() -> Self {
        Turnstile { limit: LIMIT, taken: Mutex::default(), free: Condvar::default() }
    }
}

struct Turn(Arc<Turnstile>);

impl Turnstile {
    /// Returns when the thread that went through before the calling one has
    /// ended, or has come back with another request.
    pub fn pass(self: &Arc<Self>) {
        // It has answered the request before, and well, or it would not be here.
        let _ = TURN.try_with(Cell::take);
        let turn = Turn(self.clone());
        let deadline = Instant::now().checked_add(self.limit);
        let mut taken = self.taken.lock();
        while *taken {
            let waited = deadline.map(|deadline| self.free.wait_until(&mut taken, deadline));
            if waited.is_none_or(|waited| waited.timed_out()) {
                break;
            }
        }
        *taken = true;
        drop(taken);
        // A thread past its end has no turn to keep, and gives it back here.
        let _ = TURN.try_with(|kept| kept.set(Some(turn)));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken.lock() = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_goes_when_the_one_before_has_ended() {
        // However slow the machine is, nobody is taken to be stuck.
        let limit = Duration::from_secs(60);
        let turnstile = Arc::new(Turnstile { limit, ..Turnstile::default() });
        let gone = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    turnstile.pass();
                    // Alone: who is next waits until this thread has ended.
                    let before = gone.load(Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(2));
                    assert_eq!(gone.fetch_add(1, Ordering::SeqCst), before);
                });
            }
        });
        assert_eq!(gone.load(Ordering::SeqCst), 8);
    }

    #[test]
    fn a_thread_that_is_back_is_waited_for_no_more() {
        let turnstile = Arc::new(Turnstile::default());
        let start = Instant::now();
        for _ in 0..1_000 {
            turnstile.pass();
        }
        assert!(start.elapsed() < 50 * LIMIT, "it waited for itself");
    }

    #[test]
    fn a_thread_that_is_stuck_keeps_nobody_for_long() {
        let turnstile = Arc::new(Turnstile::default());
        turnstile.pass();
        thread::scope(|scope| scope.spawn(|| turnstile.pass()).join().unwrap());
    }
}
