//! What the machine and the plugin can do to the server: nothing more to be had
//! of something, a log that takes nothing, a plugin that fails or hangs or
//! forks, another time of day, signals. Nothing is lost, and the log says why.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{Writer, is_zero};
use common::control::Controller;
use common::files::make_fifo;
use common::nbd::{Client, ONE_OF_EACH, Request, Ticket};
use common::process::{self, Finished, descriptors, go_on, run, send_signal, stop};
use common::server::{Server, Setup};
use common::{A_WHILE, GENEROUS, PROMPT, eventually};

const READ: Request = Request::Read { offset: 0 };
const WRITE: Request = Request::Write { offset: 0, byte: 0xaa };

/// A pause-timeout that is waited for.
const LIMIT: Duration = Duration::from_millis(600);

fn memory() -> Setup {
    Setup::new(&["memory", "1M"])
}

/// A pause holds this request back and lets it go on, and it is carried out.
fn expect_a_whole_pause(server: &Server, client: &mut Client) {
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE / 3);
    controller.resume();
    client.reply(held).expect("success");
    assert_eq!(client.ask(READ), [0xaa; 512]);
}

/// Returns when all commands that were sent before are carried out, or wait.
fn all_is_heard(server: &Server) {
    let mut controller = server.controller();
    controller.send(b"?");
    controller.expect("X");
}

/// The server says all of these in one line.
fn expect_line(messages: &str, words: &[&str]) {
    let is_it = |line: &str| words.iter().all(|word| line.contains(word));
    assert!(messages.lines().any(is_it), "no line with {words:?} in:\n{messages}");
}

/// How the server is started so that a shell does `redirections` before.
fn with(setup: Setup, redirections: &str) -> Setup {
    setup.under(&["bash", "-c", &format!("exec \"$@\" {redirections}"), "bash"])
}

// No threads.

/// Of processes, which threads count as, it has one or more already.
const NO_MORE_THREADS: &str = "--nproc=1:";

/// A client that has been served once has all its threads then.
const ONE_THREAD: &str = "--threads=1";

/// As many as it could ever have.
fn threads_again(server: &Server) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max processes")).unwrap();
    let most = line.split_whitespace().nth(1).unwrap();
    server.limit(&format!("--nproc={most}:"));
}

#[test]
fn without_a_thread_for_control_nbdkit_ends_and_says_what_to_raise() {
    let setup = memory().under_a_mere_user().under(&["prlimit", NO_MORE_THREADS]);
    let failure = setup.failure();
    expect_line(&failure.stderr, &["error: ", "pause-control", "control thread", "ulimit -u"]);
    assert!(!setup.path("control").exists(), "{failure:#?}");
}

#[test]
fn without_a_thread_to_flush_a_pause_is_refused_and_the_next_one_works() {
    let setup = memory().under_a_mere_user().logged().parameters(&["pause-flush=true"]);
    let server = setup.options(&[ONE_THREAD]).start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    client.ask(WRITE);
    server.limit(NO_MORE_THREADS);
    for _ in 0..3 {
        controller.send(b"p");
        controller.expect("X");
        assert_eq!(client.ask(READ), [0xaa; 512]);
    }
    let messages = server.messages();
    expect_line(&messages, &["error: ", "pause-flush", "thread", "ulimit -u", "given up"]);
    assert!(!server.logged().contains(" Flush "), "{}", server.logged());

    threads_again(&server);
    controller.pause();
    assert!(server.logged().contains(" Flush "), "{}", server.logged());
    let held = client.send(READ);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    assert_eq!(client.reply(held).unwrap(), [0xaa; 512]);
}

#[test]
fn clients_that_nbdkit_has_no_threads_for_harm_no_other_and_no_pause() {
    let server = memory().under_a_mere_user().options(&[ONE_THREAD]).start();
    server.threads_at_rest();
    let at_rest = descriptors(server.pid());
    let mut client = Client::connect(&server);
    client.ask(READ);
    for is_paused in [false, true] {
        let mut controller = server.controller();
        if is_paused {
            controller.pause();
        }
        server.limit(NO_MORE_THREADS);
        let mut refused = UnixStream::connect(server.socket()).unwrap();
        refused.set_read_timeout(Some(GENEROUS)).unwrap();
        // What nbdkit does with it is nbdkit's affair.
        let _ = refused.read(&mut [0; 512]);
        drop(refused);
        if !is_paused {
            controller.pause();
        }
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE);
        controller.resume();
        client.reply(held).unwrap();
        threads_again(&server);
        Client::connect(&server).leave();
    }
    client.leave();
    server.threads_at_rest();
    eventually("nothing is kept", GENEROUS, || descriptors(server.pid()) == at_rest);
    server.stop();
}

// No descriptors.

/// Starts nbdkit, and waits until the filter serves, too, or nbdkit has ended.
fn start_for_good(setup: Setup) -> Result<Server, Finished> {
    let mut server = setup.try_start()?;
    let mut ended = false;
    eventually("the filter serves", GENEROUS, || {
        ended = !server.is_running();
        ended || process::threads(server.pid()) > 1
    });
    if ended { Err(server.ended(GENEROUS).process) } else { Ok(server) }
}

#[test]
fn at_any_limit_on_descriptors_nbdkit_can_be_paused_or_ends_and_says_why() {
    // In a folder that stays when the server's goes.
    let folder = memory();
    let control = folder.path("control");
    let mut served = 0;
    let mut refusals = String::new();
    for count in 3..=24 {
        let setup = memory().most_descriptors(count).control(control.to_str());
        match start_for_good(setup) {
            Ok(server) => {
                served += 1;
                for _ in 0..2 {
                    let mut controller = server.controller();
                    controller.pause();
                    controller.resume();
                }
                // nbdkit takes three for a client.
                if count >= 20 {
                    expect_a_whole_pause(&server, &mut Client::connect(&server));
                }
                server.stop();
            }
            Err(refusal) => {
                assert_eq!(served, 0, "with {count} it ends, and with fewer it does not");
                assert!(refusal.status.code().is_some_and(|code| code != 0), "{refusal:#?}");
                // Error 24: that is how the dynamic linker says it.
                let says = ["Too many open files", "Error 24"];
                assert!(says.iter().any(|what| refusal.stderr.contains(what)), "{refusal:#?}");
                assert!(!control.exists(), "{refusal:#?}");
                refusals.push_str(&refusal.stderr);
            }
        }
    }
    // All of that has happened.
    assert!(served >= 9, "{refusals}");
    expect_line(&refusals, &["error: ", "pause-control=/", "ulimit -n"]);
    expect_line(&refusals, &["error: ", "pause-control: ", "set a file descriptor aside"]);
}

// A log that takes nothing.

#[test]
fn a_full_disk_for_the_log_stops_nothing() {
    for options in [&[][..], &["-v"]] {
        let parameters = ["pause-timeout=600ms", "pause-hold=true", "pause-flush=true"];
        let setup = Setup::with_disk(1).options(options).parameters(&parameters);
        let server = with(setup, "2>/dev/full").start();
        let mut client = Client::connect(&server);
        expect_a_whole_pause(&server, &mut client);
        expect_end_in_time(&server, &mut client);
        let mut controller = server.controller();
        controller.send(b"?+-r");
        controller.expect("X+-R");
        client.ask(Request::Write { offset: 512, byte: 1 });
        client.leave();
        let disk = fs::read(server.stop().path("disk.img")).unwrap();
        assert_eq!((disk[0], disk[512]), (0xaa, 1));
    }
}

/// A hold runs out of time, and nobody but the pause-timeout ends it.
fn expect_end_in_time(server: &Server, client: &mut Client) {
    let mut holder = server.controller();
    let since = Instant::now();
    holder.send(b"+");
    holder.expect("+");
    let held = client.send(WRITE);
    client.reply_within(held, LIMIT + PROMPT).expect("the pause ends").expect("success");
    assert!(since.elapsed() >= LIMIT, "after {:?}", since.elapsed());
    holder.send(b"-");
    holder.expect("X");
}

/// A pipe by name in the server's folder, `stderr`, and an end of it that reads.
fn pipe(setup: &Setup) -> File {
    make_fifo(&setup.path("stderr"));
    // To read and write: then nobody has to be there to open it.
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    open.open(setup.path("stderr")).unwrap()
}

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    let parameters = ["pause-timeout=600ms", "pause-hold=true"];
    let setup = Setup::with_disk(1).verbose().parameters(&parameters);
    let reader = pipe(&setup);
    let server = with(setup, "2>stderr").start();
    let mut client = Client::connect(&server);
    drop(reader);
    expect_a_whole_pause(&server, &mut client);
    expect_end_in_time(&server, &mut client);
    client.leave();
    server.stop();
}

/// Runs its arguments behind the second one with a standard error that is full:
/// a pipe or a Unix socket, by path.
const STUCK: &str = r##"
import os, socket, sys
kind, path = sys.argv[1:3]
if kind == "pipe":
    log = os.open(path, os.O_WRONLY)
else:
    log = socket.socket(socket.AF_UNIX)
    log.connect(path)
    log = log.detach()
os.set_blocking(log, False)
try:
    while True:
        os.write(log, b"#" * 512)
except BlockingIOError:
    os.set_blocking(log, True)
os.dup2(log, 2)
os.close(log)
os.execvp(sys.argv[3], sys.argv[3:])
"##;

/// A server whose log is `kind` and takes nothing, and the end that reads it.
fn start_with_stuck_log(kind: &str) -> (Server, Box<dyn Read>) {
    let setup = memory().parameters(&["pause-timeout=600ms", "pause-hold=true"]);
    let path = setup.path("stderr");
    let path = path.to_str().unwrap();
    let python = ["env", "-u", "PYTHONHOME", "/usr/bin/python3", "-c", STUCK, kind, path];
    if kind == "pipe" {
        let reader = pipe(&setup);
        (setup.under(&python).start(), Box::new(reader))
    } else {
        let listener = UnixListener::bind(path).unwrap();
        let server = setup.under(&python).start();
        let (reader, _) = listener.accept().unwrap();
        reader.set_nonblocking(true).unwrap();
        (server, Box::new(reader))
    }
}

/// What has come since it was read last, up to `end`.
fn read_up_to(reader: &mut dyn Read, end: &str) -> String {
    let mut text = String::new();
    eventually(end, GENEROUS, || {
        match reader.read_to_string(&mut text) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?} after {text}"),
        }
        text.contains(end)
    });
    text.trim_start_matches('#').to_owned()
}

fn a_log_that_nobody_reads_keeps_nothing_from_being_heard(kind: &str) {
    let (server, mut reader) = start_with_stuck_log(kind);
    let mut client = Client::connect(&server);
    expect_end_in_time(&server, &mut client);
    expect_a_whole_pause(&server, &mut client);
    let mut holder = server.controller();
    let hold_and_resume = |holder: &mut Controller| {
        holder.send(b"+");
        holder.expect("+");
        server.controller().resume();
        holder.send(b"-");
        holder.expect("X");
    };
    for _ in 0..100 {
        hold_and_resume(&mut holder);
    }
    // It does not ask again and again whether the log takes something.
    server.expect_no_busy_loop(|| thread::sleep(Duration::from_secs(1)));

    // Each of these is an error, and they were kept as long as there was room.
    let log = read_up_to(&mut *reader, "are lost");
    let mut lines = log.lines();
    expect_line(lines.next().unwrap(), &["error: ", "pause-timeout"]);
    let lost = lines.next_back().unwrap().split_whitespace().find_map(|word| word.parse().ok());
    let told = lines.filter(|line| line.contains("error: ")).count();
    assert_eq!(told + lost.unwrap_or(0_usize), 100, "{log}");
    assert!(told >= 50, "{log}");
    // From here on it is as ever.
    hold_and_resume(&mut holder);
    let log = read_up_to(&mut *reader, "error: ");
    assert_eq!(log.lines().count(), 1, "{log}");
    client.leave();
    server.stop();
}

#[test]
fn a_pipe_for_the_log_that_nobody_reads_keeps_nothing_from_being_heard() {
    a_log_that_nobody_reads_keeps_nothing_from_being_heard("pipe");
}

#[test]
fn a_socket_for_the_log_that_nobody_reads_keeps_nothing_from_being_heard() {
    a_log_that_nobody_reads_keeps_nothing_from_being_heard("socket");
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_the_server_from_ending() {
    for kind in ["pipe", "socket"] {
        let (server, _reader) = start_with_stuck_log(kind);
        let mut client = Client::connect(&server);
        // Something is left unsaid.
        expect_end_in_time(&server, &mut client);
        client.leave();
        server.controller().pause();
        server.stop();
    }
}

/// nbdkit has an error of its own to say for each, and waits for the log.
#[test]
fn held_requests_end_at_a_shutdown_as_soon_as_the_log_is_read() {
    let (server, mut reader) = start_with_stuck_log("pipe");
    let mut client = Client::connect(&server);
    server.controller().pause();
    let held = client.send(WRITE);
    client.all_read_by_server();
    server.terminate();
    let reply = client.reply_within(held, A_WHILE).or_else(|| {
        read_up_to(&mut *reader, "error: ");
        client.reply_within(held, PROMPT)
    });
    assert_eq!(reply, Some(Err(libc::ESHUTDOWN)));
    drop((client, reader));
    server.ended(PROMPT).well();
}

#[test]
fn debug_messages_that_nobody_reads_keep_no_command_from_being_heard() {
    let setup = memory().verbose();
    let reader = pipe(&setup);
    let server = with(setup, "2>stderr").start();
    let mut controller = server.controller();
    // Together far more than a pipe takes.
    for _ in 0..2000 {
        controller.pause();
        controller.resume();
    }
    // nbdkit itself has something to say at its end.
    drop(reader);
    server.stop();
}

// A file system that takes no socket.

/// Starts nbdkit with its control socket in a folder `full` of its own, which
/// is a tmpfs with these options, and returns what it says. None, and a word
/// about it, where that can't be had.
fn refusal_on_tmpfs(options: &str) -> Option<(String, Finished)> {
    let may = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(words).args(["mount", "-t", "tmpfs", "tmpfs", "/tmp"]);
        run(command).status.success()
    };
    let unshare = [&["--mount"][..], &["--user", "--map-root-user", "--mount"]];
    let Some(unshare) = unshare.into_iter().find(|words| may(words)) else {
        println!("SKIPPED: {options}: this user may not mount a tmpfs, not even in a namespace");
        return None;
    };
    let setup = memory().control(Some("full/control"));
    fs::create_dir(setup.path("full")).unwrap();
    let script = format!("mount -t tmpfs -o {options} tmpfs full && exec \"$@\"");
    let words = [&["unshare"], unshare, &["bash", "-c", &script, "bash"]].concat();
    let path = setup.path("full/control").to_str().unwrap().to_owned();
    Some((path, setup.under(&words).refusal()))
}

#[test]
fn a_full_disk_for_the_control_socket_is_told_by_its_path() {
    // The folder itself is the one file.
    if let Some((path, refusal)) = refusal_on_tmpfs("nr_inodes=1") {
        let path = format!("pause-control={path}");
        expect_line(&refusal.stderr, &["error: ", &path, "No space left", "make room"]);
    }
}

#[test]
fn a_read_only_disk_for_the_control_socket_is_told_by_its_path() {
    if let Some((path, refusal)) = refusal_on_tmpfs("ro") {
        let path = format!("pause-control={path}");
        expect_line(&refusal.stderr, &["error: ", &path, "Read-only file system"]);
    }
}

// A plugin that fails.

const ERRORS: [i32; 3] = [libc::EIO, libc::ENOSPC, libc::EPERM];

/// A plugin that refuses each request with the error that is in the file
/// `error`, and says so at length.
fn failing_plugin() -> Setup {
    let fails = "cat error >&2; echo ' and more about it' >&2; exit 1";
    let mut words = vec!["eval".to_owned(), "get_size=echo 1M".to_owned()];
    for can in ["write", "flush", "trim", "zero", "extents"] {
        words.push(format!("can_{can}=exit 0"));
    }
    words.push("can_cache=echo native".to_owned());
    words.push("can_fua=echo none".to_owned());
    words.push("thread_model=echo parallel".to_owned());
    for call in ["pread", "flush", "trim", "zero", "extents", "cache"] {
        words.push(format!("{call}={fails}"));
    }
    // What it does not read would be another error.
    words.push(format!("pwrite=cat >/dev/null; {fails}"));
    Setup::new(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// One request of each kind fails with `error`.
fn expect_errors(client: &mut Client, error: i32) {
    for request in ONE_OF_EACH {
        let ticket = client.send(request);
        assert_eq!(client.reply(ticket), Err(error), "{request:?}");
    }
}

fn name_of(error: i32) -> &'static str {
    match error {
        libc::EIO => "EIO",
        libc::ENOSPC => "ENOSPC",
        _ => "EPERM",
    }
}

#[test]
fn a_plugin_that_fails_everything_is_paused_and_its_errors_reach_the_client() {
    let server = failing_plugin().parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    for error in ERRORS {
        fs::write(server.path("error"), name_of(error)).unwrap();
        expect_errors(&mut client, error);
        for (close, closed, open, opened) in [(b"p", "P", b"r", "R"), (b"+", "+", b"-", "-")] {
            let mut controller = server.controller();
            controller.send(close);
            controller.expect(closed);
            let held: Vec<Ticket> = ONE_OF_EACH.map(|request| client.send(request)).to_vec();
            client.expect_held(&held, A_WHILE / 3);
            controller.send(open);
            controller.expect(opened);
            for ticket in held {
                assert_eq!(client.reply(ticket), Err(error));
            }
        }
    }
    client.leave();
    server.stop();
}

#[test]
fn a_filter_below_that_fails_everything_is_paused_and_its_errors_reach_the_client() {
    let server = Setup::with_disk(1)
        .below("error", &["error=ENOSPC", "error-rate=100%"])
        .parameters(&["pause-flush=true"])
        .start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for _ in 0..3 {
        // It lets a flush through, which is all that the pause wants.
        controller.pause();
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        assert_eq!(client.reply(held), Err(libc::ENOSPC));
    }
    client.leave();
    assert!(is_zero(&server.stop().path("disk.img"), 0, 1 << 20));
}

#[test]
fn what_a_plugin_that_fails_everything_cannot_flush_is_told_and_requests_flow() {
    let server = failing_plugin().parameters(&["pause-flush=true"]).start();
    fs::write(server.path("error"), "EIO").unwrap();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    // Nothing was written that could be lost.
    controller.pause();
    controller.resume();
    for error in ERRORS {
        fs::write(server.path("error"), name_of(error)).unwrap();
        let ticket = client.send(WRITE);
        assert_eq!(client.reply(ticket), Err(error));
        // It may have been written in part.
        let told = server.messages_count("given up");
        controller.send(b"p");
        controller.expect("X");
        assert_eq!(server.messages_count("given up"), told + 1);
        let words = io::Error::from_raw_os_error(error).to_string();
        expect_line(&server.messages(), &["error: ", "pause-flush: ", &words, "given up"]);
        expect_errors(&mut client, error);
    }
    client.leave();
    server.stop();
}

// A plugin that never returns.

/// A plugin whose reads, and whose opening of a connection, return when there
/// is a file `go` in the folder.
fn hanging_plugin() -> Setup {
    Setup::new(&[
        "eval",
        "thread_model=echo parallel",
        "open=[ ! -e closed ] || while [ ! -e go ]; do sleep 0.01; done",
        "get_size=echo 1M",
        "pread=touch inside; while [ ! -e go ]; do sleep 0.01; done; head -c $3 /dev/zero",
        "pwrite=cat >>written",
    ])
    .parameters(&["pause-hold=true"])
}

/// A client with a read that the plugin does not return from.
fn with_hanging_read(server: &Server) -> (Client, Ticket) {
    let mut client = Client::connect(server);
    let read = client.send(READ);
    eventually("the read is in the plugin", GENEROUS, || server.path("inside").exists());
    (client, read)
}

fn let_it_return(server: &Server) {
    fs::write(server.path("go"), "").unwrap();
}

/// The plugin returns at last, and the server ends well.
fn end<const N: usize>(server: Server, clients: [Client; N]) {
    let_it_return(&server);
    drop(clients);
    server.stop();
}

#[test]
fn a_pause_under_a_plugin_that_never_returns_is_ended_by_r_at_once() {
    let server = hanging_plugin().start();
    let (stuck, _) = with_hanging_read(&server);
    let mut client = Client::connect(&server);
    for command in [b"p", b"+", b"p"] {
        let mut waiting = server.controller();
        waiting.send(command);
        waiting.expect_silence(A_WHILE);
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        server.controller().resume();
        waiting.expect("X");
        assert!(matches!(client.reply_within(held, PROMPT), Some(Ok(_))));
    }
    end(server, [stuck, client]);
}

#[test]
fn a_pause_under_a_plugin_that_never_returns_is_ended_by_its_timeout() {
    let server = hanging_plugin().parameters(&["pause-timeout=600ms"]).start();
    let (stuck, _) = with_hanging_read(&server);
    let mut client = Client::connect(&server);
    for command in [b"p", b"+"] {
        let mut waiting = server.controller();
        let since = Instant::now();
        waiting.send(command);
        all_is_heard(&server);
        let held = client.send(WRITE);
        assert!(matches!(client.reply_within(held, LIMIT + PROMPT), Some(Ok(_))));
        assert!(since.elapsed() >= LIMIT, "after {:?}", since.elapsed());
        waiting.expect("X");
    }
    expect_line(&server.messages(), &["error: ", "pause-timeout: ", "600ms"]);
    end(server, [stuck, client]);
}

#[test]
fn a_plugin_that_returns_at_last_lets_the_pause_come_into_force() {
    let server = hanging_plugin().start();
    let (mut stuck, read) = with_hanging_read(&server);
    let mut waiting = server.controller();
    waiting.send(b"p");
    waiting.expect_silence(A_WHILE);
    let_it_return(&server);
    waiting.expect("P");
    assert!(stuck.reply(read).is_ok());
    let held = stuck.send(READ);
    stuck.expect_held(&[held], A_WHILE);
    waiting.resume();
    assert!(stuck.reply(held).is_ok());
    end(server, [stuck]);
}

#[test]
fn a_plugin_that_lets_no_client_in_does_not_keep_a_pause_from_coming_into_force() {
    let server = hanging_plugin().start();
    let mut client = Client::connect(&server);
    fs::write(server.path("closed"), "").unwrap();
    assert!(Client::connect_within(&server, A_WHILE).is_none());
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
    end(server, [client]);
}

/// nbdkit cannot end while the plugin works on a request. All else has its end.
#[test]
fn sigterm_under_a_plugin_that_never_returns_answers_all_others_and_the_server_goes_with_it() {
    let mut server = hanging_plugin().start();
    let (mut stuck, read) = with_hanging_read(&server);
    let mut client = Client::connect(&server);
    let mut waiting = server.controller();
    waiting.send(b"p");
    all_is_heard(&server);
    let held = [client.send(WRITE), stuck.send(WRITE)];
    client.all_read_by_server();
    stuck.all_read_by_server();
    server.terminate();
    assert_eq!(client.reply_within(held[0], PROMPT), Some(Err(libc::ESHUTDOWN)));
    assert_eq!(stuck.reply_within(held[1], PROMPT), Some(Err(libc::ESHUTDOWN)));
    drop(client);
    stuck.expect_held(&[read], A_WHILE);
    assert!(server.is_running());
    // Whoever waits can still give up.
    server.controller().resume();
    waiting.expect("X");
    let_it_return(&server);
    assert!(stuck.reply_within(read, PROMPT).is_some());
    drop(stuck);
    let ended = server.ended(PROMPT).well();
    assert!(!ended.path("written").exists());
}

// Another time of day.

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
    let setup = Setup::with_disk(1).logged();
    let setup = setup.parameters(&["pause-timeout=600ms", "pause-hold=true"]);
    let (clock, part) = (setup.path("clock"), setup.path("clock.part"));
    let environment = [
        format!("LD_PRELOAD={}", libfaketime().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // Debian 13's waits for its own semaphore for ever when the clock is set.
        "FAKETIME_DISABLE_SHM=1".to_owned(),
        // As the kernel has it: setting the clock leaves that one alone.
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        "TZ=UTC".to_owned(),
    ];
    let set = |to: &str| {
        // At once, so that the server never sees half of it.
        fs::write(&part, format!("@{to}\n")).unwrap();
        fs::rename(&part, &clock).unwrap();
    };
    set(BEFORE);
    let words: Vec<&str> =
        ["env"].into_iter().chain(environment.iter().map(String::as_str)).collect();
    let server = setup.under(&words).start();
    let mut client = Client::connect(&server);
    for after in
        ["1999-09-09 12:30:30", "2020-02-02 12:29:30", "2020-02-02 12:31:30", "2033-03-03 12:30:30"]
    {
        for (command, reply) in [(b"p", "P"), (b"+", "+")] {
            set(BEFORE);
            let mut controller = server.controller();
            let since = Instant::now();
            controller.send(command);
            controller.expect(reply);
            set(after);
            let held = client.send(WRITE);
            client.reply_within(held, LIMIT + PROMPT).expect("in time").expect("success");
            assert!(since.elapsed() >= LIMIT, "set to {after}: {:?}", since.elapsed());
            // The server believes it, to the minute.
            let log = server.logged();
            let line = log.lines().rfind(|line| line.contains(" Write ")).unwrap();
            assert!(line.starts_with(&after[..16]), "{after}: {line}");
        }
    }
    client.leave();
    server.stop();
}

// Signals.

#[test]
fn sigpipe_harms_nobody_however_the_server_was_started() {
    for start_with in [&["env", "--default-signal=PIPE"], &["env", "--ignore-signal=PIPE"]] {
        let server = Setup::with_disk(1).under(start_with).start();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        let control = server.control_thread();
        for _ in 0..20 {
            send_signal(server.pid(), libc::SIGPIPE);
            send_signal_to_thread(server.pid(), control, libc::SIGPIPE);
            // Nobody is there for the replies.
            server.controller().send(b"ppppxxxx");
        }
        all_is_heard(&server);
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        client.reply(held).expect("success");
        client.leave();
        server.stop();
    }
}

/// tgkill(2), of a thread that is known to be there still.
fn send_signal_to_thread(pid: u32, thread: u32, signal: i32) {
    // SAFETY: tgkill(2) takes three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) };
    assert_eq!(sent, 0, "tgkill {pid} {thread}: {}", io::Error::last_os_error());
}

#[test]
fn sighup_sigint_and_sigquit_end_a_paused_server_as_sigterm_does() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        let server = Setup::with_disk(1).start();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let held = client.send(WRITE);
        client.all_read_by_server();
        send_signal(server.pid(), signal);
        assert_eq!(client.reply_within(held, PROMPT), Some(Err(libc::ESHUTDOWN)), "{signal}");
        drop(client);
        controller.expect_closed();
        let ended = server.ended(PROMPT).well();
        assert!(is_zero(&ended.path("disk.img"), 0, 512));
    }
}

#[test]
fn what_was_sent_to_a_stopped_server_is_answered_in_order_when_it_goes_on() {
    let server = Setup::with_disk(1).parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    let mut before = server.controller();
    before.pause();
    let held = client.send(WRITE);
    client.all_read_by_server();
    for _ in 0..3 {
        stop(server.pid());
        before.send(b"rp?p");
        let mut new: Vec<Controller> = (0..5).map(|_| server.controller()).collect();
        for controller in &mut new {
            controller.send(b"x+p-\n?p");
        }
        before.expect_silence(A_WHILE);
        go_on(server.pid());
        before.expect("RPXP");
        for controller in &mut new {
            controller.expect("X+P-XP");
        }
    }
    // Between two of those the write may have gone on, or not.
    before.resume();
    client.reply(held).expect("success");
    // Also one that is gone is heard. Nobody else asks for this pause.
    stop(server.pid());
    server.controller().send(b"p");
    go_on(server.pid());
    all_is_heard(&server);
    let held = client.send(Request::Write { offset: 512, byte: 1 });
    client.expect_held(&[held], A_WHILE);
    before.resume();
    client.reply(held).expect("success");
    client.leave();
    let disk = fs::read(server.stop().path("disk.img")).unwrap();
    assert_eq!((disk[0], disk[512]), (0xaa, 1));
}

#[test]
fn a_pause_whose_time_runs_out_while_the_server_is_stopped_is_over_when_it_goes_on() {
    let server =
        Setup::with_disk(1).parameters(&["pause-timeout=600ms", "pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    for _ in 0..3 {
        let mut holder = server.controller();
        holder.send(b"+");
        holder.expect("+");
        let held = client.send(WRITE);
        client.all_read_by_server();
        stop(server.pid());
        thread::sleep(LIMIT);
        // Sent before anything tells the server that it is too late.
        holder.send(b"-");
        go_on(server.pid());
        holder.expect("X");
        assert!(matches!(client.reply_within(held, PROMPT), Some(Ok(_))));
    }
    assert_eq!(server.messages_count("pause-timeout: "), 3, "{}", server.messages());
    // One that has time left has it, and no more.
    let mut controller = server.controller();
    let since = Instant::now();
    controller.pause();
    stop(server.pid());
    thread::sleep(LIMIT / 2);
    go_on(server.pid());
    let held = client.send(WRITE);
    assert!(matches!(client.reply_within(held, LIMIT + PROMPT), Some(Ok(_))));
    assert!(since.elapsed() >= LIMIT, "after {:?}", since.elapsed());
}

#[test]
fn a_drain_goes_on_when_a_stopped_server_does() {
    let server = Setup::with_disk(1).logged().below("delay", &["rdelay=500ms"]).start();
    let mut client = Client::connect(&server);
    for round in 1..=3 {
        let read = client.send(READ);
        let is_below = format!(" Read id={}", 2 * round - 1);
        eventually("the read is below us", GENEROUS, || server.logged().contains(&is_below));
        let mut controller = server.controller();
        controller.send(b"p");
        all_is_heard(&server);
        stop(server.pid());
        thread::sleep(A_WHILE);
        go_on(server.pid());
        controller.expect("P");
        assert!(client.reply(read).is_ok());
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        client.reply(held).unwrap();
    }
}

#[test]
fn who_dies_while_the_server_is_stopped_is_noticed_when_it_goes_on() {
    const FAR: u64 = 512 * 1024;
    let server = Setup::with_disk(1).parameters(&["pause-hold=true"]).start();
    let at_rest = server.threads_at_rest();
    let mut holders = [server.controller(), server.controller()];
    for holder in &mut holders {
        holder.send(b"+");
        holder.expect("+");
    }
    let [dying, mut holder] = holders;
    let writer = Writer::start(&server, 8, FAR);
    thread::sleep(A_WHILE);
    stop(server.pid());
    writer.kill();
    drop(dying);
    go_on(server.pid());
    eventually("the client's threads are freed", PROMPT, || server.threads() == at_rest);
    holder.send(b"-");
    holder.expect("-");
    // The other hold went with its connection, or this would be held.
    let mut client = Client::connect(&server);
    let read = client.send(READ);
    assert!(matches!(client.reply_within(read, PROMPT), Some(Ok(_))));
    client.leave();
    assert!(is_zero(&server.stop().path("disk.img"), FAR, 8 * 512));
}

#[test]
fn a_stopped_server_that_is_told_to_end_does_so_when_it_goes_on() {
    let server = Setup::with_disk(1).start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(WRITE);
    client.all_read_by_server();
    stop(server.pid());
    server.terminate();
    client.expect_held(&[held], A_WHILE);
    go_on(server.pid());
    assert_eq!(client.reply_within(held, PROMPT), Some(Err(libc::ESHUTDOWN)));
    drop(client);
    let ended = server.ended(PROMPT).well();
    assert!(is_zero(&ended.path("disk.img"), 0, 512));
}

// A plugin that forks.

#[test]
fn clients_connect_and_leave_during_a_pause_under_a_plugin_that_forks_for_each_call() {
    let server = Setup::new(&[
        "eval",
        "thread_model=echo parallel",
        "open=echo . >>opened",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >>written",
        "flush=exit 0",
    ])
    .parameters(&["pause-flush=true"])
    .start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    let mut controller = server.controller();
    controller.pause();
    let mut held = vec![client.send(WRITE)];
    for _ in 0..10 {
        Client::connect(&server).leave();
        let mut late = Client::connect(&server);
        let write = late.send(WRITE);
        late.all_read_by_server();
        held.push(client.send(WRITE));
        late.expect_held(&[write], A_WHILE / 10);
    }
    client.expect_held(&held, A_WHILE);
    assert_eq!(fs::metadata(server.path("written")).unwrap().len(), 512);
    assert!(fs::read(server.path("opened")).unwrap().len() >= 20 * 2);
    controller.resume();
    for ticket in &held {
        client.reply(*ticket).unwrap();
    }
    client.leave();
    // Those that left with a write held are not among them.
    let ended = server.stop();
    let written = fs::metadata(ended.path("written")).unwrap().len();
    assert_eq!(written, (1 + held.len() as u64) * 512);
}

/// A disk in memory, with a thread in the background that forks all the time,
/// and children that end in all the ways there are. What has been done so far
/// is counted in the file `forks`.
const FORKING_PLUGIN: &str = r#"
import ctypes, os, pathlib, subprocess, sys, threading, time
import nbdkit

API_VERSION = 2
libc = ctypes.CDLL(None)
disk = bytearray(1024 * 1024)

def by_exit(): os._exit(1)
def by_exception(): sys.exit(1)
def by_c_exit_0(): libc.exit(0)
def by_c_exit_1(): libc.exit(1)

def fork(end):
    child = os.fork()
    if child == 0:
        end()
        os._exit(99)
    # One that hangs is seen by what is missing in the file.
    os.waitpid(child, 0)

def work():
    count = 0
    while True:
        for end in (by_exit, by_c_exit_0, by_c_exit_1):
            fork(end)
        in_thread = threading.Thread(target=fork, args=(by_exception,))
        in_thread.start()
        in_thread.join()
        subprocess.run(["true"], close_fds=False)
        count += 1
        pathlib.Path("forks.part").write_text(str(count))
        os.rename("forks.part", "forks")
        time.sleep(0.01)

def after_fork():
    fork(by_c_exit_1)
    threading.Thread(target=work, daemon=True).start()

def thread_model(): return nbdkit.THREAD_MODEL_PARALLEL
def open(readonly): return 1
def get_size(h): return len(disk)
def pread(h, buf, offset, flags): buf[:] = disk[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags): disk[offset:offset + len(buf)] = buf
"#;

#[test]
fn a_plugin_that_forks_all_the_time_leaves_the_pause_and_the_socket_alone() {
    let setup = Setup::new(&["python", "plugin.py"]);
    fs::write(setup.path("plugin.py"), FORKING_PLUGIN).unwrap();
    let server = setup.start();
    let forks = || -> u32 {
        fs::read_to_string(server.path("forks"))
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let many_forks = || {
        let before = forks();
        eventually("many forks", GENEROUS, || forks() >= before + 10);
    };
    many_forks();
    let socket = fs::metadata(server.control_path()).expect("the socket is there").ino();
    let mut client = Client::connect(&server);
    for byte in 1..=3 {
        let mut controller = server.controller();
        controller.pause();
        let held = client.send(Request::Write { offset: 0, byte });
        many_forks();
        server.controller().pause();
        let mut late = Client::connect(&server);
        let read = late.send(READ);
        late.expect_held(&[read], A_WHILE);
        client.expect_held(&[held], A_WHILE);
        controller.resume();
        client.reply(held).expect("success");
        late.reply(read).expect("success");
        assert_eq!(late.ask(READ), [byte; 512]);
        late.leave();
    }
    assert_eq!(fs::metadata(server.control_path()).expect("it still is").ino(), socket);
    client.leave();
    server.stop();
}

#[test]
fn a_child_of_the_plugin_that_outlives_a_killed_server_keeps_nothing_of_the_control_socket() {
    let setup = Setup::new(&[
        "eval",
        "open=sleep 30 >open.out 2>&1 & echo $! >child.part; mv child.part child",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
    ]);
    let server = setup.start();
    let mut controller = server.controller();
    controller.pause();
    let client = Client::connect(&server);
    let child = fs::read_to_string(server.path("child")).unwrap();
    let child: u32 = child.trim().parse().unwrap();
    send_signal(server.pid(), libc::SIGKILL);
    controller.expect_closed();
    // The kernel may close one a moment after the other.
    eventually("nobody listens", PROMPT, || {
        let connected = UnixStream::connect(server.control_path());
        connected.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    let next = memory().control(server.control_path().to_str()).start();
    next.controller().pause();
    assert!(process::is_alive(child), "this proves nothing");
    send_signal(child, libc::SIGKILL);
    drop(client);
    next.stop();
}

// Controllers that never read their replies.

/// Far more than a socket keeps, in both directions.
const MOST_UNREAD: usize = 16 << 20;

/// A controller that has sent so much, and read nothing, that the server takes
/// nothing of it any more.
fn stuck_controller(server: &Server, commands: &[u8]) -> Controller {
    let mut controller = server.controller();
    controller.stream().set_nonblocking(true).unwrap();
    let chunk = commands.repeat(4096);
    let (mut sent, mut full_since) = (0, None);
    while full_since.is_none_or(|since: Instant| since.elapsed() < A_WHILE) {
        match controller.stream().write(&chunk) {
            Ok(count) => {
                sent += count;
                assert!(sent < MOST_UNREAD, "replies that nobody reads pile up without end");
                full_since = None;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                full_since.get_or_insert_with(Instant::now);
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("{e}"),
        }
    }
    controller.stream().set_nonblocking(false).unwrap();
    controller
}

#[test]
fn controllers_that_never_read_their_replies_do_not_lock_the_operator_out() {
    let server = memory().start();
    let mut client = Client::connect(&server);
    let _stuck: Vec<Controller> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..64).map(|_| scope.spawn(|| stuck_controller(&server, b"x"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for _ in 0..3 {
        expect_a_whole_pause(&server, &mut client);
    }
    client.leave();
    server.stop();
}

#[test]
fn controllers_that_never_read_their_replies_do_not_keep_the_server_from_ending() {
    let server = Setup::with_disk(1).parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    let mut stuck: Vec<Controller> = [&b"p"[..], b"+", b"x"]
        .into_iter()
        .map(|command| stuck_controller(&server, command))
        .collect();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    server.terminate();
    assert_eq!(client.reply_within(held, PROMPT), Some(Err(libc::ESHUTDOWN)));
    drop(client);
    server.ended(PROMPT).well();
    // They get what had been sent, and the end.
    for controller in &mut stuck {
        let mut replies = Vec::new();
        let _ = controller.stream().read_to_end(&mut replies);
        assert!(!replies.is_empty());
    }
}

#[test]
fn a_hold_of_a_controller_that_never_reads_its_replies_lasts_until_it_dies() {
    let server = memory().parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    let holder = stuck_controller(&server, b"+");
    let held = client.send(READ);
    client.expect_held(&[held], A_WHILE);
    drop(holder);
    assert!(matches!(client.reply_within(held, PROMPT), Some(Ok(_))));
    client.leave();
    server.stop();
}
