//! The flusher that ships: flushes all connections, on a thread of its own. `flush`
//! decides when, and what the result is worth.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use log::info;
use parking_lot::Mutex;

use super::flush::Flusher;
use crate::connections::Connections;
use crate::nbdkit::FlushFailed;
use crate::os::{self, EventFd};

/// As the threads that nbdkit calls plugins on have it, by default.
const STACK: usize = 8 * 1024 * 1024;

/// Joins its thread when dropped.
pub struct FlushThread {
    connections: Arc<Connections>,
    event: Arc<EventFd>,
    job: Option<Job>,
}

struct Job {
    thread: JoinHandle<()>,
    cancelled: Arc<AtomicBool>,
    /// Set before the event is signalled.
    result: Arc<Mutex<Option<Result<(), FlushFailed>>>>,
}

impl FlushThread {
    /// Signals `event` when it is time to ask `ended`.
    pub fn new(connections: Arc<Connections>, event: Arc<EventFd>) -> Self {
        FlushThread { connections, event, job: None }
    }
}

impl Flusher for FlushThread {
    fn is_needed(&self) -> bool {
        self.connections.need_flush()
    }

    fn start(&mut self) -> io::Result<()> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let result = Arc::new(Mutex::new(None));
        let (connections, event) = (self.connections.clone(), self.event.clone());
        let (stop, place) = (cancelled.clone(), result.clone());
        let thread = os::without_signals(|| {
            let builder = thread::Builder::new().name("pause-flush".into()).stack_size(STACK);
            builder.spawn(move || {
                *place.lock() = Some(connections.flush(&stop));
                event.signal();
            })
        })?;
        info!("flushing written data");
        self.job = Some(Job { thread, cancelled, result });
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(job) = &self.job {
            job.cancelled.store(true, Ordering::Release);
        }
    }

    fn ended(&mut self) -> Option<Result<(), FlushFailed>> {
        let result = self.job.as_ref()?.result.lock().take()?;
        if let Some(job) = self.job.take() {
            let _ = job.thread.join();
        }
        Some(result)
    }

    fn has_lost_writes(&mut self) -> bool {
        self.connections.have_lost_writes()
    }
}

impl Drop for FlushThread {
    fn drop(&mut self) {
        self.cancel();
        if let Some(job) = self.job.take() {
            let _ = job.thread.join();
        }
    }
}
