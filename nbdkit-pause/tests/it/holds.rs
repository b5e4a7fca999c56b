//! Servers that have holds: nobody's pause ends by another's, and a pause that
//! had a break is always told.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::common::process::{go_on, stop};
use crate::common::{GENEROUS, PROMPT};
use crate::helper::{
    Kind, UNTIL_TOLD, expect_flow, expect_paused, expect_said, expect_status, finish_run, finished,
    helper, run_on, start_run, touch, wait_until_paused, with_read_in_flight,
};

const UNUSABLE: &str = "DO NOT USE THE SNAPSHOT";

#[test]
fn a_resume_in_the_middle_makes_the_snapshot_unusable() {
    let (good, other) = (Kind::Holds.start(), Kind::Holds.start());
    let run = start_run(&[&good, &other]);
    other.controller().resume();
    expect_flow(&other);
    // The good one has its pause to the end.
    let held = expect_paused(&good);
    let run = finish_run(&good, run);
    expect_status(&run, 124);
    let broken = format!("{}: THE PAUSE HAD A BREAK", other.control_path().display());
    expect_said(&run, &[broken.as_str(), UNUSABLE]);
    held.expect_reply();
}

#[test]
fn a_pause_that_was_resumed_and_taken_again_in_the_middle_had_a_break() {
    let server = Kind::Holds.start();
    let run = start_run(&[&server]);
    let mut controller = server.controller();
    controller.resume();
    controller.pause();
    let run = finish_run(&server, run);
    expect_status(&run, 124);
    expect_said(&run, &["THE PAUSE HAD A BREAK", UNUSABLE]);
}

#[test]
fn a_pause_that_times_out_in_the_middle_makes_the_snapshot_unusable() {
    let server = Kind::Holds.setup().parameters(&["pause-timeout=700ms"]).start();
    let run = start_run(&[&server]);
    expect_flow(&server);
    let run = finish_run(&server, run);
    expect_status(&run, 124);
    expect_said(&run, &["THE PAUSE HAD A BREAK", UNUSABLE]);
}

#[test]
fn a_server_that_ends_in_the_middle_is_told_at_once_and_makes_the_snapshot_unusable() {
    let (good, dead) = (Kind::Holds.start(), Kind::Holds.start());
    let run = start_run(&[&good, &dead]);
    let over = format!("{}: THE PAUSE IS OVER TOO EARLY", dead.control_path().display());
    drop(dead);
    crate::common::eventually("it is told", PROMPT, || run.stderr().contains(&over));
    let run = finish_run(&good, run);
    expect_status(&run, 124);
    expect_said(&run, &[UNUSABLE]);
    expect_flow(&good);
}

#[test]
fn the_snapshot_is_unusable_whatever_the_commands_own_status() {
    for status in [0, 3] {
        let server = Kind::Holds.start();
        let script = format!("{UNTIL_TOLD}; exit {status}");
        let mut run = run_on(&[&server], &[], &script);
        crate::helper::wait_until_running(&server, &mut run);
        server.controller().resume();
        let run = finish_run(&server, run);
        expect_status(&run, 124);
        expect_said(&run, &[format!("exit status: {status}")]);
    }
}

#[test]
fn a_pause_without_a_break_is_said_to_be_one() {
    let server = Kind::Holds.start();
    let run = finished(helper(&server, &["run", "control", "--", "true"]));
    expect_status(&run, 0);
    expect_said(&run, &["control: resumed after a pause of", "without a break"]);
    assert!(!run.stderr.contains("has no holds"), "{run:#?}");
}

#[test]
fn two_runs_at_once_do_not_resume_under_each_other() {
    let server = Kind::Holds.start();
    let first = start_run(&[&server]);
    fs::remove_file(server.path("running")).expect("it ran");
    let script = "touch running; while [ -e pid ] && [ ! -e go.second ]; do sleep 0.01; done";
    let mut second = run_on(&[&server], &[], script);
    crate::helper::wait_until_running(&server, &mut second);
    let mut held = expect_paused(&server);
    expect_status(&finish_run(&server, first), 0);
    held.expect_held();
    touch(&server.path("go.second"));
    expect_status(&second.finish(GENEROUS), 0);
    held.expect_reply();
}

#[test]
fn a_pause_of_the_operator_outlasts_a_run() {
    let server = Kind::Holds.start();
    let mut controller = server.controller();
    controller.pause();
    let run = finished(helper(&server, &["run", "control", "--", "true"]));
    expect_status(&run, 0);
    let held = expect_paused(&server);
    controller.resume();
    held.expect_reply();
}

#[test]
fn a_drain_that_somebody_ends_soon_is_not_taken_for_a_server_without_holds() {
    let server = Kind::Holds.slow_reads(6);
    let client = with_read_in_flight(&server);
    let run = run_on(&[&server], &[], "touch ran");
    let held = wait_until_paused(&server);
    server.controller().resume();
    let run = run.finish(GENEROUS);
    expect_status(&run, 125);
    expect_said(&run, &["the pause did not take effect: somebody resumed", "sh was not run"]);
    assert!(!run.stderr.contains("has no holds"), "{run:#?}");
    assert!(!server.path("ran").exists());
    held.expect_reply();
    expect_flow(&server);
    client.leave();
}

#[test]
fn a_run_does_not_set_itself_over_an_operator_who_ends_a_drain_that_is_stuck() {
    let server = Kind::Holds.slow_reads(30);
    let client = with_read_in_flight(&server);
    let run = run_on(&[&server], &[], "touch ran");
    let held = wait_until_paused(&server);
    thread::sleep(Duration::from_millis(2500));
    server.controller().resume();
    held.expect_reply();
    let run = run.finish(PROMPT);
    expect_status(&run, 125);
    expect_said(&run, &["the pause did not take effect: somebody resumed", "sh was not run"]);
    expect_flow(&server);
    drop(client);
}

#[test]
fn a_drain_that_runs_into_the_servers_own_limit_is_no_pause() {
    let server =
        Kind::Holds.setup().parameters(&["pause-timeout=500ms"]).below("delay", &["rdelay=30"]);
    let server = server.start();
    let client = with_read_in_flight(&server);
    let run = run_on(&[&server], &[], "touch ran").finish(GENEROUS);
    expect_status(&run, 125);
    expect_said(&run, &["the pause did not take effect", "its time ran out"]);
    assert!(!server.path("ran").exists());
    expect_flow(&server);
    drop(client);
}

#[test]
fn a_server_that_does_not_answer_at_the_end_proves_nothing() {
    let (good, stuck) = (Kind::Holds.start(), Kind::Holds.start());
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
            UNUSABLE.to_owned(),
        ],
    );
    expect_flow(&good);
    expect_flow(&stuck);
}
