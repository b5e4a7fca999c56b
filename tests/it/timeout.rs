//! `pause-timeout`: a pause that nobody ends, ends by itself, whatever becomes of
//! the time of day. A server that is stopped meanwhile is in `signals.rs`, a
//! plugin that never returns in `failing_plugins.rs`.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::control::Controller;
use crate::common::nbd::{Client, Request};
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, PROMPT, eventually};

const READ: Request = Request::Read(0);
const WRITE: Request = Request::Write(0, 0xaa);

/// The limit in most tests.
const LIMIT: Duration = Duration::from_millis(600);

fn limited(setup: Setup) -> Setup {
    setup.parameters(&["pause-timeout=600ms", "pause-hold=true"])
}

fn start() -> Server {
    limited(Setup::with_disk(1)).start()
}

/// What the server says when a pause runs out of time.
const LOG: &str = "pause-timeout: ";

/// Sends `p` or `+`, waits until it is in force, and returns since when it
/// may be.
fn close(controller: &mut Controller, command: char) -> Instant {
    let before = Instant::now();
    controller.send(&[command as u8]);
    controller.expect(&command.to_uppercase().to_string());
    before
}

/// A request that is sent now is carried out, but not earlier than `limit`
/// after `since`.
fn expect_flow_after(client: &mut Client, since: Instant, limit: Duration) {
    let ticket = client.send(WRITE);
    let reply = client.reply_within(ticket, limit + PROMPT).expect("the pause ends by itself");
    reply.expect("success");
    let elapsed = since.elapsed();
    assert!(elapsed >= limit, "the pause has ended after {elapsed:?}");
}

#[test]
fn the_gate_opens_by_itself_that_long_after_it_closed_however_it_was_asked_for() {
    let server = start();
    let mut client = Client::connect(&server);
    for command in ['p', '+'] {
        let mut controller = server.controller();
        let since = close(&mut controller, command);
        expect_flow_after(&mut client, since, LIMIT);
    }
}

#[test]
fn held_requests_go_on_in_the_end() {
    let server = start();
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    let since = close(&mut server.controller(), 'p');
    let mut tickets = Vec::new();
    for (client, place) in clients.iter_mut().zip(0..) {
        for block in 0..10 {
            tickets.push(client.send(Request::Write((place * 10 + block) * 512, 7)));
        }
    }
    for (client, tickets) in clients.iter_mut().zip(tickets.chunks(10)) {
        for &ticket in tickets {
            client.reply(ticket).expect("success");
        }
        assert!(since.elapsed() >= LIMIT);
    }
    let disk = fs::read(server.path("disk.img")).unwrap();
    assert!(disk[..30 * 512].iter().all(|&byte| byte == 7));
}

#[test]
fn a_pause_outlives_its_connection_and_ends_in_time_all_the_same() {
    let server = start();
    let mut client = Client::connect(&server);
    let since = Instant::now();
    assert_eq!(
        {
            let mut controller = server.controller();
            controller.send(b"p");
            controller.finish()
        },
        b"P"
    );
    expect_flow_after(&mut client, since, LIMIT);
}

#[test]
fn a_drain_that_runs_into_it_is_over_and_its_p_is_answered_x() {
    // Reads are in the plugin for longer than anything here takes.
    let server = limited(Setup::in_memory()).below("delay", &["rdelay=30"]).start();
    let mut client = Client::connect(&server);
    client.send(READ);
    client.all_read_by_server();
    thread::sleep(A_WHILE);
    let mut waiting = [server.controller(), server.controller(), server.controller()];
    let since = Instant::now();
    for (controller, command) in waiting.iter_mut().zip([b"p", b"+", b"p"]) {
        controller.send(command);
    }
    server.all_is_heard();
    expect_flow_after(&mut client, since, LIMIT);
    for controller in &mut waiting {
        controller.expect("X");
    }
    assert!(server.messages().contains(LOG), "{}", server.messages());
    waiting[1].send(b"-");
    waiting[1].expect("X");
}

#[test]
fn a_flush_that_runs_into_it_is_over_and_its_p_is_answered_x() {
    let server = limited(Setup::new(&[
        "eval",
        "thread_model=echo parallel",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null",
        "flush=while [ ! -e go ]; do sleep 0.01; done",
    ]))
    .parameters(&["pause-flush=true"])
    .start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    let mut controller = server.controller();
    for _ in 0..2 {
        let since = Instant::now();
        controller.send(b"p");
        server.all_is_heard();
        expect_flow_after(&mut client, since, LIMIT);
        controller.expect("X");
    }
    fs::write(server.path("go"), "").unwrap();
    controller.pause();
}

#[test]
fn another_p_or_hold_does_not_move_the_deadline() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut first = server.controller();
    let mut others = [server.controller(), server.controller()];
    for command in ['p', '+'] {
        let since = close(&mut first, command);
        let held = client.send(WRITE);
        let mut asked = 0;
        let reply = loop {
            if let Some(reply) = client.reply_within(held, LIMIT / 20) {
                break reply;
            }
            // More often than the limit: it would never end.
            assert!(since.elapsed() < LIMIT + PROMPT, "the deadline moves");
            for (controller, command) in others.iter_mut().zip(['p', '+']) {
                close(controller, command);
            }
            close(&mut first, command);
            asked += 1;
        };
        reply.expect("success");
        assert!(since.elapsed() >= LIMIT);
        assert!(asked >= 2, "{asked}: this proves nothing");
        first.resume();
    }
}

#[test]
fn another_p_does_not_move_the_deadline_of_a_drain() {
    let server = limited(Setup::in_memory()).below("delay", &["rdelay=30"]).start();
    let mut client = Client::connect(&server);
    client.send(READ);
    client.all_read_by_server();
    thread::sleep(A_WHILE);
    let mut first = server.controller();
    let since = Instant::now();
    first.send(b"p");
    let mut others = Vec::new();
    loop {
        match first.reply_within(LIMIT / 20).unwrap() {
            Some(b'X') => break,
            Some(reply) => panic!("{reply}"),
            None => {}
        }
        assert!(since.elapsed() < LIMIT + PROMPT, "the deadline moves");
        let mut other = server.controller();
        other.send(if others.len() % 2 == 0 { b"p" } else { b"+" });
        others.push(other);
    }
    assert!(since.elapsed() >= LIMIT);
    assert!(others.len() >= 2, "{}: this proves nothing", others.len());
}

#[test]
fn each_new_pause_has_a_deadline_of_its_own() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for _ in 0..3 {
        controller.pause();
        thread::sleep(LIMIT * 2 / 3);
        controller.resume();
    }
    let since = close(&mut controller, 'p');
    expect_flow_after(&mut client, since, LIMIT);
    // Also one that follows one that has run out.
    let since = close(&mut controller, 'p');
    expect_flow_after(&mut client, since, LIMIT);
}

#[test]
fn a_pause_that_is_ended_in_time_is_not_ended_again() {
    let server = start();
    let mut controller = server.controller();
    controller.pause();
    controller.resume();
    controller.send(b"+-");
    controller.expect("+-");
    thread::sleep(LIMIT + A_WHILE);
    let messages = server.messages();
    assert!(!messages.contains(LOG), "{messages}");
}

#[test]
fn the_log_says_so_loudly() {
    // Without -v, so that only errors are seen.
    let server = start();
    server.controller().pause();
    eventually("the log says so", LIMIT + PROMPT, || server.messages().contains(LOG));
    let messages = server.messages();
    assert_eq!(messages.matches(LOG).count(), 1, "{messages}");
    assert!(messages.contains("error:"), "{messages}");
    assert!(messages.contains("600ms"), "{messages}");
}

#[test]
fn a_hold_that_ran_out_of_time_is_answered_x_when_it_is_given_back() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    let since = close(&mut controller, '+');
    expect_flow_after(&mut client, since, LIMIT);
    controller.send(b"-");
    controller.expect("X");
    // And that was all: a new one is a new one.
    controller.send(b"+-");
    controller.expect("+-");
}

#[test]
fn seconds_with_and_without_a_fraction_and_milliseconds_are_accepted() {
    for (value, millis) in
        [("1", 1000), ("0.5", 500), ("1.5", 1500), ("500ms", 500), ("500.5ms", 500)]
    {
        let parameter = format!("pause-timeout={value}");
        let server = Setup::in_memory().parameters(&[&parameter]).start();
        let mut client = Client::connect(&server);
        let since = close(&mut server.controller(), 'p');
        expect_flow_after(&mut client, since, Duration::from_millis(millis));
    }
}

#[test]
fn no_limit_and_a_far_one_leave_a_pause_in_force() {
    let more = ["0", "0ms", "0.0", "30", "30000ms", "9999999999", "9999999999999999999ms"];
    let servers: Vec<_> = more
        .iter()
        .map(|value| format!("pause-timeout={value}"))
        .map(Some)
        .chain([None])
        .map(|parameter| {
            let setup = Setup::in_memory();
            let server = setup.parameters(parameter.as_deref().as_slice()).start();
            server.controller().pause();
            let mut client = Client::connect(&server);
            let held = client.send(WRITE);
            (parameter, server, client, held)
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    for (parameter, server, mut client, held) in servers {
        assert_eq!(client.reply_within(held, A_WHILE), None, "{parameter:?}");
        server.controller().resume();
        client.reply(held).expect("success");
    }
}

#[test]
fn what_is_no_duration_is_refused_by_name() {
    let refused = [
        "",
        "-1",
        "+1",
        "1s",
        "1m",
        "30 ",
        " 30",
        "1e3",
        "inf",
        "nan",
        "never",
        "ms",
        ".",
        ".5",
        "1.",
        "1,5",
        "1.2.3",
        "0x10",
        "500MS",
        "99999999999999999999999",
    ];
    for value in refused {
        let parameter = format!("pause-timeout={value}");
        let refusal = Setup::in_memory().parameters(&[&parameter]).refusal();
        assert!(refusal.stderr.contains(&parameter), "{value:?}: {refusal:#?}");
        // It says what would be right.
        assert!(refusal.stderr.contains("500ms"), "{value:?}: {refusal:#?}");
    }
}

#[test]
fn a_busy_server_opens_in_time_too() {
    let server = limited(Setup::with_disk(16)).start();
    let mut load = crate::common::clients::fio(
        &server,
        &["--rw=randrw", "--iodepth=16", "--size=16M", "--time_based", "--runtime=300"],
    );
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for _ in 0..3 {
        let since = close(&mut controller, 'p');
        expect_flow_after(&mut client, since, LIMIT);
        assert!(load.is_running(), "{}", load.stderr());
    }
}

/// libfaketime, of the package `faketime`.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    folders
        .chain([PathBuf::from("/usr/lib64"), PathBuf::from("/usr/lib")])
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketimeMT.so.1: install the package faketime")
}

/// The time until the clock is set.
const BEFORE: &str = "2020-02-02 12:30:30";

#[test]
fn a_clock_set_back_or_forward_does_not_move_the_end_of_a_pause() {
    let setup = limited(Setup::with_disk(1).logged());
    let (clock, part) = (setup.path("clock"), setup.path("clock.part"));
    let environment = [
        format!("LD_PRELOAD={}", libfaketime().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // Debian 13's waits for its own semaphore for ever when the clock is set.
        "FAKETIME_DISABLE_SHM=1".to_owned(),
        // As the kernel has it: setting the clock leaves that one alone.
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        "TZ=UTC".to_owned(),
    ];
    let set = |to: &str| {
        // At once, so that the server never sees half of it.
        fs::write(&part, format!("@{to}\n")).unwrap();
        fs::rename(&part, &clock).unwrap();
    };
    set(BEFORE);
    let words: Vec<&str> =
        ["env"].into_iter().chain(environment.iter().map(String::as_str)).collect();
    let server = setup.under(&words).start();
    let mut client = Client::connect(&server);
    for after in
        ["1999-09-09 12:30:30", "2020-02-02 12:29:30", "2020-02-02 12:31:30", "2033-03-03 12:30:30"]
    {
        for (command, reply) in [(b"p", "P"), (b"+", "+")] {
            set(BEFORE);
            let mut controller = server.controller();
            let since = Instant::now();
            controller.send(command);
            controller.expect(reply);
            set(after);
            let held = client.send(WRITE);
            client.reply_within(held, LIMIT + PROMPT).expect("in time").expect("success");
            assert!(since.elapsed() >= LIMIT, "set to {after}: {:?}", since.elapsed());
            // The server believes it, to the minute.
            let log = server.logged();
            let line = log.lines().rfind(|line| line.contains(" Write ")).unwrap();
            assert!(line.starts_with(&after[..16]), "{after}: {line}");
        }
    }
    client.leave();
    server.stop();
}
