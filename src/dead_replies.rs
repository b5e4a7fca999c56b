//! Serializes the replies to clients that are gone, or may be. Only used if nbdkit
//! can't cut a connection.
//!
//! nbdkit (1.32 measured, `raw_send_socket: Assertion "sock >= 0" failed`) ends
//! the whole server if two threads answer a dead client at the same moment: the
//! first to fail closes the socket under the other. Held requests would do just
//! that, up to 16 at once. A thread that has failed to answer ends, and gives up its
//! turn here; from then on nbdkit sends no answer on that connection, and the next
//! thread may go. We don't know which threads belong to one connection: a layer above
//! us may use one connection on a thread of another. So they all share one queue.

use std::cell::Cell;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// No thread waits longer than this for one that has an error to answer. That one is
/// stuck with a client that lives and does not read, so nothing closes the socket.
const LIMIT: Duration = Duration::from_millis(100);

/// Nor longer than this for one that has work to do before it answers. A plugin that
/// takes longer keeps the answers apart by itself, more or less.
const LIMIT_BEFORE_WORK: Duration = Duration::from_millis(10);

static LINE: Line = Line::new();

thread_local! {
    /// The turn of a thread that has gone through, until it ends or comes back.
    static TURN: Cell<Option<Turn>> = const { Cell::new(None) };
}

/// For a thread that answers next: returns when the previous thread has ended or come
/// back, or its time is up.
pub fn wait_to_answer() {
    LINE.pass(LIMIT);
}

/// The same for a thread that carries out a request first.
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

/// The last thread that went through.
struct Last {
    number: u64,
    /// How long others wait for it; `None` when it has left.
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
        // It has answered the previous request, and well, or it would not be here.
        answered();
        let mut last = self.last.lock();
        // After giving up on one thread, wait for its successor.
        while let Some(until) = last.until.filter(|until| *until > Instant::now()) {
            self.free.wait_until(&mut last, until);
        }
        let number = last.number.wrapping_add(1);
        *last = Last { number, until: Instant::now().checked_add(limit) };
        drop(last);
        // A thread past its end can't keep a turn, and gives it back here.
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
