//! What a data request meets: each kind is held while the server is paused and
//! carried out afterwards, and nothing else is held.

use std::fs;
use std::time::Duration;

use crate::common::nbd::{Client, ONE_OF_EACH, Request};
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, GENEROUS, clients, eventually};

/// The memory plugin offers all seven kinds itself: nbdkit emulates none.
fn start() -> Server {
    Setup::in_memory().logged().start()
}

/// How nbdkit-log-filter calls it.
fn name(request: Request) -> &'static str {
    match request {
        Request::Read(..) => " Read ",
        Request::Write(..) => " Write ",
        Request::Flush => " Flush ",
        Request::Trim(..) => " Trim ",
        Request::Zero(..) => " Zero ",
        Request::Extents(..) => " Extents ",
        Request::Cache(..) => " Cache ",
    }
}

fn is_held_until_resume(request: Request) {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    let ticket = client.send(request);
    client.expect_held(&[ticket], A_WHILE);
    assert!(!server.logged().contains(name(request)), "{}", server.logged());
    controller.resume();
    client.reply(ticket).unwrap();
    assert!(server.logged().contains(name(request)), "{}", server.logged());
    drop(client);
    server.stop();
}

#[test]
fn a_read_is_held_until_resume() {
    is_held_until_resume(Request::Read(0));
}

#[test]
fn a_write_is_held_until_resume() {
    is_held_until_resume(Request::Write(0, 0xaa));
}

#[test]
fn a_flush_is_held_until_resume() {
    is_held_until_resume(Request::Flush);
}

#[test]
fn a_trim_is_held_until_resume() {
    is_held_until_resume(Request::Trim(0));
}

#[test]
fn a_zero_is_held_until_resume() {
    is_held_until_resume(Request::Zero(0));
}

#[test]
fn a_block_status_is_held_until_resume() {
    is_held_until_resume(Request::Extents(0));
}

#[test]
fn a_cache_is_held_until_resume() {
    is_held_until_resume(Request::Cache(0));
}

#[test]
fn all_kinds_held_together_complete_after_resume() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for _ in 0..20 {
        controller.pause();
        let before = server.logged_bytes();
        let tickets = ONE_OF_EACH.map(|request| client.send(request));
        client.expect_held(&tickets, Duration::from_millis(30));
        assert_eq!(server.logged_bytes(), before);
        controller.resume();
        for ticket in tickets {
            client.reply(ticket).unwrap();
        }
    }
    assert_eq!(client.ask(Request::Read(512)), [0xaa; 512]);
}

#[test]
fn a_request_that_fails_below_us_fails_as_it_would_without_us() {
    let server =
        Setup::in_memory().below("error", &["error=ENOSPC", "error-pwrite-rate=100%"]).start();
    let mut client = Client::connect(&server);
    let write = client.send(Request::Write(0, 1));
    assert_eq!(client.reply(write), Err(libc::ENOSPC));
    let mut controller = server.controller();
    controller.pause();
    let write = client.send(Request::Write(0, 1));
    client.expect_held(&[write], A_WHILE);
    controller.resume();
    assert_eq!(client.reply(write), Err(libc::ENOSPC));
    client.ask(Request::Read(0));
}

#[test]
fn a_client_connects_and_negotiates_during_a_pause() {
    let server = start();
    let mut controller = server.controller();
    controller.pause();
    let mut client = Client::connect(&server);
    assert_eq!(client.size(), 1 << 20);
    client.leave();
    // Another implementation of NBD.
    let info = clients::program("qemu-nbd", &["--list", "-k", server.socket().to_str().unwrap()]);
    assert!(info.stdout.contains("1048576"), "{info:#?}");
    // It comes while paused, asks while paused, and is served afterwards.
    client = Client::connect(&server);
    let read = client.send(Request::Read(0));
    client.expect_held(&[read], A_WHILE);
    controller.resume();
    client.reply(read).unwrap();
}

#[test]
fn a_pause_is_answered_once_the_requests_in_flight_are_done_and_not_before() {
    let server =
        Setup::in_memory().logged().below("delay", &["rdelay=400ms", "wdelay=700ms"]).start();
    let mut one = Client::connect(&server);
    let mut two = Client::connect(&server);
    let read = one.send(Request::Read(0));
    let write = two.send(Request::Write(0, 1));
    eventually("both are below us", GENEROUS, || {
        let log = server.logged();
        log.contains(" Read id=1") && log.contains(" Write id=1")
    });
    let mut controller = server.controller();
    controller.pause();
    let log = server.logged();
    assert!(log.contains("...Read id=1"), "{log}");
    assert!(log.contains("...Write id=1"), "{log}");
    // They are not touched by the pause.
    one.reply(read).unwrap();
    two.reply(write).unwrap();
    let held = one.send(Request::Read(0));
    one.expect_held(&[held], A_WHILE);
    controller.resume();
    assert_eq!(one.reply(held).unwrap(), [1; 512]);
}

#[test]
fn a_request_that_comes_during_a_drain_is_held() {
    let server = Setup::in_memory().logged().below("delay", &["rdelay=3"]).start();
    let mut client = Client::connect(&server);
    let read = client.send(Request::Read(0));
    eventually("the read is below us", GENEROUS, || server.logged().contains(" Read id=1"));
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(Duration::from_millis(50));
    let write = client.send(Request::Write(0, 1));
    controller.expect("P");
    client.reply(read).unwrap();
    client.expect_held(&[write], A_WHILE);
    assert!(!server.logged().contains(" Write "));
    controller.resume();
    client.reply(write).unwrap();
}

#[test]
fn what_was_written_before_during_and_after_a_pause_is_there() {
    let setup = Setup::with_disk(1);
    let server = setup.start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    client.ask(Request::Write(0, 1));
    controller.pause();
    let held = client.send(Request::Write(512, 2));
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
    client.ask(Request::Write(1024, 3));
    client.leave();
    let disk = fs::read(server.stop().path("disk.img")).unwrap();
    assert_eq!(disk[..512], [1; 512]);
    assert_eq!(disk[512..1024], [2; 512]);
    assert_eq!(disk[1024..1536], [3; 512]);
}
