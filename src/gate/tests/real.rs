//! What needs time to pass, or real cores.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Scene;
use crate::gate::waiters::{LOOK_AGAIN, SETTLED};
use crate::gate::{Barrier, Changes, Dropped, Gate, Worth};

#[test]
fn a_request_inside_is_waited_for() {
    let scene = Scene::new(Barrier::best());
    let slot = scene.gate.take_slot();
    let pass = scene.gate.enter(&slot).unwrap();
    scene.gate.close().unwrap();
    assert!(!scene.gate.drained());
    assert_eq!(scene.gate.in_flight(), 1);
    drop(pass);
    assert_eq!(scene.event.load(Ordering::Relaxed), 1, "the closing side was not woken");
    assert!(scene.gate.drained());
    assert_eq!(scene.gate.in_flight(), 0);
}

#[test]
fn a_held_request_is_dropped_when_its_client_goes_though_nobody_opens() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let slot = scene.gate.take_slot();
    let looks = Cell::new(0);
    let start = Instant::now();
    // There when it begins to wait, when it has settled, and right after that.
    let fourth = || {
        looks.set(looks.get() + 1);
        looks.get() == 4
    };
    assert_eq!(scene.request(&slot, fourth), Err(Dropped));
    assert!(start.elapsed() >= LOOK_AGAIN);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(scene.done.load(Ordering::Relaxed), 0);
    assert_eq!((scene.gate.in_flight(), scene.gate.held()), (0, 0));
}

/// As a client does that says goodbye and then closes its socket.
#[test]
fn a_request_whose_client_leaves_at_once_is_carried_out() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            let second = || looks.fetch_add(1, Ordering::SeqCst) > 0;
            scene.request(&scene.gate.take_slot(), second)
        });
        // It has looked the second time.
        while looks.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        std::thread::sleep(3 * LOOK_AGAIN);
        assert!(!request.is_finished());
        scene.open();
        assert_eq!(request.join().unwrap(), Ok(()));
    });
}

/// Sleepers may wake up for no reason (futex(2)).
#[test]
fn however_often_a_request_is_woken_its_client_has_time_to_leave() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let (first, second) = (OnceLock::new(), OnceLock::new());
    std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            let look = || {
                if first.set(Instant::now()).is_err() {
                    let _ = second.set(Instant::now());
                }
                false
            };
            scene.request(&scene.gate.take_slot(), look)
        });
        while second.get().is_none() {
            scene.gate.stir();
            std::thread::yield_now();
        }
        scene.open();
        request.join().unwrap().unwrap();
    });
    let settled = *second.get().unwrap() - *first.get().unwrap();
    assert!(settled >= SETTLED, "it was looked at again after {settled:?}");
}

/// A request that has just begun to wait can't tell the one from the other.
#[test]
fn the_end_of_the_server_is_not_taken_for_that_of_a_client_which_leaves_at_once() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let ends = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            let is_gone = || {
                let ends = ends.load(Ordering::SeqCst);
                looks.fetch_add(1, Ordering::SeqCst);
                ends
            };
            scene.request(&scene.gate.take_slot(), is_gone)
        });
        // It begins to wait.
        while looks.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        ends.store(true, Ordering::SeqCst);
        let ended = Instant::now();
        // It looks again.
        while looks.load(Ordering::SeqCst) == 1 {
            std::thread::yield_now();
        }
        scene.gate.shut_down();
        let in_time = ended.elapsed() < LOOK_AGAIN;
        while !request.is_finished() && !scene.gate.must_open() {
            std::thread::yield_now();
        }
        scene.open();
        // It waits for that no longer, and this machine may be busy.
        assert!(request.join().unwrap() == Err(Dropped) || !in_time);
    });
}

#[test]
fn a_request_that_finds_the_gate_open_asks_nobody() {
    let scene = Scene::new(Barrier::best());
    let slot = scene.gate.take_slot();
    scene.request(&slot, || panic!("nothing was held")).unwrap();
    scene.drain();
    scene.open();
    scene.request(&slot, || panic!("nothing was held")).unwrap();
}

/// The gate opens for moments that no sleeper can wake up in.
#[test]
fn what_is_held_is_let_in_by_the_next_opening_however_short() {
    let scene = Scene::new(Barrier::best());
    let held = 16;
    std::thread::scope(|scope| {
        for round in 0..50 {
            scene.drain();
            for _ in 0..held {
                scope.spawn(|| scene.request(&scene.gate.take_slot(), || false).unwrap());
            }
            while scene.gate.held() < held {
                std::thread::yield_now();
            }
            scene.open();
            // As `rp` does: a barrier for all that was held.
            scene.drain();
            assert_eq!(scene.done.load(Ordering::Relaxed), held * (round + 1));
            assert_eq!(scene.gate.held(), 0);
            scene.open();
        }
    });
}

#[test]
fn to_open_an_open_gate_or_to_close_a_closed_one_changes_nothing() {
    let scene = Scene::new(Barrier::best());
    let gate = &scene.gate;
    let look = || gate.openings.load(Ordering::Relaxed);
    let before = look();
    gate.open();
    assert_eq!(look(), before);
    scene.drain();
    gate.close().unwrap();
    assert!(gate.drained());
    assert_eq!(look(), before);
    gate.open();
    assert_ne!(look(), before);
}

#[test]
fn threads_that_are_gone_leave_nothing_behind() {
    let gate = Arc::new(Gate::new(Barrier::best(), || {}));
    for _ in 0..1_000 {
        let gate = gate.clone();
        std::thread::spawn(move || {
            let slot = gate.take_slot();
            drop(gate.enter(&slot).unwrap());
        })
        .join()
        .unwrap();
    }
    assert_eq!(gate.slots(), 0);
}

/// Each thread writes to its own cache line alone, as the gate does, so that
/// nothing but the gate orders what the closing side sees.
#[repr(align(128))]
#[derive(Default)]
struct Progress(AtomicU64);

/// Lets the threads end, also where an assertion fails.
struct Stop<'a>(&'a AtomicBool, &'a Gate);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.open();
        self.1.wake();
    }
}

fn spin(times: u32) {
    for _ in 0..times {
        std::hint::spin_loop();
    }
}

fn stress(barrier: Barrier) {
    const PAUSES: u64 = 3_000;
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let scene = Scene::new(barrier);
    let progress: Vec<Progress> = (0..threads).map(|_| Progress::default()).collect();
    let stop = AtomicBool::new(false);
    let passed = AtomicU64::new(0);
    let total = || -> u64 { progress.iter().map(|p| p.0.load(Ordering::Acquire)).sum() };
    std::thread::scope(|scope| {
        for mine in &progress {
            let (scene, stop, passed) = (&scene, &stop, &passed);
            scope.spawn(move || {
                let mut requests = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    // A thread that comes and goes now and then.
                    let slot = scene.gate.take_slot();
                    for _ in 0..1_000 {
                        let enter = || scene.gate.wait(&slot, Worth::All, || false).unwrap();
                        let _pass = scene.gate.enter(&slot).unwrap_or_else(enter);
                        // Odd: below the gate, for long enough to be seen there.
                        mine.0.store(2 * requests + 1, Ordering::Relaxed);
                        spin(6);
                        mine.0.store(2 * requests + 2, Ordering::Release);
                        requests += 1;
                    }
                }
                passed.fetch_add(requests, Ordering::Relaxed);
            });
        }
        let _stop = Stop(&stop, &scene.gate);
        for pause in 0..PAUSES {
            // A look at the counts takes their cache lines away, so that the
            // next store of each thread is slow to be seen: the moment that a
            // gate without barriers misses.
            for _ in 0..pause % 50 {
                scene.gate.in_flight();
            }
            scene.drain();
            let before = total();
            assert!(
                progress.iter().all(|p| p.0.load(Ordering::Acquire) % 2 == 0),
                "a request is inside a drained gate, pause {pause}"
            );
            spin(200);
            assert_eq!(total(), before, "a request went through a closed gate, pause {pause}");
            scene.open();
            // Until requests flow again: from one to forty, each counted twice.
            let flowing = before + 2 * (1 + pause % 40);
            while total() < flowing {
                std::thread::yield_now();
            }
        }
    });
    let passed = passed.load(Ordering::Relaxed);
    println!("{barrier:?}: {passed} requests, {PAUSES} pauses, {threads} threads");
}

#[test]
fn no_request_is_inside_a_drained_gate_on_real_cores() {
    assert_eq!(Barrier::best(), Barrier::Membarrier, "this kernel offers no membarrier");
    stress(Barrier::Membarrier);
}

#[test]
fn no_request_is_inside_a_drained_gate_without_membarrier() {
    stress(Barrier::Fences);
}

/// A plugin of plain stores, a write on one thread, the flush of a client on another:
/// in each round both begin at once. Without the barrier of `Changes::take`, some
/// dozens of these rounds go wrong on two cores.
#[test]
fn a_change_is_flushed_or_noted_on_real_cores() {
    const ROUNDS: u64 = 300_000;
    /// Where the cores are busy, a round takes as long as a turn on one of them.
    const ENOUGH: Duration = Duration::from_secs(2);
    for barrier in [Barrier::best(), Barrier::Fences] {
        let gate = Gate::new(barrier, || {});
        let changes = Changes::new();
        let (disk, round) = (Progress::default(), Progress::default());
        let written = Progress::default();
        let wrong = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1.. {
                    until(|| round.0.load(Ordering::Acquire) >= number);
                    if round.0.load(Ordering::Acquire) == u64::MAX {
                        return;
                    }
                    spin((number % 7) as u32);
                    disk.0.store(number, Ordering::Relaxed);
                    changes.note(&gate);
                    written.0.store(number, Ordering::Release);
                }
            });
            let start = Instant::now();
            let is_wrong = |number: u64| {
                // Of an earlier write, so that the writer finds it.
                changes.note(&gate);
                round.0.store(number, Ordering::Release);
                spin((number % 11) as u32);
                let _taken = changes.take(&gate);
                let flushed = disk.0.load(Ordering::Relaxed);
                until(|| written.0.load(Ordering::Acquire) == number);
                flushed != number && !changes.are_there()
            };
            let rounds = (1..=ROUNDS).take_while(|_| start.elapsed() < ENOUGH);
            let wrong = rounds.filter(|&number| is_wrong(number)).count();
            round.0.store(u64::MAX, Ordering::Release);
            wrong
        });
        assert_eq!(wrong, 0, "changes that are in no flush, and that nobody knows of");
    }
}

/// Spins, but leaves the core to who needs it.
fn until(is_so: impl Fn() -> bool) {
    while !(0..1_000).any(|_| {
        std::hint::spin_loop();
        is_so()
    }) {
        std::thread::yield_now();
    }
}
