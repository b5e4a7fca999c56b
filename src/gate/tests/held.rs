//! Since when requests are held.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::Scene;
use crate::gate::{Barrier, Dropped};

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
