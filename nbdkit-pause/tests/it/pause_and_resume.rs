//! `nbdkit-pause pause` and `nbdkit-pause resume`: the plain `p` and `r`, to several
//! servers. Sockets that are none are in `trouble.rs`.

use super::*;

#[test]
fn a_pause_lasts_until_it_is_resumed() {
    for kind in KINDS {
        let servers = start_all([kind; 2]);
        let second = socket(&servers[1]);
        let all = |action: &str, done: &str| {
            call(&servers[0], &format!("{action} control {second}"))
                .ends(0, &[&format!("control: {done}"), &format!("{second}: {done}")]);
        };
        all("pause", "paused");
        // The helper has ended.
        let held = servers.each_ref().map(expect_paused);
        all("resume", "resumed");
        held.into_iter().for_each(Held::goes_on);
    }
}

#[test]
fn resume_ends_the_pause_of_anybody_and_a_running_server_stays_running() {
    for kind in KINDS {
        let server = kind.start();
        server.controller().pause();
        let held = expect_paused(&server);
        call(&server, "resume control").ends(0, &[]);
        held.goes_on();
        call(&server, "resume control").ends(0, &[]);
        expect_flow(&server);
    }
}

#[test]
fn resume_ends_a_drain_that_is_stuck() {
    for kind in OURS {
        let (server, _client) = kind.stuck();
        let mut controller = server.controller();
        controller.send(b"p");
        let held = wait_until_paused(&server);
        call(&server, "resume control").ends(0, &[]);
        controller.expect("X");
        held.goes_on();
    }
}
