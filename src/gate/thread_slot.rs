//! The calling thread's slot in the gate, found without a lock. nbdkit starts
//! fresh threads for each connection; their slots are given back as they end.

use std::cell::{Cell, OnceCell};
use std::ptr;
use std::sync::Arc;

use super::{Gate, OwnedSlot, Pass, Slot};

thread_local! {
    static OWNER: OnceCell<Owner> = const { OnceCell::new() };
}

/// Keeps the thread's slot; `pointer` is set as long as this lives.
struct Owner {
    slot: OwnedSlot,
    /// See `keep`: the gate, and what the slot counted before.
    kept: Cell<Option<(Arc<Gate>, usize)>>,
}

impl Owner {
    fn leave(&self) {
        if let Some((gate, before)) = self.kept.take() {
            gate.leave(&self.slot, before);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        pointer::set(ptr::null());
        self.leave();
    }
}

/// Stays inside `gate`, beyond the current call from nbdkit, until the calling thread
/// ends or calls `leave`.
pub fn keep(gate: &Arc<Gate>, pass: Pass<'_>) {
    // A thread past its end has no owner, and nothing to come either.
    let _ = OWNER.try_with(|owner| {
        // One that is kept already stays.
        if let Some(owner) = owner.get() {
            let kept = owner.kept.take().unwrap_or_else(|| (gate.clone(), pass.keep()));
            owner.kept.set(Some(kept));
        }
    });
}

/// The calling thread has come back, and its reason to stay inside is over.
pub fn leave() {
    let _ = OWNER.try_with(|owner| owner.get().map(Owner::leave));
}

/// The calling thread's slot in `gate`, which is the only gate of this process:
/// a thread takes one slot in its life.
pub fn of_this_thread(gate: &Gate) -> &Slot {
    taken(gate).unwrap_or_else(|| take(gate))
}

/// The same, if the thread has taken it already.
#[inline]
pub fn taken(_gate: &Gate) -> Option<&Slot> {
    // SAFETY: not NULL, so set by `take` on this thread and not cleared yet by
    // the end of `OWNER`, which keeps the slot alive. The reference does not
    // leave the thread's current call from nbdkit, and so ends before `OWNER`.
    unsafe { pointer::get().as_ref() }
}

#[cold]
fn take(gate: &Gate) -> &Slot {
    let taken = OWNER.try_with(|once| {
        let owner = || Owner { slot: gate.take_slot(), kept: Cell::new(None) };
        let slot: *const Slot = &*once.get_or_init(owner).slot;
        pointer::set(slot);
        slot
    });
    match taken {
        // SAFETY: as above.
        Ok(slot) => unsafe { &*slot },
        // The thread is past its end, and can't give a slot back any more.
        // nbdkit makes no request there; if it does, this one stays.
        Err(_) => Box::leak(Box::new(gate.take_slot())),
    }
}

/// One word of this thread's own. In a library that is loaded at run time,
/// `thread_local!` calls the dynamic linker for each access, which takes longer
/// (2.2 ns) than all the rest of the gate (1.9 ns). Fixed at load time ("initial
/// exec"), it is two loads. The price: the library's thread-local data, some
/// 160 bytes, comes out of the 1.6 KB that glibc keeps free for such libraries.
#[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
mod pointer {
    use std::arch::{asm, global_asm};

    use super::Slot;

    global_asm!(
        ".pushsection .tbss.libpause_slot, \"awT\", @nobits",
        ".hidden libpause_slot",
        ".globl libpause_slot",
        ".type libpause_slot, @tls_object",
        ".size libpause_slot, 8",
        ".balign 8",
        "libpause_slot:",
        ".zero 8",
        ".popsection",
    );

    #[inline]
    pub fn get() -> *const Slot {
        let slot;
        // SAFETY: reads this thread's instance of the word above, as the
        // x86-64 ABI prescribes for initial-exec thread-local storage.
        unsafe {
            asm!(
                "mov {slot}, qword ptr [rip + libpause_slot@GOTTPOFF]",
                "mov {slot}, qword ptr fs:[{slot}]",
                slot = out(reg) slot,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        slot
    }

    pub fn set(slot: *const Slot) {
        // SAFETY: writes this thread's instance of the word above; see `get`.
        unsafe {
            asm!(
                "mov {offset}, qword ptr [rip + libpause_slot@GOTTPOFF]",
                "mov qword ptr fs:[{offset}], {slot}",
                offset = out(reg) _,
                slot = in(reg) slot,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// The same, as the compiler does it.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")))]
mod pointer {
    use std::cell::Cell;
    use std::ptr;

    use super::Slot;

    thread_local! {
        // Needs no destructor, and so may be read at any time.
        static SLOT: Cell<*const Slot> = const { Cell::new(ptr::null()) };
    }

    #[inline]
    pub fn get() -> *const Slot {
        SLOT.get()
    }

    pub fn set(slot: *const Slot) {
        SLOT.set(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::gate::Barrier;

    #[test]
    fn a_thread_that_is_kept_inside_leaves_when_it_ends_or_comes_back() {
        let (signal, signalled) = std::sync::mpsc::channel();
        let gate = Arc::new(Gate::new(Barrier::best(), move || signal.send(()).unwrap_or(())));
        let kept = || {
            let pass = gate.enter(of_this_thread(&gate)).unwrap();
            keep(&gate, pass);
        };
        thread::scope(|scope| {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let closing = scope.spawn(move || {
                kept();
                ended.recv().unwrap_err();
            });
            while gate.in_flight() == 0 {
                thread::yield_now();
            }
            gate.close().unwrap();
            assert!(!gate.drained());
            assert!(signalled.try_recv().is_err());
            drop(end);
            closing.join().unwrap();
        });
        signalled.try_recv().expect("it has left without a word");
        assert!(gate.drained());
        gate.open();

        let kept = || {
            let pass = gate.enter(of_this_thread(&gate)).unwrap();
            keep(&gate, pass);
        };
        kept();
        gate.close().unwrap();
        assert!(!gate.drained());
        leave();
        assert!(gate.drained());
        // Once is enough.
        leave();
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn a_thread_that_is_kept_inside_twice_leaves_once() {
        let gate = Arc::new(Gate::new(Barrier::best(), || {}));
        for _ in 0..2 {
            keep(&gate, gate.enter(of_this_thread(&gate)).unwrap());
        }
        assert_eq!(gate.in_flight(), 1);
        leave();
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn each_thread_has_a_slot_of_its_own_and_gives_it_back() {
        let gate = Arc::new(Gate::new(Barrier::best(), || {}));
        let slots: Vec<usize> = (0..4)
            .map(|_| {
                let gate = gate.clone();
                thread::spawn(move || {
                    let slot: *const Slot = of_this_thread(&gate);
                    assert_eq!(slot, ptr::from_ref(of_this_thread(&gate)));
                    assert_eq!(pointer::get(), slot);
                    gate.slots()
                })
                .join()
                .unwrap()
            })
            .collect();
        assert_eq!(slots, [1, 1, 1, 1], "a thread that had ended still had its slot");
        assert_eq!(gate.slots(), 0);
        // And two that are alive share none.
        let address = || ptr::from_ref(of_this_thread(&gate)).addr();
        let mine = address();
        assert_ne!(thread::scope(|scope| scope.spawn(address).join().unwrap()), mine);
        assert_eq!(gate.slots(), 1);
    }
}
