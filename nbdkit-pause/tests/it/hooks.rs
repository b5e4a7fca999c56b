//! `nbdkit-pause begin` and `end`: the servers are paused from one to the other, and `end`
//! tells whether that is so, once. How the process between them is, and what can befall
//! it, is in `keeper.rs`.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use libc::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};

use super::*;

/// What `end` finds in these cases.
const UNBROKEN: &str = "unbroken";

#[test]
fn the_servers_are_paused_from_begin_to_end() {
    for kinds in [[Stock; 3], [Plain; 3], [Holds; 3], KINDS] {
        let servers = start_all(kinds);
        let begun = begin(&servers.each_ref(), "");
        assert_eq!(begun.stdout, "");
        let mut held = servers.each_ref().map(expect_paused);
        held.iter_mut().for_each(Held::stays);
        let ended = end(&servers[0]).ends(0, &[]);
        held.into_iter().for_each(Held::goes_on);
        for (server, kind) in servers.iter().zip(kinds) {
            let socket = socket(server);
            expect_line(&begun.stderr, &[&socket, ": paused"]);
            // The warnings are those of `run`.
            let by_hand = format!("type: nbdkit-pause resume {socket}");
            assert_eq!(begun.stderr.contains(&by_hand), kind != Holds, "{begun:#?}");
            let how = if kind == Holds { UNBROKEN } else { "resumed after a pause of" };
            expect_line(&ended.stderr, &[&socket, how]);
        }
        expect_nothing_behind(&servers[0]);
        end(&servers[0]).ends(125, &["no pause named it in ", "/nbdkit-pause: "]);
    }
}

#[test]
fn begin_waits_for_requests_in_flight_and_an_end_meanwhile_waits_for_begin() {
    for kind in KINDS {
        let (server, _client) = kind.stuck();
        let mut begin = Process::start(hook(&server, "begin --id it control"));
        let held = wait_until_paused(&server);
        let end = Process::start(hook(&server, "end --id it"));
        thread::sleep(A_WHILE);
        assert!(begin.is_running(), "{kind:?}: {}", begin.stderr());
        server.remove("slow-read");
        begin.ends(0, &["control: paused"]);
        end.ends(0, &[]);
        held.goes_on();
        expect_nothing_behind(&server);
    }
}

#[test]
fn an_end_does_not_wait_for_begin_forever() {
    together(OURS, |kind| {
        let (server, _client) = kind.stuck();
        let mut begin = Process::start(hook(&server, "begin --id it control"));
        let held = wait_until_paused(&server);
        end(&server).ends(125, &["`begin` still waits for the servers of it"]);
        assert!(begin.is_running());
        server.remove("slow-read");
        begin.ends(0, &[]);
        end(&server).ends(0, &[]);
        held.goes_on();
    });
}

#[test]
fn a_begin_that_cannot_pause_all_leaves_nothing_behind() {
    for kind in OURS {
        let (quick, (stuck, _client)) = (kind.start(), kind.stuck());
        let also = |socket: &str, options: &str| {
            hook(&quick, &format!("begin --id it {options} control {socket}"))
        };
        let socket = socket(&stuck);
        for (command, said) in [
            (also("nowhere", ""), "nowhere: no such socket"),
            (also("./control", ""), "are the same socket"),
            (also(&socket, "--timeout 500ms"), "not paused within 0.500 s"),
            (also(&socket, "--max 500ms"), "not paused within 0.500 s"),
        ] {
            command.ends(125, &[said]);
            expect_nothing_behind(&quick);
            not_run(&[&quick, &stuck]);
        }
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let begin = Process::start(also(&socket, ""));
            eventually("the other one is paused", GENEROUS, || begin.stderr().contains(": paused"));
            begin.signal(signal);
            begin.finish(PROMPT).ends(128 + signal, &["giving up", "no server stays paused"]);
            expect_nothing_behind(&quick);
            not_run(&[&quick, &stuck]);
        }
    }
}

#[test]
fn a_begin_of_a_name_in_use_is_refused_until_its_end_is_told() {
    let [server, other] = start_all([Holds; 2]);
    let again = || hook(&server, &format!("begin --id it {}", socket(&other)));
    begin(&[&server], "");
    again().ends(125, &["a pause named it is in force", "nbdkit-pause end --id it"]);
    expect_flow(&other);
    // Another name is another pause.
    hook(&server, "begin --id other control").ends(0, &[]);
    let mut held = expect_paused(&server);
    hook(&server, "end --id other").ends(0, &["others may still hold it"]);
    held.stays();
    send_signal(keeper(&server).expect("a keeper"), SIGTERM);
    held.goes_on();
    eventually("the keeper has ended", PROMPT, || keeper(&server).is_none());
    again().ends(125, &["nobody has asked how", "nbdkit-pause end --id it"]);
    expect_flow(&other);
    end(&server).ends(124, &[]);
    again().ends(0, &[]);
    expect_paused(&other);
    end(&server).ends(0, &[]);
}

/// Whatever breaks the pause: the servers resume, and `end` tells it afterwards, once.
fn expect_broken(kinds: &[Kind], options: &str, said: &[&str], breaks: impl Fn(&Server)) {
    for &kind in kinds {
        let [server, other] = start_all([kind; 2]);
        begin(&[&server, &other], options);
        let held = [&server, &other].map(expect_paused);
        breaks(&server);
        held.into_iter().for_each(Held::goes_on);
        let said = [said, &[UNUSABLE]].concat();
        end(&server).ends(124, &said);
        expect_nothing_behind(&server);
        end(&server).ends(125, &[]);
        begin(&[&server, &other], "");
        end(&server).ends(0, &[]);
        [&server, &other].into_iter().for_each(expect_flow);
    }
}

#[test]
fn a_pause_that_has_reached_its_max_has_ended_and_end_tells() {
    let over = ["--max (4.000 s) is over: resuming", "when --max (4.000 s) was over"];
    expect_broken(&KINDS, "--max 4", &over, |_| {});
}

#[test]
fn a_signal_to_the_keeper_resumes_the_servers_and_end_tells() {
    for (signal, name) in [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")] {
        let got = format!("the process that kept the pause got {name}");
        let signalled = |server: &Server| send_signal(keeper(server).expect("a keeper"), signal);
        expect_broken(&KINDS, "", &[&got], signalled);
    }
}

#[test]
fn a_keeper_that_was_killed_leaves_no_server_with_holds_paused_and_end_tells() {
    let killed = ["something killed the process that kept the pause"];
    let kill = |server: &Server| send_signal(keeper(server).expect("a keeper"), SIGKILL);
    expect_broken(&[Holds], "", &killed, kill);
}

#[test]
fn where_there_are_no_holds_end_resumes_for_a_keeper_that_was_killed() {
    for kind in WITHOUT_HOLDS {
        let [server, other] = start_all([kind; 2]);
        begin(&[&server, &other], "");
        let mut held = [&server, &other].map(expect_paused);
        send_signal(keeper(&server).expect("a keeper"), SIGKILL);
        held.iter_mut().for_each(Held::stays);
        end(&server).ends(124, &["something killed the process", "control: resumed"]);
        held.into_iter().for_each(Held::goes_on);
        expect_nothing_behind(&server);
    }
}

#[test]
fn a_keeper_that_was_killed_takes_no_hold_of_others_with_it() {
    let server = Holds.start();
    let mut other = server.controller();
    other.hold();
    begin(&[&server], "");
    send_signal(keeper(&server).expect("a keeper"), SIGKILL);
    end(&server).ends(124, &[]);
    other.ask("-", "-");
}

#[test]
fn a_server_that_breaks_the_hold_ends_the_pauses_of_all() {
    for kind in KINDS {
        let [good, dead] = start_all([kind; 2]);
        begin(&[&good, &dead], "");
        let held = expect_paused(&good);
        let socket = socket(&dead);
        drop(dead);
        // Long before --max.
        held.goes_on_within(PROMPT);
        let verdict = match kind {
            Holds => format!("the pause of {socket} had a break"),
            _ => format!("nobody can tell whether the pause of {socket} lasted"),
        };
        end(&good).ends(124, &[&verdict]);
        expect_nothing_behind(&good);
    }
}

#[test]
fn a_resume_in_between_is_told() {
    let limited = Setup::in_memory().limited();
    for (setup, breaks) in [
        (Setup::in_memory(), (|server| server.controller().resume()) as fn(&Server)),
        (Setup::in_memory(), |server| server.controller().ask("rp", "RP")),
        (limited, expect_flow),
    ] {
        let server = Holds.of(setup).start();
        begin(&[&server], "");
        breaks(&server);
        end(&server).ends(124, &["THE PAUSE WAS INTERRUPTED", "the pause of ", "had a break"]);
        expect_nothing_behind(&server);
    }
}

// The state.

/// As after the power was off: nothing runs, and the file is from another start.
fn turn_off(server: &Server) {
    send_signal(keeper(server).expect("a keeper"), SIGKILL);
    eventually("the keeper has ended", PROMPT, || keeper(server).is_none());
    let state = server.content("nbdkit-pause/it.state");
    let (_, rest) = state.split_once('\0').expect("a record");
    fs::write(server.path("nbdkit-pause/it.state"), format!("boot=another\0{rest}")).unwrap();
}

#[test]
fn the_state_of_a_machine_that_was_switched_off_is_recognized() {
    let server = Holds.start();
    begin(&[&server], "");
    turn_off(&server);
    end(&server).ends(124, &["the machine has started again since `begin`"]);
    expect_nothing_behind(&server);
    begin(&[&server], "");
    turn_off(&server);
    let begun = begin(&[&server], "");
    assert!(begun.stderr.contains("before the machine started again"), "{begun:#?}");
    end(&server).ends(0, &[]);
}

#[test]
fn a_file_that_was_not_written_is_no_pause() {
    let server = Holds.start();
    begin(&[&server], "");
    end(&server).ends(0, &[]);
    for content in ["", "boot=1-2"] {
        fs::write(server.path("nbdkit-pause/it.state"), content).unwrap();
        end(&server).ends(125, &["no pause named it"]);
        fs::write(server.path("nbdkit-pause/it.state"), content).unwrap();
        begin(&[&server], "");
        end(&server).ends(0, &[]);
    }
}

#[test]
fn the_state_is_private_to_the_user() {
    let server = Holds.start();
    begin(&[&server], "");
    let mode = |name: &str| fs::metadata(server.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("nbdkit-pause"), 0o700);
    assert_eq!(mode("nbdkit-pause/it.state"), 0o600);
    end(&server).ends(0, &[]);
    let folder = server.path("nbdkit-pause");
    let refused = || {
        for action in ["begin --id it control", "end --id it"] {
            hook(&server, action).ends(125, &["a directory of this user that nobody else"]);
        }
        expect_flow(&server);
    };
    set_mode(&folder, 0o750);
    refused();
    set_mode(&folder, 0o700);
    if is_root() {
        chown(&folder, Some(NOBODY), None).expect("chown");
        refused();
        chown(&folder, Some(0), None).expect("chown");
    }
    fs::rename(&folder, server.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &folder).unwrap();
    refused();
}

#[test]
fn a_place_where_no_state_can_be_kept_is_named_with_what_to_do() {
    let server = Holds.start();
    let begin = ["begin", "--id", "it", "control"];
    let in_place = |place: &str, words: &[&str]| {
        let mut command = command_of(&server, words);
        command.env("XDG_RUNTIME_DIR", place);
        command
    };
    let call = [&[PROGRAM], &begin[..]].concat();
    in_place("/no/such/place", &call)
        .ends(125, &["/no/such/place/nbdkit-pause: No such file", "RuntimeDirectory="]);
    in_place("/no/such/place", &[PROGRAM, "end", "--id", "it"])
        .ends(125, &["no pause named it in /no/such/place/nbdkit-pause"]);
    expect_flow(&server);
    if !is_root() {
        println!("SKIPPED: only root can mount");
        return;
    }
    for (mount, call, why, advice) in [
        ("-o ro none /mnt", &call[..], "Read-only file system", "set XDG_RUNTIME_DIR to"),
        ("none /proc", &call, "/proc/", "mount /proc"),
        ("none /proc", &[PROGRAM, "end", "--id", "it"], "/proc/", "mount /proc"),
    ] {
        let script = format!("mount -t tmpfs {mount} && exec \"$@\"");
        let words = [&["unshare", "-m", "sh", "-c", &script, "sh"], call].concat();
        in_place("/mnt", &words).ends(125, &[why, advice]);
        expect_flow(&server);
    }
    // Where that user finds it.
    set_mode(server.dir(), 0o755);
    clients::program("cp", &[PROGRAM, server.path("helper").to_str().unwrap()]);
    let mut command = command_of(&server, &[&["./helper"], &begin[..]].concat());
    command.env_remove("XDG_RUNTIME_DIR").uid(NOBODY).gid(NOBODY);
    command.ends(125, &["/run/nbdkit-pause: Permission denied", "XDG_RUNTIME_DIR"]);
}

#[test]
fn without_a_runtime_directory_the_state_is_in_run() {
    if !is_root() || !Path::new("/run").exists() {
        println!("SKIPPED: only root can write there");
        return;
    }
    let server = Holds.start();
    let name = format!("test-{}", server.pid());
    // The specification has a relative one ignored.
    for place in ["", "relative"] {
        let hook = |words: &str| {
            let mut command = call(&server, words);
            command.env("XDG_RUNTIME_DIR", place);
            command
        };
        hook(&format!("begin --id {name} control")).ends(0, &[]);
        assert!(Path::new("/run/nbdkit-pause").join(format!("{name}.state")).exists());
        hook(&format!("end --id {name}")).ends(0, &[]);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    let server = Holds.start();
    for wrong in [
        "begin control",
        "begin --id it",
        "begin --id a/b control",
        "begin --id it --max 1h control",
        "end",
        "end --id it control",
    ] {
        hook(&server, wrong).ends(125, &[]);
    }
    assert!(!server.path("nbdkit-pause").exists());
}
