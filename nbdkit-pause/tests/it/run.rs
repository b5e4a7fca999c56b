//! `nbdkit-pause run`: the command runs while all servers are paused, and only then,
//! and they are resumed whatever happens. Pauses that don't last are in `breaks.rs`, and
//! the copies that a `run` has made are looked at in the filter's own `snapshots.rs`.

use super::*;

// The command and the pauses.

#[test]
fn the_command_runs_while_every_server_is_paused_and_all_are_resumed() {
    for kinds in [[Stock; 3], [Plain; 3], [Holds; 3], KINDS] {
        let servers = start_all(kinds);
        let run = start_run(&servers.each_ref());
        let held = servers.each_ref().map(expect_paused);
        finish_run(&servers[0], run).ends(0, &[]);
        held.into_iter().for_each(Held::goes_on);
    }
}

#[test]
fn requests_in_flight_have_finished_when_the_command_runs() {
    for kind in KINDS {
        let (server, _client) = stuck(kind.of(Setup::obedient().logged()));
        let run = run_on(&[&server], "", "cp log log.then");
        let held = wait_until_paused(&server);
        assert!(!server.path("log.then").exists());
        server.remove("slow-read");
        run.ends(0, &[]);
        let log = server.content("log.then");
        assert!(log.contains("...Read id=1 return=0"), "{kind:?}: {log}");
        held.goes_on();
    }
}

#[test]
fn all_servers_are_asked_before_the_first_is_awaited_for_as_long_as_it_takes() {
    for kind in KINDS {
        let ((slow, _client), quick) = (kind.stuck(), kind.start());
        let mut run = run_on(&[&slow, &quick], "--timeout 0", "touch ran; exit 5");
        // It is paused while the one named first still drains.
        let held = wait_until_paused(&quick);
        assert!(!slow.path("ran").exists(), "{kind:?}: the first has drained already");
        assert!(run.is_running());
        slow.remove("slow-read");
        run.ends(5, &[]);
        held.goes_on();
    }
}

#[test]
fn a_drain_that_takes_longer_than_the_timeout_is_given_up_and_all_are_resumed() {
    for kind in OURS {
        let (quick, (stuck, _client)) = (kind.start(), kind.stuck());
        let socket = socket(&stuck);
        let late = format!("{socket}: not paused within 0.700 s");
        for (action, command, outcome) in
            [("run", "-- touch ran", "touch was not run"), ("pause", "", "no server was paused")]
        {
            let start = Instant::now();
            call(&quick, &format!("{action} --timeout 700ms control {socket} {command}"))
                .ends(125, &[&late, outcome]);
            let time = start.elapsed();
            assert!(time >= Duration::from_millis(700) && time < PROMPT, "{kind:?}: {time:?}");
            not_run(&[&quick, &stuck]);
        }
    }
}

#[test]
fn a_stock_filter_that_drains_too_long_is_named_and_resumed_when_it_has_drained() {
    let (quick, (stuck, _client)) = (Stock.start(), Stock.stuck());
    let socket = socket(&stuck);
    // It hears nothing until it has drained, and we don't wait for ever.
    let paused = format!("{socket}: THE SERVER MAY STILL BE PAUSED");
    run_on(&[&quick, &stuck], "--timeout 500ms", "touch ran")
        .ends(125, &[&paused, &format!("type: nbdkit-pause resume {socket}")]);
    not_run(&[&quick]);
    stuck.remove("slow-read");
    expect_flow(&stuck);
}

#[test]
fn a_server_that_does_not_answer_keeps_no_other_paused_meanwhile() {
    // The stock filter serves one controller at a time.
    let [good, busy] = start_all([Holds, Stock]);
    let mut idle = busy.controller();
    idle.ask("pr", "PR");
    let mut run = run_on(&[&good, &busy], "--timeout 5", "touch ran");
    thread::sleep(A_WHILE);
    expect_flow(&good);
    assert!(run.is_running());
    let unanswered = format!("{}: no answer within 5.000 s", socket(&busy));
    let run = run.ends(125, &[&unanswered, "another controller is connected"]);
    assert!(!run.stderr.contains(": paused"), "{run:#?}");
}

// The command itself.

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
            ("timeout 0.1 sleep 60", 124),
        ] {
            let run = run_on(&[&server], "", script).ends(status, &["sh ended with"]);
            assert!(!run.stderr.contains(UNUSABLE), "{run:#?}");
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
            ("no-such-function", 127, "a function of the shell needs a shell: sh -c"),
            ("./pid", 126, "Permission denied"),
        ] {
            call(&server, &format!("run control -- {program}"))
                .ends(status, &[&format!("cannot run {program}: "), why]);
            expect_flow(&server);
        }
    }
}

/// It says why, and ends, in the moment before the helper looks for its end.
#[test]
fn a_command_that_cannot_be_started_is_told_apart_however_fast_it_ends() {
    let server = Holds.start();
    let strace = ["strace", "-o", "trace", "-e", "inject=wait4:delay_enter=300000"];
    let run = [PROGRAM, "run", "control", "--", "no-such-program"];
    command_of(&server, &[&strace[..], &run[..]].concat())
        .ends(127, &["cannot run no-such-program: "]);
    expect_flow(&server);
}

#[test]
fn the_command_has_its_arguments_and_standard_streams_as_they_are() {
    let server = Plain.start();
    let mut command = call(&server, "run control --");
    command.args(["sh", "-c", r#"printf '<%s>' "$@"; cat"#, "sh", "a  b", "--timeout", "--"]);
    let run = run_with_input(command, b"input").ends(0, &[]);
    assert_eq!(run.stdout, "<a  b><--timeout><-->input");
}

// What is said.

#[test]
fn what_it_does_is_said_with_times() {
    for kind in KINDS {
        let server = kind.start();
        let by_hand = format!("type: nbdkit-pause resume {}", socket(&server));
        let paused = match kind {
            Holds => ["control: paused", "unbroken; others may still hold it", "released"],
            _ => ["control: paused with p, as this server has no holds", &by_hand, "resumed"],
        };
        let run = run_on(&[&server], "", "sleep 0.3; exit 4").ends(
            4,
            &[
                paused[0],
                paused[1],
                " s: running sh",
                &format!("control: {} after a pause of ", paused[2]),
                " s: sh ended with exit status: 4",
            ],
        );
        assert_eq!(run.stderr.contains("no holds"), kind != Holds, "{run:#?}");
        let lasted = run.stderr.split_once("after a pause of ").unwrap().1;
        let lasted = lasted.split_once(" s").unwrap().0.parse::<f64>().unwrap();
        assert!((0.3..10.0).contains(&lasted), "{run:#?}");
        for line in run.stderr.lines() {
            let (origin, _) = line.split_once(" s: ").unwrap_or_else(|| panic!("no time: {line}"));
            let [_, _, time] = origin.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert!(time.parse::<f64>().is_ok_and(|time| time < 10.0), "{line}");
        }
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn it_resumes_even_if_nobody_reads_what_it_says() {
    let server = Plain.start();
    let script = r#"{ "$0" run control -- sleep 1; echo $? >status; } 2>&1 | true"#;
    let mut command = Command::new("sh");
    command.current_dir(server.dir()).args(["-c", script, PROGRAM]);
    run(command).succeeded();
    eventually("the helper has ended", GENEROUS, || server.content("status").ends_with('\n'));
    assert_eq!(server.content("status"), "0\n");
    expect_flow(&server);
}
