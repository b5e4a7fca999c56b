//! One client's connection as the filter sees it, and how its requests are
//! admitted. What a request does below us is the caller's affair.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::info;

use crate::gate::{Gate, Gone, Seat};
use crate::nbdkit;

thread_local! {
    /// This thread's place in the gate. nbdkit's threads live as long as their
    /// connection; the place is given back when they end. There is one gate in
    /// the life of a server, so one place is enough.
    static SEAT: OnceCell<Seat> = const { OnceCell::new() };
}

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
        Connection {
            gate,
            gone: AtomicBool::new(false),
        }
    }

    /// Runs `below`, which is to call the next layer, inside the gate; waits
    /// while the gate is closed. Call it on the thread that nbdkit chose for
    /// the request.
    ///
    /// # Errors
    /// The request is to be answered with ESHUTDOWN; `below` did not run.
    #[inline]
    pub fn request<R>(&self, below: impl FnOnce() -> R) -> Result<R, Gone> {
        // Relaxed: only `is_gone` on a thread of this connection sets it, and
        // a request that is read in the same moment may go either way.
        if self.gone.load(Ordering::Relaxed) {
            return Err(Gone);
        }
        let mut below = Some(below);
        let mut inside = |seat: &Seat| {
            let _pass = self.gate.enter(seat, || self.is_gone())?;
            below.take().map(|below| below()).ok_or(Gone)
        };
        SEAT.try_with(|seat| inside(seat.get_or_init(|| self.gate.seat())))
            // The thread is past its end: a place for this request alone.
            .unwrap_or_else(|_| inside(&self.gate.seat()))
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
