//! An NBD client's connection: how its requests are admitted, whether a crash could
//! still lose writes of it, and how it ends. `filter` knows what a request does below.

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
    /// The client has left in some way, and what layers above us still ask for is
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

    /// A request of this connection has changed the disk, or has tried to. To
    /// be called before its pass ends.
    #[inline]
    pub fn changed(&self) {
        self.changes.note(&self.gate);
    }

    /// Does `flush`, which is to flush the next layer, and takes note of what
    /// is stable now. A change that is done while it runs stays dirty.
    pub fn flush<R>(&self, flush: impl FnOnce() -> R, is_ok: impl FnOnce(&R) -> bool) -> R {
        let taken = self.changes.take(&self.gate);
        let result = flush();
        if !is_ok(&result) {
            self.changes.give_back(taken);
        }
        result
    }

    /// From now on pauses flush this connection: once also where it has changed nothing,
    /// if that may be done while it negotiates. On nbdkit's thread, from `prepare`;
    /// `next` stays good until `finalize`.
    pub fn flushable(&self, next: Next, while_it_negotiates: bool) {
        if while_it_negotiates {
            self.changes.assume_left_over();
        }
        *self.next.lock() = Some(next);
    }

    /// What was changed and not flushed becomes stable, or `lost` is called, before any
    /// pause can be in force that would not know. On nbdkit's thread, from
    /// `finalize`; the next layer is let go of.
    ///
    /// While the gate is closed it is for the pause to flush, and after that
    /// there is nothing to do here: no call of ours may reach a quiesced plugin.
    pub fn finalize(&self, lost: impl FnOnce()) {
        self.is_finalized.store(true, Ordering::Relaxed);
        // It may wait below, and has answered its last request.
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
        // By our own flush or by a pause's; where it failed, that shows here.
        if self.changes.are_there() {
            lost();
        }
        drop(pass);
    }

    /// Lets go of the next layer if `finalize` was left out, as it is where an
    /// outer layer's has failed. `lost` is called if writes are lost thereby, before any
    /// pause can find that there is nothing to flush. It waits for a flush that is in
    /// progress.
    pub fn abandon(&self, lost: impl FnOnce()) {
        let mut next = self.next.lock();
        if next.take().is_some() && self.changes.are_there() {
            lost();
        }
    }

    /// The layers below are about to be closed, when they may write what they have
    /// kept so far: where this connection has changed the disk since its last flush,
    /// that waits for the end of a pause, and the next one waits for that. It is over
    /// when the calling thread ends, or comes back to open another connection. On
    /// nbdkit's thread, from `close`.
    pub fn wait_to_close(&self) {
        if !self.changes.are_there() {
            return;
        }
        let slot = thread_slot::of_this_thread(&self.gate);
        // Nobody sends this again: it may not be dropped.
        let pass = match self.gate.enter(slot) {
            Some(pass) => Ok(pass),
            None => self.gate.wait(slot, Worth::All, || true),
        };
        if let Ok(pass) = pass {
            thread_slot::keep(&self.gate, pass);
        }
    }

    /// Whether `make_stable` would call the next layer. It waits for a flush
    /// that is in progress.
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
    /// The request was held, and meanwhile its client went away or the server was
    /// told to end. It is to be answered with ESHUTDOWN. Where nbdkit can do that
    /// the connection is cut, so that the answer is not sent: a client that lives
    /// sends the request again to the next server.
    // Always: out of line, the pass goes through memory, which doubles the cost.
    #[inline(always)]
    pub fn admit(&self, worth: Worth) -> Result<Pass<'_>, Dropped> {
        let slot = thread_slot::of_this_thread(&self.gate);
        match self.gate.enter(slot) {
            Some(pass) => Ok(pass),
            None => self.wait(slot, worth),
        }
    }

    #[cold]
    fn wait<'a>(&'a self, slot: &'a Slot, worth: Worth) -> Result<Pass<'a>, Dropped> {
        // Back with another request, the thread has answered the one before.
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
            // It will be answered, too. (Once the connection is finalized nobody is.)
            dead_replies::wait_to_work();
        }
        pass
    }

    /// Whether the client of the calling thread has gone; also true when the server
    /// ends. That need not be the client of this connection: a layer above us may
    /// ask for something here on behalf of another one's. So the answer is good for
    /// the request in hand and no other.
    fn is_gone(&self) -> bool {
        // After `finalize` nbdkit has closed the socket that it would look at, whose
        // number may be another client's by now.
        self.is_finalized() || nbdkit::no_use_going_on()
    }

    fn is_finalized(&self) -> bool {
        self.is_finalized.load(Ordering::Relaxed)
    }
}
