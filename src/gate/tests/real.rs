//! What needs time to pass, or real cores.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Scene;
use crate::gate::{Barrier, Gate, Gone, LOOK_AGAIN};

#[test]
fn a_request_inside_is_waited_for() {
    let scene = Scene::new(Barrier::best());
    let seat = scene.gate.take_seat();
    let pass = scene.gate.enter(&seat, || false).unwrap();
    scene.gate.close().unwrap();
    assert!(!scene.gate.drained());
    assert_eq!(scene.gate.in_flight(), 1);
    drop(pass);
    assert_eq!(scene.bell.load(Ordering::Relaxed), 1, "the closing side was not woken");
    assert!(scene.gate.drained());
    assert_eq!(scene.gate.in_flight(), 0);
}

#[test]
fn a_gone_request_ends_though_nobody_opens() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let seat = scene.gate.take_seat();
    // At once where it is gone from the start.
    assert_eq!(scene.request(&seat, || true), Err(Gone));
    // And while it waits: the third look says so.
    let looks = Cell::new(0);
    let start = Instant::now();
    let third = || {
        looks.set(looks.get() + 1);
        looks.get() == 3
    };
    assert_eq!(scene.request(&seat, third), Err(Gone));
    assert!(start.elapsed() >= LOOK_AGAIN);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(scene.done.load(Ordering::Relaxed), 0);
    assert_eq!(scene.gate.in_flight(), 0);
}

#[test]
fn threads_that_are_gone_leave_nothing_behind() {
    let gate = Arc::new(Gate::new(Barrier::best(), || {}));
    for _ in 0..1_000 {
        let gate = gate.clone();
        std::thread::spawn(move || {
            let seat = gate.take_seat();
            drop(gate.enter(&seat, || false).unwrap());
        })
        .join()
        .unwrap();
    }
    assert_eq!(gate.seats(), 0);
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
                    let seat = scene.gate.take_seat();
                    for _ in 0..1_000 {
                        let _pass = scene.gate.enter(&seat, || false).unwrap();
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
            scene.gate.open();
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
