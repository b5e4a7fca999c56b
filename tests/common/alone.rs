//! All tests of a crate are threads of one process, several at a time. One that
//! measures, or needs every core, runs `alone`; one that starts threads of its own
//! starts them `together`.

use std::cell::OnceCell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// How many tests are at work, and whether one runs alone, or waits for that.
struct Tests {
    at_work: usize,
    alone: bool,
}

static TESTS: Mutex<Tests> = Mutex::new(Tests { at_work: 0, alone: false });
static CHANGED: Condvar = Condvar::new();

fn tests_when(is_so: impl Fn(&Tests) -> bool) -> MutexGuard<'static, Tests> {
    let tests = TESTS.lock().unwrap_or_else(PoisonError::into_inner);
    CHANGED.wait_while(tests, |tests| !is_so(tests)).unwrap_or_else(PoisonError::into_inner)
}

/// A test that is at work, for as long as its thread lives.
struct Share;

impl Drop for Share {
    fn drop(&mut self) {
        tests_when(|_| true).at_work -= 1;
        CHANGED.notify_all();
    }
}

thread_local! {
    static SHARE: OnceCell<Option<Share>> = const { OnceCell::new() };
}

/// The test of this thread is at work from here on, once none is that runs alone.
pub fn at_work() {
    // The test runner names its threads. Others are parts of a test that is at work.
    if thread::current().name().is_some() {
        SHARE.with(|share| {
            share.get_or_init(|| {
                tests_when(|tests| !tests.alone).at_work += 1;
                Some(Share)
            });
        });
    }
}

/// Runs a test for each of these, all at once, as parts of the one that calls it.
pub fn together<T: Send>(all: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    at_work();
    thread::scope(|scope| {
        for one in all {
            let test = &test;
            scope.spawn(move || test(one));
        }
    });
}

/// No other test is at work.
pub struct Alone;

/// Waits until no other test is at work; none begins until this is dropped. It is
/// the first thing that a test does.
pub fn alone() -> Alone {
    SHARE.with(|share| assert!(share.set(None).is_ok(), "alone() comes first"));
    tests_when(|tests| !tests.alone).alone = true;
    drop(tests_when(|tests| tests.at_work == 0));
    Alone
}

impl Drop for Alone {
    fn drop(&mut self) {
        tests_when(|_| true).alone = false;
        CHANGED.notify_all();
    }
}
