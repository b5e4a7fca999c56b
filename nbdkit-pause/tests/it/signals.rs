//! Signals, to the helper and while it waits: the command hears of them, and
//! the servers are resumed. Killed outright, it resumes where there are holds.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::process::{self, Process};
use crate::common::random::Random;
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};
use crate::helper::{
    Held, KINDS, Kind, OURS, PROGRAM, UNTIL_TOLD, end_command, expect_flow, expect_paused,
    expect_said, expect_status, finish_run, helper, run_on, wait_until_paused, wait_until_running,
    with_read_in_flight,
};
use libc::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};

#[test]
fn a_signal_goes_to_the_command_and_the_servers_are_resumed() {
    for kind in KINDS {
        let server = kind.start();
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let mut run = run_on(&[&server], &[], "touch running; exec sleep 60");
            wait_until_running(&server, &mut run);
            run.signal(signal);
            let run = run.finish(PROMPT);
            // The command's own: it was ended by that signal.
            expect_status(&run, 128 + signal);
            expect_said(&run, &["is passed on to sh", "resumed"]);
            expect_flow(&server);
            std::fs::remove_file(server.path("running")).expect("the command ran");
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
        let mut run = run_on(&[&server], &[], script);
        wait_until_running(&server, &mut run);
        run.signal(SIGTERM);
        eventually("the command is told", PROMPT, || server.path("told").exists());
        let held = expect_paused(&server);
        expect_status(&finish_run(&server, run), 7);
        held.expect_reply();
    }
}

#[test]
fn a_command_that_does_not_end_does_not_keep_the_servers_paused() {
    for kind in KINDS {
        let server = kind.start();
        let script = format!("trap '' TERM; {UNTIL_TOLD}");
        let mut run = run_on(&[&server], &[], &script);
        wait_until_running(&server, &mut run);
        run.signal(SIGTERM);
        let start = Instant::now();
        let held = expect_paused(&server);
        held.expect_reply();
        let time = start.elapsed();
        assert!(time > Duration::from_secs(4) && time < Duration::from_secs(9), "{time:?}");
        assert!(run.is_running());
        // Its end was not covered.
        let run = finish_run(&server, run);
        expect_status(&run, 124);
        expect_said(&run, &["has not ended: resuming all the same", "DO NOT USE THE SNAPSHOT"]);
    }
}

#[test]
fn a_second_signal_resumes_at_once() {
    for kind in KINDS {
        let server = kind.start();
        let script = format!("trap '' TERM INT; {UNTIL_TOLD}");
        let mut run = run_on(&[&server], &[], &script);
        wait_until_running(&server, &mut run);
        run.signal(SIGTERM);
        let mut held = expect_paused(&server);
        held.expect_held();
        let start = Instant::now();
        run.signal(SIGINT);
        held.expect_reply();
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        expect_status(&finish_run(&server, run), 124);
    }
}

#[test]
fn a_signal_while_the_servers_drain_gives_up_and_resumes() {
    for kind in OURS {
        let (quick, stuck) = (kind.start(), kind.slow_reads(30));
        let client = with_read_in_flight(&stuck);
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let run = run_on(&[&quick, &stuck], &[], "touch ran");
            eventually("the other one is paused", GENEROUS, || run.stderr().contains(": paused"));
            run.signal(signal);
            let run = run.finish(PROMPT);
            expect_status(&run, 128 + signal);
            expect_said(&run, &["giving up", "sh was not run"]);
            assert!(!quick.path("ran").exists());
            expect_flow(&quick);
            expect_flow(&stuck);
        }
        drop(client);
    }
}

#[test]
fn whenever_a_signal_comes_the_server_is_resumed() {
    let mut random = Random::new();
    for kind in KINDS {
        let server = kind.start();
        for round in 0..60 {
            let run = run_on(&[&server], &[], "exec sleep 0.01");
            thread::sleep(random.millis(0..20));
            run.signal(SIGTERM);
            let run = run.finish(PROMPT);
            // Too late, in time, or before it was listened to and anything was
            // done.
            let ended_by_it = std::os::unix::process::ExitStatusExt::signal(&run.status);
            assert!(
                matches!(run.status.code(), Some(0 | 143)) || ended_by_it == Some(SIGTERM),
                "{kind:?}, round {round}: {run:#?}"
            );
            expect_flow(&server);
        }
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let server = Kind::Plain.start();
    let mut command = Command::new("nohup");
    command
        .args([PROGRAM, "run", "control", "--", "sh", "-c", UNTIL_TOLD])
        .current_dir(server.dir());
    let mut run = Process::start(command);
    wait_until_running(&server, &mut run);
    run.signal(SIGHUP);
    let mut held = expect_paused(&server);
    held.expect_held();
    assert!(run.is_running());
    expect_status(&finish_run(&server, run), 0);
    held.expect_reply();
}

#[test]
fn resume_can_be_interrupted() {
    let server = Kind::Plain.start();
    let _mute = std::os::unix::net::UnixListener::bind(server.path("mute")).expect("a socket");
    let mut resume = Process::start(helper(&server, &["resume", "--timeout", "0", "mute"]));
    thread::sleep(A_WHILE);
    assert!(resume.is_running());
    resume.signal(SIGINT);
    let resume = resume.finish(PROMPT);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&resume.status), Some(SIGINT));
}

#[test]
fn killed_outright_it_resumes_all_where_there_are_holds() {
    let servers = [Kind::Holds.start(), Kind::Holds.start(), Kind::Holds.start()];
    let run =
        run_on(&servers.each_ref(), &[], "echo $$ >pid.command; touch running; exec sleep 60");
    eventually("the command runs", GENEROUS, || servers[0].path("running").exists());
    let held = servers.each_ref().map(expect_paused);
    run.signal(SIGKILL);
    held.into_iter().for_each(Held::expect_reply);
    servers.iter().for_each(expect_flow);
    // The command lives on, and has nothing of the hold.
    end_command(&servers[0]);
}

#[test]
fn whenever_it_is_killed_a_server_with_holds_is_resumed() {
    let mut random = Random::new();
    let servers =
        [Kind::Holds.start(), Kind::Holds.setup().below("delay", &["wdelay=20ms"]).start()];
    for _ in 0..60 {
        let run = run_on(&servers.each_ref(), &[], "exec sleep 0.01");
        thread::sleep(random.millis(0..40));
        run.kill();
        servers.iter().for_each(expect_flow);
    }
}

#[test]
fn killed_while_it_waits_for_the_drain_it_resumes_where_there_are_holds() {
    let (quick, stuck) = (Kind::Holds.start(), Kind::Holds.slow_reads(30));
    let client = with_read_in_flight(&stuck);
    let run = run_on(&[&quick, &stuck], &[], "touch ran");
    let held = [&quick, &stuck].map(wait_until_paused);
    run.kill();
    held.into_iter().for_each(Held::expect_reply);
    assert!(!quick.path("ran").exists());
    drop(client);
}

#[test]
fn the_command_inherits_what_the_helper_was_given_and_no_more() {
    // Signals that are blocked or ignored (but the real-time ones, two of which
    // belong to the C library), and open files.
    let script = "sed -n 's/^Sig[BI].*\\(.......\\)$/\\1/p' /proc/self/status; ls /proc/self/fd";
    let mut direct = Command::new("sh");
    direct.args(["-c", script]);
    let direct = process::run(direct).succeeded();
    for kind in KINDS {
        let server = kind.start();
        let run = run_on(&[&server], &[], script).finish(GENEROUS);
        expect_status(&run, 0);
        assert_eq!(run.stdout, direct.stdout);
    }
}
