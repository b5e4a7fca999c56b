//! Pauses that don't last, or can't be ended: a snapshot that is not covered is always
//! told. Where there are holds nobody's pause ends by another's; where there are none,
//! as with nbdkit's own filter, servers are paused with `p` and resumed with `r`, which
//! is said, and resumed against all odds.

use super::*;

const BREAK: &str = "THE PAUSE WAS INTERRUPTED";

// A pause that is over too early.

#[test]
fn a_resume_in_the_middle_makes_the_snapshot_unusable() {
    let [good, other] = start_all([Holds; 2]);
    let run = start_run(&[&good, &other]);
    other.controller().resume();
    expect_flow(&other);
    // The good one has its pause to the end.
    let held = expect_paused(&good);
    let other = socket(&other);
    let verdict = format!("{UNUSABLE}: the pause of {other} had a break");
    finish_run(&good, run).ends(124, &[&format!("{other}: {BREAK}"), &verdict]);
    held.goes_on();
}

#[test]
fn a_pause_that_was_taken_again_or_has_timed_out_in_the_middle_had_a_break() {
    let is_taken_again = |server: &Server| server.controller().ask("rp", "RP");
    for (setup, breaks) in [
        (Setup::in_memory(), is_taken_again as fn(&Server)),
        (Setup::in_memory().limited(), expect_flow),
    ] {
        let server = Holds.of(setup).start();
        let run = start_run(&[&server]);
        breaks(&server);
        finish_run(&server, run).ends(124, &[BREAK, UNUSABLE]);
    }
}

#[test]
fn the_snapshot_is_unusable_whatever_the_commands_own_status() {
    for status in [0, 3] {
        let server = Holds.start();
        let run = start_script(&[&server], &format!("{UNTIL_TOLD}; exit {status}"));
        server.controller().resume();
        finish_run(&server, run).ends(124, &[&format!("exit status: {status}")]);
    }
}

#[test]
fn a_server_that_ends_in_the_middle_makes_the_snapshot_unusable() {
    for kind in KINDS {
        let [good, dead] = start_all([kind; 2]);
        let run = start_run(&[&good, &dead]);
        let socket = socket(&dead);
        drop(dead);
        if kind == Holds {
            let over = format!("{socket}: THE PAUSE ENDED EARLY");
            eventually("it is told at once", PROMPT, || run.stderr().contains(&over));
        }
        let verdict = match kind {
            Holds => format!("{UNUSABLE}: the pause of {socket} had a break"),
            _ => format!("{UNUSABLE}: nobody can tell whether the pause of {socket} lasted"),
        };
        finish_run(&good, run).ends(124, &[&verdict]);
        expect_flow(&good);
    }
}

#[test]
fn a_server_that_does_not_answer_at_the_end_is_named_with_what_to_type() {
    together(KINDS, |kind| {
        let [good, stuck] = start_all([kind; 2]);
        let run = start_run(&[&good, &stuck]);
        stop(stuck.pid());
        let run = finish_run(&good, run);
        go_on(stuck.pid());
        let socket = socket(&stuck);
        let paused = format!("{socket}: THE SERVER MAY STILL BE PAUSED: no answer within 10.000 s");
        run.ends(124, &[&paused, &format!("type: nbdkit-pause resume {socket}"), UNUSABLE]);
        expect_flow(&good);
        // What was sent counts, once it is heard.
        expect_flow(&stuck);
    });
}

// Other pauses beside it.

#[test]
fn two_runs_at_once_do_not_resume_under_each_other() {
    let server = Holds.start();
    let first = start_run(&[&server]);
    server.remove("running");
    let script = "touch running; while [ -e pid ] && [ ! -e go.second ]; do sleep 0.01; done";
    let second = start_script(&[&server], script);
    let mut held = expect_paused(&server);
    let said = finish_run(&server, first).ends(0, &["others may still hold it"]).stderr;
    assert!(!said.contains("resumed"), "{said}");
    held.stays();
    server.make("go.second");
    second.ends(0, &[]);
    held.goes_on();
}

#[test]
fn a_pause_of_the_operator_outlasts_a_run() {
    let server = Holds.start();
    let mut controller = server.controller();
    controller.pause();
    call(&server, "run control -- true").ends(0, &[]);
    let held = expect_paused(&server);
    controller.resume();
    held.goes_on();
}

// A drain that comes to nothing.

#[test]
fn a_drain_that_somebody_ends_is_not_taken_for_a_pause_nor_begun_anew() {
    // Soon, it could be taken for a server without holds; later, a run could set itself
    // over an operator who ends a drain that is stuck.
    for (kind, after) in [(Plain, 0), (Holds, 0), (Holds, 2500)] {
        let (server, _client) = kind.stuck();
        let run = run_on(&[&server], "", "touch ran");
        let held = wait_until_paused(&server);
        thread::sleep(Duration::from_millis(after));
        server.controller().resume();
        held.goes_on();
        let said = ["the pause did not take effect: someone resumed", "sh was not run"];
        let run = run.finish(PROMPT).ends(125, &said);
        assert!(kind == Plain || !run.stderr.contains("no holds"), "{run:#?}");
        not_run(&[&server]);
    }
}

#[test]
fn a_drain_that_runs_into_the_servers_own_limit_is_no_pause() {
    let (server, _client) = stuck(Holds.of(Setup::obedient().limited()));
    let said = ["the pause did not take effect", "pause-timeout ran out"];
    run_on(&[&server], "", "touch ran").ends(125, &said);
    not_run(&[&server]);
}

// Servers without holds.

#[test]
fn killed_outright_it_leaves_the_server_paused_and_what_it_said_to_type_helps() {
    for kind in WITHOUT_HOLDS {
        let server = kind.start();
        let run = start_run(&[&server]);
        run.signal(libc::SIGKILL);
        let held = expect_paused(&server);
        let said = run.stderr();
        let (_, command) = said.split_once("type: nbdkit-pause ").expect("what to type");
        call(&server, command.lines().next().unwrap()).ends(0, &[]);
        held.goes_on();
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
        finish_run(&server, run).ends(0, &[]);
        held.goes_on();
    }
}

#[test]
fn a_server_that_has_closed_the_connection_meanwhile_is_resumed_on_another() {
    let server = Plain.start();
    let run = start_run(&[&server]);
    // Ours makes room for new controllers, when there are very many.
    let mut crowd = server.controllers(100);
    crowd.split_off(50).iter_mut().for_each(|controller| controller.ask("?", "X"));
    let held = expect_paused(&server);
    // A server that had ended and started again would look the same.
    finish_run(&server, run).ends(124, &[UNUSABLE]);
    held.goes_on();
}
