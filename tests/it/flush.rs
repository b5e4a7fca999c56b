//! `pause-flush`: all that was written is stable before a pause is in force,
//! and nothing is flushed in vain.

use std::collections::HashMap;
use std::fs;
use std::thread;

use crate::common::clients::fio;
use crate::common::control::Controller;
use crate::common::nbd::{Client, ONE_OF_EACH, Request};
use crate::common::random::Random;
use crate::common::server::{Server, Setup, ThreadModel};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};

const READ: Request = Request::Read { offset: 0 };
const WRITE: Request = Request::Write { offset: 0, byte: 0xaa };
const TRIM: Request = Request::Trim { offset: 1024 };
const ZERO: Request = Request::Zero { offset: 1536 };

fn flushing(setup: Setup) -> Setup {
    setup.parameters(&["pause-flush=true"])
}

/// Over a disk, with nbdkit-log-filter in between.
fn logged() -> Server {
    flushing(Setup::with_disk(1)).logged().start()
}

/// The connections that were flushed so far, in order.
fn flushed(server: &Server) -> Vec<u32> {
    // A line is written before the request, and one after it, with dots.
    server
        .logged()
        .lines()
        .filter(|line| line.contains(" Flush id="))
        .map(|line| {
            let number = line.split("connection=").nth(1).expect("a connection");
            number.split(' ').next().expect("a number").parse().expect("a number")
        })
        .collect()
}

/// A pause from beginning to end.
fn pause_and_resume(server: &Server) {
    let mut controller = server.controller();
    controller.pause();
    controller.resume();
}

// What the kernel is asked for: strace.

/// The server's system calls while `work` runs, in the order of their ends:
/// `S` is a successful fdatasync of the disk, `P`, `R` and `X` are replies.
fn traced(setup: Setup, work: impl FnOnce(&Server)) -> String {
    let strace = ["strace", "-f", "-y", "-o", "trace"];
    let calls = "trace=fdatasync,fsync,sync,syncfs,sync_file_range,msync,write,sendto";
    let server = setup.under(&[&strace[..], &["-e", calls]].concat()).start();
    work(&server);
    let trace = fs::read_to_string(server.stop().path("trace")).expect("the trace");
    let mut events = String::new();
    let mut syncing = HashMap::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').expect("a thread");
        let call = call.trim_start();
        if call.contains("sync") && !call.contains("resumed>") {
            assert!(call.starts_with("fdatasync(") && call.contains("/disk.img>"), "{line}");
            syncing.insert(thread, ());
        }
        if call.contains("sync") && !call.contains("<unfinished") {
            assert!(syncing.remove(thread).is_some() && call.ends_with("= 0"), "{line}");
            events.push('S');
        }
        for reply in ['P', 'R', 'X'] {
            if call.contains(&format!(", \"{reply}\", 1")) {
                events.push(reply);
            }
        }
    }
    events
}

#[test]
fn the_disk_is_synced_before_p_is_answered() {
    let events = traced(flushing(Setup::with_disk(1)), |server| {
        let mut client = Client::connect(server);
        for _ in 0..3 {
            client.ask(WRITE);
            pause_and_resume(server);
        }
    });
    assert_eq!(events, "SPRSPRSPR");
}

#[test]
fn nothing_is_synced_when_nothing_is_dirty() {
    let events = traced(flushing(Setup::with_disk(1)), |server| {
        pause_and_resume(server);
        let mut client = Client::connect(server);
        pause_and_resume(server);
        client.ask(READ);
        pause_and_resume(server);
        client.ask(WRITE);
        pause_and_resume(server);
        pause_and_resume(server);
        client.ask(READ);
        pause_and_resume(server);
    });
    assert_eq!(events, ["PR", "PR", "PR", "SPR", "PR", "PR"].concat());
}

#[test]
fn what_a_client_has_flushed_itself_is_not_synced_again() {
    let events = traced(flushing(Setup::with_disk(1)), |server| {
        let mut client = Client::connect(server);
        client.ask(WRITE);
        client.ask(Request::Flush);
        pause_and_resume(server);
        client.ask(WRITE);
        client.ask(Request::Flush);
        client.ask(WRITE);
        pause_and_resume(server);
    });
    assert_eq!(events, "SPRSSPR");
}

#[test]
fn what_was_written_with_fua_is_not_synced_again() {
    let events = traced(flushing(Setup::with_disk(1)), |server| {
        let mut client = Client::connect(server);
        for request in [WRITE, TRIM, ZERO] {
            client.ask_fua(request);
        }
        pause_and_resume(server);
        // One with FUA does not cover one without.
        client.ask(WRITE);
        client.ask_fua(WRITE);
        pause_and_resume(server);
    });
    assert_eq!(events, "SSSPRSSPR");
}

#[test]
fn without_pause_flush_nothing_is_ever_synced() {
    for parameters in [&[][..], &["pause-flush=false"]] {
        let events = traced(Setup::with_disk(1).parameters(parameters), |server| {
            let mut client = Client::connect(server);
            client.ask(WRITE);
            pause_and_resume(server);
            client.leave();
        });
        assert_eq!(events, "PR", "{parameters:?}");
    }
}

// Which connections are flushed: nbdkit-log-filter.

#[test]
fn a_write_a_trim_and_a_zero_make_a_connection_dirty_and_nothing_else_does() {
    let server = logged();
    let mut client = Client::connect(&server);
    for request in ONE_OF_EACH {
        client.ask(request);
        let before = flushed(&server).len();
        pause_and_resume(&server);
        let is_change =
            matches!(request, Request::Write { .. } | Request::Trim { .. } | Request::Zero { .. });
        assert_eq!(flushed(&server).len() - before, usize::from(is_change), "{request:?}");
    }
}

#[test]
fn every_dirty_connection_is_flushed_and_no_other() {
    let server = logged();
    let mut clients: Vec<_> = (0..12).map(|_| Client::connect(&server)).collect();
    // nbdkit counts from 1.
    let mut dirty = Vec::new();
    for (client, number) in clients.iter_mut().zip(1..) {
        match number % 4 {
            0 => client.ask(READ),
            1 => client.ask(WRITE),
            2 => client.ask(TRIM),
            _ => client.ask(ZERO),
        };
        if number % 4 != 0 {
            dirty.push(number);
        }
    }
    let mut controller = server.controller();
    controller.pause();
    let mut got = flushed(&server);
    got.sort_unstable();
    assert_eq!(got, dirty);
    controller.resume();
    // Once and for all, until they write again.
    clients[4].ask(WRITE);
    controller.pause();
    assert_eq!(flushed(&server).len(), dirty.len() + 1);
    assert_eq!(flushed(&server).last(), Some(&5));
}

#[test]
fn a_hold_flushes_too() {
    let server = flushing(Setup::with_disk(1)).parameters(&["pause-hold=true"]).logged().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    let mut controller = server.controller();
    controller.hold();
    assert_eq!(flushed(&server), [1]);
    // The second one finds it done.
    let mut other = server.controller();
    other.hold();
    assert_eq!(flushed(&server), [1]);
}

/// A line of nbdkit-log-filter's report.
struct Logged {
    connection: u32,
    is_end: bool,
    kind: String,
    offset: usize,
}

impl Logged {
    fn is_change_or_flush(&self) -> bool {
        matches!(self.kind.as_str(), "Write" | "Flush")
    }
}

fn lines(log: &str) -> Vec<Logged> {
    let mut offset = 0;
    let mut all = Vec::new();
    for line in log.split_inclusive('\n') {
        offset += line.len();
        let Some((_, line)) = line.split_once("connection=") else { continue };
        let mut words = line.split(' ');
        let connection = words.next().unwrap().parse().unwrap();
        let kind = words.next().unwrap().trim_end();
        all.push(Logged {
            connection,
            is_end: kind.starts_with("..."),
            kind: kind.trim_start_matches('.').to_owned(),
            offset,
        });
    }
    all
}

#[test]
fn under_load_no_write_is_ever_left_without_a_flush_in_a_pause() {
    const PAUSES: usize = 30;
    let mut random = Random::new();
    let server = flushing(Setup::new(&["memory", "16M"])).logged().start();
    let options = ["--rw=randwrite", "--numjobs=3", "--iodepth=16", "--fsync=64", "--bs=4k"];
    let more = ["--size=16M", "--time_based", "--runtime=300"];
    let mut load = fio(&server, &[&options[..], &more[..]].concat());
    let mut controller = server.controller();
    let mut pauses = Vec::new();
    let mut before = 0;
    while pauses.len() < PAUSES {
        eventually("the load goes on", GENEROUS, || {
            assert!(load.is_running(), "{}", load.stderr());
            server.logged_bytes() > before + 20_000
        });
        thread::sleep(random.millis(0..5));
        controller.pause();
        before = server.logged_bytes();
        pauses.push(before as usize);
        thread::sleep(random.millis(1..10));
        // A client may connect meanwhile.
        let after = server.logged();
        let touched = lines(&after[before as usize..]).iter().any(Logged::is_change_or_flush);
        assert!(!touched, "{}", &after[before as usize..]);
        controller.resume();
    }
    load.kill();
    // By connection: written since the last flush began, and that one has ended.
    let mut dirty: HashMap<u32, bool> = HashMap::new();
    let mut flushes = 0;
    let mut pauses = pauses.into_iter().peekable();
    for line in lines(&server.logged()) {
        if pauses.next_if(|&pause| line.offset > pause).is_some() {
            assert!(!dirty.values().any(|&dirty| dirty), "{dirty:?}");
        }
        match (line.kind.as_str(), line.is_end) {
            ("Write", true) => {
                dirty.insert(line.connection, true);
            }
            ("Flush", false) => {
                dirty.insert(line.connection, false);
                flushes += 1;
            }
            _ => {}
        }
    }
    assert!(pauses.next().is_none());
    assert!(flushes >= PAUSES, "{flushes} flushes: this proves nothing");
}

// A connection that closes.

#[test]
fn the_writes_of_a_connection_that_has_closed_are_stable_in_the_next_pause() {
    let server = logged();
    let at_rest = server.threads_at_rest();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    // Not in good order.
    drop(client);
    eventually("it has left", PROMPT, || server.threads() == at_rest);
    server.controller().pause();
    assert_eq!(flushed(&server), [1]);
}

#[test]
fn a_clean_connection_that_closes_is_not_flushed() {
    let server = logged();
    let at_rest = server.threads_at_rest();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    client.ask(Request::Flush);
    client.leave();
    let mut client = Client::connect(&server);
    client.ask(READ);
    client.leave();
    eventually("they have left", PROMPT, || server.threads() == at_rest);
    server.controller().pause();
    assert_eq!(flushed(&server), [1]);
}

/// A client whose read is in the plugin until `slow-read` is removed.
fn with_stuck_read(server: &Server) -> Client {
    server.make("slow-read");
    let mut reader = Client::connect(server);
    reader.send(READ);
    server.await_file("reading");
    reader
}

#[test]
fn a_connection_that_closes_while_a_pause_drains_is_flushed_by_the_pause() {
    let server = plugin().logged().start();
    let mut writer = Client::connect(&server);
    writer.ask(WRITE);
    let reader = with_stuck_read(&server);
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(A_WHILE);
    drop(writer);
    controller.expect_silence(A_WHILE);
    assert_eq!(flushed(&server), [0; 0]);
    server.remove("slow-read");
    controller.expect("P");
    assert_eq!(flushed(&server), [1]);
    let before = server.logged();
    drop(reader);
    thread::sleep(A_WHILE);
    assert_eq!(flushed(&server), [1], "{before}");
}

#[test]
fn a_connection_that_closes_while_a_pause_drains_is_flushed_after_a_resume() {
    let server = plugin().logged().start();
    let mut writer = Client::connect(&server);
    writer.ask(WRITE);
    let _reader = with_stuck_read(&server);
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(A_WHILE);
    drop(writer);
    thread::sleep(A_WHILE);
    assert_eq!(flushed(&server), [0; 0]);
    server.controller().resume();
    controller.expect("X");
    eventually("it is flushed", PROMPT, || flushed(&server) == [1]);
}

#[test]
fn a_client_that_has_written_and_leaves_in_a_pause_frees_its_threads() {
    for (flush, can_flush) in [("false", "exit 0"), ("true", "exit 0"), ("true", "exit 3")] {
        let server = unflushing_plugin(can_flush, flush).start();
        let at_rest = server.threads_at_rest();
        let mut client = Client::connect(&server);
        client.ask(WRITE);
        let mut controller = server.controller();
        controller.pause();
        drop(client);
        eventually(
            &format!("threads are freed, pause-flush={flush}, can_flush: {can_flush}"),
            PROMPT,
            || server.threads() == at_rest,
        );
        controller.resume();
    }
}

#[test]
fn a_server_is_told_to_end_in_a_pause_after_writes_and_goes() {
    for (flush, can_flush) in [("false", "exit 0"), ("true", "exit 0"), ("true", "exit 3")] {
        let server = unflushing_plugin(can_flush, flush).start();
        let mut client = Client::connect(&server);
        client.ask(WRITE);
        server.controller().pause();
        drop(client);
        server.stop();
    }
}

// A plugin that can be told to be slow and to fail.

/// Its flush lasts as long as there is a file `slow`, and fails while there is
/// one called `broken`; `flushes` has a line for each begin and end. Its reads
/// last as long as there is `slow-read`.
const FLUSH: &str = "flush=
    echo begin >>flushes
    while [ -e slow ]; do sleep 0.01; done
    if [ -e broken ]; then broken=yes; else broken=; fi
    echo end >>flushes
    if [ $broken ]; then echo 'EIO the platters are broken' >&2; exit 1; fi";

const PLUGIN: [&str; 10] = [
    "eval",
    "thread_model=echo parallel",
    "get_size=echo 1M",
    "pread=
        touch reading
        while [ -e slow-read ]; do sleep 0.01; done
        head -c $3 /dev/zero",
    "pwrite=cat >/dev/null; echo write >>writes",
    "zero=exit 0",
    "trim=exit 0",
    "cache=exit 0",
    "extents=echo 0 1M",
    FLUSH,
];

fn plugin() -> Setup {
    flushing(Setup::new(&PLUGIN))
}

fn unflushing_plugin(can_flush: &str, flush: &str) -> Setup {
    Setup::new(&PLUGIN)
        .parameters(&[&format!("can_flush={can_flush}"), &format!("pause-flush={flush}")])
}

trait Files {
    fn make(&self, name: &str);
    fn remove(&self, name: &str);
    fn content(&self, name: &str) -> String;
    fn await_file(&self, name: &str);
}

impl Files for Server {
    fn make(&self, name: &str) {
        fs::write(self.path(name), "").expect("a file");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("a file");
    }

    /// Nothing, if there is no such file.
    fn content(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn await_file(&self, name: &str) {
        eventually(name, GENEROUS, || self.path(name).exists());
    }
}

#[test]
fn a_flush_that_fails_gives_the_pause_up_and_the_next_one_works() {
    let server = plugin().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("broken");
    for _ in 0..2 {
        let mut controller = server.controller();
        controller.send(b"p");
        controller.expect("X");
        // Requests flow, and what was dirty still is.
        client.ask(READ);
    }
    let messages = server.messages();
    assert_eq!(messages.matches("pause-flush: ").count(), 2, "{messages}");
    assert!(messages.contains("the platters are broken"), "{messages}");
    assert!(messages.contains("the pause is given up"), "{messages}");
    server.remove("broken");
    let mut controller = server.controller();
    controller.pause();
    assert_eq!(server.content("flushes"), "begin\nend\n".repeat(3));
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).expect("success");
}

#[test]
fn a_flush_that_fails_for_one_connection_fails_all_who_wait() {
    let server = plugin().parameters(&["pause-hold=true"]).start();
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    for client in &mut clients {
        client.ask(WRITE);
    }
    server.make("slow");
    let mut waiting: Vec<_> = (0..4).map(|_| server.controller()).collect();
    for (controller, command) in waiting.iter_mut().zip([b"p", b"+", b"p", b"+"]) {
        controller.send(command);
    }
    server.await_file("flushes");
    server.make("broken");
    server.remove("slow");
    for controller in &mut waiting {
        controller.expect("X");
    }
    for client in &mut clients {
        client.ask(READ);
    }
    // The holds that were not had are not there.
    server.remove("broken");
    waiting[0].send(b"pr");
    waiting[0].expect("PR");
    clients[0].ask(READ);
}

#[test]
fn a_client_s_own_flush_that_fails_leaves_the_connection_dirty() {
    let server = plugin().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("broken");
    let ticket = client.send(Request::Flush);
    assert_eq!(client.reply(ticket), Err(libc::EIO));
    server.remove("broken");
    server.controller().pause();
    assert_eq!(server.content("flushes"), "begin\nend\n".repeat(2));
}

/// A client has written, and the pause that a controller asked for is in the flush
/// of that, which lasts as long as there is `slow`.
fn in_a_slow_flush() -> (Server, Client, Controller) {
    let server = plugin().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("slow");
    let mut controller = server.controller();
    controller.send(b"p");
    server.await_file("flushes");
    (server, client, controller)
}

#[test]
fn requests_are_held_from_p_on_through_the_flush_until_r() {
    let (server, mut client, mut controller) = in_a_slow_flush();
    let held: Vec<_> = ONE_OF_EACH.iter().map(|&request| client.send(request)).collect();
    controller.expect_silence(A_WHILE);
    client.expect_held(&held, A_WHILE);
    server.remove("slow");
    controller.expect("P");
    client.expect_held(&held, A_WHILE);
    assert_eq!(server.content("writes"), "write\n");
    controller.resume();
    for ticket in held {
        client.reply(ticket).expect("success");
    }
}

#[test]
fn r_is_answered_at_once_during_a_flush_and_p_gets_x() {
    let (server, mut client, mut controller) = in_a_slow_flush();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    let mut other = server.controller();
    other.resume();
    controller.expect("X");
    // While the flush is still in the plugin.
    client.reply(held).expect("success");
    assert_eq!(server.content("flushes"), "begin\n");
    // It began before this one's writes, so that there has to be another.
    other.send(b"p");
    other.expect_silence(A_WHILE);
    assert_eq!(server.content("flushes"), "begin\n");
    server.remove("slow");
    other.expect("P");
    assert_eq!(server.content("flushes"), "begin\nend\nbegin\nend\n");
}

#[test]
fn a_slow_flush_that_was_ended_and_then_fails_is_not_taken_for_success() {
    let (server, _client, mut controller) = in_a_slow_flush();
    let mut other = server.controller();
    other.resume();
    controller.expect("X");
    server.make("broken");
    controller.send(b"p");
    controller.expect_silence(A_WHILE);
    server.remove("slow");
    controller.expect("X");
    server.remove("broken");
    controller.pause();
    assert_eq!(server.content("flushes"), "begin\nend\n".repeat(2));
}

/// The next flush goes well, as fsync(2) does after it has told an error once.
#[test]
fn a_flush_that_fails_after_its_pause_was_ended_fails_the_next_pause_once() {
    let server = plugin().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("slow");
    server.make("broken");
    let mut controller = server.controller();
    controller.send(b"p");
    server.await_file("flushes");
    server.controller().resume();
    controller.expect("X");
    server.remove("slow");
    eventually("it has failed", PROMPT, || server.content("flushes") == "begin\nend\n");
    server.remove("broken");
    controller.send(b"p");
    controller.expect("X");
    let messages = server.messages();
    assert!(
        messages.contains("pause-flush: the flush of a pause that was ended has failed"),
        "{messages}"
    );
    client.ask(READ);
    controller.pause();
    assert_eq!(server.content("flushes"), "begin\nend\n".repeat(2));
}

/// What the log says when it is too late to flush.
const LOST: &str = "writes of a connection that has ended could not be flushed";

#[test]
fn a_last_flush_that_fails_fails_the_next_pause_once_and_the_log_says_why() {
    let server = plugin().start();
    let at_rest = server.threads_at_rest();
    server.make("broken");
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    drop(client);
    eventually("it has left", PROMPT, || server.threads() == at_rest);
    let messages = server.messages();
    assert!(messages.contains("the last flush of a connection failed"), "{messages}");
    server.remove("broken");
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect("X");
    assert!(server.messages().contains(LOST), "{}", server.messages());
    Client::connect(&server).ask(READ);
    controller.pause();
}

#[test]
fn a_pause_that_waits_for_a_last_flush_that_fails_gets_x() {
    let server = plugin().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("slow");
    server.make("broken");
    drop(client);
    server.await_file("flushes");
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(A_WHILE);
    server.remove("slow");
    controller.expect("X");
    assert!(server.messages().contains(LOST), "{}", server.messages());
    controller.pause();
}

#[test]
fn a_connection_that_closes_while_its_flush_fails_is_not_forgotten() {
    let server = plugin().start();
    let at_rest = server.threads_at_rest();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("slow");
    server.make("broken");
    let mut controller = server.controller();
    controller.send(b"p");
    server.await_file("flushes");
    drop(client);
    controller.expect_silence(A_WHILE);
    server.remove("slow");
    controller.expect("X");
    eventually("it has left", PROMPT, || server.threads() == at_rest);
    server.remove("broken");
    // Its writes were never flushed.
    controller.send(b"p");
    controller.expect("X");
    assert!(server.messages().contains(LOST), "{}", server.messages());
    controller.pause();
}

/// What a pause found out on its way, and nobody heard, is for the next one.
#[test]
fn a_last_flush_that_failed_is_told_even_if_the_pause_that_finds_it_is_ended() {
    let server = plugin().start();
    let at_rest = server.threads_at_rest();
    server.make("broken");
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    drop(client);
    eventually("it has left", PROMPT, || server.threads() == at_rest);
    server.remove("broken");
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    server.make("slow");
    server.remove("flushes");
    let mut controller = server.controller();
    controller.send(b"p");
    server.await_file("flushes");
    server.controller().resume();
    controller.expect("X");
    server.remove("slow");
    controller.send(b"p");
    controller.expect("X");
    assert!(server.messages().contains(LOST), "{}", server.messages());
    controller.pause();
}

#[test]
fn a_server_that_is_told_to_end_during_a_flush_ends_well() {
    let (server, client, _controller) = in_a_slow_flush();
    server.terminate();
    drop(client);
    thread::sleep(A_WHILE);
    server.remove("slow");
    server.ended(GENEROUS).well();
}

#[test]
fn connections_come_and_go_during_flushes() {
    let server = plugin().start();
    let at_rest = server.threads_at_rest();
    let mut random = Random::new();
    for _ in 0..20 {
        let mut clients: Vec<_> = (0..4).map(|_| Client::connect(&server)).collect();
        for client in &mut clients {
            client.ask(WRITE);
        }
        let mut controller = server.controller();
        controller.send(b"p");
        for client in clients {
            thread::sleep(random.millis(0..3));
            drop(client);
        }
        controller.expect("P");
        let written = server.content("writes").lines().count();
        assert_eq!(server.content("flushes").lines().count(), 2 * written);
        controller.resume();
        eventually("they have left", PROMPT, || server.threads() == at_rest);
    }
}

#[test]
fn a_plugin_that_cannot_flush_is_paused_without() {
    let server = unflushing_plugin("exit 3", "true").start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).expect("success");
    assert!(!server.path("flushes").exists());
}

// What is refused.

const NOT_PARALLEL: [ThreadModel; 3] = [
    ThreadModel::SerializeRequests,
    ThreadModel::SerializeAllRequests,
    ThreadModel::SerializeConnections,
];

#[test]
fn a_thread_model_that_is_not_parallel_is_refused_and_the_message_says_why() {
    for model in NOT_PARALLEL {
        let refusal = flushing(Setup::with_disk(1)).thread_model(model).refusal();
        for part in ["pause-flush", "thread model", "parallel"] {
            assert!(refusal.stderr.contains(part), "{model:?}: {refusal:#?}");
        }
    }
    // By the plugin's own will.
    let serial = ["eval", "get_size=echo 1M", "pread=exit 1", "flush=exit 0"];
    let refusal = flushing(Setup::new(&serial)).refusal();
    assert!(refusal.stderr.contains("thread model"), "{refusal:#?}");
    assert!(!Setup::new(&serial).path("control").exists());
}

#[test]
fn without_pause_flush_every_thread_model_is_accepted() {
    for model in NOT_PARALLEL {
        let setup = Setup::with_disk(1).thread_model(model).parameters(&["pause-flush=false"]);
        pause_and_resume(&setup.start());
    }
}

#[test]
fn what_is_no_truth_value_is_refused_by_name() {
    for value in ["", "maybe", "2", "-1", "tru", "true ", "ja"] {
        let parameter = format!("pause-flush={value}");
        let refusal = Setup::with_disk(1).parameters(&[&parameter]).refusal();
        assert!(refusal.stderr.contains(&parameter), "{value:?}: {refusal:#?}");
    }
}

#[test]
fn nbdkit_s_words_for_true_and_false_are_accepted() {
    for (value, count) in [("1", 1), ("yes", 1), ("On", 1), ("0", 0), ("no", 0), ("OFF", 0)] {
        let parameter = format!("pause-flush={value}");
        let server = Setup::with_disk(1).parameters(&[&parameter]).logged().start();
        let mut client = Client::connect(&server);
        client.ask(WRITE);
        server.controller().pause();
        assert_eq!(flushed(&server).len(), count, "{value}");
    }
}
