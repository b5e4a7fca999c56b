//! The plugin is idle between `P` and `r`, whatever the clients do, and no byte is
//! lost or wrong: real load from fio, nbdcopy and qemu-img. Also on a kernel, or in a
//! container, without `membarrier(2)`, where the filter relies on fences on both sides.

use super::*;

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

/// In so many pauses of up to so many ms, the plugin under load is not touched, and
/// the disk does not change.
fn is_untouched_in(pauses: u32, longest: u64, server: &Server) {
    let mut random = Random::new();
    let mut load = fio(server, &BUSY);
    // Who connects in a pause is logged, too.
    load.runs_until("three jobs are connected and have written", || {
        let log = server.logged();
        let wrote = |job: &u32| log.contains(&format!("connection={job} ...Write"));
        (1..10).filter(wrote).count() == 3
    });
    let mut controller = server.controller();
    let mut before = 0;
    for pause in 1..=pauses {
        load.runs_until("the load goes on", || server.logged_bytes() > before + 100_000);
        thread::sleep(random.millis(0..5));
        controller.pause();
        before = server.logged_bytes();
        let disk = server.disk();
        thread::sleep(random.millis(1..longest));
        assert_eq!(&server.logged()[before as usize..], "", "in pause {pause}");
        assert!(server.disk() == disk, "the disk has changed in pause {pause}");
        controller.resume();
    }
    let log = server.logged();
    for kind in [" Read ", " Write ", " Flush "] {
        assert!(log.contains(kind), "there was no {kind}");
    }
}

fn busy_disk() -> Setup {
    // No power is cut here, and a busy machine takes seconds for a sync.
    Setup::with_disk(16).logged().below("fua", &["fuamode=discard"])
}

#[test]
fn in_100_pauses_under_load_the_plugin_is_not_touched_and_the_disk_does_not_change() {
    is_untouched_in(100, 80, &busy_disk().start());
}

#[test]
fn without_membarrier_the_plugin_is_not_touched_in_a_pause_either() {
    let calls = ["-e", "trace=membarrier", "-e", "inject=membarrier:error=ENOSYS"];
    let strace = [&["strace", "-f", "--seccomp-bpf", "-o", "trace"], &calls[..]].concat();
    let server = busy_disk().verbose().under(&strace).start();
    server.says("pauses rely on fences");
    is_untouched_in(20, 50, &server);
}

#[test]
fn with_membarrier_it_is_used() {
    Setup::in_memory().verbose().start().says("pauses rely on membarrier(2)");
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
    let write = ["--rw=randwrite", "--bs=4k", "--size=64M", "--iodepth=16", "--fsync=32"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
    let pauses = while_pausing(&server, || {
        fio(&server, &[&write[..], &verify].concat()).finish(GENEROUS).succeeded();
    });
    assert!(pauses >= 20, "only {pauses} pauses: this proves nothing");
}

#[test]
fn a_copy_there_and_back_through_rapid_pauses_is_identical() {
    let server = Setup::with_disk(64).start();
    let (image, back, uri) = (server.path("image"), server.path("back"), server.uri());
    clients::ext4_image(&image, 64);
    let (image, back) = (image.to_str().unwrap(), back.to_str().unwrap());
    let mut pauses = 0;
    let start = Instant::now();
    while pauses < 50 && start.elapsed() < GENEROUS {
        pauses += while_pausing(&server, || {
            clients::program("nbdcopy", &["--requests=8", image, &uri]);
            clients::program("nbdcopy", &["--requests=8", &uri, back]);
            clients::program("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
        });
        clients::program("cmp", &[image, back]);
        fs::remove_file(back).unwrap();
    }
    assert!(pauses >= 50, "only {pauses} pauses: this proves nothing");
}

#[test]
fn a_disk_image_copied_by_qemu_img_with_a_pause_in_mid_copy_is_identical() {
    let setup = Setup::new(&["file", "disk.img"]).logged();
    clients::ext4_image(&setup.path("disk.img"), 48);
    let server = setup.below("rate", &["rate=40M", "burstiness=0.1"]).start();
    let copy = server.path("copy");
    let words = ["convert", "-f", "raw", "-O", "raw", &server.uri(), copy.to_str().unwrap()];
    let mut convert = clients::start("qemu-img", &words);
    serving::a_copy_halts(&mut convert, &mut server.controller(), &server.path("log"));
    convert.finish(GENEROUS).succeeded();
    assert!(server.disk() == fs::read(copy).unwrap(), "the copy differs");
    server.stop();
}
