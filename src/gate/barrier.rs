//! The expensive half of the asymmetric barrier: `membarrier(2)`, issued by
//! the pausing side so that a request need not issue anything.

use std::fmt;
use std::io;

use rustix::thread::{MembarrierCommand, membarrier};

use super::sync::{Ordering, fence, heavy_barrier};

/// How a closing gate makes sure that it and each request see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// `membarrier(2)`, private expedited: the kernel runs a full barrier on
    /// every core that runs a thread of this process, before it returns.
    Membarrier,
    /// A full fence on both sides, where the kernel offers no membarrier.
    Fences,
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Barrier::Membarrier => "membarrier(2)",
            Barrier::Fences => "fences in each request, as membarrier(2) is not available",
        })
    }
}

/// The kernel took back what it granted at start: the gate can't be closed.
#[derive(Debug)]
pub struct BarrierFailed(io::Error);

impl fmt::Display for BarrierFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "membarrier(2) failed, although it worked at startup: {}", self.0)
    }
}

impl std::error::Error for BarrierFailed {}

impl Barrier {
    /// The best that this process may use. Call it in the process that will
    /// serve, after the fork: the registration belongs to its address space.
    ///
    /// An old kernel or a seccomp filter leads to `Fences`.
    pub fn best() -> Barrier {
        match membarrier(MembarrierCommand::RegisterPrivateExpedited)
            .map_err(io::Error::from)
            .and_then(|()| private_expedited())
        {
            Ok(()) => Barrier::Membarrier,
            Err(_) => Barrier::Fences,
        }
    }

    /// The heavy side. When it returns, every other thread of the process has
    /// passed a full barrier since this was called, or will pass one of its
    /// own (`Fences`) between its store and its load.
    pub fn heavy(self) -> Result<(), BarrierFailed> {
        match self {
            Barrier::Membarrier => heavy_barrier().map_err(BarrierFailed),
            Barrier::Fences => {
                fence(Ordering::SeqCst);
                Ok(())
            }
        }
    }
}

/// A full barrier in every running thread of this process.
pub fn private_expedited() -> io::Result<()> {
    Ok(membarrier(MembarrierCommand::PrivateExpedited)?)
}
