//! `nbdkit-pause status`: what a person reads in the table, what a program reads in
//! `--json`, and the exit status, of servers that tell their state and of others.

use serde_json::Value;

use super::always_heard::{read_until, terminal};
use super::*;

fn telling() -> Server {
    Holds.of(Setup::in_memory().tells()).start()
}

/// It ends with this status, and has written all of these lines' words.
fn shows(server: &Server, sockets: &str, status: i32, lines: &[&[&str]]) -> String {
    let shown = call(server, &format!("status {sockets}")).ends(status, &[]);
    assert_eq!(shown.stderr, "");
    lines.iter().for_each(|words| expect_line(&shown.stdout, words));
    shown.stdout
}

#[test]
fn each_state_has_its_line_and_exit_status_0_says_that_all_flow() {
    let server = Setup::obedient().flushes().holds().tells().start();
    let mut client = Client::connect(&server);
    client.ask(Write(0, 1));
    let head = ["SOCKET", "STATE", "SINCE", "FOR", "IN FLIGHT", "HELD", "OLDEST HELD", "TIME LEFT"];
    shows(&server, "control", 0, &[&head, &["control  running", " s  0 ", " - "]]);
    client.read_stays_in_plugin(&server);
    let mut controller = server.controller();
    controller.send(b"p");
    let held = wait_until_paused(&server);
    shows(&server, "control", 1, &[&["control  DRAINING ", " s  1          1     ", "no limit"]]);
    server.make("slow");
    server.remove("slow-read");
    server.await_file("flushes");
    shows(&server, "control", 1, &[&["control  FLUSHING ", " s  0          1     "]]);
    server.remove("slow");
    controller.expect("P");
    let shown = shows(&server, "control", 1, &[&["control  PAUSED ", " s  0          1     "]]);
    assert!(!shown.contains("last pause"), "{shown}");
    controller.resume();
    held.goes_on();
    let last = ["last pause: ", " s, requests held: 1, ended by r of pid ", " ago"];
    shows(&server, "control", 0, &[&["control  running "], &last]);
}

#[test]
fn what_is_left_of_pause_timeout_is_shown() {
    let server = Setup::in_memory().with("pause-timeout=7250").tells().start();
    server.controller().pause();
    shows(&server, "control", 1, &[&["PAUSED", "  -            2 h 0 min"]]);
}

#[test]
fn who_paused_is_named_by_its_program_as_long_as_that_runs() {
    let server = telling();
    let run = start_run(&[&server]);
    let nc = server.nc(b"p");
    let paused_by = format!("paused by p of pid {} ", nc.pid());
    let hold = format!("hold of pid {} (nbdkit-pause), uid ", run.pid());
    shows(&server, "control", 1, &[&[&paused_by, "(nc), uid ", " s ago"], &[&hold, ", for "]]);
    nc.kill();
    shows(&server, "control", 1, &[&[&paused_by, "(gone), uid "], &[&hold]]);
    finish_run(&server, run).ends(0, &[]);
}

#[test]
fn all_are_asked_though_one_is_dead_and_another_stands_still() {
    let [quick, paused, stopped] = [(); 3].map(|()| telling());
    paused.controller().pause();
    let sockets = [&quick, &paused].map(socket).join(" ");
    shows(&quick, &sockets, 1, &[&[&socket(&quick), "  running "], &[&socket(&paused), "PAUSED"]]);
    leave_dead(&quick.path("dead"), UnixListener::bind(quick.path("dead")).unwrap());
    stop(stopped.pid());
    let all = format!("--timeout 2 {sockets} {} dead nowhere", socket(&stopped));
    let shown = shows(
        &quick,
        &all,
        125,
        &[
            &[&socket(&quick), "  running "],
            &[&socket(&paused), "  PAUSED "],
            &[&socket(&stopped), "  UNKNOWN"],
            &["no answer within 2.000 s"],
            &["dead ", "  UNKNOWN"],
            &["connection refused: the server of this socket is gone"],
            &["nowhere", "UNKNOWN"],
            &["no such socket"],
        ],
    );
    assert_eq!(shown.matches("UNKNOWN").count(), 3, "{shown}");
    go_on(stopped.pid());
}

#[test]
fn of_a_server_that_does_not_tell_it_says_which_filter_it_has_and_how_to_see_more() {
    together(KINDS, |kind| {
        let server = kind.start();
        let (filter, name) = match kind {
            Stock => ("nbdkit's own; to see more, start nbdkit with --filter=libpause", "pause"),
            _ => ("libpause, without pause-status; to see more, start nbdkit with", "libpause"),
        };
        for paused in [false, true] {
            let words = ["reachable, but ", filter, "pause-status=true"];
            shows(&server, "control", 125, &[&["control  UNKNOWN"], &words]);
            let line = shows(&server, "--json control", 125, &[]);
            let line: Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!((&line["socket"], &line["filter"]), (&"control".into(), &name.into()));
            if !paused {
                server.controller().pause();
            }
        }
        // And it has changed nothing.
        let held = expect_paused(&server);
        server.controller().resume();
        held.goes_on();
    });
}

#[test]
fn what_is_no_control_socket_is_said_to_be_none() {
    let server = telling();
    let nbd = "not a pause control socket but one for NBD clients";
    shows(&server, "nbd", 125, &[&["nbd", "UNKNOWN"], &[nbd]]);
}

/// A server of another version may tell more, or nothing that makes sense.
#[test]
fn what_another_version_tells_is_shown_or_said_to_make_no_sense() {
    let server = telling();
    let mut controller = server.controller();
    controller.send(b"s");
    let line = controller.line();
    let socket = server.path("other");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let newer = line.replacen('{', r#"{"news":[{}],"#, 1);
    let unknown = line.replacen("running", "dancing", 1);
    let makes_no_sense = ["{}\n", "{\"state\":1}x\n"].map(str::to_owned);
    let answers: Vec<String> = [newer, unknown].into_iter().chain(makes_no_sense).collect();
    let statuses = [0, 125, 125, 125];
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.read_exact(&mut [0]).expect("a command");
            stream.write_all(answer.as_bytes()).expect("an answer");
        }
    });
    for status in statuses {
        let shown = shows(&server, "other", status, &[]);
        let is_understood = !shown.contains("a way that this program does not understand");
        assert_eq!(is_understood, status == 0, "{shown}");
    }
}

#[test]
fn json_has_a_line_for_each_server_with_all_that_it_tells() {
    let [running, paused] = [(); 2].map(|()| telling());
    paused.controller().pause();
    let sockets = [&running, &paused].map(socket);
    let words = format!("--json {} {}", sockets.join(" "), paused.path("nowhere").display());
    let lines = shows(&running, &words, 125, &[]);
    let lines: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    for (number, state) in ["running", "paused"].into_iter().enumerate() {
        assert_eq!(lines[number]["socket"], sockets[number]);
        assert_eq!(lines[number]["status"]["state"], state);
        // What the table has no room for.
        assert!(lines[number]["status"]["nbdkit"].is_string());
    }
    assert!(lines[2]["error"].as_str().is_some_and(|why| why.starts_with("no such socket")));
}

#[test]
fn watch_draws_again_what_has_changed_until_it_is_interrupted() {
    let server = telling();
    let (mut person, terminal, path) = terminal();
    // Standard output is the terminal, which has a size.
    let size = libc::winsize { ws_row: 24, ws_col: 40, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize of this frame.
    let set = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(set, 0);
    let script = format!("exec '{PROGRAM}' status --watch control >{path}");
    let mut watch = Process::start(command_of(&server, &["sh", "-c", &script]));
    read_until(&mut person, &["running"]);
    server.controller().pause();
    // From the first place on, and cut off where the terminal ends.
    let drawn = read_until(&mut person, &["PAUSED"]);
    assert!(drawn.contains("\x1b[HSOCKET"), "{drawn:?}");
    let drawn = read_until(&mut person, &["\x1b[J"]);
    assert!(!drawn.contains("TIME LEFT"), "{drawn:?}");
    server.controller().resume();
    read_until(&mut person, &["running"]);
    server.terminate();
    read_until(&mut person, &["UNKNOWN", "no such socket"]);
    assert!(watch.is_running());
    watch.signal(libc::SIGINT);
    assert_eq!(watch.finish(PROMPT).status.signal(), Some(libc::SIGINT));
}

#[test]
fn watch_without_a_terminal_is_refused() {
    let server = telling();
    call(&server, "status --watch control").ends(125, &["--watch draws on a terminal"]);
    call(&server, "status --watch --json control").ends(125, &["--json"]);
}
