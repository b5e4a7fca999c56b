//! What is known of held requests, and what they know of their clients.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::Scene;
use super::real::{Stop, until};
use crate::gate::waiters::{LOOK_AGAIN, LOOK_BESIDE};
use crate::gate::{Barrier, Dropped, Worth};

#[test]
fn it_is_known_since_when_the_oldest_is_held_whichever_goes() {
    for (goes, stays) in [(0, 1), (1, 0)] {
        let scene = Scene::new(Barrier::best());
        scene.drain();
        assert_eq!(scene.gate.oldest_held(), None);
        let looks = [AtomicU64::new(0), AtomicU64::new(0)];
        let is_gone = AtomicBool::new(false);
        // Judged when all have ended: who is held still would keep this test from failing.
        let (requests, both, one, none) = thread::scope(|scope| {
            let requests: Vec<_> = [0, 1]
                .into_iter()
                .map(|number| {
                    let before = Instant::now();
                    let (scene, is_gone, looks) = (&scene, &is_gone, &looks[number]);
                    let request = scope.spawn(move || {
                        scene.request(&scene.gate.take_slot(), || {
                            let goes = number == goes && is_gone.load(Ordering::SeqCst);
                            looks.fetch_add(1, Ordering::SeqCst);
                            goes
                        })
                    });
                    // As it begins to wait, and when it has settled.
                    while looks.load(Ordering::SeqCst) < 2 {
                        thread::yield_now();
                    }
                    (before..Instant::now(), request)
                })
                .collect();
            let both = scene.gate.oldest_held();
            is_gone.store(true, Ordering::SeqCst);
            while scene.gate.held() == 2 {
                thread::yield_now();
            }
            let one = scene.gate.oldest_held();
            scene.open();
            let ended = requests.into_iter().map(|(began, it)| (began, it.join().unwrap()));
            (ended.collect::<Vec<_>>(), both, one, scene.gate.oldest_held())
        });
        assert!(requests[0].0.contains(&both.unwrap()));
        assert!(requests[stays].0.contains(&one.unwrap()));
        assert_eq!(requests[goes].1, Err(Dropped));
        assert_eq!((&requests[stays].1, none), (&Ok(()), None));
    }
}

#[test]
fn the_first_of_a_connection_looks_for_the_others_and_each_decides_for_itself() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let gone = AtomicBool::new(false);
    let looks: [AtomicU64; 3] = Default::default();
    let count = |number: usize| looks[number].load(Ordering::SeqCst);
    thread::scope(|scope| {
        // The last one is of another client, as multi-conn's flushes are.
        let requests: Vec<_> = (0..3)
            .map(|number| {
                let (scene, gone, looks) = (&scene, &gone, &looks);
                let request = scope.spawn(move || {
                    scene.request(&scene.gate.take_slot(), || {
                        looks[number].fetch_add(1, Ordering::SeqCst);
                        number < 2 && gone.load(Ordering::SeqCst)
                    })
                });
                // The first looks for the others by now.
                until(|| scene.gate.held() > number && count(0) > 3);
                request
            })
            .collect();
        let _stop = Stop(&gone, &scene.gate);
        until(|| (0..3).all(|number| count(number) > 2) && count(0) > 6);
        let (second, third) = (count(1), count(2));
        assert!(second < 5 && third < 5, "{second} and {third} looks beside those of the first");
        gone.store(true, Ordering::SeqCst);
        let start = Instant::now();
        until(|| scene.gate.held() == 1);
        assert!(start.elapsed() < LOOK_BESIDE / 2);
        // It was told, and looks for itself.
        until(|| count(2) > third);
        scene.open();
        let results = requests.into_iter().map(|request| request.join().unwrap());
        assert!(results.eq([Err(Dropped), Err(Dropped), Ok(())]));
    });
}

/// Requests of two connections can sleep on the same futex.
#[test]
fn who_was_woken_for_another_connection_is_told_of_its_own() {
    let scene = Scene::new(Barrier::best());
    scene.drain();
    let gone: [AtomicBool; 3] = Default::default();
    let looks = AtomicU64::new(0);
    thread::scope(|scope| {
        for (number, connection) in [2, 1, 1, 2].into_iter().enumerate() {
            let (scene, gone, looks) = (&scene, &gone[connection], &looks);
            scope.spawn(move || {
                let slot = scene.gate.take_slot();
                assert!(scene.gate.enter(&slot).is_none());
                let dropped = scene.gate.wait(&slot, Worth::All, connection, || {
                    looks.fetch_add(u64::from(number == 3), Ordering::SeqCst);
                    gone.load(Ordering::SeqCst)
                });
                assert!(dropped.is_err());
            });
            until(|| scene.gate.held() > number);
        }
        let _stop = Stop(&gone[0], &scene.gate);
        // They have settled.
        until(|| looks.load(Ordering::SeqCst) == 3);
        thread::sleep(LOOK_AGAIN);
        for connection in [1, 2] {
            gone[connection].store(true, Ordering::SeqCst);
            let start = Instant::now();
            until(|| scene.gate.held() == 4 - 2 * connection);
            assert!(start.elapsed() < LOOK_BESIDE / 2);
        }
    });
}
