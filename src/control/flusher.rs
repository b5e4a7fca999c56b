//! Makes what was written stable, in a thread of its own: a flush may take
//! seconds, and an operator's `r` has to be heard meanwhile. How it is done is
//! the storage's affair.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use log::info;
use parking_lot::Mutex;

use crate::advice::Advised;
use crate::os::{self, Bell};

/// As the threads that nbdkit calls plugins on have it, by default.
const STACK: usize = 8 * 1024 * 1024;

/// What lies below the gate, as far as a pause has to do with it.
pub trait Storage: Send + Sync {
    /// Whether nothing was written since it was last made stable.
    fn is_stable(&self) -> bool;

    /// Makes all that was written stable, which may take long; stops early,
    /// with `Ok`, when `cancelled` becomes true.
    ///
    /// # Errors
    /// What could not be made stable, and why.
    fn make_stable(&self, cancelled: &AtomicBool) -> Result<(), String>;

    /// Whether writes were lost for good since this was asked last: no flush
    /// can make them stable any more.
    fn has_lost_writes(&self) -> bool;
}

/// One flush at a time. Joins its thread when dropped.
pub struct Flusher {
    storage: Arc<dyn Storage>,
    bell: Arc<Bell>,
    job: Option<Job>,
    /// A flush has to be started before this one is done.
    wanted: bool,
}

struct Job {
    thread: JoinHandle<()>,
    cancelled: Arc<AtomicBool>,
    /// There before the bell rings.
    result: Arc<Mutex<Option<Result<(), String>>>>,
}

impl Flusher {
    /// Rings `bell` when it is time to ask `is_done`.
    pub fn new(storage: Arc<dyn Storage>, bell: Arc<Bell>) -> Self {
        Flusher { storage, bell, job: None, wanted: false }
    }

    /// Flushes from now on, and all that was written before now.
    pub fn restart(&mut self) {
        self.wanted = true;
    }

    /// The flush that was started last is of no interest any more.
    pub fn cancel(&mut self) {
        self.wanted = false;
        if let Some(job) = &self.job {
            job.cancelled.store(true, Ordering::Release);
        }
    }

    /// Whether all is stable that was written before `restart`.
    ///
    /// # Errors
    /// The flush failed; why.
    pub fn is_done(&mut self) -> Result<bool, String> {
        if let Some(job) = self.job.take() {
            // One that was cancelled may still be inside the plugin. It has to
            // end first, since it began before some of the writes.
            let Some(result) = job.result.lock().take() else {
                self.job = Some(job);
                return Ok(false);
            };
            let _ = job.thread.join();
            if !job.cancelled.load(Ordering::Acquire) {
                return result.and_then(|()| self.unless_lost());
            }
            // A failure counts though nobody waited for it: the system tells it
            // once, and the next flush may go well without what was lost.
            result.map_err(|e| format!("the flush of a pause that was ended has failed: {e}"))?;
        }
        if self.wanted {
            self.wanted = false;
            if !self.storage.is_stable() {
                let job =
                    self.start().map_err(|e| format!("cannot start a thread: {}", Advised(&e)))?;
                self.job = Some(job);
                return Ok(false);
            }
            return self.unless_lost();
        }
        Ok(true)
    }

    /// The last word on a flush that went well.
    fn unless_lost(&self) -> Result<bool, String> {
        match self.storage.has_lost_writes() {
            // Told once; what a flush has failed to save, another can't bring back.
            true => Err("writes of a connection that has ended could not be flushed".into()),
            false => Ok(true),
        }
    }

    fn start(&self) -> io::Result<Job> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let result = Arc::new(Mutex::new(None));
        let (storage, bell) = (self.storage.clone(), self.bell.clone());
        let (stop, slot) = (cancelled.clone(), result.clone());
        let thread = os::without_signals(|| {
            let builder = thread::Builder::new().name("pause-flush".into()).stack_size(STACK);
            builder.spawn(move || {
                *slot.lock() = Some(storage.make_stable(&stop));
                bell.ring();
            })
        })?;
        info!("flushing what was written");
        Ok(Job { thread, cancelled, result })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.cancel();
        if let Some(job) = self.job.take() {
            let _ = job.thread.join();
        }
    }
}
