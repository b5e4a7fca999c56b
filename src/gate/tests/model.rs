//! What must hold in every interleaving: `cargo test` tries some on real
//! threads, `RUSTFLAGS="--cfg loom" cargo test --lib gate::tests::model` all.

use std::time::Duration;

use super::Scene;
use crate::gate::sync::{Arc, AtomicUsize, Deadline, Ordering, model, thread};
use crate::gate::{Barrier, Changes, Dropped, Worth};

fn for_both_barriers(test: fn(Barrier)) {
    // Registers the test process, where the kernel lets it.
    let mut barriers = vec![Barrier::Fences, Barrier::best()];
    barriers.dedup();
    for barrier in barriers {
        model(move || test(barrier));
    }
}

#[test]
fn no_request_passes_a_drained_gate_and_no_drain_misses_one() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let client = scene.clone();
        let requests = thread::spawn(move || {
            let slot = client.gate.take_slot();
            client.request(&slot, || false).unwrap();
            client.request(&slot, || false).unwrap();
        });
        scene.drain();
        scene.assert_quiesced();
        scene.open();
        // A lost wake-up would leave it waiting.
        requests.join().unwrap();
        assert_eq!(scene.done.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn threads_may_come_and_go_while_the_gate_closes() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let requests: Vec<_> = (0..2).map(|_| scene.start_request(|| false)).collect();
        scene.drain();
        scene.assert_quiesced();
        scene.open();
        for request in requests {
            assert_eq!(request.join().unwrap(), Ok(()));
        }
        assert_eq!(scene.done.load(Ordering::Relaxed), 2);
        assert_eq!(scene.gate.slots(), 0);
    });
}

#[test]
fn a_drain_can_be_cancelled_at_any_moment() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let request = scene.start_request(|| false);
        scene.gate.close().unwrap();
        scene.open();
        assert!(!scene.gate.drained());
        // And a pause can follow at once.
        scene.drain();
        scene.assert_quiesced();
        scene.open();
        assert_eq!(request.join().unwrap(), Ok(()));
        assert_eq!(scene.done.load(Ordering::Relaxed), 1);
    });
}

/// Waits until so many requests are held.
fn until_held(scene: &Scene, count: usize) {
    while scene.gate.held() < count {
        thread::yield_now();
    }
}

#[test]
fn what_is_held_is_let_in_by_an_opening_and_awaited_by_the_next_drain() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.drain();
        let request = scene.start_request(|| false);
        until_held(&scene, 1);
        scene.open();
        scene.drain();
        assert_eq!(scene.done.load(Ordering::Relaxed), 1, "it was held when the gate opened");
        scene.assert_quiesced();
        // Nobody opens again.
        assert_eq!(request.join().unwrap(), Ok(()));
        assert_eq!(scene.gate.held(), 0);
    });
}

#[test]
fn each_that_is_woken_wakes_the_next() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.drain();
        let requests: Vec<_> = (0..2).map(|_| scene.start_request(|| false)).collect();
        until_held(&scene, 2);
        scene.open();
        for request in requests {
            assert_eq!(request.join().unwrap(), Ok(()));
        }
    });
}

/// Its turn to wake the next has come all the same.
#[test]
fn who_is_dropped_as_the_gate_opens_wakes_the_next() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let gone = Arc::new(AtomicUsize::new(0));
        scene.drain();
        let looks = Looks::new(&gone);
        let first = scene.start_request(move || looks.look());
        until_held(&scene, 1);
        let second = scene.start_request(|| false);
        until_held(&scene, 2);
        gone.store(1, Ordering::SeqCst);
        scene.open();
        let _ = first.join().unwrap();
        assert_eq!(second.join().unwrap(), Ok(()));
    });
}

/// As when `r+` comes, and the controller has gone.
#[test]
fn one_wake_is_enough_for_two_openings() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.drain();
        let request = scene.start_request(|| false);
        until_held(&scene, 1);
        scene.gate.open();
        scene.gate.close().unwrap();
        scene.open();
        assert_eq!(request.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_request_that_meets_a_gate_which_opens_and_closes_is_before_or_behind_the_pause() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.gate.close().unwrap();
        let request = scene.start_request(|| false);
        scene.open();
        scene.drain();
        scene.assert_quiesced();
        let (done, held) = (scene.done.load(Ordering::Relaxed), scene.gate.held());
        assert!(done + held <= 1);
        scene.open();
        assert_eq!(request.join().unwrap(), Ok(()));
        assert_eq!(scene.done.load(Ordering::Relaxed), 1);
    });
}

/// What a client looks like to its request.
struct Looks {
    is_gone: Arc<AtomicUsize>,
    /// How many looks have found it there.
    there: AtomicUsize,
}

impl Looks {
    fn new(is_gone: &Arc<AtomicUsize>) -> Self {
        Looks { is_gone: is_gone.clone(), there: AtomicUsize::new(0) }
    }

    fn look(&self) -> bool {
        let is_gone = self.is_gone.load(Ordering::SeqCst) == 1;
        self.there.fetch_add(usize::from(!is_gone), Ordering::Relaxed);
        is_gone
    }

    /// When its request began to wait, and still when it had settled.
    fn was_there(&self) -> bool {
        self.there.load(Ordering::Relaxed) >= 2
    }
}

#[test]
fn only_a_request_whose_client_goes_while_it_is_held_is_dropped() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let gone = Arc::new(AtomicUsize::new(0));
        scene.drain();
        let (client, looks) = (scene.clone(), Looks::new(&gone));
        let requests = thread::spawn(move || {
            let slot = client.gate.take_slot();
            let result = client.request(&slot, || looks.look());
            // Its client goes before the gate opens.
            assert_eq!(result == Err(Dropped), looks.was_there());
            result
        });
        gone.store(1, Ordering::SeqCst);
        scene.open();
        // Whether it was let in or dropped meanwhile: no drain hangs on it.
        scene.drain();
        scene.assert_quiesced();
        scene.open();
        let result = requests.join().unwrap();
        assert_eq!(scene.done.load(Ordering::Relaxed), usize::from(result.is_ok()));
        assert_eq!((scene.gate.held(), scene.gate.in_flight()), (0, 0));
    });
}

#[test]
fn when_the_server_ends_a_held_request_is_dropped_though_nobody_opens() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.drain();
        let request = scene.start_request(|| false);
        scene.gate.shut_down();
        assert_eq!(request.join().unwrap(), Err(Dropped));
        assert!(!scene.gate.must_open());
        assert_eq!((scene.gate.held(), scene.gate.in_flight()), (0, 0));
    });
}

#[test]
fn when_the_server_ends_one_that_may_not_be_dropped_has_the_gate_opened() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.drain();
        let request = scene.start_request(|| true);
        let seen = scene.event.load(Ordering::Acquire);
        scene.gate.shut_down();
        // As the control thread: it sleeps unless it has seen it.
        if !scene.gate.must_open() {
            scene.event.wait(seen, &Deadline::after(Duration::MAX));
            assert!(scene.gate.must_open());
        }
        scene.open();
        assert_eq!(request.join().unwrap(), Ok(()));
        assert_eq!(scene.done.load(Ordering::Relaxed), 1);
        assert!(!scene.gate.must_open());
    });
}

#[test]
fn when_the_server_ends_one_that_is_worth_nothing_is_dropped_in_any_case() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        scene.drain();
        let client = scene.clone();
        let requests = thread::spawn(move || {
            let slot = client.gate.take_slot();
            assert!(client.gate.enter(&slot).is_none());
            // That the server ends looks as if its client had gone.
            client.gate.wait(&slot, Worth::Nothing, || true).is_err()
        });
        scene.gate.shut_down();
        assert!(!scene.gate.must_open());
        assert!(requests.join().unwrap());
        assert!(!scene.gate.must_open());
    });
}

#[test]
fn a_change_is_flushed_or_noted() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let (changes, disk) = (Arc::new(Changes::new()), Arc::new(AtomicUsize::new(0)));
        // So that the note is there already.
        changes.note(&scene.gate);
        let writer = {
            let (scene, changes, disk) = (scene.clone(), changes.clone(), disk.clone());
            thread::spawn(move || {
                disk.store(1, Ordering::Relaxed);
                changes.note(&scene.gate);
            })
        };
        let _taken = changes.take(&scene.gate);
        let flushed = disk.load(Ordering::Relaxed);
        writer.join().unwrap();
        assert!(flushed == 1 || changes.are_there());
    });
}
