//! All tests of a crate are threads of one process, several at a time. One that
//! measures, or needs every core, runs `alone`.

use std::cell::OnceCell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many tests are at work.
static AT_WORK: Mutex<usize> = Mutex::new(0);
static ONE_LEFT: Condvar = Condvar::new();

/// One of them, for as long as its thread lives.
struct Share;

impl Share {
    fn take() -> Self {
        *AT_WORK.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Share
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *AT_WORK.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ONE_LEFT.notify_all();
    }
}

thread_local! {
    static SHARE: OnceCell<Option<Share>> = const { OnceCell::new() };
}

/// This thread is at work from here on, once none is that runs alone.
pub fn at_work() {
    SHARE.with(|share| {
        share.get_or_init(|| Some(Share::take()));
    });
}

/// Waits until no other test is at work; none begins until this is dropped. It is
/// the first thing that a test does, whose other threads start no server.
pub fn alone() -> MutexGuard<'static, usize> {
    SHARE.with(|share| assert!(share.set(None).is_ok(), "alone() comes first"));
    let at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
    ONE_LEFT.wait_while(at_work, |count| *count > 0).unwrap_or_else(PoisonError::into_inner)
}
