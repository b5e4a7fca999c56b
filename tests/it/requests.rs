//! What a data request meets: each kind is held while the server is paused and
//! carried out afterwards, and nothing else is held. What becomes of one whose client
//! goes, or whose server ends, is in `dead_clients.rs` and `shutdown.rs`.

use super::*;

/// The memory plugin offers all seven kinds itself: nbdkit emulates none.
fn start() -> Server {
    Setup::in_memory().logged().start()
}

/// How nbdkit-log-filter calls it.
fn name(request: Request) -> &'static str {
    match request {
        Read(_) => " Read ",
        Write(..) => " Write ",
        Flush => " Flush ",
        Trim(_) => " Trim ",
        Zero(_) => " Zero ",
        Extents(_) => " Extents ",
        Cache(_) => " Cache ",
    }
}

#[test]
fn a_request_of_each_kind_is_held_until_resume() {
    for request in ONE_OF_EACH {
        let server = start();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let held = client.held(request);
        assert!(!server.logged().contains(name(request)), "{}", server.logged());
        controller.resume();
        client.goes_on(held);
        assert!(server.logged().contains(name(request)), "{}", server.logged());
        drop(client);
        server.stop();
    }
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
            client.goes_on(ticket);
        }
    }
    assert_eq!(client.ask(Read(512)), [0xaa; 512]);
}

#[test]
fn a_request_that_fails_below_us_fails_as_it_would_without_us() {
    let setup = Setup::in_memory().below("error", &["error=ENOSPC", "error-pwrite-rate=100%"]);
    let server = setup.start();
    let mut client = Client::connect(&server);
    let write = client.send(WRITE);
    assert_eq!(client.reply(write), Err(libc::ENOSPC));
    let mut controller = server.controller();
    controller.pause();
    let write = client.held(WRITE);
    controller.resume();
    assert_eq!(client.reply(write), Err(libc::ENOSPC));
    client.ask(READ);
}

#[test]
fn a_client_connects_and_negotiates_during_a_pause() {
    let server = start();
    let mut controller = server.controller();
    controller.pause();
    let client = Client::connect(&server);
    assert_eq!(client.size(), 1 << 20);
    client.leave();
    // Another implementation of NBD.
    let info = clients::program("qemu-nbd", &["--list", "-k", server.socket().to_str().unwrap()]);
    assert!(info.stdout.contains("1048576"), "{info:#?}");
    // It comes while paused, asks while paused, and is served afterwards.
    let mut client = Client::connect(&server);
    let held = client.held(READ);
    controller.resume();
    client.goes_on(held);
}

#[test]
fn a_pause_is_answered_once_the_requests_in_flight_are_done_and_not_before() {
    let setup = Setup::in_memory().logged().below("delay", &["rdelay=400ms", "wdelay=700ms"]);
    let server = setup.start();
    let mut clients = [Client::connect(&server), Client::connect(&server)];
    let [read, write] = [(0, READ), (1, WRITE)].map(|(i, request)| clients[i].send(request));
    eventually("both are below us", GENEROUS, || {
        let log = server.logged();
        log.contains(" Read id=1") && log.contains(" Write id=1")
    });
    let mut controller = server.controller();
    controller.pause();
    let log = server.logged();
    assert!(log.contains("...Read id=1") && log.contains("...Write id=1"), "{log}");
    // They are not touched by the pause.
    let [one, two] = &mut clients;
    one.goes_on(read);
    two.goes_on(write);
    let held = one.held(READ);
    controller.resume();
    assert_eq!(one.goes_on(held), [0xaa; 512]);
}

#[test]
fn a_request_that_comes_during_a_drain_is_held() {
    let mut stage = Stage::on(Setup::obedient());
    stage.play("reading A:p= held returns A:=P still");
    assert_eq!(stage.server.size("written"), 0);
    stage.play("A:r=R flow");
}

#[test]
fn what_was_written_before_during_and_after_a_pause_is_there() {
    let server = Setup::with_disk(1).start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    client.ask(Write(0, 1));
    controller.pause();
    let held = client.held(Write(512, 2));
    controller.resume();
    client.goes_on(held);
    client.ask(Write(1024, 3));
    client.leave();
    let disk = server.stop().disk();
    assert!(disk[..1536] == [[1; 512], [2; 512], [3; 512]].concat());
}
