//! One client's connection as the filter sees it, and how its requests are
//! admitted. What a request does below us is the caller's affair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::info;

use crate::gate::{Gate, Gone, Pass};
use crate::{nbdkit, seat};

/// What nbdkit hands back to us as `handle` with each request of a client.
pub struct Connection {
    gate: Arc<Gate>,
    /// A request of this connection was held, and its client went away or the
    /// server began to shut down. Nothing of the connection is carried out
    /// after that: its next requests may be in a buffer still, and the gate
    /// may be open again.
    gone: AtomicBool,
}

impl Connection {
    /// A connection whose requests pass `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        Connection { gate, gone: AtomicBool::new(false) }
    }

    /// Lets a request in; it is inside as long as the pass lives. Waits while
    /// the gate is closed. Call it on the thread that nbdkit chose for the
    /// request, and keep the pass there.
    ///
    /// # Errors
    /// The request is to be answered with ESHUTDOWN.
    #[inline]
    pub fn admit(&self) -> Result<Pass<'_>, Gone> {
        // Relaxed: only `is_gone` on a thread of this connection sets it, and
        // a request that is read in the same moment may go either way.
        if self.gone.load(Ordering::Relaxed) {
            return Err(Gone);
        }
        self.gate.enter(seat::of_this_thread(&self.gate), || self.is_gone())
    }

    #[cold]
    fn is_gone(&self) -> bool {
        let gone = self.gone.load(Ordering::Relaxed) || nbdkit::no_use_going_on();
        if gone && !self.gone.swap(true, Ordering::Relaxed) {
            info!(
                "a client is gone or the server is shutting down: \
                 the connection's held requests end with ESHUTDOWN"
            );
        }
        gone
    }
}
