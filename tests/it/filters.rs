//! nbdkit's own filters, each above ours and below it: whatever they do, pauses and
//! holds come and go, clients that die harm nobody, and the server ends. What a filter
//! does that keeps others out, or moves the plugin in a pause, is in its row here, and
//! in the manual. What is promised of one filter's data is in `never_harmed.rs`.

use super::*;
use Place::{Above, Below};
use What::{Busy, Copies, Crashes, Locks, Opens, Tls};
use common::nbd::Extents;

/// How a filter differs from most, and where the manual says what follows from that.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// It reads as a client connects (LIMITS, "A connection that is opened").
    Opens,
    /// Above ours it keeps a lock while a read is held ("Filters with a lock of their own").
    Locks,
    /// Below ours it asks for something by itself ("Threads of a plugin or filter").
    Busy,
    /// Above ours it reads the disk once, and then serves its copy.
    Copies,
    /// Above ours a read that fails crashes it in nbdkit 1.32 ("nbdkit-luks-filter").
    Crashes,
    /// It is about TLS.
    Tls,
}

/// A filter, with another one below it after a `+`; its parameters; how `disk.img` is
/// made, where it is no copy of `raw`; how the filter differs from most.
type Row = (&'static str, &'static str, &'static str, &'static [What]);

/// What the disks are made of: 4 MiB.
const DISK: &str = "truncate -s 4M raw; head -c 4M /dev/urandom >random";
const LUKS: &str = "qemu-img create -q -f luks --object secret,id=key,data=secret \
     -o key-secret=key,iter-time=10 disk.img 4M";
const EXT2: &str = "mkdir content && truncate -s 4M content/file &&
     PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext2 -d content disk.img 8M";
/// One partition of 4 MiB, from 1 MiB on.
const MBR: &str = r"truncate -s 5M disk.img &&
     printf '\203\0\0\0\0\010\0\0\0\040\0\0' |
     dd of=disk.img bs=1 seek=450 conv=notrunc status=none &&
     printf '\125\252' | dd of=disk.img bs=1 seek=510 conv=notrunc status=none";

#[rustfmt::skip]
const FILTERS: &[Row] = &[
    ("blocksize", "minblock=4k", "", &[]),
    ("blocksize-policy", "blocksize-preferred=4096", "", &[]),
    ("bzip2", "", "bzip2 -1 <random >disk.img", &[Copies]),
    ("cache", "", "", &[Locks]),
    ("cacheextents", "", "", &[]),
    ("checkwrite", "", "", &[]),
    ("count", "", "", &[]),
    ("cow", "", "", &[]),
    ("ddrescue", "ddrescue-mapfile=map", "printf '0 + 1\n0 0x400000 +\n' >map; cp raw disk.img", &[]),
    ("delay", "rdelay=20ms wdelay=20ms", "", &[]),
    ("error", "error-rate=0%", "", &[]),
    ("evil", "", "", &[]),
    ("exitlast", "", "", &[]),
    ("exitwhen", "exit-when-file-created=no-such-file", "", &[]),
    ("exportname", "", "", &[]),
    ("ext2", "ext2file=/file", EXT2, &[]),
    ("extentlist", "extentlist=list", "echo '0 4M 0' >list; cp raw disk.img", &[]),
    ("fua", "", "", &[]),
    ("gzip", "", "gzip -1 <random >disk.img", &[Copies]),
    ("indexed-gzip", "gzip-index-path=index", "gzip -1 <random >disk.img", &[]),
    ("ip", "allow=all", "", &[]),
    ("limit", "limit=20", "", &[]),
    ("luks", "passphrase=secret", LUKS, &[Opens, Crashes]),
    ("lzip", "", "lzip -s 4KiB -b 100KiB <random >disk.img", &[Opens]),
    ("map", "map=0-511:512 map=512-1023:0", "", &[]),
    ("multi-conn", "multi-conn-mode=emulate", "", &[]),
    ("nocache", "", "", &[]),
    ("noextents", "", "", &[]),
    ("nofilter", "", "", &[]),
    ("noparallel", "", "", &[]),
    ("nozero", "", "", &[]),
    ("offset", "offset=1M", "truncate -s 5M disk.img", &[]),
    ("openonce", "", "", &[]),
    ("partition", "partition=1", MBR, &[Opens]),
    ("protect", "protect=4193792-4194303", "", &[]),
    ("qcow2dec", "", "qemu-img convert -O qcow2 -f raw random disk.img", &[]),
    ("rate", "rate=1G", "", &[]),
    ("readahead", "", "", &[Busy]),
    ("readonly", "", "", &[]),
    ("retry", "", "", &[]),
    ("retry-request", "", "", &[]),
    ("rotational", "", "", &[]),
    ("scan", "scan-size=64K", "", &[Busy]),
    ("spinning", "min-seek-time=1ms half-seek-time=5ms max-seek-time=10ms", "", &[]),
    ("stats", "statsfile=stats", "", &[]),
    ("swab", "swab-bits=16", "", &[]),
    ("tar", "tar-entry=raw", "tar -cf disk.img raw", &[]),
    ("time-limit", "time-limit=600", "", &[]),
    ("tls-fallback", "", "", &[Tls]),
    ("truncate", "truncate=4M", "", &[]),
    ("xor", "xor=0xdeadbeef xorlen=4", "", &[]),
    ("xz", "", "xz -0 --block-size=64KiB <random >disk.img", &[Opens]),
];

/// Filters without a row, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    ("log", "each row has it below all others"),
    ("pause", "it is what ours takes the place of; both have the same parameter"),
    ("libpause", "it is ours, as installed"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Above,
    Below,
}

#[test]
fn each_filter_of_this_nbdkit_has_a_row_or_is_left_out_for_a_reason() {
    let name =
        |file: &str| Some(file.strip_prefix("nbdkit-")?.strip_suffix("-filter.so")?.to_owned());
    let known = |name: &str| {
        FILTERS.iter().any(|row| row.0.split('+').next() == Some(name))
            || LEFT_OUT.iter().any(|(left_out, _)| *left_out == name)
    };
    let folder = nbdkit::filter_file("log").parent().expect("a folder").to_path_buf();
    let unknown: Vec<String> = fs::read_dir(folder)
        .expect("the filters")
        .filter_map(|file| name(file.expect("a filter").file_name().to_str()?))
        .filter(|name| !known(name))
        .collect();
    assert!(unknown.is_empty(), "add rows to FILTERS for {unknown:?}");
}

#[test]
fn with_each_filter_above_a_pause_works_and_the_server_ends_well() {
    each_filter(Above);
}

#[test]
fn with_each_filter_below_a_pause_works_and_the_server_ends_well() {
    each_filter(Below);
}

fn each_filter(place: Place) {
    alone::at_work();
    let is_there = |name: &&str| nbdkit::filter_file(name).exists();
    let (here, missing): (Vec<&Row>, Vec<&Row>) =
        FILTERS.iter().partition(|row| row.0.split('+').all(|name| is_there(&name)));
    for row in missing {
        println!("SKIPPED: this nbdkit has no {} filter", row.0);
    }
    // Some at a time: each is a server, which two cores have to start.
    let failed: Vec<&str> = here
        .chunks(12)
        .flat_map(|rows| {
            thread::scope(|scope| {
                let start = |row| (row, scope.spawn(move || with_filter(row, place)));
                let tests: Vec<_> = rows.iter().map(|&row| start(row)).collect();
                let failed =
                    tests.into_iter().filter_map(|(row, test)| test.join().err().map(|_| row.0));
                failed.collect::<Vec<_>>()
            })
        })
        .collect();
    assert!(failed.is_empty(), "{place:?} ours: {failed:?}");
}

fn setup(&(names, parameters, how, what): &Row, place: Place) -> Setup {
    let parameters: Vec<&str> = parameters.split_whitespace().collect();
    let setup = Setup::new(&["file", "disk.img"]).holds().verbose().parameters(&parameters);
    let how = if how.is_empty() { "cp raw disk.img" } else { how };
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("{DISK}; {how}")]).current_dir(setup.path(""));
    run(command).succeeded();
    let setup = names.split('+').fold(setup, |setup, name| match place {
        Above => setup.above(name, &[]),
        Below => setup.below(name, &[]),
    });
    if what.contains(&Tls) { setup.tls().logged() } else { setup.logged() }
}

/// What has come to the plugin, and has been answered.
fn activity(server: &Server) -> usize {
    let is_request = |line: &&str| line.contains(" connection=") && line.contains(" id=");
    server.logged().lines().filter(is_request).count()
}

fn with_filter(row: &Row, place: Place) {
    let is = |what| row.3.contains(&what);
    let above = |what| place == Above && is(what);
    let server = setup(row, place).start();
    let has_model = |model| server.logged().contains(&format!("Ready thread_model={model}"));
    // LIMITS, "serialize_connections" and "serialize_all_requests".
    let (one_client, one_lock) = (has_model(0), has_model(1));
    let no_failed_read = above(Crashes) && nbdkit::minor_version() < 42;
    if no_failed_read {
        println!("SKIPPED: a read that fails crashes this nbdkit's {} filter", row.0);
    }
    let is_held = !above(Copies);

    let mut blocks = 1..;
    // One of a block that nobody has asked for, so that no cache has it.
    let mut next = |client: &Client, write: bool| {
        let offset = blocks.next().expect("a block") << 17;
        if write && client.can_write() { Write(offset, 0) } else { Read(offset) }
    };
    let mut other = (!one_client).then(|| Client::connect(&server));
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for (close, open, last_is_a_write) in [("p", "r", true), ("+", "-", false)] {
        for write in [false, true] {
            client.ask(next(&client, write));
        }
        controller.ask(close, &close.to_uppercase());
        let before = activity(&server);
        let quiet = || {
            let now = activity(&server);
            assert!(now == before || place == Below && is(Busy), "{}", server.logged());
        };
        let read = client.send(next(&client, false));
        client.all_read_by_server();
        let held = [read, client.send(next(&client, true))];
        if is_held {
            client.expect_held(&held, A_WHILE);
        }
        quiet();
        if !one_client && !no_failed_read {
            let waits = above(Opens) || above(Locks) || one_lock;
            let limit = if waits { A_WHILE } else { GENEROUS };
            assert_eq!(Client::connect_within(&server, limit).is_none(), waits);
            if !is(Opens) {
                quiet();
            }
        }
        controller.ask(open, &open.to_uppercase());
        for held in held {
            client.reply(held).expect("success");
        }

        controller.ask(close, &close.to_uppercase());
        let dropped = || server.messages_count("dropped a held request");
        let before = dropped();
        let last = client.send(next(&client, last_is_a_write || no_failed_read));
        client.all_read_by_server();
        if is_held {
            client.expect_held(&[last], A_WHILE);
        }
        client.die();
        eventually("its request is dropped", GENEROUS, || !is_held || dropped() > before);
        controller.ask(open, &open.to_uppercase());
        client = Client::connect(&server);
        for client in other.iter_mut().chain([&mut client]) {
            client.ask(next(client, false));
            client.ask(next(client, true));
        }
    }
    controller.pause();
    let last = client.send(next(&client, no_failed_read));
    client.all_read_by_server();
    if is_held {
        client.expect_held(&[last], A_WHILE);
    }
    server.terminate();
    if is_held {
        assert!(client.reply(last).is_err());
    }
    drop((client, other));
    server.ended(GENEROUS).well();
}

/// Filters, requests that they keep a lock for, and others that wait for it.
const LOCKS: [(&str, &str, Request, Request); 5] = [
    ("blocksize", "minblock=4k", Read(512), Write(1 << 17, 0)),
    ("cache", "cache=writethrough", READ, Read(1 << 17)),
    ("cacheextents", "", Extents(0), Write(1 << 17, 0)),
    ("cow", "", Write(0, 0), Write(1 << 17, 0)),
    ("multi-conn", "multi-conn-mode=emulate", Flush, Flush),
];

/// LIMITS, "Filters with a lock of their own".
#[test]
fn what_waits_for_a_lock_of_a_filter_above_ends_the_pause_of_a_server_that_ends() {
    let here = LOCKS.iter().filter(|lock| nbdkit::filter_file(lock.0).exists());
    together(here, |&(filter, parameter, first, second)| {
        println!("{filter}");
        let setup = Setup::with_disk(4).holds().above(filter, &[]).logged_above();
        let setup = if parameter.is_empty() { setup } else { setup.with(parameter) };
        let server = setup.start();
        let come = || {
            let log = server.content("above");
            log.lines()
                .filter(|line| line.contains(" connection=") && line.ends_with(" ..."))
                .count()
        };
        let (mut one, mut other) = (Client::connect(&server), Client::connect(&server));
        for client in [&mut one, &mut other] {
            // So that there is something to flush.
            client.ask(Write(3 << 20, 0));
        }
        let before = come();
        server.controller().pause();
        let held = [one.held(first), other.held(second)];
        assert_eq!(come(), before + 1, "{filter}: {}", server.content("above"));
        server.terminate();
        assert!(one.reply(held[0]).is_err());
        server.says("ended the pause");
        drop((one, other));
        server.ended(GENEROUS).well();
    });
}

/// LIMITS, "Threads of a plugin or filter".
#[test]
fn scan_reads_on_in_a_pause_below_ours_and_waits_above_it() {
    for place in [Below, Above] {
        let setup = Setup::new(&["eval", "thread_model=echo parallel", "get_size=echo 1M"])
            .parameters(&["pread=head -c $3 /dev/zero", "can_cache=echo native"])
            .parameters(&["cache=sleep 0.02", "scan-size=64K", "scan-forever=true"]);
        let setup = match place {
            Below => setup.below("scan", &[]),
            Above => setup.above("scan", &[]),
        };
        let server = setup.logged().start();
        let mut client = Client::connect(&server);
        let reads_on = || {
            let before = activity(&server);
            eventually("it reads on", GENEROUS, || activity(&server) > before + 4);
        };
        reads_on();
        let mut controller = server.controller();
        controller.pause();
        let before = activity(&server);
        let held = client.held(READ);
        match place {
            Below => reads_on(),
            Above => assert_eq!(activity(&server), before),
        }
        controller.resume();
        client.goes_on(held);
        reads_on();
        controller.pause();
        server.terminate();
        drop(client);
        server.ended(GENEROUS).well();
    }
}
