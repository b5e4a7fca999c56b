//! The primitives the gate is made of: std's and parking_lot's in the shipped
//! filter, loom's under `--cfg loom`, so that the code under the model checker
//! is the code that ships. Nothing else in the tree asks for `cfg(loom)`.

#[cfg(not(loom))]
mod imp {
    use std::time::Duration;

    pub use parking_lot::{Condvar, Mutex, MutexGuard};
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

    /// Keeps the compiler from moving accesses across; costs no instruction.
    #[inline]
    pub fn light_barrier() {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// What the light barrier leaves to be done, done for all threads.
    pub use crate::gate::barrier::private_expedited as heavy_barrier;

    /// Waits until notified, at most for `limit`.
    pub fn wait<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> MutexGuard<'a, T> {
        condvar.wait_for(&mut guard, limit);
        guard
    }

    #[cfg(test)]
    pub use std::thread;

    /// Runs a test of the gate often enough to meet some interleavings.
    #[cfg(test)]
    pub fn model(test: impl Fn() + Send + Sync + 'static) {
        for _ in 0..2_000 {
            test();
        }
    }
}

#[cfg(loom)]
mod imp {
    use std::time::Duration;

    pub use loom::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
    pub use loom::sync::{Arc, Condvar, MutexGuard};

    /// The asymmetric barrier modelled as a full fence on both sides: what
    /// `membarrier(2)` makes of the light side where it matters.
    pub fn light_barrier() {
        fence(Ordering::SeqCst);
    }

    /// The other side of it.
    pub fn heavy_barrier() -> std::io::Result<()> {
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Time does not pass in the model: only a notification ends the wait, so
    /// a wake-up that got lost shows as a deadlock.
    pub fn wait<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        _limit: Duration,
    ) -> MutexGuard<'a, T> {
        condvar
            .wait(guard)
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A mutex that knows no poisoning, as parking_lot's.
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    #[cfg(test)]
    pub use loom::thread;

    /// Runs a test of the gate in every interleaving, and in every order that
    /// the memory model allows, with at most two forced switches of threads.
    #[cfg(test)]
    pub fn model(test: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(test);
    }
}

pub use imp::*;
