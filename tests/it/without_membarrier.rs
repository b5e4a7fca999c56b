//! A kernel or a container without `membarrier(2)`: the filter says so, and
//! keeps its promises by fences on both sides.

use std::thread;

use crate::common::clients::{fio, until_three_jobs_are_at_work};
use crate::common::random::Random;
use crate::common::server::Setup;
use crate::common::{GENEROUS, eventually};

#[test]
fn without_membarrier_the_plugin_is_not_touched_in_a_pause_either() {
    let mut random = Random::new();
    let server = Setup::new(&["memory", "16M"])
        .logged()
        .verbose()
        .refused_call(libc::SYS_membarrier)
        .start();
    eventually("the filter says what it does", GENEROUS, || {
        server.messages().contains("pauses rely on fences")
    });
    let load =
        ["--rw=randrw", "--numjobs=3", "--iodepth=16", "--fsync=32", "--bs=4k", "--size=16M"];
    let mut load = fio(&server, &[&load[..], &["--time_based", "--runtime=300"]].concat());
    until_three_jobs_are_at_work(&server, &mut load);
    let mut controller = server.controller();
    let mut before = 0;
    for pause in 1..=20 {
        eventually("the load goes on", GENEROUS, || {
            assert!(load.is_running(), "{}", load.stderr());
            server.logged_bytes() > before + 100_000
        });
        controller.pause();
        before = server.logged_bytes();
        thread::sleep(random.millis(1..50));
        assert_eq!(server.logged_bytes(), before, "in pause {pause}");
        controller.resume();
    }
}

#[test]
fn with_membarrier_it_is_used() {
    let server = Setup::in_memory().verbose().start();
    eventually("the filter says what it does", GENEROUS, || {
        server.messages().contains("pauses rely on membarrier(2)")
    });
}
