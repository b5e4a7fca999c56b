//! `nbdkit-pause run`: the command runs while all servers are paused, and only
//! then, and they are resumed whatever happens.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::process::{Process, run, run_with_input};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};
use crate::helper::{
    Held, KINDS, Kind, OURS, PROGRAM, expect_flow, expect_paused, expect_said, expect_status,
    finish_run, finished, helper, path, run_on, start_run, wait_until_paused, with_read_in_flight,
};

#[test]
fn the_command_runs_while_every_server_is_paused_and_all_are_resumed() {
    for kind in KINDS {
        let servers = [kind.start(), kind.start(), kind.start()];
        let run = start_run(&servers.each_ref());
        let held = servers.each_ref().map(expect_paused);
        expect_status(&finish_run(&servers[0], run), 0);
        held.into_iter().for_each(Held::expect_reply);
    }
}

#[test]
fn servers_of_all_kinds_are_paused_together() {
    let servers = KINDS.map(Kind::start);
    let run = start_run(&servers.each_ref());
    let held = servers.each_ref().map(expect_paused);
    expect_status(&finish_run(&servers[0], run), 0);
    held.into_iter().for_each(Held::expect_reply);
}

#[test]
fn requests_in_flight_have_finished_when_the_command_runs() {
    for kind in KINDS {
        // log is below delay: what it sees end has ended in the plugin.
        let server = kind.setup().logged().below("delay", &["rdelay=1"]).start();
        let client = with_read_in_flight(&server);
        let run = run_on(&[&server], &[], "cp log log.then").finish(GENEROUS);
        expect_status(&run, 0);
        let log = fs::read_to_string(server.path("log.then")).expect("a copy");
        assert!(log.contains("...Read id=1 return=0"), "{kind:?}: {log}");
        client.leave();
    }
}

#[test]
fn all_servers_are_asked_before_the_first_is_awaited() {
    for kind in KINDS {
        let slow = kind.slow_reads(3);
        let quick = kind.start();
        let client = with_read_in_flight(&slow);
        let mut run = run_on(&[&slow, &quick], &[], "touch ran");
        // It is paused while the one named first still drains.
        let held = wait_until_paused(&quick);
        assert!(!slow.path("ran").exists(), "{kind:?}: the first has drained already");
        assert!(run.is_running());
        expect_status(&run.finish(GENEROUS), 0);
        held.expect_reply();
        client.leave();
    }
}

#[test]
fn the_exit_status_is_the_commands_own() {
    for kind in KINDS {
        let server = kind.start();
        for (script, status) in [
            ("exit 0", 0),
            ("exit 1", 1),
            ("exit 3", 3),
            ("exit 255", 255),
            ("kill -KILL $$", 128 + 9),
            ("kill -SEGV $$", 128 + 11),
        ] {
            expect_status(&run_on(&[&server], &[], script).finish(GENEROUS), status);
            expect_flow(&server);
        }
    }
}

#[test]
fn a_command_that_cannot_be_started_is_told_apart_and_the_server_is_resumed() {
    for kind in KINDS {
        let server = kind.start();
        for (program, status, why) in [
            ("./not-there", 127, "No such file"),
            ("no-such-program-anywhere", 127, "No such file"),
            ("./pid", 126, "Permission denied"),
        ] {
            let run = finished(helper(&server, &["run", "control", "--", program]));
            expect_status(&run, status);
            expect_said(&run, &[program, "was not run", why]);
            expect_flow(&server);
        }
    }
}

#[test]
fn the_command_has_its_arguments_and_standard_streams_as_they_are() {
    let server = Kind::Plain.start();
    let script = r#"printf '<%s>' "$@"; cat"#;
    let arguments = ["run", "control", "--", "sh", "-c", script, "sh", "a  b", "--timeout", "--"];
    let run = run_with_input(helper(&server, &arguments), b"input");
    expect_status(&run, 0);
    assert_eq!(run.stdout, "<a  b><--timeout><-->input");
}

#[test]
fn a_missing_socket_is_125_and_the_command_does_not_run_nor_is_any_server_paused() {
    for kind in KINDS {
        let (first, last) = (kind.start(), kind.start());
        let run = finished(helper(
            &first,
            &["run", "control", "nowhere", path(&last.control_path()), "--", "touch", "ran"],
        ));
        expect_status(&run, 125);
        expect_said(&run, &["nowhere: there is no such socket", "touch was not run"]);
        assert!(!first.path("ran").exists());
        expect_flow(&first);
        expect_flow(&last);
    }
}

#[test]
fn a_socket_of_another_kind_is_found_before_any_server_is_paused() {
    for kind in KINDS {
        let (first, last) = (kind.start(), kind.start());
        let run = finished(helper(
            &first,
            &["run", "control", "nbd", path(&last.control_path()), "--", "touch", "ran"],
        ));
        expect_status(&run, 125);
        expect_said(&run, &["nbd: this is not a pause socket", "touch was not run"]);
        assert!(!run.stderr.contains(": paused"), "{run:#?}");
        assert!(!first.path("ran").exists());
        expect_flow(&first);
        expect_flow(&last);
    }
}

#[test]
fn a_drain_that_takes_longer_than_the_timeout_is_given_up_and_all_are_resumed() {
    for kind in OURS {
        let (quick, stuck) = (kind.start(), kind.slow_reads(30));
        let client = with_read_in_flight(&stuck);
        let start = Instant::now();
        let run = run_on(&[&quick, &stuck], &["--timeout", "700ms"], "touch ran").finish(GENEROUS);
        let time = start.elapsed();
        expect_status(&run, 125);
        assert!(!quick.path("ran").exists());
        assert!(time >= Duration::from_millis(700) && time < PROMPT, "{kind:?}: {time:?}");
        expect_said(
            &run,
            &[&format!("{}: not paused within 0.700 s", stuck.control_path().display())],
        );
        expect_flow(&quick);
        expect_flow(&stuck);
        drop(client);
    }
}

#[test]
fn a_stock_filter_that_drains_too_long_is_named_and_resumed_when_it_has_drained() {
    let (quick, stuck) = (Kind::Stock.start(), Kind::Stock.slow_reads(30));
    let client = with_read_in_flight(&stuck);
    let run = run_on(&[&quick, &stuck], &["--timeout", "500ms"], "touch ran").finish(GENEROUS);
    expect_status(&run, 125);
    assert!(!quick.path("ran").exists());
    expect_flow(&quick);
    // It hears nothing until it has drained, and we don't wait for ever.
    let socket = stuck.control_path();
    let socket = socket.display();
    expect_said(
        &run,
        &[
            &format!("{socket}: IT MAY STILL BE PAUSED"),
            &format!("type: nbdkit-pause resume {socket}"),
        ],
    );
    expect_flow(&stuck);
    client.leave();
}

#[test]
fn a_server_that_does_not_answer_keeps_no_other_paused_meanwhile() {
    // The stock filter serves one controller at a time.
    let (good, busy) = (Kind::Holds.start(), Kind::Stock.start());
    let mut idle = busy.controller();
    idle.pause();
    idle.resume();
    let mut run = run_on(&[&good, &busy], &["--timeout", "5"], "touch ran");
    thread::sleep(A_WHILE);
    expect_flow(&good);
    assert!(run.is_running());
    let run = run.finish(GENEROUS);
    expect_status(&run, 125);
    let socket = busy.control_path();
    expect_said(&run, &[format!("{}: no answer within 5.000 s", socket.display())]);
    expect_said(&run, &["another controller is connected"]);
    assert!(!run.stderr.contains(": paused"), "{run:#?}");
}

#[test]
fn without_a_limit_a_slow_drain_is_awaited() {
    let server = Kind::Plain.slow_reads(3);
    let client = with_read_in_flight(&server);
    expect_status(&run_on(&[&server], &["--timeout", "0"], "exit 5").finish(GENEROUS), 5);
    client.leave();
}

#[test]
fn the_same_server_twice_is_refused_before_it_is_paused() {
    for kind in KINDS {
        let server = kind.start();
        let absolute = server.control_path();
        for second in ["control", "./control", path(&absolute)] {
            let run = finished(helper(&server, &["run", "control", second, "--", "touch", "ran"]));
            expect_status(&run, 125);
            expect_said(&run, &["are the same socket"]);
            assert!(!server.path("ran").exists());
        }
        expect_flow(&server);
    }
}

#[test]
fn what_it_does_is_said_with_times() {
    for kind in KINDS {
        let server = kind.start();
        let script = "sleep 0.3; exit 4";
        let run = finished(helper(&server, &["run", "control", "--", "sh", "-c", script]));
        expect_said(
            &run,
            &[
                " s: control: paused",
                " s: sh runs",
                " s: control: resumed after a pause of ",
                " s: sh has ended: exit status: 4",
            ],
        );
        let lasted = run.stderr.split_once("after a pause of ").unwrap().1;
        let lasted = lasted.split_once(" s").unwrap().0.parse::<f64>().unwrap();
        assert!((0.3..10.0).contains(&lasted), "{run:#?}");
        for line in run.stderr.lines() {
            let time = line.strip_prefix("nbdkit-pause: ").and_then(|line| line.split_once(" s: "));
            let (time, _) = time.unwrap_or_else(|| panic!("no time: {line}"));
            assert!(time.parse::<f64>().is_ok_and(|time| time < 10.0), "{line}");
        }
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn it_resumes_even_if_nobody_reads_what_it_says() {
    let server = Kind::Plain.start();
    let mut command = Command::new("sh");
    command.current_dir(server.dir()).args([
        "-c",
        r#"{ "$0" run control -- sleep 1; echo $? >status; } 2>&1 | true"#,
        PROGRAM,
    ]);
    run(command).succeeded();
    eventually("the helper has ended", GENEROUS, || {
        fs::read_to_string(server.path("status")).is_ok_and(|status| status.ends_with('\n'))
    });
    assert_eq!(fs::read_to_string(server.path("status")).expect("status"), "0\n");
    expect_flow(&server);
}

#[test]
fn the_command_line_is_checked_before_anything_is_paused() {
    let server = Kind::Plain.start();
    for wrong in [
        &["run"][..],
        &["run", "control"],
        &["run", "control", "--"],
        &["run", "--", "touch", "ran"],
        &["run", "--timeout", "1h", "control", "--", "touch", "ran"],
        &["run", "--timeout", "-1", "control", "--", "touch", "ran"],
        &["run", "--no-such-option", "control", "--", "touch", "ran"],
        &["pause"],
        &["resume"],
        &["freeze", "control"],
        &[],
    ] {
        let wrong_run = Process::start(helper(&server, wrong)).finish(GENEROUS);
        expect_status(&wrong_run, 125);
        assert!(!wrong_run.stderr.is_empty(), "{wrong:?}");
    }
    assert!(!server.path("ran").exists());
    expect_flow(&server);
}
