//! Whatever becomes of standard error, of the command's program or of the signals that
//! the helper was started with, it resumes in time when it is told to end, and a server
//! with holds resumes at once when it is killed.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use libc::{SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGTERM};

use super::*;

/// How long a command that was told to end may keep the servers paused, with some room
/// for a busy machine.
const GRACE: Duration = Duration::from_secs(5 + 4);

/// `nbdkit-pause run control -- sh -c SCRIPT`.
fn run_of(server: &Server, script: &str) -> Command {
    run_with("", server, script)
}

/// `nbdkit-pause run OPTIONS control -- sh -c SCRIPT`.
fn run_with(options: &str, server: &Server, script: &str) -> Command {
    let mut command = call(server, &format!("run {options} control -- sh -c"));
    command.arg(script);
    command
}

/// The processes that this one has started.
pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

// A standard error that takes nothing. What keeps it so, such as the other end, is a
// `T`, and goes before the processes do: one could be stuck in it for ever.

/// Starts this with what is at `path` as its standard error. It is opened there, so
/// that no other process ever has it.
pub fn start_with_stderr(mut command: Command, path: &str) -> Process {
    let path = CString::new(path).unwrap();
    // SAFETY: open(2) and dup2(2) are plain system calls, which may be made between fork
    // and exec; the path ends in NUL.
    unsafe {
        command.pre_exec(move || {
            // Not to read as well: of a pipe, it would be its own reader for ever.
            let flags = libc::O_WRONLY | libc::O_NOCTTY | libc::O_CLOEXEC;
            match libc::dup2(libc::open(path.as_ptr(), flags), 2) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
    Process::start(command)
}

/// A run whose standard error takes nothing is heard as ever.
fn expect_to_be_heard<T>(stuck: impl Fn(&Server) -> (String, T) + Sync) {
    together(KINDS, |kind| {
        let start_with = |options: &str, script: &str| {
            let server = kind.start();
            // Dropped last, also where this panics: see `T`.
            let run;
            let (path, stuck) = stuck(&server);
            run = started(&server, start_with_stderr(run_with(options, &server, script), &path));
            let held = expect_paused(&server);
            (server, run, held, stuck)
        };
        let start = |script: &str| start_with("", script);
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let (_server, run, held, _stuck) = start(UNTIL_TOLD);
            run.signal(signal);
            held.goes_on_within(PROMPT);
            run.finish(PROMPT).ends(128 + signal, &[]);
        }
        // A command that ignores it is no hindrance either.
        let (server, run, held, _stuck) = start(&format!("trap '' TERM; {UNTIL_TOLD}"));
        run.signal(SIGTERM);
        held.goes_on_within(GRACE);
        finish_run(&server, run).ends(124, &[]);
        let deaf = format!("trap '' TERM; {UNTIL_TOLD}");
        let (server, run, held, _stuck) = start_with("--max 4", &deaf);
        held.goes_on_within(GRACE);
        finish_run(&server, run).ends(124, &[]);
        // And it ends by itself.
        let (server, run, held, _stuck) = start(UNTIL_TOLD);
        finish_run(&server, run).ends(0, &[]);
        held.goes_on();
        if kind == Holds {
            let (server, run, held, _stuck) = start(UNTIL_TOLD);
            run.signal(SIGKILL);
            held.goes_on_within(PROMPT);
            end_command(&server);
        }
    });
}

/// A pipe that is full, and its other end.
pub fn full_pipe(server: &Server) -> (String, File) {
    let path = server.path("stderr");
    files::make_fifo(&path);
    // To read and write: then nobody has to be there to open it.
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let mut pipe = open.open(&path).expect("the pipe");
    let full = loop {
        if let Err(e) = pipe.write(&[b'#'; 512]) {
            break e;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    (path.display().to_string(), pipe)
}

/// Reads until this has come, too, and returns all.
pub fn read_until(pipe: &mut File, parts: &[&str]) -> String {
    let mut text = String::new();
    eventually("all is said", GENEROUS, || {
        match pipe.read_to_string(&mut text) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?} after {text}"),
        }
        parts.iter().all(|part| text.contains(part))
    });
    text
}

/// A terminal at which somebody has typed Ctrl-S, and that person's end of it.
pub fn stopped_terminal(_: &Server) -> (String, [File; 2]) {
    let (mut person, terminal, path) = terminal();
    person.write_all(b"\x13").expect("Ctrl-S");
    (path, [person, terminal])
}

/// A person's end of a new terminal, which never blocks, its other end, and the path of that.
pub fn terminal() -> (File, File, String) {
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
    let person = open.open("/dev/ptmx").expect("a terminal");
    open.custom_flags(libc::O_NOCTTY);
    let (unlocked, mut number) = (0, 0);
    // SAFETY: the first reads an int and the second writes one (TIOCSPTLCK(2const),
    // TIOCGPTN(2const)), both of this frame.
    let failed = unsafe {
        libc::ioctl(person.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked)
            | libc::ioctl(person.as_raw_fd(), libc::TIOCGPTN, &raw mut number)
    };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    let path = format!("/dev/pts/{number}");
    let terminal = open.open(&path).expect("its other end");
    (person, terminal, path)
}

/// The server's own disk, as a file. It is on a file system in user space.
pub struct Mounted {
    path: String,
    _nbdfuse: Process,
}

pub fn mounted(server: &Server) -> (String, Mounted) {
    server.make("mounted");
    let path = server.path("mounted");
    let mut nbdfuse = Command::new("nbdfuse");
    nbdfuse.arg(&path).arg("--unix").arg(server.socket());
    let mut nbdfuse = Process::start(nbdfuse);
    nbdfuse.runs_until("it is mounted", || server.size("mounted") > 0);
    let path = path.display().to_string();
    (path.clone(), Mounted { path, _nbdfuse: nbdfuse })
}

pub fn can_mount() -> bool {
    let can =
        is_root() && ["/dev/fuse", "/usr/bin/nbdfuse"].iter().all(|it| Path::new(it).exists());
    if !can {
        println!("SKIPPED: there is no nbdfuse, or it can't be used");
    }
    can
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.path]).status();
    }
}

#[test]
fn a_full_pipe_for_standard_error_keeps_nobody_from_being_heard() {
    expect_to_be_heard(full_pipe);
}

#[test]
fn a_stopped_terminal_for_standard_error_keeps_nobody_from_being_heard() {
    expect_to_be_heard(stopped_terminal);
}

#[test]
fn a_standard_error_on_the_paused_disk_keeps_nobody_from_being_heard() {
    if can_mount() {
        expect_to_be_heard(mounted);
    }
}

#[test]
fn what_standard_error_does_not_take_is_said_when_it_does() {
    let server = Holds.start();
    let (path, mut pipe) = full_pipe(&server);
    let run = started(&server, start_with_stderr(run_of(&server, UNTIL_TOLD), &path));
    finish_run(&server, run).ends(0, &[]);
    let last = "sh ended with exit status: 0\n";
    read_until(&mut pipe, &["control: paused", "running sh", "unbroken", last]);
}

#[test]
fn what_there_is_no_room_for_is_counted_and_the_last_word_is_said() {
    let server = Holds.start();
    let (path, mut pipe) = full_pipe(&server);
    // Lines that name it are long.
    let shell = format!("{}bin/sh", "/".repeat(3000));
    let mut command = call(&server, &format!("run control -- {shell} -c"));
    command.arg(format!("trap '' HUP INT; {UNTIL_TOLD}"));
    let run = started(&server, start_with_stderr(command, &path));
    let status = format!("/proc/{}/status", run.pid());
    for _ in 0..300 {
        for signal in [SIGHUP, SIGINT] {
            run.signal(signal);
            // Each is told of.
            eventually("it is taken", GENEROUS, || {
                fs::read_to_string(&status).unwrap().contains("ShdPnd:\t0000000000000000")
            });
        }
    }
    server.make("go");
    let text = read_until(&mut pipe, &[UNUSABLE]);
    assert!(text.contains("lines missing here"), "{text}");
    run.finish(PROMPT).ends(124, &[]);
}

// A program that can't be loaded, or not yet.

/// `nbdkit-pause run OPTION control -- ./slow`, where the system takes long to begin to load
/// that program: the process of the helper, and that of strace around it.
fn start_slow_program(server: &Server, option: &str) -> (u32, Process) {
    fs::write(server.path("slow"), "#!/bin/sh\ntouch ran\n").expect("a script");
    set_mode(&server.path("slow"), 0o755);
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-P", "./slow", "-o", "trace", "-e", "trace=execve"])
        .args([
            "-e",
            "inject=execve:delay_enter=45s",
            PROGRAM,
            "run",
            option,
            "control",
            "--",
            "./slow",
        ])
        .current_dir(server.dir());
    let mut strace = Process::start(strace);
    let (pid, mut helper) = (strace.pid(), None);
    strace.runs_until("the helper is there", || {
        helper = children(pid).first().copied();
        let exe = helper.and_then(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok());
        exe.is_some_and(|exe| exe == Path::new(PROGRAM))
    });
    (helper.expect("found"), strace)
}

#[test]
fn a_program_that_can_not_be_loaded_keeps_nobody_from_being_heard() {
    together(KINDS, |kind| {
        for (option, signal) in [("--max=0", Some(SIGTERM)), ("--max=4", None)] {
            let server = kind.start();
            let (pid, _strace) = start_slow_program(&server, option);
            let held = wait_until_paused(&server);
            if let Some(signal) = signal {
                send_signal(pid, signal);
            }
            held.goes_on_within(GRACE);
            not_run(&[&server]);
        }
    });
}

#[test]
fn killed_while_the_program_is_being_loaded_it_resumes_where_there_are_holds() {
    let server = Holds.start();
    let (pid, _strace) = start_slow_program(&server, "--max=0");
    let held = wait_until_paused(&server);
    // So that the program is waited for.
    thread::sleep(A_WHILE);
    send_signal(pid, SIGKILL);
    held.goes_on_within(PROMPT);
    not_run(&[&server]);
}

#[test]
fn killed_while_the_servers_drain_it_leaves_no_process_and_resumes_where_there_are_holds() {
    for kind in KINDS {
        let (quick, (stuck, _client)) = (kind.start(), kind.stuck());
        let run = run_on(&[&quick, &stuck], "", "touch ran");
        let held = [&quick, &stuck].map(wait_until_paused);
        let processes = children(run.pid());
        assert!(!processes.is_empty(), "nothing waits for its word");
        run.signal(SIGKILL);
        eventually("they end", PROMPT, || processes.iter().all(|&pid| !is_alive(pid)));
        if kind == Holds {
            held.into_iter().for_each(Held::goes_on);
        }
        assert!(!quick.path("ran").exists());
    }
}

// Signals that the helper was started with.

/// All are blocked, but the real-time ones.
pub fn block() {
    // SAFETY: these write to a set of this frame, for which all zeroes is a value, and
    // to this thread's mask.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in 1..32 {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

pub fn ignore() {
    for signal in [SIGTERM, SIGCHLD] {
        // SAFETY: signal(2) takes two integers.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// In its process, `first` is done before.
pub fn after(first: fn(), mut command: Command) -> Command {
    // SAFETY: `first` is one of the two above: plain system calls, which may be made
    // between fork and exec.
    unsafe {
        command.pre_exec(move || {
            first();
            Ok(())
        });
    }
    command
}

/// TERM is not heard by the command, which was started in the same way, but by the
/// helper. A shell would unblock signals, so it is no shell.
fn expect_resume_under_a_deaf_command(first: fn(), signal: Option<i32>) {
    let server = Holds.start();
    let max = if signal.is_some() { "" } else { "--max 4" };
    let words = format!("run {max} control -- sleep 60");
    let run = Process::start(after(first, call(&server, &words)));
    eventually("the command runs", GENEROUS, || run.stderr().contains("running sleep"));
    let mut commands = children(run.pid());
    commands.retain(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
    });
    assert_eq!(commands.len(), 1);
    let held = expect_paused(&server);
    if let Some(signal) = signal {
        run.signal(signal);
    }
    held.goes_on_within(GRACE);
    let said = "sleep is still running";
    eventually("it is said", PROMPT, || run.stderr().contains(said));
    send_signal(commands[0], SIGKILL);
    run.finish(PROMPT).ends(124, &[]);
}

#[test]
fn signals_that_were_blocked_are_heard() {
    let server = Holds.start();
    // The end of the command is a signal, too.
    after(block, run_of(&server, "exit 3")).ends(3, &[]);
    together([Some(SIGTERM), Some(SIGINT), Some(SIGHUP), None], |signal| {
        expect_resume_under_a_deaf_command(block, signal)
    });
}

#[test]
fn a_sigterm_and_a_sigchld_that_were_ignored_are_heard() {
    let server = Holds.start();
    after(ignore, run_of(&server, "exit 3")).ends(3, &[]);
    together([Some(SIGTERM), None], |signal| expect_resume_under_a_deaf_command(ignore, signal));
}

#[test]
fn the_command_inherits_what_the_helper_was_given_and_no_more() {
    for kind in KINDS {
        let server = kind.start();
        for show in ["grep ^Sig[BI] /proc/self/status", "ls /proc/self/fd"] {
            let words: Vec<&str> = show.split(' ').collect();
            for first in [|| {}, block, ignore] {
                let direct = command_of(&server, &words);
                let through = call(&server, &format!("run control -- {show}"));
                let [direct, through] =
                    [direct, through].map(|it| run(after(first, it)).succeeded().stdout);
                assert_eq!(through, direct);
            }
        }
    }
}
