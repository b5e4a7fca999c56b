//! `pause-timeout`: a pause that nobody ends, ends by itself, whatever becomes of the
//! time of day. A server that is stopped meanwhile is in `signals.rs`, values that are
//! refused are in `parameters.rs`.

use super::*;

fn limited() -> Setup {
    Setup::with_disk(1).holds().limited()
}

dialogues! {
    limited() => {
        /// Each new pause has a deadline of its own.
        the_gate_opens_by_itself_that_long_after_it_closed_however_it_was_asked_for:
            "A:p=P wait:400 A:r=R A:p=P expires A:+=+ expires";
        a_pause_outlives_its_connection_and_ends_in_time_all_the_same:
            "A:p=P A.half-closes A.is-closed expires";
        a_pause_that_is_ended_in_time_is_not_ended_again:
            "A:pr=PR A:+-=+- wait:900 told:0:pause-timeout:_";
        /// Without -v, so that only errors are seen.
        the_log_says_so_loudly_once_and_with_the_limit:
            "A:p=P says:pause-timeout:_ told:1:pause-timeout:_ errors:1 told:1:600ms";
        a_hold_that_ran_out_of_time_is_answered_x_when_it_is_given_back:
            "A:+=+ expires A:-=X A:+-=+-";
        held_requests_go_on_in_the_end: "A:p=P sends sends sends expires";
    }
    Setup::obedient().holds().limited() => {
        a_drain_that_runs_into_it_is_over_and_its_p_is_answered_x:
            "reading A:p B:+ C:p heard held expires ABC:=X errors:1 told:1:pause-timeout:_"
            "told:1:600ms B:-=X"
            // Again, as under a plugin that never returns.
            "A:+ heard held expires A:=X";
    }
    Setup::obedient().flushes().limited() => {
        a_flush_that_runs_into_it_is_over_and_its_p_is_answered_x:
            "make:slow write A:p heard expires A:=X A:p heard expires A:=X remove:slow A:p=P";
    }
}

#[test]
fn another_p_or_hold_does_not_move_the_deadline() {
    let mut stage = Stage::on(Setup::obedient().holds().limited());
    // The last one is a drain, which is answered by nothing but an X.
    for line in ["A:p=P", "A:+=+", "reading A:p heard"] {
        let since = Instant::now();
        stage.play(line);
        let held = stage.client().send(WRITE);
        let mut asked = 0;
        while stage.client().reply_within(held, LIMIT / 20).is_none() {
            // More often than the limit: it would never end.
            assert!(since.elapsed() < LIMIT + PROMPT, "the deadline moves");
            stage.play("B:p C:+ heard");
            asked += 1;
        }
        assert!(since.elapsed() >= LIMIT);
        assert!(asked >= 2, "{asked}: this proves nothing");
        stage.play("D:r=R");
    }
    stage.play("A:=X");
    stage.end();
}

#[test]
fn no_limit_and_a_far_one_leave_a_pause_in_force() {
    let values = ["0", "30", "30000ms", "9999999999", "9999999999999999999ms"];
    let setups = values.map(|value| Setup::in_memory().with(&format!("pause-timeout={value}")));
    together(setups.into_iter().chain([Setup::in_memory()]), |setup| {
        play(setup, "A:p=P sends wait:1000 still A:r=R flow");
    });
}

#[test]
fn a_busy_server_opens_in_time_too() {
    let mut stage = Stage::on(Setup::with_disk(16).limited());
    let load = ["--rw=randrw", "--iodepth=16", "--size=16M", "--time_based", "--runtime=300"];
    let mut load = fio(&stage.server, &load);
    for _ in 0..3 {
        stage.play("A:p=P expires");
        assert!(load.is_running(), "{}", load.stderr());
    }
}

/// libfaketime, of the package `faketime`.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    folders
        .chain([PathBuf::from("/usr/lib64"), PathBuf::from("/usr/lib")])
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketimeMT.so.1: install the package faketime")
}

/// The time until the clock is set.
const BEFORE: &str = "2020-02-02 12:30:30";

#[test]
fn a_clock_set_back_or_forward_does_not_move_the_end_of_a_pause() {
    let setup = limited().logged();
    let (clock, part) = (setup.path("clock"), setup.path("clock.part"));
    let set = |to: &str| {
        // At once, so that the server never sees half of it.
        fs::write(&part, format!("@{to}\n")).unwrap();
        fs::rename(&part, &clock).unwrap();
    };
    set(BEFORE);
    let setup = setup.under(&[
        "env",
        &format!("LD_PRELOAD={}", libfaketime().display()),
        &format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1",
        // Debian 13's waits for its own semaphore for ever when the clock is set.
        "FAKETIME_DISABLE_SHM=1",
        // As the kernel has it: setting the clock leaves that one alone.
        "DONT_FAKE_MONOTONIC=1",
        "TZ=UTC",
    ]);
    let mut stage = Stage::on(setup);
    for after in
        ["1999-09-09 12:30:30", "2020-02-02 12:29:30", "2020-02-02 12:31:30", "2033-03-03 12:30:30"]
    {
        for command in ["A:p=P", "A:+=+"] {
            set(BEFORE);
            stage.play(command);
            set(after);
            stage.play("expires");
            // The server believes it, to the minute.
            let log = stage.server.logged();
            let line = log.lines().rfind(|line| line.contains(" Write ")).unwrap();
            assert!(line.starts_with(&after[..16]), "{after}: {line}");
        }
    }
    stage.end();
}
