//! The plugin is idle between `P` and `r`, whatever the clients do, and no
//! byte is lost or wrong: real load from fio, nbdcopy and qemu-img.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::clients::{self, fio, until_three_jobs_are_at_work};
use crate::common::nbd::{Client, Request};
use crate::common::random::Random;
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};

/// Every kind of load at once, until it is stopped.
const BUSY: [&str; 8] = [
    "--rw=randrw",
    "--numjobs=3",
    "--iodepth=16",
    "--fsync=32",
    "--bs=4k",
    "--size=16M",
    "--time_based",
    "--runtime=300",
];

#[test]
fn in_100_pauses_under_load_the_plugin_is_not_touched() {
    let mut random = Random::new();
    let server = Setup::new(&["memory", "16M"]).logged().start();
    let mut load = fio(&server, &BUSY);
    until_three_jobs_are_at_work(&server, &mut load);
    let mut controller = server.controller();
    let mut before = 0;
    for pause in 1..=100 {
        eventually("the load goes on", GENEROUS, || {
            assert!(load.is_running(), "{}", load.stderr());
            server.logged_bytes() > before + 100_000
        });
        thread::sleep(random.millis(0..5));
        controller.pause();
        before = server.logged_bytes();
        thread::sleep(random.millis(1..80));
        let log = server.logged();
        assert_eq!(&log[before as usize..], "", "in pause {pause}");
        controller.resume();
    }
    let log = server.logged();
    for kind in [" Read ", " Write ", " Flush "] {
        assert!(log.contains(kind), "there was no {kind}");
    }
}

/// Pauses and resumes as fast as it goes while `work` runs. How often?
fn while_pausing(server: &Server, work: impl FnOnce()) -> u32 {
    let mut random = Random::new();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let pauses = scope.spawn(|| {
            let mut controller = server.controller();
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                controller.pause();
                thread::sleep(random.millis(0..10));
                controller.resume();
                thread::sleep(random.millis(0..10));
                count += 1;
            }
            count
        });
        // Not a panic here: the other thread would go on for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        let count = pauses.join().unwrap();
        result.map_or_else(|panic| std::panic::resume_unwind(panic), |()| count)
    })
}

#[test]
fn fio_verifies_every_block_through_rapid_pauses() {
    let server = Setup::with_disk(64).start();
    let pauses = while_pausing(&server, || {
        fio(
            &server,
            &[
                "--rw=randwrite",
                "--bs=4k",
                "--size=64M",
                "--iodepth=16",
                "--fsync=32",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
            ],
        )
        .finish(GENEROUS)
        .succeeded();
    });
    assert!(pauses >= 20, "only {pauses} pauses: this proves nothing");
}

#[test]
fn a_copy_there_and_back_through_rapid_pauses_is_identical() {
    let server = Setup::with_disk(64).start();
    let (image, back) = (server.path("image"), server.path("back"));
    clients::ext4_image(&image, 64);
    let (image, back) = (image.to_str().unwrap(), back.to_str().unwrap());
    let mut pauses = 0;
    let start = Instant::now();
    while pauses < 50 && start.elapsed() < GENEROUS {
        pauses += while_pausing(&server, || {
            clients::program("nbdcopy", &["--requests=8", image, &server.uri()]);
            clients::program("nbdcopy", &["--requests=8", &server.uri(), back]);
            clients::program(
                "qemu-img",
                &["compare", "-f", "raw", "-F", "raw", image, &server.uri()],
            );
        });
        clients::program("cmp", &[image, back]);
        fs::remove_file(back).unwrap();
    }
    assert!(pauses >= 50, "only {pauses} pauses: this proves nothing");
}

#[test]
fn copies_of_the_disk_at_the_start_and_the_end_of_a_pause_are_identical() {
    let server = Setup::with_disk(16).start();
    let disk = server.path("disk.img");
    let mut load = fio(&server, &BUSY);
    let mut controller = server.controller();
    let mut last = vec![0; 16 << 20];
    for _ in 0..8 {
        // The load does change the disk.
        eventually("the disk changes", GENEROUS, || {
            assert!(load.is_running(), "{}", load.stderr());
            fs::read(&disk).unwrap() != last
        });
        controller.pause();
        let start = fs::read(&disk).unwrap();
        thread::sleep(A_WHILE);
        let end = fs::read(&disk).unwrap();
        controller.resume();
        assert!(start == end, "the disk has changed during a pause");
        last = end;
    }
}

#[test]
fn a_stuck_drain_is_ended_by_r_of_a_second_controller() {
    let server = Setup::in_memory().logged().below("delay", &["rdelay=30"]).start();
    let mut client = Client::connect(&server);
    let stuck = client.send(Request::Read(0));
    eventually("the read is below us", GENEROUS, || server.logged().contains(" Read id=1"));
    let (mut one, mut two, mut three) =
        (server.controller(), server.controller(), server.controller());
    one.send(b"p");
    one.expect_silence(A_WHILE);
    three.send(b"pp");
    three.expect_silence(A_WHILE);
    let start = Instant::now();
    two.resume();
    assert!(start.elapsed() < PROMPT, "r had to wait for the drain");
    // No pause took effect. The second p of `three` was still to come.
    one.expect("X");
    three.expect("X");
    three.expect_silence(A_WHILE);
    two.resume();
    three.expect("X");
    // And requests flow.
    client.ask(Request::Write(0, 1));
    assert_eq!(client.reply_within(stuck, Duration::ZERO), None);
    // The delayed read ends early with the client.
    drop(client);
    server.stop();
}

#[test]
fn r_ends_a_stuck_drain_for_the_requests_that_were_held_by_it() {
    let server = Setup::in_memory().logged().below("delay", &["rdelay=30"]).start();
    let mut client = Client::connect(&server);
    client.send(Request::Read(0));
    eventually("the read is below us", GENEROUS, || server.logged().contains(" Read id=1"));
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(Duration::from_millis(50));
    let held = client.send(Request::Write(0, 1));
    client.expect_held(&[held], A_WHILE);
    server.controller().resume();
    assert_eq!(client.reply_within(held, PROMPT), Some(Ok(vec![1; 512])));
    controller.expect("X");
}

#[test]
fn a_disk_image_copied_by_qemu_img_with_a_pause_in_mid_copy_is_identical() {
    let setup =
        Setup::new(&["file", "disk.img"]).logged().below("rate", &["rate=40M", "burstiness=0.1"]);
    clients::ext4_image(&setup.path("disk.img"), 48);
    let server = setup.start();
    let copy = server.path("copy");
    let mut convert = clients::start(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &server.uri(), copy.to_str().unwrap()],
    );
    let reads = || server.logged().matches("...Read ").count();
    eventually("some of it is copied", GENEROUS, || reads() >= 3);
    let mut controller = server.controller();
    controller.pause();
    assert!(convert.is_running(), "the copy was too fast");
    let before = server.logged_bytes();
    let read = reads();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(server.logged_bytes(), before, "{}", server.logged());
    assert!(convert.is_running(), "{:#?}", convert.finish(GENEROUS));
    controller.resume();
    convert.finish(GENEROUS).succeeded();
    assert!(reads() > read, "nothing was left to copy");
    let (disk, copy) = (fs::read(server.path("disk.img")).unwrap(), fs::read(copy).unwrap());
    assert!(disk == copy, "the copy differs");
    server.stop();
}
