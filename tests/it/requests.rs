//! What a data request meets: each kind is held while the server is paused and
//! carried out afterwards, and nothing else is held. What becomes of one whose client
//! goes, or whose server ends, is in `dead_clients.rs` and `shutdown.rs`.

use super::*;

/// The memory plugin offers all seven kinds itself: nbdkit emulates none.
fn logged() -> Stage {
    Stage::on(Setup::in_memory().logged())
}

#[test]
fn a_request_of_each_kind_is_held_until_resume() {
    for request in ONE_OF_EACH {
        let mut stage = logged();
        // As nbdkit-log-filter has it.
        let name = format!("{request:?}");
        let name = format!(" {} ", name.split('(').next().unwrap());
        let held = stage.play("A:p=P").client().held(request);
        assert!(!stage.server.logged().contains(&name), "{}", stage.server.logged());
        stage.play("A:r=R").client().goes_on(held);
        assert!(stage.server.logged().contains(&name), "{}", stage.server.logged());
        stage.end();
    }
}

#[test]
fn all_kinds_held_together_complete_after_resume() {
    let mut stage = logged();
    for _ in 0..20 {
        stage.play("A:p=P");
        let before = stage.server.logged_bytes();
        let held = ONE_OF_EACH.map(|request| stage.client().send(request));
        stage.client().expect_held(&held, Duration::from_millis(30));
        assert_eq!(stage.server.logged_bytes(), before);
        stage.play("A:r=R");
        held.iter().for_each(|&ticket| _ = stage.client().goes_on(ticket));
    }
    assert_eq!(stage.client().ask(Read(512)), [0xaa; 512]);
}

#[test]
fn a_request_that_fails_below_us_fails_as_it_would_without_us() {
    let setup = Setup::in_memory().below("error", &["error=ENOSPC", "error-pwrite-rate=100%"]);
    let mut stage = Stage::on(setup);
    let write = stage.client().send(WRITE);
    assert_eq!(stage.client().reply(write), Err(libc::ENOSPC));
    let write = stage.play("A:p=P").client().held(WRITE);
    assert_eq!(stage.play("A:r=R").client().reply(write), Err(libc::ENOSPC));
    stage.play("read");
}

#[test]
fn a_client_connects_and_negotiates_during_a_pause() {
    let mut stage = logged();
    stage.play("A:p=P");
    let client = Client::connect(&stage.server);
    assert_eq!(client.size(), 1 << 20);
    client.leave();
    // Another implementation of NBD.
    let socket = stage.server.socket();
    let info = clients::program("qemu-nbd", &["--list", "-k", socket.to_str().unwrap()]);
    assert!(info.stdout.contains("1048576"), "{info:#?}");
    // It comes while paused, asks while paused, and is served afterwards.
    stage.play("goes held A:r=R flow");
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
    let mut stage = Stage::on(Setup::with_disk(1));
    stage.client().ask(Write(0, 1));
    let held = stage.play("A:p=P").client().held(Write(512, 2));
    stage.play("A:r=R").client().goes_on(held);
    stage.client().ask(Write(1024, 3));
    let disk = stage.end().disk();
    assert!(disk[..1536] == [[1; 512], [2; 512], [3; 512]].concat());
}
