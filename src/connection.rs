//! A client's connection as the filter sees it: how its requests are admitted,
//! and which of its writes a crash could still lose. What a request does below
//! us is the caller's affair.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{error, info};
use parking_lot::Mutex;

use crate::control::Storage;
use crate::gate::{Gate, Gone, Pass};
use crate::nbdkit::{self, Next};
use crate::seat;

/// What nbdkit hands back to us as `handle` with each request of a client.
pub struct Connection {
    gate: Arc<Gate>,
    /// A request of this connection was held, and its client went away or the
    /// server began to shut down. Nothing of the connection is carried out
    /// after that: its next requests may be in a buffer still, and the gate
    /// may be open again.
    gone: AtomicBool,
    /// A request has changed the disk, and no flush has begun since it was
    /// done: the change may be in a cache.
    dirty: AtomicBool,
    /// The next layer, from `prepare` to `finalize`, if it is to be flushed.
    /// Locked while it is.
    next: Mutex<Option<Next>>,
}

impl Connection {
    /// A connection whose requests pass `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        Connection {
            gate,
            gone: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            next: Mutex::new(None),
        }
    }

    /// A request of this connection has changed the disk, or has tried to. To
    /// be called before its pass ends.
    #[inline]
    pub fn changed(&self) {
        // Relaxed: the end of the pass releases it to who has drained the gate.
        // Most requests find it set and don't write to a line that all of the
        // connection's threads read.
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::Relaxed);
        }
    }

    /// Does `flush`, which is to flush the next layer, and takes note of what
    /// is stable now. A change that is done while it runs stays dirty.
    #[inline]
    pub fn flush<R>(&self, flush: impl FnOnce() -> R, is_ok: impl FnOnce(&R) -> bool) -> R {
        let dirty = self.dirty.swap(false, Ordering::AcqRel);
        let result = flush();
        if dirty && !is_ok(&result) {
            self.changed();
        }
        result
    }

    /// From now on pauses flush this connection. On nbdkit's thread, from
    /// `prepare`; `next` stays good until `finalize`.
    pub fn flushable(&self, next: Next) {
        *self.next.lock() = Some(next);
    }

    /// What is still dirty becomes stable, or is known to be lost: false. On
    /// nbdkit's thread, from `finalize`; the next layer is let go of.
    ///
    /// While the gate is closed it is for the pause to flush, and after that
    /// there is nothing to do here: no call of ours may reach a quiesced plugin.
    pub fn finalize(&self) -> bool {
        let flushable = self.next.lock().is_some();
        let clean = || !flushable || !self.dirty.load(Ordering::Acquire);
        let pass = match clean() {
            true => Err(Gone),
            false => self.gate.enter(seat::of_this_thread(&self.gate), clean),
        };
        // Also waits for a flush that is in progress.
        let next = self.next.lock().take();
        match (pass, next) {
            (Ok(_pass), Some(next)) => {
                let flushed = self.flush(|| next.flush(), Result::is_ok);
                if let Err(e) = &flushed {
                    error!("pause-flush: the last flush of a connection failed: {e}");
                }
                flushed.is_ok()
            }
            _ => true,
        }
    }

    /// Whether `make_stable` would call the next layer. It waits for a flush
    /// that is in progress.
    fn needs_flush(&self) -> bool {
        self.dirty.load(Ordering::Acquire) && self.next.lock().is_some()
    }

    /// Flushes the connection if it is dirty and not finalized. On a thread of
    /// ours, while the gate is drained.
    fn make_stable(&self) -> Result<(), String> {
        let next = self.next.lock();
        match next.as_ref() {
            Some(next) if self.dirty.load(Ordering::Acquire) => {
                self.flush(|| next.flush(), Result::is_ok)
            }
            _ => Ok(()),
        }
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

/// All connections that are open.
#[derive(Default)]
pub struct Connections {
    /// By address. nbdkit may skip `close` when it ends, and what it has left
    /// open then goes with the filter.
    open: Mutex<BTreeMap<usize, Arc<Connection>>>,
    /// A connection has ended and the flush of its writes had failed. Nobody
    /// can say what became of them.
    lost: AtomicBool,
}

impl Connections {
    /// A new connection through `gate`; its handle is valid until `close`.
    pub fn open(&self, gate: Arc<Gate>) -> *const Connection {
        let connection = Arc::new(Connection::new(gate));
        let handle = Arc::as_ptr(&connection);
        self.open.lock().insert(handle.addr(), connection);
        handle
    }

    /// The end of a connection; no request with this handle is in progress.
    pub fn close(&self, handle: *const Connection) {
        self.open.lock().remove(&handle.addr());
    }

    /// Writes of a connection that has ended could not be made stable.
    pub fn writes_are_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        self.open.lock().values().cloned().collect()
    }
}

impl Storage for Connections {
    fn is_stable(&self) -> bool {
        !self.all().iter().any(|connection| connection.needs_flush())
    }

    fn make_stable(&self, cancelled: &AtomicBool) -> Result<(), String> {
        for connection in self.all() {
            if cancelled.load(Ordering::Acquire) {
                return Ok(());
            }
            connection.make_stable()?;
        }
        Ok(())
    }

    fn has_lost_writes(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }
}
