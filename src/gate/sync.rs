//! The primitives the gate is made of: std's and parking_lot's in the shipped
//! filter, loom's under `--cfg loom`, so that the code under the model checker
//! is the code that ships. Nothing else in the tree asks for `cfg(loom)`.

#[cfg(not(loom))]
mod imp {
    use std::time::{Duration, Instant};

    use rustix::io::Errno;
    use rustix::thread::futex::{self, Timespec};

    pub use parking_lot::Mutex;
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

    /// Keeps the compiler from moving accesses across; costs no instruction.
    #[inline]
    pub fn light_barrier() {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// What the light barrier leaves to be done, done for all threads.
    pub use crate::gate::barrier::private_expedited as heavy_barrier;

    /// An event count that threads sleep on (futex(2)). None has to pass a lock on its
    /// way out: with a condition variable, the last of 256 held requests took 1.4 times
    /// as long to go on.
    pub struct Futex(AtomicU32);

    impl Futex {
        pub const fn new(value: u32) -> Self {
            Futex(AtomicU32::new(value))
        }

        #[inline]
        pub fn load(&self, ordering: Ordering) -> u32 {
            self.0.load(ordering)
        }

        /// Counts an event and wakes all who sleep. Make what they are to see visible
        /// before.
        pub fn signal(&self) {
            self.0.fetch_add(1, Ordering::Release);
            let _ = futex::wake(&self.0, futex::Flags::PRIVATE, i32::MAX.unsigned_abs());
        }

        /// Sleeps if the word is still `seen`, at most until `deadline`; may wake up for
        /// no reason. Whether the time is over.
        pub fn wait(&self, seen: u32, deadline: &Deadline) -> bool {
            let left = deadline.0.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let woken = futex::wait(&self.0, futex::Flags::PRIVATE, seen, left.as_ref());
            woken == Err(Errno::TIMEDOUT)
        }

        /// The same, in the shipped filter. The model knows no time that passes.
        pub fn wait_briefly(&self, seen: u32, deadline: &Deadline) -> bool {
            self.wait(seen, deadline)
        }
    }

    /// When a sleep ends.
    pub struct Deadline(Option<Instant>);

    impl Deadline {
        /// This long from now. Too far away to be told in this clock is never.
        pub fn after(limit: Duration) -> Self {
            Deadline(Instant::now().checked_add(limit))
        }
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

    use loom::sync::{Condvar, MutexGuard};

    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

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

    /// futex(2) as its manual page describes it: comparing the word and going
    /// to sleep are one step, and so is waking. Time does not pass in the
    /// model: a wake-up that got lost shows as a deadlock.
    pub struct Futex {
        word: AtomicU32,
        kernel: Mutex<()>,
        woken: Condvar,
    }

    impl Futex {
        pub fn new(value: u32) -> Self {
            Futex { word: AtomicU32::new(value), kernel: Mutex::new(()), woken: Condvar::new() }
        }

        pub fn load(&self, ordering: Ordering) -> u32 {
            self.word.load(ordering)
        }

        pub fn signal(&self) {
            self.word.fetch_add(1, Ordering::Release);
            let _kernel = self.kernel.lock();
            self.woken.notify_all();
        }

        pub fn wait(&self, seen: u32, _deadline: &Deadline) -> bool {
            let kernel = self.kernel.lock();
            if self.word.load(Ordering::Relaxed) == seen {
                drop(self.woken.wait(kernel));
            }
            false
        }

        /// The time is over at once; what happens meanwhile happens before or after.
        /// To yield here would let all others go as far as they can.
        pub fn wait_briefly(&self, _seen: u32, _deadline: &Deadline) -> bool {
            true
        }
    }

    /// Never.
    pub struct Deadline;

    impl Deadline {
        pub fn after(_limit: Duration) -> Self {
            Deadline
        }
    }

    /// A mutex that knows no poisoning, as parking_lot's.
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
