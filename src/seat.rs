//! The calling thread's seat in the gate, found without a lock. nbdkit starts
//! fresh threads for each connection; their seats are given back as they end.

use std::cell::OnceCell;
use std::ptr;

use crate::gate::{Gate, Seat, TakenSeat};

thread_local! {
    static OWNER: OnceCell<Owner> = const { OnceCell::new() };
}

/// Keeps the thread's seat; `pointer` is set as long as this lives.
struct Owner(TakenSeat);

impl Drop for Owner {
    fn drop(&mut self) {
        pointer::set(ptr::null());
    }
}

/// The calling thread's seat in `gate`, which is the only gate of this process:
/// a thread takes one seat in its life.
#[inline]
pub fn of_this_thread(gate: &Gate) -> &Seat {
    // SAFETY: not NULL, so set by `take` on this thread and not cleared yet by
    // the end of `OWNER`, which keeps the seat alive. The reference does not
    // leave the thread's current call from nbdkit, and so ends before `OWNER`.
    unsafe { pointer::get().as_ref() }.unwrap_or_else(|| take(gate))
}

#[cold]
fn take(gate: &Gate) -> &Seat {
    let taken = OWNER.try_with(|owner| {
        let seat: *const Seat = &*owner.get_or_init(|| Owner(gate.take_seat())).0;
        pointer::set(seat);
        seat
    });
    match taken {
        // SAFETY: as above.
        Ok(seat) => unsafe { &*seat },
        // The thread is past its end, and can't give a seat back any more.
        // nbdkit makes no request there; if it does, this one stays.
        Err(_) => Box::leak(Box::new(gate.take_seat())),
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

    use super::Seat;

    global_asm!(
        ".pushsection .tbss.libpause_seat, \"awT\", @nobits",
        ".hidden libpause_seat",
        ".globl libpause_seat",
        ".type libpause_seat, @tls_object",
        ".size libpause_seat, 8",
        ".balign 8",
        "libpause_seat:",
        ".zero 8",
        ".popsection",
    );

    #[inline]
    pub fn get() -> *const Seat {
        let seat;
        // SAFETY: reads this thread's instance of the word above, as the
        // x86-64 ABI lays down for initial-exec thread-local storage.
        unsafe {
            asm!(
                "mov {seat}, qword ptr [rip + libpause_seat@GOTTPOFF]",
                "mov {seat}, qword ptr fs:[{seat}]",
                seat = out(reg) seat,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        seat
    }

    pub fn set(seat: *const Seat) {
        // SAFETY: writes this thread's instance of the word above; see `get`.
        unsafe {
            asm!(
                "mov {offset}, qword ptr [rip + libpause_seat@GOTTPOFF]",
                "mov qword ptr fs:[{offset}], {seat}",
                offset = out(reg) _,
                seat = in(reg) seat,
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

    use super::Seat;

    thread_local! {
        // Needs no destructor, and so may be asked at any time.
        static SEAT: Cell<*const Seat> = const { Cell::new(ptr::null()) };
    }

    #[inline]
    pub fn get() -> *const Seat {
        SEAT.get()
    }

    pub fn set(seat: *const Seat) {
        SEAT.set(seat);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::gate::Barrier;

    #[test]
    fn each_thread_has_a_seat_of_its_own_and_gives_it_back() {
        let gate = Arc::new(Gate::new(Barrier::best(), || {}));
        let seats: Vec<usize> = (0..4)
            .map(|_| {
                let gate = gate.clone();
                thread::spawn(move || {
                    let seat: *const Seat = of_this_thread(&gate);
                    assert_eq!(seat, ptr::from_ref(of_this_thread(&gate)));
                    assert_eq!(pointer::get(), seat);
                    gate.seats()
                })
                .join()
                .unwrap()
            })
            .collect();
        assert_eq!(seats, [1, 1, 1, 1], "a thread that had ended still had its seat");
        assert_eq!(gate.seats(), 0);
        // And two that are alive share none.
        let address = || ptr::from_ref(of_this_thread(&gate)).addr();
        let mine = address();
        assert_ne!(thread::scope(|scope| scope.spawn(address).join().unwrap()), mine);
        assert_eq!(gate.seats(), 1);
    }
}
