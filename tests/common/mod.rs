//! The harness of the integration tests: a real nbdkit with the filter in it,
//! its control socket, and clients that nobody here wrote. Nothing in this
//! folder checks a promise; the tests do, one file a theme.

// Each test crate uses a part of it.
#![allow(dead_code)]

pub mod clients;
pub mod control;
pub mod debian;
pub mod files;
pub mod filter;
pub mod nbd;
pub mod nbdkit;
pub mod process;
pub mod random;
pub mod server;

use std::thread;
use std::time::{Duration, Instant};

/// What is promised "within a second": some room for a busy machine, and far
/// less than what it takes when the promise is broken.
pub const PROMPT: Duration = Duration::from_secs(4);

/// Longer than anything here takes. Who is not done by then hangs.
pub const GENEROUS: Duration = Duration::from_secs(60);

/// How long a thing that must not happen is waited for.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// Waits until `holds`, or panics with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
