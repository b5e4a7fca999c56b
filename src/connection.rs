//! An NBD client's connection: how it admits requests, whether a crash could still
//! lose its writes, and how it ends. `filter` knows what a request does below.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{error, info};
use parking_lot::Mutex;

use crate::dead_replies;
use crate::gate::{Changes, Dropped, Gate, Pass, Slot, Worth, thread_slot};
use crate::nbdkit::{self, FlushFailed, Next};

/// What nbdkit hands back to us as `handle` with each request of a client.
pub struct Connection {
    gate: Arc<Gate>,
    changes: Changes,
    /// The next layer, from `prepare` to `finalize`, if it is to be flushed.
    /// Locked while it is.
    next: Mutex<Option<Next>>,
    /// The client has left in some way; whatever layers above us still ask for is
    /// on their own behalf.
    is_finalized: AtomicBool,
}

impl Connection {
    /// A connection whose requests pass `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        Connection {
            gate,
            changes: Changes::new(),
            next: Mutex::new(None),
            is_finalized: AtomicBool::new(false),
        }
    }

    /// A request of this connection has changed the disk, or has tried to. Call it
    /// before the pass of that request ends.
    #[inline]
    pub fn changed(&self) {
        self.changes.note(&self.gate);
    }

    /// Calls `flush`, which flushes the next layer, and notes what is stable now. A
    /// change that finishes while it runs stays dirty.
    pub fn flush<R>(&self, flush: impl FnOnce() -> R, is_ok: impl FnOnce(&R) -> bool) -> R {
        let taken = self.changes.take(&self.gate);
        let result = flush();
        if !is_ok(&result) {
            self.changes.give_back(taken);
        }
        result
    }

    /// From now on pauses flush this connection: once even if it has changed nothing,
    /// if a flush is allowed while it negotiates. On nbdkit's thread, from `prepare`;
    /// `next` stays valid until `finalize`.
    pub fn flushable(&self, next: Next, while_it_negotiates: bool) {
        if while_it_negotiates {
            self.changes.assume_left_over();
        }
        *self.next.lock() = Some(next);
    }

    /// Makes unflushed changes stable, or calls `lost`, before a pause that does not
    /// know of them can take effect. Releases the next layer. On nbdkit's thread, from
    /// `finalize`.
    ///
    /// While the gate is closed, the pause does the flushing, and then there is
    /// nothing to do here: no call of ours may reach a quiesced plugin.
    pub fn finalize(&self, lost: impl FnOnce()) {
        self.is_finalized.store(true, Ordering::Relaxed);
        // This thread may wait below, and has answered its last request.
        dead_replies::answered();
        let flushable = self.next.lock().is_some();
        let clean = || !flushable || !self.changes.are_there();
        let pass = match clean() {
            true => None,
            false => {
                let slot = thread_slot::of_this_thread(&self.gate);
                self.gate.enter(slot).or_else(|| self.gate.wait_unless(slot, clean))
            }
        };
        // Also waits for a flush that is in progress.
        let Some(next) = self.next.lock().take() else { return };
        if pass.is_some() {
            if let Err(e) = self.flush(|| next.flush(), Result::is_ok) {
                error!(
                    "pause-flush: the last flush of a connection failed, so its writes may be \
                     lost, and the next pause is refused: {}",
                    e.0
                );
            }
        }
        // Whether our own flush failed or that of a pause, it shows here.
        if self.changes.are_there() {
            lost();
        }
        drop(pass);
    }

    /// Releases the next layer if `finalize` was skipped, as it is if that of an outer
    /// layer has failed. If that loses writes, calls `lost` before any pause can find
    /// that there is nothing to flush. Waits for a flush in progress.
    pub fn abandon(&self, lost: impl FnOnce()) {
        let mut next = self.next.lock();
        if next.take().is_some() && self.changes.are_there() {
            lost();
        }
    }

    /// The layers below are about to be closed, and may then write what they have kept
    /// so far. If this connection has changed the disk since its last flush, the close
    /// waits for the end of a pause, and the next pause waits for the close: until the
    /// calling thread ends, or comes back to open another connection. On nbdkit's
    /// thread, from `close`.
    pub fn wait_to_close(&self) {
        if !self.changes.are_there() {
            return;
        }
        let slot = thread_slot::of_this_thread(&self.gate);
        // Nobody would repeat this: it must not be dropped.
        let pass = match self.gate.enter(slot) {
            Some(pass) => Ok(pass),
            None => self.gate.wait(slot, Worth::All, || true),
        };
        if let Ok(pass) = pass {
            thread_slot::keep(&self.gate, pass);
        }
    }

    /// Whether `make_stable` would call the next layer. Waits for a flush in progress.
    pub fn needs_flush(&self) -> bool {
        self.changes.want_flush() && self.next.lock().is_some()
    }

    /// Flushes the connection if it needs that and is not finalized. On a thread of
    /// ours, while the gate is drained.
    pub fn make_stable(&self) -> Result<(), FlushFailed> {
        let next = self.next.lock();
        match next.as_ref() {
            Some(next) if self.changes.want_flush() => self.flush(|| next.flush(), Result::is_ok),
            _ => Ok(()),
        }
    }

    /// Lets a request in; it is inside as long as the pass lives. Waits while
    /// the gate is closed. Call it on the thread that nbdkit chose for the
    /// request, and keep the pass there.
    ///
    /// # Errors
    /// The request was held, and meanwhile its client went away or the server began
    /// to shut down. Answer it with ESHUTDOWN. If nbdkit can cut the connection, it
    /// has, and sends no answer: a live client sends the request again to the next
    /// server.
    pub fn admit(&self, worth: Worth) -> Result<Pass<'_>, Dropped> {
        let slot = thread_slot::of_this_thread(&self.gate);
        match self.gate.enter(slot) {
            Some(pass) => Ok(pass),
            None => self.wait(slot, worth),
        }
    }

    /// The same if nothing is in the way, which takes no call. If it says no, call
    /// `admit`.
    // Always: out of line, the pass goes through memory, which doubles the cost.
    #[inline(always)]
    pub fn admit_at_once(&self) -> Option<Pass<'_>> {
        self.gate.enter_at_once(thread_slot::taken(&self.gate)?)
    }

    #[cold]
    fn wait<'a>(&'a self, slot: &'a Slot, worth: Worth) -> Result<Pass<'a>, Dropped> {
        // Back with another request, the thread has answered the previous one.
        dead_replies::answered();
        let is_gone = Cell::new(false);
        let pass = self.gate.wait(slot, worth, || {
            is_gone.set(self.is_gone());
            is_gone.get()
        });
        let is_dropped = pass.is_err();
        if is_dropped {
            info!("dropped a held request: its client is gone, or the server is shutting down");
        }
        if nbdkit::can_cut_connections() {
            if is_dropped {
                nbdkit::cut_connection();
            }
        } else if is_dropped {
            dead_replies::wait_to_answer();
        } else if is_gone.get() && !self.is_finalized() {
            // This one gets an answer, too. (After `finalize` none does.)
            dead_replies::wait_to_work();
        }
        pass
    }

    /// Whether the client of the calling thread has gone; also true when the server
    /// ends. It need not be the client of this connection: a layer above us may ask
    /// for something here on behalf of another client. So the answer holds for the
    /// current request and no other.
    fn is_gone(&self) -> bool {
        // After `finalize` nbdkit has closed the socket that it would check, and its
        // number may belong to another client by now.
        self.is_finalized() || nbdkit::no_use_going_on()
    }

    fn is_finalized(&self) -> bool {
        self.is_finalized.load(Ordering::Relaxed)
    }
}
