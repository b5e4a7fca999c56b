//! A log that takes nothing: its disk is full, its reader is gone, or nobody reads it.
//! A pause comes and ends as ever, and what is left unsaid is counted. What a log that
//! is read has to say is checked in the other files.

use super::*;

/// A pause-timeout that is waited for: long enough for a whole pause before.
const LIMIT: Duration = Duration::from_secs(2);

fn limited(setup: Setup) -> Setup {
    setup.holds().with("pause-timeout=2")
}

/// How the server is started so that a shell does `redirections` before.
fn with(setup: Setup, redirections: &str) -> Setup {
    setup.under(&["bash", "-c", &format!("exec \"$@\" {redirections}"), "bash"])
}

/// A hold runs out of time, and nobody but the pause-timeout ends it.
fn expect_end_in_time(server: &Server, client: &mut Client) {
    let mut holder = server.controller();
    let since = Instant::now();
    holder.hold();
    let held = client.send(WRITE);
    client.reply_within(held, LIMIT + PROMPT).expect("the pause ends").expect("success");
    assert!(since.elapsed() >= LIMIT, "after {:?}", since.elapsed());
    holder.ask("-", "X");
}

/// A pipe by name in the server's folder, `stderr`, and an end of it that reads.
fn pipe(setup: &Setup) -> File {
    make_fifo(&setup.path("stderr"));
    // To read and write: then nobody has to be there to open it.
    let mut open = File::options();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    open.open(setup.path("stderr")).unwrap()
}

#[test]
fn a_log_whose_disk_is_full_or_whose_reader_is_gone_stops_nothing() {
    for (redirection, options) in
        [("2>/dev/full", [].as_slice()), ("2>/dev/full", &["-v"]), ("2>stderr", &["-v"])]
    {
        let setup = limited(Setup::with_disk(1)).options(options).flushes();
        let reader = pipe(&setup);
        let server = with(setup, redirection).start();
        let mut client = Client::connect(&server);
        drop(reader);
        client.expect_a_whole_pause(&server);
        expect_end_in_time(&server, &mut client);
        server.controller().ask("?+-r", "H+-R");
        client.ask(Write(512, 1));
        client.leave();
        let disk = server.stop().disk();
        assert_eq!((disk[0], disk[512]), (0xaa, 1));
    }
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
fn start_with_stuck_log(setup: Setup, kind: &str) -> (Server, Box<dyn io::Read>) {
    println!("a {kind}");
    let path = setup.path("stderr");
    let path = path.to_str().unwrap();
    let python = ["env", "-u", "PYTHONHOME", clients::PYTHON, "-c", STUCK, kind, path];
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

/// What has come since it was read last, up to a line with `end`.
fn read_up_to(reader: &mut dyn io::Read, end: &str) -> String {
    let mut text = String::new();
    eventually(end, GENEROUS, || {
        match reader.read_to_string(&mut text) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?} after {text}"),
        }
        // nbdkit may write a line in several pieces.
        text.find(end).is_some_and(|at| text[at..].contains('\n'))
    });
    text.trim_start_matches('#').to_owned()
}

fn in_memory() -> Setup {
    limited(Setup::in_memory())
}

#[test]
fn a_log_that_nobody_reads_keeps_nothing_from_being_heard() {
    for kind in ["pipe", "socket"] {
        let (server, mut reader) = start_with_stuck_log(in_memory(), kind);
        let mut client = Client::connect(&server);
        expect_end_in_time(&server, &mut client);
        client.expect_a_whole_pause(&server);
        let mut holder = server.controller();
        let hold_and_resume = |holder: &mut Controller| {
            holder.hold();
            server.controller().resume();
            holder.ask("-", "X");
        };
        for _ in 0..100 {
            hold_and_resume(&mut holder);
        }
        // It does not ask again and again whether the log takes something.
        server.expect_no_busy_loop(|| thread::sleep(Duration::from_secs(1)));

        // Each of these is an error, and they were kept as long as there was room.
        let log = read_up_to(&mut *reader, "blocked for too long");
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
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_a_paused_server_from_ending() {
    for (kind, leaves_something_unsaid) in
        [("pipe", true), ("pipe", false), ("socket", true), ("socket", false)]
    {
        let (server, _reader) = start_with_stuck_log(in_memory(), kind);
        let mut client = Client::connect(&server);
        if leaves_something_unsaid {
            expect_end_in_time(&server, &mut client);
        }
        client.leave();
        server.controller().pause();
        // The end is noticed by asking nbdkit, which says what it has found.
        thread::sleep(A_WHILE);
        server.stop();
    }
}

/// What it can't do is not said then.
#[test]
fn nor_where_the_socket_cannot_be_removed() {
    if !is_root() {
        println!("SKIPPED: only root can use nbdkit -u");
        return;
    }
    let setup = in_memory().changing_user().control(Some("run/control"));
    fs::create_dir(setup.path("run")).unwrap();
    let (server, _reader) = start_with_stuck_log(setup, "pipe");
    server.control_thread();
    let control = server.control_path();
    server.terminate();
    let ended = server.ended(GENEROUS);
    assert!(control.exists(), "it could be removed");
    ended.process.succeeded();
}

/// nbdkit has an error of its own to say for each, and waits for the log.
#[test]
fn held_requests_end_at_a_shutdown_as_soon_as_the_log_is_read() {
    let (server, mut reader) = start_with_stuck_log(in_memory(), "pipe");
    let mut client = Client::connect(&server);
    server.controller().pause();
    let held = client.held(WRITE);
    server.terminate();
    thread::sleep(A_WHILE);
    read_up_to(&mut *reader, "error: ");
    client.expect_dropped(held, PROMPT);
    drop((client, reader));
    server.ended(PROMPT).well();
}

#[test]
fn debug_messages_that_nobody_reads_keep_no_command_from_being_heard() {
    let setup = Setup::in_memory().verbose();
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

/// For each of thousands of records it could be waited a little.
#[test]
fn a_log_that_is_read_slowly_keeps_no_resume_from_being_heard() {
    let setup = Setup::in_memory().verbose();
    let mut reader = pipe(&setup);
    let page = 4096;
    // SAFETY: fcntl(2) takes a descriptor that is open, and two integers.
    assert_eq!(unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, page) }, page);
    // It ends when the other end of this is dropped.
    let (_over, is_over) = mpsc::channel::<()>();
    thread::spawn(move || {
        let slow = Duration::from_millis(80);
        while is_over.recv_timeout(slow) == Err(RecvTimeoutError::Timeout) {
            let _ = reader.read(&mut vec![0; page as usize]);
        }
    });
    let server = with(setup, "2>stderr").start();
    server.control_thread();
    let mut busy = server.controller();
    busy.send(&b"pr".repeat(1024));
    server.controller().resume();
    busy.expect(&"PR".repeat(1024));
    server.stop();
}
