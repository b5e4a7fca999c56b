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
        thread::scope(|scope| {
            let mut requests: Vec<_> = [0, 1]
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
            assert!(requests[0].0.contains(&scene.gate.oldest_held().unwrap()));
            is_gone.store(true, Ordering::SeqCst);
            while scene.gate.held() == 2 {
                thread::yield_now();
            }
            assert!(requests[stays].0.contains(&scene.gate.oldest_held().unwrap()));
            scene.open();
            assert_eq!(scene.gate.oldest_held(), None);
            let (_, dropped) = requests.remove(goes);
            assert_eq!(dropped.join().unwrap(), Err(Dropped));
        });
    }
}
