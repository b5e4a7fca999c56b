//! Several disks under one `run`: the set of copies is what a power cut would
//! have left. A write that was acknowledged before another was issued is in
//! the set if the other is.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::GENEROUS;
use crate::common::nbd::{Client, Request};
use crate::common::process::{Finished, run};
use crate::common::random::Random;
use crate::common::server::{Server, Setup};
use crate::helper::{KINDS, PROGRAM, expect_status};

/// Copies all disks, one after the other, and takes its time.
const COPY: &str = r#"for disk; do
    cp --reflink=auto "$disk/disk.img" "$disk/copy.img" || exit
    sleep 0.02
done"#;

/// Writes 1 to each disk in turn, waits for each reply, then 2, and so on.
fn write_until(stop: &AtomicBool, servers: &[Server]) {
    let mut clients: Vec<_> = servers.iter().map(Client::connect).collect();
    for number in 1u64.. {
        for client in &mut clients {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            client.ask(Request::Write(0, (number % 256) as u8));
        }
    }
}

/// Whether the copies can be of one moment: so far as the writer has come in
/// its round, a disk has the number of the first; from there on, the one
/// before.
fn is_intact(servers: &[Server]) -> bool {
    let numbers: Vec<u8> = servers
        .iter()
        .map(|server| fs::read(server.path("copy.img")).expect("a copy")[0])
        .collect();
    let behind: Vec<u8> = numbers.iter().map(|&number| numbers[0].wrapping_sub(number)).collect();
    behind.is_sorted() && behind.iter().all(|&behind| behind <= 1)
}

fn copy(servers: &[Server], paused: bool) -> Finished {
    let mut command = match paused {
        true => std::process::Command::new(PROGRAM),
        false => std::process::Command::new("sh"),
    };
    if paused {
        command.arg("run").args(servers.iter().map(Server::control_path)).args(["--", "sh"]);
    }
    command.args(["-c", COPY, "sh"]).args(servers.iter().map(Server::dir));
    run(command)
}

#[test]
fn a_set_of_copies_under_one_run_has_the_order_of_writes_across_disks_intact() {
    let mut random = Random::new();
    for kind in KINDS {
        for count in [2, 3, 8] {
            let servers: Vec<_> =
                (0..count).map(|_| kind.of(Setup::with_disk(1)).start()).collect();
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| write_until(&stop, &servers));
                // Also when an assertion fails.
                let _stop = StopWhenDropped(&stop);
                for _ in 0..8 {
                    thread::sleep(random.millis(0..30));
                    expect_status(&copy(&servers, true), 0);
                    assert!(is_intact(&servers), "{kind:?}, {count} disks");
                }
                // What the check would find: the same without the pause.
                let start = std::time::Instant::now();
                loop {
                    expect_status(&copy(&servers, false), 0);
                    if !is_intact(&servers) {
                        break;
                    }
                    assert!(start.elapsed() < GENEROUS, "the check finds nothing");
                }
            });
        }
    }
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
