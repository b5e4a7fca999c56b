//! What a data request meets: each kind is held while the server is paused and
//! carried out afterwards, and nothing else is held. What becomes of one whose client
//! goes, or whose server ends, is in `dead_clients.rs` and `shutdown.rs`.

use super::*;

/// The memory plugin offers all seven kinds itself: nbdkit emulates none.
fn logged() -> Stage {
    Stage::on(Setup::in_memory().logged())
}

#[test]
fn requests_of_each_kind_are_held_until_resume_alone_and_together() {
    let mut stage = logged();
    let alone = ONE_OF_EACH.map(|request| vec![request]);
    for requests in alone.into_iter().chain(vec![ONE_OF_EACH.to_vec(); 20]) {
        stage.play("A:p=P");
        let before = stage.server.logged();
        let held: Vec<_> = requests.iter().map(|&request| stage.client().send(request)).collect();
        stage.client().all_read_by_server();
        stage.client().expect_held(&held, A_WHILE / 3);
        assert_eq!(stage.server.logged(), before, "{requests:?}");
        stage.play("A:r=R");
        held.iter().for_each(|&ticket| _ = stage.client().goes_on(ticket));
        let log = stage.server.logged().split_off(before.len());
        for request in requests {
            let name = format!("{request:?}");
            let name = format!(" {} ", name.split('(').next().unwrap());
            assert!(log.contains(&name), "{log}");
        }
    }
    assert_eq!(stage.client().ask(Read(512)), [0xaa; 512]);
}

dialogues! {
    Setup::obedient() => {
        a_pause_is_answered_once_a_request_in_flight_is_done_and_what_comes_meanwhile_is_held:
            "reading A:p= held returns A:=P still A:r=R flow";
    }
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
