//! What the integration tests are written with: a real nbdkit with the filter in it,
//! its control socket, and clients that nobody here wrote. Nothing in this folder
//! checks a promise; the tests do, one module a theme.

// Each test crate uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod alone;
pub mod clients;
pub mod control;
pub mod debian;
pub mod ext4;
pub mod files;
pub mod filter;
pub mod log;
pub mod nbd;
pub mod nbdkit;
pub mod process;
pub mod random;
pub mod server;
pub mod setup;

use std::thread;
use std::time::{Duration, Instant};

// The words that most tests use.
pub use alone::{alone, together};
pub use clients::is_zero;
pub use control::Controller;
pub use nbd::{Client, ONE_OF_EACH, READ, Request, Ticket, WRITE};
pub use process::{Finished, Process, expect_line, run};
pub use random::Random;
pub use server::{Server, Setup, ThreadModel};

/// What is promised "within a second": some room for a busy machine, and far
/// less than what it takes when the promise is broken.
pub const PROMPT: Duration = Duration::from_secs(4);

/// Longer than anything here takes. Who is not done by then hangs.
pub const GENEROUS: Duration = Duration::from_secs(60);

/// How long a thing that must not happen is waited for.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// The pause-timeout that tests wait for; see `Setup::limited`.
pub const LIMIT: Duration = Duration::from_millis(600);

/// Waits until `holds`, or panics with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
