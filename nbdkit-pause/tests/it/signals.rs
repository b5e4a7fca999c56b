//! Signals, to the helper and while it waits: the command hears of them, and the
//! servers are resumed. Killed outright, it resumes where there are holds.

use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::*;

#[test]
fn a_signal_goes_to_the_command_and_the_servers_are_resumed() {
    for kind in KINDS {
        let server = kind.start();
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let run = start_script(&[&server], "touch running; exec sleep 60");
            run.signal(signal);
            // The command's own: it was ended by that signal.
            run.finish(PROMPT).ends(128 + signal, &[": passed on to sh", "after a pause of"]);
            expect_flow(&server);
            server.remove("running");
        }
    }
}

#[test]
fn a_command_that_ends_well_after_a_signal_was_interrupted() {
    for kind in KINDS {
        let server = kind.start();
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            for (option, status) in [("", 128 + signal), ("--keep-status", 0)] {
                let script = format!("trap 'exit 0' INT TERM HUP QUIT; {UNTIL_TOLD}");
                let run = started(&server, run_on(&[&server], option, &script));
                run.signal(signal);
                let run = run.finish(PROMPT).ends(status, &["interrupted by SIG"]);
                expect_line(&run.stderr, &["interrupted by ", ": sh ended with exit status: 0"]);
                server.remove("running");
            }
        }
    }
}

#[test]
fn a_command_that_cleans_up_is_covered_by_the_pause_to_its_end() {
    for kind in KINDS {
        let server = kind.start();
        let script =
            "trap 'touch told; while [ -e pid ] && [ ! -e go ]; do sleep 0.01; done; exit 7' TERM
            touch running; while [ -e pid ]; do sleep 0.01; done";
        let run = start_script(&[&server], script);
        run.signal(SIGTERM);
        eventually("the command is told", PROMPT, || server.path("told").exists());
        let held = expect_paused(&server);
        finish_run(&server, run).ends(7, &[]);
        held.goes_on();
    }
}

#[test]
fn a_command_that_does_not_end_does_not_keep_the_servers_paused() {
    together(KINDS, |kind| {
        let server = kind.start();
        let mut run = start_script(&[&server], &format!("trap '' TERM; {UNTIL_TOLD}"));
        run.signal(SIGTERM);
        let start = Instant::now();
        expect_paused(&server).goes_on();
        let time = start.elapsed();
        assert!(time > Duration::from_secs(4) && time < Duration::from_secs(9), "{time:?}");
        assert!(run.is_running());
        // Its end was not covered.
        let said = ["is still running: resuming anyway", "DO NOT USE THE SNAPSHOT"];
        finish_run(&server, run).ends(124, &said);
    });
}

#[test]
fn a_second_signal_resumes_at_once() {
    for kind in KINDS {
        let server = kind.start();
        let run = start_script(&[&server], &format!("trap '' TERM INT; {UNTIL_TOLD}"));
        run.signal(SIGTERM);
        let mut held = expect_paused(&server);
        held.stays();
        let start = Instant::now();
        run.signal(SIGINT);
        held.goes_on();
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        finish_run(&server, run).ends(124, &[]);
    }
}

#[test]
fn a_signal_while_the_servers_drain_gives_up_and_resumes() {
    for kind in OURS {
        let (quick, (stuck, _client)) = (kind.start(), kind.stuck());
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let run = run_on(&[&quick, &stuck], "", "touch ran");
            eventually("the other one is paused", GENEROUS, || run.stderr().contains(": paused"));
            run.signal(signal);
            run.finish(PROMPT).ends(128 + signal, &["giving up", "sh was not run"]);
            not_run(&[&quick, &stuck]);
        }
    }
}

#[test]
fn whenever_a_signal_comes_the_server_is_resumed() {
    let mut random = Random::new();
    for kind in KINDS {
        let server = kind.start();
        for round in 0..60 {
            let run = run_on(&[&server], "", "exec sleep 0.01");
            thread::sleep(random.millis(0..20));
            run.signal(SIGTERM);
            let run = run.finish(PROMPT);
            // Too late, in time, or before it was listened to and anything was done.
            let is_right =
                matches!(run.status.code(), Some(0 | 143)) || run.status.signal() == Some(SIGTERM);
            assert!(is_right, "{kind:?}, round {round}: {run:#?}");
            expect_flow(&server);
        }
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let server = Plain.start();
    let words = ["nohup", PROGRAM, "run", "control", "--", "sh", "-c", UNTIL_TOLD];
    let mut run = started(&server, Process::start(command_of(&server, &words)));
    run.signal(SIGHUP);
    let mut held = expect_paused(&server);
    held.stays();
    assert!(run.is_running());
    finish_run(&server, run).ends(0, &[]);
    held.goes_on();
}

#[test]
fn resume_can_be_interrupted() {
    let server = Plain.start();
    let _mute = UnixListener::bind(server.path("mute")).expect("a socket");
    let mut resume = Process::start(call(&server, "resume --timeout 0 mute"));
    thread::sleep(A_WHILE);
    assert!(resume.is_running());
    resume.signal(SIGINT);
    assert_eq!(resume.finish(PROMPT).status.signal(), Some(SIGINT));
}

// Killed outright. Where there are no holds: `breaks.rs`.

#[test]
fn killed_outright_it_resumes_all_where_there_are_holds() {
    let servers = start_all([Holds; 3]);
    let script = "echo $$ >pid.command; touch running; exec sleep 60";
    let run = start_script(&servers.each_ref(), script);
    let held = servers.each_ref().map(expect_paused);
    run.signal(libc::SIGKILL);
    held.into_iter().for_each(Held::goes_on);
    servers.iter().for_each(expect_flow);
    // The command lives on, and has nothing of the hold.
    end_command(&servers[0]);
}

#[test]
fn whenever_it_is_killed_a_server_with_holds_is_resumed() {
    let mut random = Random::new();
    let slow = Setup::in_memory().below("delay", &["wdelay=20ms"]);
    let servers = [Holds.start(), Holds.of(slow).start()];
    for _ in 0..60 {
        let run = run_on(&servers.each_ref(), "", "exec sleep 0.01");
        thread::sleep(random.millis(0..40));
        run.kill();
        servers.iter().for_each(expect_flow);
    }
}
