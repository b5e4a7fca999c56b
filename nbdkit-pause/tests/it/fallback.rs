//! Servers that have no holds, nbdkit's own filter among them: paused with `p`
//! and resumed with `r`, which is said, and resumed against all odds.

use std::thread;

use crate::common::process::{go_on, stop};
use crate::common::{A_WHILE, GENEROUS};
use crate::helper::{
    Kind, WITHOUT_HOLDS, end_command, expect_flow, expect_paused, expect_said, expect_status,
    finish_run, finished, helper, run_on, start_run, wait_until_paused,
};
use libc::SIGKILL;

#[test]
fn it_is_said_and_how_to_resume_by_hand() {
    for kind in WITHOUT_HOLDS {
        let server = kind.start();
        let run = finished(helper(&server, &["run", "control", "--", "true"]));
        expect_status(&run, 0);
        expect_said(
            &run,
            &[
                "control: paused by p and r, as this server has no holds",
                &format!("type: nbdkit-pause resume {}", server.control_path().display()),
            ],
        );
    }
}

#[test]
fn killed_outright_it_leaves_the_server_paused_and_what_it_said_to_type_helps() {
    for kind in WITHOUT_HOLDS {
        let server = kind.start();
        let run = start_run(&[&server]);
        run.signal(SIGKILL);
        let held = expect_paused(&server);
        let said = run.stderr();
        let (_, command) = said.split_once("type: nbdkit-pause ").expect("what to type");
        let words: Vec<_> = command.lines().next().expect("a line").split(' ').collect();
        expect_status(&finished(helper(&server, &words)), 0);
        held.expect_reply();
        end_command(&server);
    }
}

#[test]
fn a_controller_that_stays_connected_does_not_keep_it_from_resuming() {
    for kind in WITHOUT_HOLDS {
        let server = kind.start();
        let run = start_run(&[&server]);
        // The stock filter serves one at a time.
        let _idle = server.controller();
        thread::sleep(A_WHILE);
        let held = expect_paused(&server);
        expect_status(&finish_run(&server, run), 0);
        held.expect_reply();
    }
}

#[test]
fn a_server_that_has_closed_the_connection_meanwhile_is_resumed_on_another() {
    let server = Kind::Plain.start();
    let run = start_run(&[&server]);
    // Ours makes room for new controllers, when there are very many.
    let crowd: Vec<_> = (0..100)
        .map(|_| {
            let mut controller = server.controller();
            controller.send(b"?");
            controller.expect("X");
            controller
        })
        .collect();
    let held = expect_paused(&server);
    expect_status(&finish_run(&server, run), 0);
    held.expect_reply();
    drop(crowd);
}

#[test]
fn a_server_that_does_not_answer_at_the_end_is_named_with_what_to_type() {
    for kind in WITHOUT_HOLDS {
        let (good, stuck) = (kind.start(), kind.start());
        let run = start_run(&[&good, &stuck]);
        stop(stuck.pid());
        let run = finish_run(&good, run);
        go_on(stuck.pid());
        expect_status(&run, 124);
        let socket = stuck.control_path();
        let socket = socket.display();
        expect_said(
            &run,
            &[
                format!("{socket}: IT MAY STILL BE PAUSED: no answer within 10.000 s"),
                format!("type: nbdkit-pause resume {socket}"),
                "DO NOT USE THE SNAPSHOT".to_owned(),
            ],
        );
        expect_flow(&good);
        // What was sent counts, once it is heard.
        expect_flow(&stuck);
    }
}

#[test]
fn a_server_that_is_gone_at_the_end_makes_the_snapshot_unusable() {
    for kind in WITHOUT_HOLDS {
        let (good, dead) = (kind.start(), kind.start());
        let run = start_run(&[&good, &dead]);
        let socket = dead.control_path();
        drop(dead);
        let run = finish_run(&good, run);
        expect_status(&run, 124);
        expect_said(&run, &[socket.to_str().expect("UTF-8"), "DO NOT USE THE SNAPSHOT"]);
        expect_flow(&good);
    }
}

#[test]
fn a_pause_that_somebody_ends_while_it_drains_is_not_taken_for_a_pause() {
    let server = Kind::Plain.slow_reads(30);
    let client = crate::helper::with_read_in_flight(&server);
    let run = run_on(&[&server], &[], "touch ran");
    let held = wait_until_paused(&server);
    server.controller().resume();
    let run = run.finish(GENEROUS);
    expect_status(&run, 125);
    expect_said(&run, &["the pause did not take effect: somebody resumed", "sh was not run"]);
    assert!(!server.path("ran").exists());
    held.expect_reply();
    expect_flow(&server);
    drop(client);
}
