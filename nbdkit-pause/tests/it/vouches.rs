//! What `run` vouches for: exit status 0 says that no server took a write from before
//! the command's start to after its end. Where that can't be known, or a server
//! refuses, nobody else is harmed.

use libc::{SIGKILL, SIGTERM};

use super::*;

/// As many holds as a server with holds grants.
const MOST_HOLDS: usize = 32;

#[test]
fn a_run_that_gets_no_hold_any_more_leaves_the_others_theirs() {
    let server = Holds.start();
    let mut holders = server.controllers(MOST_HOLDS);
    holders.iter_mut().for_each(Controller::hold);
    let mut held = expect_paused(&server);
    let said = ["control: the pause did not take effect", "32 connections have holds"];
    call(&server, "run control -- touch ran").ends(125, &said);
    assert!(!server.path("ran").exists());
    held.stays();
    // Each was in force without a break.
    holders.iter_mut().for_each(|holder| holder.ask("-", "-"));
    held.goes_on();
}

/// An `X` that comes at once is no other than one that takes its time.
#[test]
fn a_resume_right_after_a_run_has_asked_for_its_hold_stands() {
    let (server, _client) = Holds.stuck();
    let run = run_on(&[&server], "", "touch ran");
    let held = wait_until_paused(&server);
    let mut other = server.controller();
    other.resume();
    held.goes_on();
    // From here on somebody else wants a pause. It is not the run's to end.
    other.send(b"+");
    let mut held = wait_until_paused(&server);
    run.ends(125, &["the pause did not take effect: someone resumed", "sh was not run"]);
    held.stays();
    assert!(!server.path("ran").exists());
}

/// A script that outlives the server, unlike `UNTIL_TOLD`.
const UNTIL_GO: &str = "touch running; n=0
    while [ ! -e go ] && [ $((n += 1)) -lt 6000 ]; do sleep 0.01; done; touch ended";

#[test]
fn a_server_without_holds_that_starts_again_in_the_middle_makes_the_snapshot_unusable() {
    for kind in WITHOUT_HOLDS {
        for signal in [SIGTERM, SIGKILL] {
            let server = kind.start();
            let run = start_script(&[&server], UNTIL_GO);
            send_signal(server.pid(), signal);
            let server = server.ended(GENEROUS).again().start();
            let told = "control: THE PAUSE MAY HAVE BEEN INTERRUPTED";
            eventually("it is told", PROMPT, || run.stderr().contains(told));
            // It takes writes.
            expect_flow(&server);
            finish_run(&server, run).ends(124, &[UNUSABLE]);
            expect_flow(&server);
        }
    }
}

/// The helper can't look while it is stopped: it finds out when it resumes.
#[test]
fn a_server_that_starts_again_right_before_the_end_makes_the_snapshot_unusable() {
    for kind in WITHOUT_HOLDS {
        let server = kind.start();
        let run = start_script(&[&server], UNTIL_GO);
        stop(run.pid());
        server.make("go");
        server.await_file("ended");
        server.terminate();
        let server = server.ended(GENEROUS).again().start();
        expect_flow(&server);
        go_on(run.pid());
        run.ends(124, &[UNUSABLE]);
        expect_flow(&server);
    }
}
