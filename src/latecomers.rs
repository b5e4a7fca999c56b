//! Clients that connect as the server ends. nbdkit (1.32 to 1.48) counts a connection
//! in the thread that serves it, and not before: at the end it does not wait for one
//! whose thread has yet to begin. While such a one negotiates no layer can be unloaded;
//! when it has left, or where it begins later still, it looks at layers that are being
//! freed, and the server crashes.
//!
//! The longer the layers take to end, the more likely that is, and ours has a thread
//! to end. So whoever comes that late is kept here, for good, in code that is never
//! unmapped (build.rs): the process ends without it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::os;

/// Far more than a thread takes to begin, and little for a server to end.
const ON_THEIR_WAY: Duration = Duration::from_millis(50);

/// How long to wait from one look at the threads to the next.
const LOOK: Duration = Duration::from_micros(200);

/// Threads of the process that serve nobody: nbdkit's main one, and ours.
const AT_REST: usize = 2;

static SERVER_ENDS: AtomicBool = AtomicBool::new(false);

/// Threads that are kept.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// A client has connected: returns unless it comes too late. On nbdkit's thread, from
/// `preconnect`, where it holds no lock that the end of the server takes.
pub fn connects() {
    if !SERVER_ENDS.load(Ordering::Acquire) {
        return;
    }
    KEPT.fetch_add(1, Ordering::Release);
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

/// nbdkit's count of connections is zero, and it accepts no more: whoever comes from
/// now on is kept.
pub fn keep() {
    SERVER_ENDS.store(true, Ordering::Release);
}

/// Waits a moment for those who are on their way, or who came before `keep` and are
/// about to leave. Call it while all layers are still there.
pub fn wait_for_them() {
    let start = Instant::now();
    // The plugin may have threads of its own, which are taken for such ones.
    while os::threads().is_some_and(is_someone_coming) && start.elapsed() < ON_THEIR_WAY {
        thread::sleep(LOOK);
    }
}

fn is_someone_coming(threads: usize) -> bool {
    threads > AT_REST.saturating_add(KEPT.load(Ordering::Acquire))
}
