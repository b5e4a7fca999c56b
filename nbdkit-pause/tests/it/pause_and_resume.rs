//! `nbdkit-pause pause` and `nbdkit-pause resume`: the plain `p` and `r`, to
//! several servers.

use std::time::Instant;

use crate::common::PROMPT;
use crate::helper::{
    Held, KINDS, OURS, expect_flow, expect_paused, expect_said, expect_status, finished, helper,
    path, wait_until_paused, with_read_in_flight,
};

#[test]
fn a_pause_lasts_until_it_is_resumed() {
    for kind in KINDS {
        let servers = [kind.start(), kind.start()];
        let second = servers[1].control_path();
        let pause = finished(helper(&servers[0], &["pause", "control", path(&second)]));
        expect_status(&pause, 0);
        expect_said(&pause, &["control: paused", &format!("{}: paused", second.display())]);
        // The helper has ended.
        let held = servers.each_ref().map(expect_paused);
        let resume = finished(helper(&servers[0], &["resume", "control", path(&second)]));
        expect_status(&resume, 0);
        expect_said(&resume, &["control: resumed", &format!("{}: resumed", second.display())]);
        held.into_iter().for_each(Held::expect_reply);
    }
}

#[test]
fn where_one_cannot_be_paused_none_stays_paused() {
    for kind in KINDS {
        let (first, last) = (kind.start(), kind.start());
        let last_socket = last.control_path();
        for bad in ["nowhere", "nbd"] {
            let pause = finished(helper(&first, &["pause", "control", bad, path(&last_socket)]));
            expect_status(&pause, 125);
            expect_said(&pause, &[format!("{bad}: ").as_str(), "no server was paused"]);
            expect_flow(&first);
            expect_flow(&last);
        }
    }
}

#[test]
fn a_pause_that_does_not_come_in_time_is_given_up() {
    for kind in OURS {
        let (server, quick) = (kind.slow_reads(30), kind.start());
        let client = with_read_in_flight(&server);
        let start = Instant::now();
        let pause = finished(helper(
            &server,
            &["pause", "--timeout", "500ms", path(&quick.control_path()), "control"],
        ));
        expect_status(&pause, 125);
        assert!(start.elapsed() < PROMPT);
        expect_said(&pause, &["control: not paused within 0.500 s", "no server was paused"]);
        expect_flow(&server);
        expect_flow(&quick);
        drop(client);
    }
}

#[test]
fn whoever_can_be_resumed_is() {
    for kind in KINDS {
        let (first, last) = (kind.start(), kind.start());
        let last_socket = last.control_path();
        expect_status(&finished(helper(&first, &["pause", "control", path(&last_socket)])), 0);
        let resume =
            finished(helper(&first, &["resume", "control", "nowhere", "nbd", path(&last_socket)]));
        expect_status(&resume, 125);
        expect_said(&resume, &["nowhere: not resumed: there is no such socket", "nbd: "]);
        expect_flow(&first);
        expect_flow(&last);
    }
}

#[test]
fn resume_ends_the_pause_of_anybody_and_a_running_server_stays_running() {
    for kind in KINDS {
        let server = kind.start();
        let mut controller = server.controller();
        controller.pause();
        drop(controller);
        let held = expect_paused(&server);
        expect_status(&finished(helper(&server, &["resume", "control"])), 0);
        held.expect_reply();
        expect_status(&finished(helper(&server, &["resume", "control"])), 0);
        expect_flow(&server);
    }
}

#[test]
fn resume_ends_a_drain_that_is_stuck() {
    for kind in OURS {
        let server = kind.slow_reads(30);
        let client = with_read_in_flight(&server);
        let mut controller = server.controller();
        controller.send(b"p");
        let held = wait_until_paused(&server);
        expect_status(&finished(helper(&server, &["resume", "control"])), 0);
        controller.expect("X");
        held.expect_reply();
        drop(client);
    }
}
