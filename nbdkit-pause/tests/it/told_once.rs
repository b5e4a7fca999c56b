//! What tells the helper to end tells its command, and tells it once: a signal to the
//! helper alone, to the process group of both, or from a terminal.

use libc::{SIGHUP, SIGINT, SIGTERM};

use super::always_heard::{children, read_until, terminal};
use super::*;

/// A command that writes down which signals it gets, each of them, until it is told
/// to end.
const COUNT: &str = r##"
import os, signal
told = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
signal.pthread_sigmask(signal.SIG_BLOCK, told)
open("told", "w").close()
open("running", "w").close()
while os.path.exists("pid") and not os.path.exists("go"):
    got = signal.sigtimedwait(told, 0.01)
    if got:
        with open("told", "a") as file:
            file.write(f"{got.si_signo}\n")
"##;

const COUNTING: [&str; 6] = ["env", "-u", "PYTHONHOME", clients::PYTHON, "-c", COUNT];

/// In the server's folder, by `prefix` if that has words: the helper, with that command.
fn start_count(server: &Server, prefix: &[&str]) -> Process {
    let words = [prefix, &[PROGRAM, "run", "control", "--"], &COUNTING].concat();
    started(server, Process::start(command_of(server, &words)))
}

/// The command gets this signal, and gets it once, and the pause covers what it does
/// then.
fn expect_told_once(server: &Server, signal: i32, send: impl FnOnce()) {
    let mut held = expect_paused(server);
    send();
    eventually("it is told", GENEROUS, || !server.content("told").is_empty());
    held.stays();
    assert_eq!(server.content("told"), format!("{signal}\n"));
    server.make("go");
    held.goes_on();
}

/// The helper finds it when the others have it: two signals that come to a process
/// together would be one.
fn send_to_group(helper: u32, send: impl FnOnce()) {
    stop(helper);
    send();
    thread::sleep(A_WHILE);
    go_on(helper);
}

fn kill_group(leader: u32, signal: i32) {
    // SAFETY: kill(2) takes two integers. The group is that of a running process.
    assert_eq!(unsafe { libc::kill(-(leader as libc::pid_t), signal) }, 0);
}

#[test]
fn a_signal_to_the_process_group_reaches_the_command_once() {
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let server = Holds.start();
        let run = start_count(&server, &[]);
        // It is the leader of its group.
        let pid = run.pid();
        expect_told_once(&server, signal, || send_to_group(pid, || kill_group(pid, signal)));
        run.finish(PROMPT).ends(128 + signal, &["unbroken", "interrupted by SIG"]);
    }
}

#[test]
fn a_signal_to_the_helper_and_then_to_its_process_group_reaches_the_command_once() {
    let server = Holds.start();
    let run = start_count(&server, &[]);
    expect_told_once(&server, SIGTERM, || {
        run.signal(SIGTERM);
        eventually("it is heard", GENEROUS, || run.stderr().contains("SIGTERM: passed on"));
        kill_group(run.pid(), SIGTERM);
    });
    run.finish(PROMPT).ends(128 + SIGTERM, &["unbroken", "interrupted by SIGTERM"]);
}

#[test]
fn under_timeout_the_command_is_told_once_and_has_its_grace() {
    let server = Holds.start();
    let timeout = start_count(&server, &["timeout", "600"]);
    // It does then what it does when the time is over.
    expect_told_once(&server, SIGTERM, || timeout.signal(SIGTERM));
    let said = timeout.finish(PROMPT).stderr;
    assert!(said.contains("unbroken"), "{said}");
    assert!(said.contains("ended with exit status: 0"), "{said}");
}

/// The helper with these words, on the terminal at `path`, which is that of a session of
/// its own.
pub fn on_terminal(server: &Server, path: &str, words: &[&str]) -> Process {
    on_terminal_by(server, path, &[&[PROGRAM, "run", "control", "--"], words].concat())
}

/// The same with what starts the helper.
pub fn on_terminal_by(server: &Server, path: &str, words: &[&str]) -> Process {
    let script = "exec setsid --ctty --wait \"$@\" <$0 >$0 2>&1";
    let words = [&["sh", "-c", script, path], words].concat();
    started(server, Process::start(command_of(server, &words)))
}

#[test]
fn in_the_foreground_of_a_terminal_the_command_is_told_once() {
    for (signal, how) in [
        (SIGINT, "Ctrl-C"),
        (SIGTERM, "to the group"),
        (SIGHUP, "to the group"),
        (SIGTERM, "to the helper alone"),
    ] {
        println!("{signal} {how}");
        let server = Holds.start();
        let (mut person, _terminal, path) = terminal();
        let run = on_terminal(&server, &path, &COUNTING);
        let [helper] = children(run.pid())[..] else { panic!("one child of setsid") };
        expect_told_once(&server, signal, || match how {
            "Ctrl-C" => send_to_group(helper, || person.write_all(b"\x03").expect("Ctrl-C")),
            "to the group" => send_to_group(helper, || kill_group(helper, signal)),
            _ => send_signal(helper, signal),
        });
        run.finish(PROMPT).ends(128 + signal, &[]);
    }
}

#[test]
fn in_the_foreground_of_a_terminal_a_command_can_read_from_it() {
    let server = Holds.start();
    let (mut person, _terminal, path) = terminal();
    person.write_all(b"yes\n").expect("a line");
    let script = format!("read line; echo $line >line; {UNTIL_TOLD}");
    let run = on_terminal(&server, &path, &["sh", "-c", &script]);
    assert_eq!(server.content("line"), "yes\n");
    finish_run(&server, run).ends(0, &[]);
}

/// Whether the command has it can't be seen then; better twice than never.
#[test]
fn without_proc_a_signal_is_passed_on_and_what_to_do_is_said() {
    if !is_root() {
        println!("SKIPPED: only root can mount");
        return;
    }
    let server = Holds.start();
    let (mut person, _terminal, path) = terminal();
    let script = r#"mount -t tmpfs none /proc && exec "$@""#;
    let hide = ["unshare", "-m", "sh", "-c", script, "sh"];
    let words = [&hide[..], &[PROGRAM, "run", "control", "--"], &COUNTING].concat();
    let mut run = on_terminal_by(&server, &path, &words);
    let [helper] = children(run.pid())[..] else { panic!("one child of setsid") };
    let mut held = expect_paused(&server);
    kill_group(helper, SIGTERM);
    eventually("it is told", GENEROUS, || !server.content("told").is_empty());
    held.stays();
    assert!(run.is_running());
    server.make("go");
    held.goes_on();
    read_until(&mut person, &["SIGTERM: passed on", "may get it twice, as /proc is missing"]);
    run.finish(PROMPT).ends(128 + SIGTERM, &[]);
}
