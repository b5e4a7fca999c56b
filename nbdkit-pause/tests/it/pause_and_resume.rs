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
fn where_one_cannot_be_paused_none_stays_paused() {
    for kind in KINDS {
        let [first, last] = start_all([kind; 2]);
        for bad in ["nowhere", "nbd"] {
            call(&first, &format!("pause control {bad} {}", socket(&last)))
                .ends(125, &[&format!("{bad}: "), "no server was paused"]);
            expect_flow(&first);
            expect_flow(&last);
        }
    }
}

#[test]
fn a_pause_that_does_not_come_in_time_is_given_up() {
    for kind in OURS {
        let ((server, _client), quick) = (kind.stuck(), kind.start());
        let start = Instant::now();
        call(&server, &format!("pause --timeout 500ms {} control", socket(&quick)))
            .ends(125, &["control: not paused within 0.500 s", "no server was paused"]);
        assert!(start.elapsed() < PROMPT);
        expect_flow(&server);
        expect_flow(&quick);
    }
}

#[test]
fn whoever_can_be_resumed_is() {
    for kind in KINDS {
        let [first, last] = start_all([kind; 2]);
        let second = socket(&last);
        call(&first, &format!("pause control {second}")).ends(0, &[]);
        call(&first, &format!("resume control nowhere nbd {second}"))
            .ends(125, &["nowhere: not resumed: no such socket", "nbd: "]);
        expect_flow(&first);
        expect_flow(&last);
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
