//! Plugins of all kinds below the filter: in other languages and with other thread
//! models, some that fail every request, never return, or fork. A pause works there
//! as it does everywhere, or comes and ends as far as it can.

use super::*;

// Plugins that work, and run a process or an interpreter for each request.

/// What the plugin serves is served, and not while the server is paused.
fn a_pause_works_over(setup: Setup) {
    let mut stage = Stage::on(setup);
    stage.client().ask(Write(512, 0xee));
    stage.play("read A:p=P held A:r=R flow");
    assert_eq!(stage.client().ask(Read(512)), [0xee; 512]);
    stage.end();
}

#[test]
fn a_pause_works_over_a_plugin_in_shell_of_each_thread_model() {
    for model in
        ["parallel", "serialize_requests", "serialize_all_requests", "serialize_connections"]
    {
        let setup = Setup::new(&[
            "eval",
            &format!("thread_model=echo {model}"),
            "get_size=stat -L -c %s disk.img",
            "pread=dd if=disk.img skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none",
            "pwrite=dd of=disk.img seek=$4 oflag=seek_bytes conv=notrunc status=none",
        ]);
        fs::write(setup.path("disk.img"), vec![0; 1 << 20]).unwrap();
        a_pause_works_over(setup);
    }
}

/// A disk in memory, in Python.
const PYTHON: &str = "
import ctypes, os, pathlib, subprocess, sys, threading, time
import nbdkit

API_VERSION = 2
disk = bytearray(1 << 20)

def open(readonly): return 1
def get_size(h): return len(disk)
def pread(h, buf, offset, flags): buf[:] = disk[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags): disk[offset:offset + len(buf)] = buf
";

pub fn in_python(more: &str) -> Setup {
    let setup = Setup::new(&["python", "./disk.py"]);
    fs::write(setup.path("disk.py"), [PYTHON, more].concat()).unwrap();
    setup
}

#[test]
fn a_pause_works_over_a_plugin_in_python() {
    a_pause_works_over(in_python(""));
}

// A plugin, or a filter, that fails.

const ERRORS: [(i32, &str); 3] =
    [(libc::EIO, "EIO"), (libc::ENOSPC, "ENOSPC"), (libc::EPERM, "EPERM")];

/// A plugin that refuses each request with the error that is in the file `error`, and
/// says so at length.
fn failing_plugin() -> Setup {
    let fails = "cat error >&2; echo ' and more about it' >&2; exit 1";
    let setup = Setup::new(&["eval", "get_size=echo 1M", "thread_model=echo parallel"])
        .parameters(&["can_write=exit 0", "can_flush=exit 0", "can_trim=exit 0"])
        .parameters(&["can_zero=exit 0", "can_extents=exit 0", "can_cache=echo native"])
        // What it does not read would be another error.
        .parameters(&["can_fua=echo none", &format!("pwrite=cat >/dev/null; {fails}")]);
    ["pread", "flush", "trim", "zero", "extents", "cache"]
        .iter()
        .fold(setup, |setup, call| setup.with(&format!("{call}={fails}")))
}

/// One request of each kind fails with `error`.
fn expect_errors(client: &mut Client, error: i32) {
    for request in ONE_OF_EACH {
        let ticket = client.send(request);
        assert_eq!(client.reply(ticket), Err(error), "{request:?}");
    }
}

#[test]
fn a_plugin_that_fails_everything_is_paused_and_its_errors_reach_the_client() {
    let mut stage = Stage::on(failing_plugin().holds());
    for (error, name) in ERRORS {
        fs::write(stage.server.path("error"), name).unwrap();
        expect_errors(stage.client(), error);
        for (close, open) in [("A:p=P", "A:r=R"), ("A:+=+", "A:-=-")] {
            let client = stage.play(close).client();
            let held = ONE_OF_EACH.map(|request| client.send(request));
            client.expect_held(&held, A_WHILE / 3);
            stage.play(open);
            held.iter().for_each(|&held| assert_eq!(stage.client().reply(held), Err(error)));
        }
    }
    stage.end();
}

#[test]
fn a_filter_below_that_fails_everything_is_paused_and_its_errors_reach_the_client() {
    let setup = Setup::with_disk(1).below("error", &["error=ENOSPC", "error-rate=100%"]);
    let mut stage = Stage::on(setup.flushes());
    for _ in 0..3 {
        // It lets a flush through, which is all that the pause wants.
        let held = stage.play("A:p=P").client().held(WRITE);
        assert_eq!(stage.play("A:r=R").client().reply(held), Err(libc::ENOSPC));
    }
    assert!(is_zero(&stage.end().path("disk.img"), 0, 1 << 20));
}

#[test]
fn what_a_plugin_that_fails_everything_cannot_flush_is_told_and_requests_flow() {
    let mut stage = Stage::on(failing_plugin().flushes());
    // A former server may have written, and that can't be flushed either.
    stage.play("A:p=X");
    for ((error, name), told) in ERRORS.into_iter().zip(2..) {
        fs::write(stage.server.path("error"), name).unwrap();
        let ticket = stage.client().send(WRITE);
        assert_eq!(stage.client().reply(ticket), Err(error));
        // It may have been written in part.
        stage.play("A:p=X");
        assert_eq!(stage.server.messages_count("gave up"), told);
        let words = io::Error::from_raw_os_error(error).to_string();
        expect_line(&stage.server.messages(), &["error: ", "pause-flush: ", &words, "gave up"]);
        expect_errors(stage.client(), error);
    }
    stage.end();
}

// A plugin that never returns. One whose pause has a time limit is in `timeout.rs`.

dialogues! {
    Setup::obedient().holds() => {
        a_pause_under_a_plugin_that_never_returns_is_ended_by_r_at_once:
            "reading A:p= held B:r=R A:=X flow A:+= held B:r=R A:=X flow A:p= held B:r=R A:=X flow";
        /// Those that are still to come pause anew.
        r_ends_the_pause_that_everybody_waits_for_and_no_other:
            "reading A:p= B:pp= C:r=R AB:=X B:= C:r=R B:=X flow";
        a_plugin_that_returns_at_last_lets_the_pause_come_into_force:
            "reading A:p= returns A:=P held A:r=R flow";
    }
}

#[test]
fn a_plugin_that_lets_no_client_in_does_not_keep_a_pause_from_coming_into_force() {
    let mut stage = Stage::on(Setup::obedient());
    stage.play("make:closed");
    assert!(Client::connect_within(&stage.server, A_WHILE).is_none());
    stage.play("A:p=P held A:r=R flow");
    stage.end();
}

/// nbdkit cannot end while the plugin works on a request. All else has its end.
#[test]
fn sigterm_under_a_plugin_that_never_returns_answers_all_others_and_the_server_goes_with_it() {
    let mut server = Setup::obedient().start();
    let (mut stuck, mut client) = (Client::connect(&server), Client::connect(&server));
    let read = stuck.read_stays_in_plugin(&server);
    let mut waiting = server.controller();
    waiting.send(b"p");
    server.all_is_heard();
    let held = [client.held(WRITE), stuck.held(WRITE)];
    server.terminate();
    client.expect_dropped(held[0], PROMPT);
    stuck.expect_dropped(held[1], PROMPT);
    drop(client);
    match nbdkit::cuts_connections() {
        // The reply goes with the connection.
        true => stuck.expect_dropped(read, PROMPT),
        false => stuck.expect_held(&[read], A_WHILE),
    }
    assert!(server.is_running());
    // Whoever waits can still give up.
    server.controller().resume();
    waiting.expect("X");
    server.remove("slow-read");
    if !nbdkit::cuts_connections() {
        assert!(stuck.reply_within(read, PROMPT).is_some());
    }
    drop(stuck);
    let ended = server.ended(PROMPT).well();
    assert!(!ended.path("written").exists());
}

/// Nobody can tell whether it is the last one of a file system, say. So it ends the
/// pause, though that isn't in force yet.
#[test]
fn a_write_that_may_not_be_dropped_ends_the_drain_of_a_server_that_is_told_to_end() {
    let mut stage = Stage::on(Setup::obedient().holds().logged_above());
    stage.play("reading A:p B:+ heard");
    clients::write_of_one_who_has_gone(&stage.server);
    assert!(!stage.server.path("written").exists());
    stage.play("term AB:=X await:written");
    stage.server.remove("slow-read");
    stage.end();
}

// A plugin that forks: its children, however they end and however long they live,
// leave the pause and the control socket alone.

#[test]
fn clients_connect_and_leave_during_a_pause_under_a_plugin_that_forks_for_each_call() {
    let server = Setup::obedient().flushes().logged_above().start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    let mut controller = server.controller();
    controller.pause();
    let mut held = vec![client.send(WRITE)];
    for round in 1..=10 {
        Client::connect(&server).leave();
        let mut late = Client::connect(&server);
        late.send(WRITE);
        held.push(client.send(WRITE));
        // One that goes before its write is held would have it carried out.
        server.wait_for_writes(2 + 2 * round);
    }
    client.expect_held(&held, A_WHILE);
    assert_eq!(server.size("written"), 512);
    controller.resume();
    held.iter().for_each(|&ticket| _ = client.goes_on(ticket));
    client.leave();
    // Those that left with a write held are not among them.
    let written = fs::metadata(server.stop().path("written")).unwrap().len();
    assert_eq!(written, (1 + held.len() as u64) * 512);
}

/// Forks all the time, in a thread in the background, children that end in all the
/// ways there are. What has been done so far is counted in the file `forks`.
const FORKING: &str = r#"
libc = ctypes.CDLL(None)

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
"#;

#[test]
fn a_plugin_that_forks_all_the_time_leaves_the_pause_and_the_socket_alone() {
    let mut stage = Stage::on(in_python(FORKING));
    let forks = |stage: &Stage| stage.server.content("forks").parse().unwrap_or(0);
    let many_forks = |stage: &Stage| {
        let before: u32 = forks(stage);
        eventually("many forks", GENEROUS, || forks(stage) >= before + 10);
    };
    many_forks(&stage);
    let socket = fs::metadata(stage.server.control_path()).expect("the socket is there").ino();
    for byte in 1..=3 {
        let write = stage.play("A:p=P").client().send(Write(0, byte));
        many_forks(&stage);
        stage.play("B:p=P");
        let mut late = Client::connect(&stage.server);
        let read = late.held(READ);
        stage.client().expect_held(&[write], A_WHILE);
        stage.play("A:r=R").client().goes_on(write);
        late.goes_on(read);
        assert_eq!(late.ask(READ), [byte; 512]);
        late.leave();
    }
    assert_eq!(fs::metadata(stage.server.control_path()).expect("it still is").ino(), socket);
    stage.end();
}

#[test]
fn a_child_of_the_plugin_that_outlives_a_killed_server_keeps_nothing_of_the_control_socket() {
    let server = Setup::new(&[
        "eval",
        "open=sleep 30 >open.out 2>&1 & echo $! >child.part; mv child.part child",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
    ])
    .start();
    let mut controller = server.controller();
    controller.pause();
    let client = Client::connect(&server);
    let child: u32 = server.content("child").trim().parse().unwrap();
    send_signal(server.pid(), libc::SIGKILL);
    controller.expect_closed();
    // The kernel may close one a moment after the other.
    eventually("nobody listens", PROMPT, || {
        let connected = UnixStream::connect(server.control_path());
        connected.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    let next = Setup::in_memory().control(server.control_path().to_str()).start();
    next.controller().pause();
    assert!(is_alive(child), "this proves nothing");
    send_signal(child, libc::SIGKILL);
    drop(client);
    next.stop();
}
