//! A plugin, or a filter below ours, that fails every request, and a plugin that
//! never returns: a pause comes and ends as far as it can, and its errors reach
//! the client. Plugins that work are in `serving.rs`, those that fork are in
//! `forking_plugins.rs`.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use crate::common::clients::{self, is_zero};
use crate::common::nbd::{Client, ONE_OF_EACH, Request, Ticket};
use crate::common::process::expect_line;
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually, nbdkit};

const READ: Request = Request::Read(0);
const WRITE: Request = Request::Write(0, 0xaa);

/// A pause-timeout that is waited for.
const LIMIT: Duration = Duration::from_millis(600);

// A plugin that fails.

const ERRORS: [i32; 3] = [libc::EIO, libc::ENOSPC, libc::EPERM];

/// A plugin that refuses each request with the error that is in the file
/// `error`, and says so at length.
fn failing_plugin() -> Setup {
    let fails = "cat error >&2; echo ' and more about it' >&2; exit 1";
    let mut words = vec!["eval".to_owned(), "get_size=echo 1M".to_owned()];
    for can in ["write", "flush", "trim", "zero", "extents"] {
        words.push(format!("can_{can}=exit 0"));
    }
    words.push("can_cache=echo native".to_owned());
    words.push("can_fua=echo none".to_owned());
    words.push("thread_model=echo parallel".to_owned());
    for call in ["pread", "flush", "trim", "zero", "extents", "cache"] {
        words.push(format!("{call}={fails}"));
    }
    // What it does not read would be another error.
    words.push(format!("pwrite=cat >/dev/null; {fails}"));
    Setup::new(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// One request of each kind fails with `error`.
fn expect_errors(client: &mut Client, error: i32) {
    for request in ONE_OF_EACH {
        let ticket = client.send(request);
        assert_eq!(client.reply(ticket), Err(error), "{request:?}");
    }
}

fn name_of(error: i32) -> &'static str {
    match error {
        libc::EIO => "EIO",
        libc::ENOSPC => "ENOSPC",
        _ => "EPERM",
    }
}

#[test]
fn a_plugin_that_fails_everything_is_paused_and_its_errors_reach_the_client() {
    let server = failing_plugin().parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    for error in ERRORS {
        fs::write(server.path("error"), name_of(error)).unwrap();
        expect_errors(&mut client, error);
        for (close, closed, open, opened) in [(b"p", "P", b"r", "R"), (b"+", "+", b"-", "-")] {
            let mut controller = server.controller();
            controller.send(close);
            controller.expect(closed);
            let held: Vec<Ticket> = ONE_OF_EACH.map(|request| client.send(request)).to_vec();
            client.expect_held(&held, A_WHILE / 3);
            controller.send(open);
            controller.expect(opened);
            for ticket in held {
                assert_eq!(client.reply(ticket), Err(error));
            }
        }
    }
    client.leave();
    server.stop();
}

#[test]
fn a_filter_below_that_fails_everything_is_paused_and_its_errors_reach_the_client() {
    let server = Setup::with_disk(1)
        .below("error", &["error=ENOSPC", "error-rate=100%"])
        .parameters(&["pause-flush=true"])
        .start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for _ in 0..3 {
        // It lets a flush through, which is all that the pause wants.
        controller.pause();
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        assert_eq!(client.reply(held), Err(libc::ENOSPC));
    }
    client.leave();
    assert!(is_zero(&server.stop().path("disk.img"), 0, 1 << 20));
}

#[test]
fn what_a_plugin_that_fails_everything_cannot_flush_is_told_and_requests_flow() {
    let server = failing_plugin().parameters(&["pause-flush=true"]).start();
    fs::write(server.path("error"), "EIO").unwrap();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    // Nothing was written that could be lost.
    controller.pause();
    controller.resume();
    for error in ERRORS {
        fs::write(server.path("error"), name_of(error)).unwrap();
        let ticket = client.send(WRITE);
        assert_eq!(client.reply(ticket), Err(error));
        // It may have been written in part.
        let told = server.messages_count("given up");
        controller.send(b"p");
        controller.expect("X");
        assert_eq!(server.messages_count("given up"), told + 1);
        let words = io::Error::from_raw_os_error(error).to_string();
        expect_line(&server.messages(), &["error: ", "pause-flush: ", &words, "given up"]);
        expect_errors(&mut client, error);
    }
    client.leave();
    server.stop();
}

// A plugin that never returns.

/// A plugin whose reads, and whose opening of a connection, return when there
/// is a file `go` in the folder.
fn hanging_plugin() -> Setup {
    Setup::new(&[
        "eval",
        "thread_model=echo parallel",
        "open=[ ! -e closed ] || while [ ! -e go ]; do sleep 0.01; done",
        "get_size=echo 1M",
        "pread=touch inside; while [ ! -e go ]; do sleep 0.01; done; head -c $3 /dev/zero",
        "pwrite=cat >>written",
    ])
    .parameters(&["pause-hold=true"])
}

/// A client with a read that the plugin does not return from.
fn with_hanging_read(server: &Server) -> (Client, Ticket) {
    let mut client = Client::connect(server);
    let read = client.send(READ);
    eventually("the read is in the plugin", GENEROUS, || server.path("inside").exists());
    (client, read)
}

fn let_it_return(server: &Server) {
    fs::write(server.path("go"), "").unwrap();
}

/// The plugin returns at last, and the server ends well.
fn end<const N: usize>(server: Server, clients: [Client; N]) {
    let_it_return(&server);
    drop(clients);
    server.stop();
}

#[test]
fn a_pause_under_a_plugin_that_never_returns_is_ended_by_r_at_once() {
    let server = hanging_plugin().start();
    let (stuck, _) = with_hanging_read(&server);
    let mut client = Client::connect(&server);
    for command in [b"p", b"+", b"p"] {
        let mut waiting = server.controller();
        waiting.send(command);
        waiting.expect_silence(A_WHILE);
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        server.controller().resume();
        waiting.expect("X");
        assert!(matches!(client.reply_within(held, PROMPT), Some(Ok(_))));
    }
    end(server, [stuck, client]);
}

#[test]
fn a_pause_under_a_plugin_that_never_returns_is_ended_by_its_timeout() {
    let server = hanging_plugin().parameters(&["pause-timeout=600ms"]).start();
    let (stuck, _) = with_hanging_read(&server);
    let mut client = Client::connect(&server);
    for command in [b"p", b"+"] {
        let mut waiting = server.controller();
        let since = Instant::now();
        waiting.send(command);
        server.all_is_heard();
        let held = client.send(WRITE);
        assert!(matches!(client.reply_within(held, LIMIT + PROMPT), Some(Ok(_))));
        assert!(since.elapsed() >= LIMIT, "after {:?}", since.elapsed());
        waiting.expect("X");
    }
    expect_line(&server.messages(), &["error: ", "pause-timeout: ", "600ms"]);
    end(server, [stuck, client]);
}

#[test]
fn a_plugin_that_returns_at_last_lets_the_pause_come_into_force() {
    let server = hanging_plugin().start();
    let (mut stuck, read) = with_hanging_read(&server);
    let mut waiting = server.controller();
    waiting.send(b"p");
    waiting.expect_silence(A_WHILE);
    let_it_return(&server);
    waiting.expect("P");
    assert!(stuck.reply(read).is_ok());
    let held = stuck.send(READ);
    stuck.expect_held(&[held], A_WHILE);
    waiting.resume();
    assert!(stuck.reply(held).is_ok());
    end(server, [stuck]);
}

#[test]
fn a_plugin_that_lets_no_client_in_does_not_keep_a_pause_from_coming_into_force() {
    let server = hanging_plugin().start();
    let mut client = Client::connect(&server);
    fs::write(server.path("closed"), "").unwrap();
    assert!(Client::connect_within(&server, A_WHILE).is_none());
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
    end(server, [client]);
}

/// nbdkit cannot end while the plugin works on a request. All else has its end.
#[test]
fn sigterm_under_a_plugin_that_never_returns_answers_all_others_and_the_server_goes_with_it() {
    let mut server = hanging_plugin().start();
    let (mut stuck, read) = with_hanging_read(&server);
    let mut client = Client::connect(&server);
    let mut waiting = server.controller();
    waiting.send(b"p");
    server.all_is_heard();
    let held = [client.send(WRITE), stuck.send(WRITE)];
    client.expect_held(&held[..1], A_WHILE);
    stuck.expect_held(&held[1..], A_WHILE);
    server.terminate();
    client.expect_dropped(held[0], PROMPT);
    stuck.expect_dropped(held[1], PROMPT);
    drop(client);
    match nbdkit::cuts_connections() {
        // The reply goes with the connection.
        true => stuck.expect_dropped(read, PROMPT),
        false => stuck.expect_held(&[read], A_WHILE),
    }
    assert!(server.is_running());
    // Whoever waits can still give up.
    server.controller().resume();
    waiting.expect("X");
    let_it_return(&server);
    if !nbdkit::cuts_connections() {
        assert!(stuck.reply_within(read, PROMPT).is_some());
    }
    drop(stuck);
    let ended = server.ended(PROMPT).well();
    assert!(!ended.path("written").exists());
}

/// Nobody can tell whether it is the last one of a file system, say. So it ends the
/// pause, though that isn't in force yet.
#[test]
fn a_write_that_may_not_be_dropped_ends_the_drain_of_a_server_that_is_told_to_end() {
    let server = hanging_plugin().logged_above().start();
    let (stuck, _) = with_hanging_read(&server);
    let [mut pausing, mut holding] = [b"p", b"+"].map(|command| {
        let mut controller = server.controller();
        controller.send(command);
        controller
    });
    server.all_is_heard();
    clients::write_of_one_who_has_gone(&server);
    assert!(!server.path("written").exists());
    server.terminate();
    pausing.expect("X");
    holding.expect("X");
    eventually("it is carried out", GENEROUS, || server.path("written").exists());
    let_it_return(&server);
    drop(stuck);
    server.ended(PROMPT).well();
}
