//! Serializes the replies to clients that are gone, or may be. Only used where nbdkit
//! can't cut a connection.
//!
//! nbdkit (1.32 measured, `raw_send_socket: Assertion "sock >= 0" failed`) ends
//! the whole server if two threads answer a dead client at the same moment: the
//! first to fail closes the socket under the other. Held requests would do just
//! that, up to 16 at once. A thread that has failed to answer ends, and what it
//! keeps here ends with it; from then on nbdkit answers nobody on that
//! connection, and the next thread may go. Which threads belong to one connection
//! is not known: a layer above us may use one connection on a thread of another.
//! So all of them stand in one line.

use std::cell::Cell;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Nobody waits longer than this for a thread that has an error to answer. It is stuck
/// in that, with a client that lives and does not read: nobody closes the socket then.
const LIMIT: Duration = Duration::from_millis(100);

/// Nor than this for one that has something to do before it answers. A plugin that
/// takes longer keeps their answers apart by itself, more or less.
const LIMIT_BEFORE_WORK: Duration = Duration::from_millis(10);

static LINE: Line = Line::new();

thread_local! {
    /// The turn of a thread that has gone through, until it ends or is back.
    static TURN: Cell<Option<Turn>> = const { Cell::new(None) };
}

/// For a thread that answers next: returns when the thread that went through before
/// it has ended, or has come back, and at the latest when that one's time is over.
pub fn wait_to_answer() {
    LINE.pass(LIMIT);
}

/// The same for a thread that has a request carried out first.
pub fn wait_to_work() {
    LINE.pass(LIMIT_BEFORE_WORK);
}

/// The calling thread has answered.
pub fn answered() {
    let _ = TURN.try_with(Cell::take);
}

struct Line {
    last: Mutex<Last>,
    free: Condvar,
}

/// Who has gone through last.
struct Last {
    number: u64,
    /// Until when others wait for it; `None` when it has left.
    until: Option<Instant>,
}

struct Turn {
    line: &'static Line,
    number: u64,
}

impl Line {
    const fn new() -> Self {
        Line { last: Mutex::new(Last { number: 0, until: None }), free: Condvar::new() }
    }

    /// `limit` is how long others wait for the calling thread.
    fn pass(&'static self, limit: Duration) {
        // It has answered the request before, and well, or it would not be here.
        answered();
        let mut last = self.last.lock();
        // Where one is given up, its successor is the next to be waited for.
        while let Some(until) = last.until.filter(|until| *until > Instant::now()) {
            self.free.wait_until(&mut last, until);
        }
        let number = last.number.wrapping_add(1);
        *last = Last { number, until: Instant::now().checked_add(limit) };
        drop(last);
        // A thread past its end has no turn to keep, and gives it back here.
        let _ = TURN.try_with(|kept| kept.set(Some(Turn { line: self, number })));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut last = self.line.last.lock();
        if last.number == self.number {
            last.until = None;
            self.line.free.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// However slow the machine is, nobody is taken to be stuck.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_thread_goes_when_the_one_before_has_ended() {
        static LINE: Line = Line::new();
        let gone = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    LINE.pass(LONG);
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
        static LINE: Line = Line::new();
        let start = Instant::now();
        for _ in 0..1_000 {
            LINE.pass(LONG);
        }
        assert!(start.elapsed() < LONG, "it waited for itself");
    }

    /// Each of them is stuck, so that the next one goes when its time is over, and not
    /// before.
    #[test]
    fn those_who_wait_for_one_that_is_stuck_go_one_after_the_other_still() {
        const LIMIT: Duration = Duration::from_millis(50);
        static LINE: Line = Line::new();
        let start = Instant::now();
        LINE.pass(LIMIT);
        let passed = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    LINE.pass(LIMIT);
                    passed.lock().push(start.elapsed());
                    thread::sleep(6 * LIMIT);
                });
            }
        });
        // At the earliest; in which order they have noted it is no matter.
        let mut passed = passed.into_inner();
        passed.sort();
        for (place, time) in (1..).zip(passed) {
            assert!(time >= place * LIMIT, "the {place}th has gone after {time:?}");
        }
    }
}
