//! How long a `run` may take: `--max` ends the pause, whatever the command does, and
//! people are told how long the servers have been paused.

use super::always_heard::{read_until, terminal};
use super::told_once::{on_terminal, on_terminal_by};
use super::*;

// --max

#[test]
fn at_the_max_the_servers_resume_and_the_command_is_told() {
    for kind in KINDS {
        let servers = start_all([kind; 2]);
        let script = format!("trap 'touch told; exit 0' TERM; {UNTIL_TOLD}");
        let start = Instant::now();
        let run = started(&servers[0], run_on(&servers.each_ref(), "--max 4", &script));
        let held = servers.each_ref().map(expect_paused);
        held.into_iter().for_each(Held::goes_on);
        assert!(start.elapsed() >= Duration::from_secs(4));
        let over = "sh is still running after --max (4.000 s): resuming";
        run.ends(124, &[over, "SIGTERM: sent to sh", UNUSABLE, "when --max (4.000 s) was over"]);
        assert!(servers[0].path("told").exists());
    }
}

#[test]
fn a_command_that_ignores_sigterm_does_not_keep_the_servers_paused_after_the_max() {
    for kind in KINDS {
        let server = kind.start();
        let script = format!("trap '' TERM; {UNTIL_TOLD}; exit 3");
        let mut run = started(&server, run_on(&[&server], "--max 4", &script));
        expect_paused(&server).goes_on();
        thread::sleep(A_WHILE);
        assert!(run.is_running());
        finish_run(&server, run).ends(124, &["sh ended with exit status: 3", UNUSABLE]);
    }
}

#[test]
fn a_command_that_ends_before_the_max_is_not_touched() {
    for kind in KINDS {
        let server = kind.start();
        for options in ["--max 50", "--max 0"] {
            let run = started(&server, run_on(&[&server], options, UNTIL_TOLD));
            let mut held = expect_paused(&server);
            held.stays();
            let run = finish_run(&server, run).ends(0, &[]);
            assert!(!run.stderr.contains("--max"), "{run:#?}");
            held.goes_on();
            ["go", "running"].iter().for_each(|file| server.remove(file));
        }
    }
}

#[test]
fn the_time_that_servers_drain_counts_for_the_max() {
    for kind in OURS {
        let (quick, (stuck, _client)) = (kind.start(), kind.stuck());
        let late = format!("{}: not paused within 0.700 s", socket(&stuck));
        run_on(&[&quick, &stuck], "--max 700ms", "touch ran").ends(125, &[&late, "--max"]);
        not_run(&[&quick, &stuck]);
    }
}

// What is said meanwhile.

/// The seconds that were said.
fn seconds(said: &str) -> Vec<u64> {
    let parts = said.split("paused for ").skip(1);
    parts.filter_map(|part| part.split_once(" s, `sh` runs")?.0.parse().ok()).collect()
}

/// What is said of a command that never ends.
const HINT: &str = "if it reads through a paused server, it waits forever";

#[test]
fn a_log_has_a_line_after_10_seconds_with_a_hint_and_one_after_30() {
    together(KINDS, |kind| {
        let server = kind.start();
        let run = start_run(&[&server]);
        eventually("the second line is said", GENEROUS, || seconds(&run.stderr()).len() > 1);
        let run = finish_run(&server, run).ends(0, &[]);
        let [first, second] = seconds(&run.stderr)[..] else { panic!("{run:#?}") };
        assert!((10..30).contains(&first) && (30..60).contains(&second), "{run:#?}");
        assert_eq!(run.stderr.matches(HINT).count(), 1, "{run:#?}");
        expect_line(&run.stderr, &[HINT, &format!("paused for {first} s")]);
    });
}

#[test]
fn of_a_copy_through_the_paused_server_it_is_said_that_it_waits_forever() {
    together(KINDS, |kind| {
        let server = kind.start();
        let mut command = call(&server, "run control -- nbdcopy");
        command.args([&server.uri(), "copy"]);
        let run = Process::start(command);
        eventually("it is said", GENEROUS, || run.stderr().contains(HINT));
        expect_line(&run.stderr(), &["`nbdcopy` runs", HINT]);
        run.signal(libc::SIGTERM);
        run.finish(PROMPT).ends(128 + libc::SIGTERM, &["interrupted by SIGTERM"]);
    });
}

#[test]
fn a_terminal_counts_the_seconds_after_5_and_has_the_hint() {
    let server = Holds.start();
    let (mut person, _terminal, path) = terminal();
    let run = on_terminal(&server, &path, &["sh", "-c", UNTIL_TOLD]);
    let said = read_until(&mut person, &[HINT]);
    let counts = seconds(&said);
    assert!(counts.len() > 2 && counts[0] >= 5 && counts.is_sorted(), "{said:?}");
    // They are on one line, without a date.
    let lines: Vec<_> = said.lines().collect();
    let lines = lines.iter().filter(|line| line.contains("paused for 6 s"));
    assert!(lines.clone().count() <= 1 && !said.contains("nbdkit-pause["), "{said:?}");
    finish_run(&server, run).ends(0, &[]);
    let said = read_until(&mut person, &["sh ended with exit status: 0"]);
    assert!(said.contains("\r") && !said.contains("paused for 30"), "{said:?}");
}

#[test]
fn nothing_is_counted_in_the_background_of_a_terminal() {
    let server = Holds.start();
    let (mut person, _terminal, path) = terminal();
    let script = r#"set -m; "$0" run control -- sh -c "$1" & wait $!"#;
    let run = on_terminal_by(&server, &path, &["sh", "-c", script, PROGRAM, UNTIL_TOLD]);
    let said = read_until(&mut person, &[HINT]);
    assert_eq!(seconds(&said).len(), 1, "{said:?}");
    finish_run(&server, run).ends(0, &[]);
}

#[test]
fn nothing_is_counted_any_more_when_the_servers_have_resumed() {
    let server = Holds.start();
    let script = format!("trap '' TERM; {UNTIL_TOLD}");
    let run = started(&server, run_on(&[&server], "--max 4", &script));
    expect_paused(&server).goes_on();
    thread::sleep(Duration::from_secs(11));
    let run = finish_run(&server, run).ends(124, &[]);
    assert!(seconds(&run.stderr).is_empty(), "{run:#?}");
}

#[test]
fn lines_of_two_runs_in_one_log_can_be_told_apart() {
    let server = Holds.start();
    let script = r#"date -u +%FT; for i in 1 2; do "$0" run control -- true; done; date -u +%FT"#;
    let both = run(command_of(&server, &["sh", "-c", script, PROGRAM])).ends(0, &[]);
    let origins = both.stderr.lines().map(|line| {
        let (origin, rest) = line.split_once(' ').expect("an origin");
        assert!(both.stdout.lines().any(|date| rest.starts_with(date)), "no date: {line}");
        assert!(rest.contains("Z 0."), "{line}");
        let id = origin.strip_prefix("nbdkit-pause[").and_then(|id| id.strip_suffix(']'));
        id.and_then(|id| id.parse::<u32>().ok()).unwrap_or_else(|| panic!("no id: {line}"))
    });
    let mut origins: Vec<_> = origins.collect();
    assert!(origins.is_sorted_by_key(|id| id != &origins[0]), "{both:#?}");
    origins.dedup();
    assert_eq!(origins.len(), 2, "{both:#?}");
}
