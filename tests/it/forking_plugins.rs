//! A plugin that forks: its children, however they end and however long they
//! live, leave the pause and the control socket alone. What else plugins do is in
//! `serving.rs` and `failing_plugins.rs`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use crate::common::nbd::{Client, Request};
use crate::common::process::{self, send_signal};
use crate::common::server::Setup;
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};

const READ: Request = Request::Read(0);
const WRITE: Request = Request::Write(0, 0xaa);

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
        let held = client.send(Request::Write(0, byte));
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
    let next = Setup::in_memory().control(server.control_path().to_str()).start();
    next.controller().pause();
    assert!(process::is_alive(child), "this proves nothing");
    send_signal(child, libc::SIGKILL);
    drop(client);
    next.stop();
}
