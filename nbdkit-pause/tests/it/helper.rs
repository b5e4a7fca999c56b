//! How the tests call `nbdkit-pause`, and how they see from outside whether a
//! server is paused. The servers are real ones.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::nbd::{Client, Request, Ticket};
use crate::common::process::{Finished, Process, is_alive, send_signal};
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, GENEROUS, eventually};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nbdkit-pause");

/// A server that can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With the filter that nbdkit ships.
    Stock,
    /// With ours, without holds.
    Plain,
    /// With ours and `pause-hold`.
    Holds,
}

pub const KINDS: [Kind; 3] = [Kind::Stock, Kind::Plain, Kind::Holds];

/// Those that hear `r` while they drain.
pub const OURS: [Kind; 2] = [Kind::Plain, Kind::Holds];

/// Those that have no holds.
pub const WITHOUT_HOLDS: [Kind; 2] = [Kind::Stock, Kind::Plain];

impl Kind {
    /// Over a plugin that keeps its disk in memory.
    pub fn setup(self) -> Setup {
        self.of(Setup::in_memory())
    }

    /// This setup, with this filter.
    pub fn of(self, setup: Setup) -> Setup {
        match self {
            Kind::Stock => setup.stock(),
            Kind::Plain => setup,
            Kind::Holds => setup.parameters(&["pause-hold=true"]),
        }
    }

    pub fn start(self) -> Server {
        self.setup().start()
    }

    /// Reads take `seconds` in the plugin, writes take none.
    pub fn slow_reads(self, seconds: u32) -> Server {
        self.setup().below("delay", &[&format!("rdelay={seconds}")]).start()
    }
}

/// `nbdkit-pause` with these arguments, in the server's folder.
pub fn helper(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(server.dir());
    command
}

/// `nbdkit-pause run OPTIONS SOCKETS -- sh -c SCRIPT`, in the first server's
/// folder.
pub fn run_on(servers: &[&Server], options: &[&str], script: &str) -> Process {
    let mut command = helper(servers[0], &["run"]);
    command
        .args(options)
        .args(servers.iter().map(|server| server.control_path()))
        .args(["--", "sh", "-c", script]);
    Process::start(command)
}

/// A script that tells that it runs, and ends when it is told to, or with the
/// server, whose file `pid` is.
pub const UNTIL_TOLD: &str = "echo $$ >pid.command; touch running
    while [ -e pid ] && [ ! -e go ]; do sleep 0.01; done";

/// Like `run_on` with `UNTIL_TOLD`; returns when that runs.
pub fn start_run(servers: &[&Server]) -> Process {
    let mut process = run_on(servers, &[], UNTIL_TOLD);
    wait_until_running(servers[0], &mut process);
    process
}

/// Waits until the command has made the file `running`.
pub fn wait_until_running(server: &Server, process: &mut Process) {
    eventually("the command runs", GENEROUS, || {
        assert!(process.is_running(), "{}", process.stderr());
        server.path("running").exists()
    });
}

/// Ends the command of a helper that was killed. It is alive, and wrote its id.
pub fn end_command(server: &Server) {
    let pid = fs::read_to_string(server.path("pid.command")).expect("its id");
    let pid = pid.trim().parse().expect("a number");
    assert!(is_alive(pid), "the command has ended");
    send_signal(pid, libc::SIGKILL);
    eventually("the command ends", GENEROUS, || !is_alive(pid));
}

/// Lets `UNTIL_TOLD` end, and returns how the helper ended.
pub fn finish_run(server: &Server, process: Process) -> Finished {
    touch(&server.path("go"));
    process.finish(GENEROUS)
}

pub fn touch(path: &Path) {
    fs::write(path, "").expect("a file");
}

/// Runs the helper to its end.
pub fn finished(command: Command) -> Finished {
    Process::start(command).finish(GENEROUS)
}

/// Panics unless this was the exit status.
pub fn expect_status(finished: &Finished, status: i32) {
    assert_eq!(finished.status.code(), Some(status), "{finished:#?}");
}

/// Panics unless all of this was said.
pub fn expect_said(finished: &Finished, parts: &[impl AsRef<str>]) {
    for part in parts {
        let part = part.as_ref();
        assert!(finished.stderr.contains(part), "not said: {part:?}: {finished:#?}");
    }
}

/// Requests reach the plugin. Not a read: those may be slow.
pub fn expect_flow(server: &Server) {
    Client::connect(server).ask(Request::Write(0, 1));
}

/// They don't.
pub fn expect_paused(server: &Server) -> Held {
    let mut client = Client::connect(server);
    let ticket = client.send(Request::Write(0, 1));
    client.expect_held(&[ticket], A_WHILE);
    Held { client, ticket }
}

/// Waits until they don't, where a pause has just been asked for.
pub fn wait_until_paused(server: &Server) -> Held {
    let mut client = Client::connect(server);
    let mut ticket = client.send(Request::Write(0, 1));
    eventually("the server is paused", GENEROUS, || {
        let reply = client.reply_within(ticket, A_WHILE);
        if reply.is_some() {
            ticket = client.send(Request::Write(0, 1));
        }
        reply.is_none()
    });
    Held { client, ticket }
}

/// A request that is held.
pub struct Held {
    client: Client,
    ticket: Ticket,
}

impl Held {
    /// It goes on now.
    pub fn expect_reply(mut self) {
        self.client.reply(self.ticket).expect("success");
    }

    /// It is held still.
    pub fn expect_held(&mut self) {
        self.client.expect_held(&[self.ticket], A_WHILE);
    }
}

/// A client with a read that is in the plugin now, where reads are slow.
pub fn with_read_in_flight(server: &Server) -> Client {
    let mut client = Client::connect(server);
    client.send(Request::Read(0));
    client.all_read_by_server();
    // From the socket to the plugin.
    std::thread::sleep(A_WHILE);
    client
}

/// What a shell would be given as an argument for this path.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
