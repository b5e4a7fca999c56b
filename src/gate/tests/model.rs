//! What must hold in every interleaving: `cargo test` tries some on real
//! threads, `RUSTFLAGS="--cfg loom" cargo test --lib gate::tests::model` all.

use super::Scene;
use crate::gate::Barrier;
use crate::gate::sync::{Arc, AtomicUsize, Ordering, model, thread};

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
            let seat = client.gate.take_seat();
            client.request(&seat, || false).unwrap();
            client.request(&seat, || false).unwrap();
        });
        scene.drain();
        scene.assert_quiesced();
        scene.gate.open();
        // A lost wake-up would leave it waiting.
        requests.join().unwrap();
        assert_eq!(scene.done.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn threads_may_come_and_go_while_the_gate_closes() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let client = scene.clone();
                thread::spawn(move || {
                    let seat = client.gate.take_seat();
                    client.request(&seat, || false).unwrap();
                })
            })
            .collect();
        scene.drain();
        scene.assert_quiesced();
        scene.gate.open();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(scene.done.load(Ordering::Relaxed), 2);
        assert_eq!(scene.gate.seats(), 0);
    });
}

#[test]
fn a_drain_can_be_cancelled_at_any_moment() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let client = scene.clone();
        let requests = thread::spawn(move || {
            let seat = client.gate.take_seat();
            client.request(&seat, || false).unwrap();
        });
        scene.gate.close().unwrap();
        scene.gate.open();
        assert!(!scene.gate.drained());
        // And a pause can follow at once.
        scene.drain();
        scene.assert_quiesced();
        scene.gate.open();
        requests.join().unwrap();
        assert_eq!(scene.done.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_held_request_that_is_gone_when_woken_never_passes() {
    for_both_barriers(|barrier| {
        let scene = Scene::new(barrier);
        let gone = Arc::new(AtomicUsize::new(0));
        scene.drain();
        let (client, is_gone) = (scene.clone(), gone.clone());
        let requests = thread::spawn(move || {
            let seat = client.gate.take_seat();
            client.request(&seat, || is_gone.load(Ordering::SeqCst) == 1)
        });
        // It may wait by now or be about to; either way its client dies
        // before the gate opens.
        gone.store(1, Ordering::SeqCst);
        scene.gate.open();
        // It passes only if it first looked when the gate was open.
        let result = requests.join().unwrap();
        assert_eq!(scene.done.load(Ordering::Relaxed), usize::from(result.is_ok()));
        assert_eq!(scene.gate.held(), 0);
        scene.drain();
        scene.assert_quiesced();
    });
}
