//! Under a real virtual machine and a real kernel client: what a user's guest sees of
//! pauses, and what snapshots have of it. `scripts/test-vm` makes the guest, and runs
//! this. Only data decides: a slow machine takes longer, and fails nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

#[path = "../common/mod.rs"]
mod common;
mod guest;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::process::send_signal;
use common::{Process, Server, Setup, eventually, ext4, filter, nbdkit, run};
use guest::{Guest, PATIENCE, number_in};

/// `many`, or `few` if the run is to be short.
fn rounds(many: usize, few: usize) -> usize {
    if std::env::var_os("PAUSE_VM_SHORT").is_some() { few } else { many }
}

/// A disk of 32 MiB with an empty ext4. The kernel's client wants blocks of 4 KiB.
fn ext4_disk() -> Setup {
    let setup = Setup::with_disk(32).holds();
    let mut command = common::clients::system_program("mke2fs");
    command.args(["-q", "-t", "ext4", "-b", "4096"]).arg(setup.path("disk.img"));
    run(command).succeeded();
    setup
}

/// `script` in `sh` with these arguments, while these servers are paused; if there are
/// none, as it is.
fn copy(paused: &[&Server], script: &str, arguments: &[&Path]) {
    let mut command = Command::new("sh");
    if !paused.is_empty() {
        command = Command::new(filter::helper());
        command.arg("run").args(paused.iter().map(|server| server.control_path()));
        command.args(["--", "sh"]);
    }
    command.args(["-c", script, "sh"]).args(arguments);
    Process::start(command).finish(PATIENCE).succeeded();
}

/// Copies disk `$1` to `$2` as a snapshot that takes two seconds would: the end of the
/// disk first, then the journal in its middle, and its beginning last.
const COPY: &str = "set -e; truncate -r \"$1\" \"$2\"
     for mib in 28 24 20 16 12 8 4 0; do
         dd if=\"$1\" of=\"$2\" bs=1M skip=$mib seek=$mib count=4 conv=notrunc status=none
         sleep 0.25
     done";

// 1. A file system on one disk.

#[test]
#[ignore = "scripts/test-vm runs it"]
fn a_snapshot_of_a_guests_ext4_is_whole_and_has_all_that_was_acknowledged() {
    let server = ext4_disk().start();
    let mut guest = Guest::boot(&[&server], &server);
    guest.writes_to("/dev/disk0");
    let disk = server.path("disk.img");
    let mut torn = 0;
    for round in 0..rounds(5, 2) {
        for paused in [&[&server][..], &[]] {
            guest.goes_on();
            let before = guest.acknowledged();
            let snapshot = server.path(&format!("snapshot-{round}-{}", paused.len()));
            copy(paused, COPY, &[&disk, &snapshot]);
            let found = ext4::rule(&snapshot, before, number_in);
            match paused {
                [] => torn += usize::from(found.is_err()),
                _ => found.unwrap(),
            }
        }
    }
    println!("{torn} of {} copies without a pause were torn", rounds(5, 2));
    assert!(torn > 0, "this proves nothing: copies without a pause are whole, too");
    guest.stops_writing();
}

/// Frozen in the guest, a file system is at rest in the snapshot: nothing is replayed.
#[test]
#[ignore = "scripts/test-vm runs it"]
fn a_snapshot_of_a_frozen_file_system_needs_no_recovery() {
    let server = ext4_disk().start();
    let mut guest = Guest::boot(&[&server], &server);
    guest.writes_to("/dev/disk0");
    let disk = server.path("disk.img");
    let is_at_rest = |name: &str| {
        let snapshot = server.path(name);
        copy(&[&server], COPY, &[&disk, &snapshot]);
        let mut command = common::clients::system_program("dumpe2fs");
        command.arg("-h").arg(&snapshot);
        let at_rest = !run(command).succeeded().stdout.contains("needs_recovery");
        (snapshot, at_rest)
    };
    assert!(!is_at_rest("mounted").1, "a mounted one is never at rest");
    for round in 0..3 {
        let before = guest.acknowledged();
        guest.run("fsfreeze --freeze /mnt");
        let (snapshot, at_rest) = is_at_rest(&format!("frozen-{round}"));
        guest.run("fsfreeze --unfreeze /mnt");
        assert!(at_rest);
        ext4::is_sound(&snapshot).unwrap();
        ext4::rule(&snapshot, before, number_in).unwrap();
        guest.goes_on();
    }
    guest.stops_writing();
}

// 2. Records that go to one disk, and then to the other.

/// The numbers at the beginning of two copies.
fn numbers(copies: &[PathBuf; 2]) -> [u64; 2] {
    copies.each_ref().map(|copy| {
        let content = fs::read(copy).expect("a copy");
        String::from_utf8_lossy(&content[..512]).trim().parse().expect("a whole record")
    })
}

#[test]
#[ignore = "scripts/test-vm runs it"]
fn disks_under_one_pause_are_in_order_and_one_after_the_other_they_are_not() {
    let servers = [(); 2].map(|()| Setup::with_disk(1).holds().start());
    let [first, second] = &servers;
    let mut guest = Guest::boot(&[first, second], first);
    guest.tell(
        "{ n=0; while [ ! -e /stop ]; do n=$((n+1)); for disk in /dev/disk0 /dev/disk1; do \
         printf '%0511d\\n' $n | dd of=$disk bs=512 oflag=direct conv=notrunc 2>/dev/null; done; \
         echo ack $n; done; } &",
    );
    let disks = [first, second].map(|server| server.path("disk.img"));
    const ONE: &str = "cp \"$1\" \"$2\"; sleep 1";
    const BOTH: &str = "cp \"$1\" \"$2\"; sleep 1; cp \"$3\" \"$4\"; sleep 1";
    for round in 0..5 {
        guest.goes_on();
        let copies = [0, 1].map(|disk| first.path(&format!("copy-{round}-{disk}")));
        let before = guest.acknowledged();
        let arguments = [&*disks[0], &*copies[0], &*disks[1], &*copies[1]];
        copy(&[first, second], BOTH, &arguments);
        let [a, b] = numbers(&copies);
        assert!(b >= before && (a == b || a == b + 1), "{a} then {b}, {before} acknowledged");
        guest.goes_on();
        copy(&[first], ONE, &arguments[..2]);
        guest.goes_on();
        copy(&[second], ONE, &arguments[2..]);
        let [a, b] = numbers(&copies);
        assert!(b > a, "this proves nothing: {a} then {b} in two pauses");
    }
    guest.run("touch /stop; wait");
    guest.is_well();
}

// 3. A server that ends in a pause, and starts again.

fn survives_a_restart_in_a_pause(signal: i32) {
    let mut server = ext4_disk().logged_above().start();
    let folder = Setup::in_memory().start();
    let mut guest = Guest::boot(&[&server], &folder);
    guest.writes_to("/dev/disk0");
    for _ in 0..rounds(10, 3) {
        guest.goes_on();
        server.controller().pause();
        let come = server.writes_come();
        eventually("the guest waits for a write that is held", PATIENCE, || {
            guest.is_well();
            server.writes_come() > come
        });
        send_signal(server.pid(), signal);
        server = server.ended(PATIENCE).again().start();
    }
    guest.goes_on();
    let before = guest.acknowledged();
    guest.stops_writing();
    let disk = server.path("disk.img");
    ext4::rule(&disk, before, number_in).unwrap();
}

#[test]
#[ignore = "scripts/test-vm runs it"]
fn a_guest_does_not_notice_that_its_server_is_killed_in_a_pause_and_starts_again() {
    survives_a_restart_in_a_pause(libc::SIGKILL);
}

#[test]
#[ignore = "scripts/test-vm runs it"]
fn a_guest_does_not_notice_that_its_server_is_told_to_end_in_a_pause_and_starts_again() {
    if !nbdkit::cuts_connections() {
        println!("SKIPPED: before 1.34 nbdkit can't cut a connection, and the guest has an error");
        return;
    }
    survives_a_restart_in_a_pause(libc::SIGTERM);
}

// 4. The kernel's own client.

/// With `-t 10` the kernel gives up a request after ten seconds.
#[test]
#[ignore = "scripts/test-vm runs it"]
fn the_kernels_client_survives_pauses_that_are_shorter_than_its_patience() {
    let server = ext4_disk().with("pause-timeout=8").tcp().start();
    let mut guest = Guest::boot(&[], &server);
    let port = server.port().expect("a port");
    guest.run(&format!("nbd-client 10.0.2.2 {port} /dev/nbd0 -t 10"));
    guest.writes_to("/dev/nbd0");
    let mut controller = server.controller();
    controller.pause();
    thread::sleep(Duration::from_secs(5));
    controller.resume();
    guest.goes_on();
    // What was held when the pause began again has gone on in between.
    controller.pause();
    for _ in 0..10 {
        thread::sleep(Duration::from_secs(2));
        controller.ask("rp", "RP");
    }
    controller.resume();
    guest.goes_on();
    controller.pause();
    thread::sleep(Duration::from_secs(40));
    guest.goes_on();
    server.says("pause-timeout");
    let before = guest.acknowledged();
    guest.stops_writing();
    guest.run("nbd-client -d /dev/nbd0");
    ext4::rule(&server.path("disk.img"), before, number_in).unwrap();
}
