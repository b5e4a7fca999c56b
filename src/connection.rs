//! A client's connection as the filter sees it: how its requests are admitted,
//! and whether a crash could still lose writes of it. What a request does below
//! us is the caller's affair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use log::{error, info};
use parking_lot::Mutex;

use crate::gate::{Gate, Gone, Pass};
use crate::nbdkit::{self, Next};
use crate::seat;
use crate::turnstile::Turnstile;

/// More than a gate is ever opened.
const GONE: usize = usize::MAX;

/// What nbdkit hands back to us as `handle` with each request of a client.
pub struct Connection {
    gate: Arc<Gate>,
    /// The gate's openings when the client was last seen to be there, or GONE.
    ///
    /// After each pause the first request of a connection looks. It may have
    /// waited all that time where the gate can't see it: in a buffer, or in
    /// nbdkit for the lock of a serialized thread model.
    ///
    /// GONE: the client had gone away, or the server had begun to shut down,
    /// when a request was held or looked. Nothing of the connection is carried
    /// out after that.
    seen: AtomicUsize,
    /// Where requests that are refused leave, one thread at a time.
    leaving: Arc<Turnstile>,
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
            // None yet: the first request looks, too.
            seen: AtomicUsize::new(gate.openings().wrapping_sub(1)),
            gate,
            leaving: Arc::default(),
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

    /// What is still dirty becomes stable, or `lost` is called, before any
    /// pause can be in force that would not know. On nbdkit's thread, from
    /// `finalize`; the next layer is let go of.
    ///
    /// While the gate is closed it is for the pause to flush, and after that
    /// there is nothing to do here: no call of ours may reach a quiesced plugin.
    pub fn finalize(&self, lost: impl FnOnce()) {
        let flushable = self.next.lock().is_some();
        let clean = || !flushable || !self.dirty.load(Ordering::Acquire);
        let pass = match clean() {
            true => Err(Gone),
            false => self.gate.enter(seat::of_this_thread(&self.gate), clean),
        };
        // Also waits for a flush that is in progress.
        let Some(next) = self.next.lock().take() else { return };
        if pass.is_ok() {
            if let Err(e) = self.flush(|| next.flush(), Result::is_ok) {
                error!("pause-flush: the last flush of a connection failed: {e}");
            }
        }
        // By our own flush or by a pause's; where it failed, that shows here.
        if self.dirty.load(Ordering::Acquire) {
            lost();
        }
        drop(pass);
    }

    /// Lets go of the next layer if `finalize` was left out, as it is where an
    /// outer layer's has failed. False if writes are lost thereby. It waits for
    /// a flush that is in progress.
    pub fn abandon(&self) -> bool {
        self.next.lock().take().is_none() || !self.dirty.load(Ordering::Acquire)
    }

    /// Whether `make_stable` would call the next layer. It waits for a flush
    /// that is in progress.
    pub fn needs_flush(&self) -> bool {
        self.dirty.load(Ordering::Acquire) && self.next.lock().is_some()
    }

    /// Flushes the connection if it is dirty and not finalized. On a thread of
    /// ours, while the gate is drained.
    pub fn make_stable(&self) -> Result<(), String> {
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
    // Always: out of line, the pass goes through memory, which doubles the cost.
    #[inline(always)]
    pub fn admit(&self) -> Result<Pass<'_>, Gone> {
        let pass = match self.gate.enter(seat::of_this_thread(&self.gate), || self.is_gone()) {
            Ok(pass) => pass,
            Err(Gone) => return Err(self.refuse()),
        };
        // Inside, so that no opening can come between this and the request.
        if self.seen.load(Ordering::Relaxed) != self.gate.openings() && !self.is_still_there() {
            drop(pass);
            return Err(self.refuse());
        }
        Ok(pass)
    }

    #[cold]
    fn refuse(&self) -> Gone {
        self.leaving.pass();
        Gone
    }

    /// Looks whether the client is still there, once after each pause.
    #[cold]
    fn is_still_there(&self) -> bool {
        let (seen, openings) = (self.seen.load(Ordering::Relaxed), self.gate.openings());
        if self.is_gone() {
            return false;
        }
        // Fails where another thread was faster; if that one saw the client
        // gone, it stays so.
        let _ = self.seen.compare_exchange(seen, openings, Ordering::Relaxed, Ordering::Relaxed);
        true
    }

    #[cold]
    fn is_gone(&self) -> bool {
        let known = self.seen.load(Ordering::Relaxed) == GONE;
        let gone = known || nbdkit::no_use_going_on();
        if gone && self.seen.swap(GONE, Ordering::Relaxed) != GONE {
            info!(
                "a client is gone or the server is shutting down: \
                 the connection's held requests end with ESHUTDOWN"
            );
        }
        gone
    }
}
