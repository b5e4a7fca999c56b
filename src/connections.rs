//! All open connections, and which of their writes a pause has to make stable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::connection::Connection;
use crate::gate::Gate;
use crate::nbdkit::FlushFailed;

/// All open connections.
#[derive(Default)]
pub struct Connections {
    /// By address. nbdkit may skip `close` when it ends; what it leaves open is
    /// dropped with the filter.
    open: Mutex<BTreeMap<usize, Arc<Connection>>>,
    /// A connection ended after the flush of its writes had failed: they may be lost.
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
        let closed = self.open.lock().get(&handle.addr()).cloned();
        let Some(closed) = closed else { return };
        closed.abandon(|| self.writes_are_lost());
        closed.wait_to_close();
        self.open.lock().remove(&handle.addr());
    }

    /// Writes of a connection that has ended could not be made stable.
    pub fn writes_are_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        self.open.lock().values().cloned().collect()
    }

    /// Whether anything was written since the last flush. Waits for a flush in
    /// progress.
    pub fn need_flush(&self) -> bool {
        self.all().iter().any(|connection| connection.needs_flush())
    }

    /// Flushes everything written, which may take long; stops early, with `Ok`,
    /// when `cancelled` becomes true. While the gate is drained, on a thread of ours.
    ///
    /// # Errors
    /// One connection could not be flushed. The others were not tried.
    pub fn flush(&self, cancelled: &AtomicBool) -> Result<(), FlushFailed> {
        for connection in self.all() {
            if cancelled.load(Ordering::Acquire) {
                return Ok(());
            }
            connection.make_stable()?;
        }
        Ok(())
    }

    /// Whether writes were lost for good since the last call: no flush can make them
    /// stable any more.
    pub fn have_lost_writes(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }
}
