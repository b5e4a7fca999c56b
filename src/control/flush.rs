//! Whether written data is stable: when to start a flush, and what its result is
//! worth. A part of `core`: a `Flusher` does the flush itself, which may take seconds,
//! on another thread.

use std::fmt;
use std::io;

use crate::nbdkit::FlushFailed;
use crate::os::advice::Advised;

/// Flushes what lies below the gate. One flush at a time.
pub trait Flusher: Send {
    /// Whether anything was written since the last flush.
    fn is_needed(&self) -> bool;

    /// Starts a flush of everything written before. Call it while none runs.
    ///
    /// # Errors
    /// It could not be started.
    fn start(&mut self) -> io::Result<()>;

    /// The running flush is no longer of interest, and may end early, as if it had
    /// succeeded.
    fn cancel(&mut self);

    /// The result of the flush, once it has ended. `None` while it runs.
    fn ended(&mut self) -> Option<Result<(), FlushFailed>>;

    /// Whether writes were lost for good since the last call: no flush can make them
    /// stable any more.
    fn has_lost_writes(&mut self) -> bool;
}

/// Why not all is stable.
#[derive(Debug)]
pub enum FlushError {
    /// The flush of this pause has failed.
    Failed(FlushFailed),
    /// The flush of a pause that was ended has failed.
    FailedBefore(FlushFailed),
    /// The flush could not start.
    NotStarted(io::Error),
    /// Writes of a closed connection could not be flushed.
    Lost,
}

/// Where the flush of a pause stands.
pub struct Flushing {
    flusher: Box<dyn Flusher>,
    job: Job,
    /// A flush has to start before everything is stable.
    wanted: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Job {
    None,
    Running,
    Cancelled,
}

impl Flushing {
    /// Nothing was written yet.
    pub fn new(flusher: Box<dyn Flusher>) -> Self {
        Flushing { flusher, job: Job::None, wanted: false }
    }

    /// Flushes everything written before now.
    pub fn restart(&mut self) {
        self.wanted = true;
    }

    /// The last flush is no longer of interest.
    pub fn cancel(&mut self) {
        self.wanted = false;
        if self.job == Job::Running {
            self.job = Job::Cancelled;
            self.flusher.cancel();
        }
    }

    /// Whether everything written before `restart` is stable.
    ///
    /// # Errors
    /// It is not, and no running flush will make it so.
    pub fn is_done(&mut self) -> Result<bool, FlushError> {
        let job = self.job;
        if job != Job::None {
            // One that was cancelled may still be inside the plugin. It has to
            // end first, since it began before some of the writes.
            let Some(result) = self.flusher.ended() else { return Ok(false) };
            self.job = Job::None;
            if job == Job::Running {
                return result.map_err(FlushError::Failed).and_then(|()| self.unless_lost());
            }
            // A failure counts though nobody waited for it: the system reports it
            // once, and the next flush may succeed without what was lost.
            result.map_err(FlushError::FailedBefore)?;
        }
        if self.wanted {
            self.wanted = false;
            if !self.flusher.is_needed() {
                return self.unless_lost();
            }
            self.flusher.start().map_err(FlushError::NotStarted)?;
            self.job = Job::Running;
            return Ok(false);
        }
        Ok(true)
    }

    /// The last word on a flush that succeeded.
    fn unless_lost(&mut self) -> Result<bool, FlushError> {
        match self.flusher.has_lost_writes() {
            // Reported once; what one flush failed to save, another can't bring back.
            true => Err(FlushError::Lost),
            false => Ok(true),
        }
    }
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlushError::Failed(e) => write!(f, "{e}"),
            FlushError::FailedBefore(e) => {
                write!(f, "the flush of an earlier pause, which was ended, failed: {}", e.0)
            }
            FlushError::NotStarted(e) => write!(f, "cannot start the flush thread: {}", Advised(e)),
            FlushError::Lost => {
                f.write_str("writes of a closed connection could not be flushed and may be lost")
            }
        }
    }
}

impl std::error::Error for FlushError {}
