//! A real nbdkit with the filter in it, as it starts, runs and ends. What it is started
//! with is in `setup.rs`.

use std::fs;
use std::mem;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::control::Controller;
use super::process::{self, Finished, Process, run};
use super::{A_WHILE, GENEROUS, PROMPT, eventually, nbdkit};

pub use super::setup::{NOBODY, Setup, ThreadModel, is_root};

/// An nbdkit that does not serve yet.
pub struct Starting {
    pub(super) process: Process,
    pub(super) daemon: Option<Daemon>,
    pub(super) port: u16,
    pub(super) setup: Setup,
}

impl Starting {
    /// Waits until it serves, or has ended without.
    pub fn ready(mut self) -> Result<Server, Box<(Setup, Finished)>> {
        if self.setup.background {
            // It returns at the fork, before the server writes its id.
            eventually("nbdkit goes into the background", GENEROUS, || !self.process.is_running());
        }
        let pid = match &self.daemon {
            Some(daemon) if self.process.status().is_some_and(|status| status.success()) => {
                Some(daemon.wait())
            }
            _ => wait_until_ready(&mut self.process, &self.setup.path("pid")),
        };
        let Starting { process, daemon, port, setup } = self;
        match pid {
            Some(pid) => Ok(Server { process, daemon, pid, port, setup }),
            None => Err(Box::new((setup, process.finish(GENEROUS)))),
        }
    }
}

/// The process id that nbdkit writes when it serves; None if it ends first.
pub(super) fn wait_until_ready(process: &mut Process, pidfile: &Path) -> Option<u32> {
    let mut ready = None;
    eventually("nbdkit is ready", GENEROUS, || {
        // In this order: it may serve, and end, in between.
        let ended = !process.is_running();
        ready = written_pid(pidfile);
        ready.is_some() || ended
    });
    ready
}

/// What a server has written to its pidfile; None where it has not, quite.
fn written_pid(pidfile: &Path) -> Option<u32> {
    fs::read_to_string(pidfile).ok()?.strip_suffix('\n')?.parse().ok()
}

/// A server in the background. It is killed when this is dropped.
pub struct Daemon {
    pub pidfile: PathBuf,
}

impl Daemon {
    /// Its process id. Waits until it is known.
    pub fn wait(&self) -> u32 {
        let mut pid = None;
        eventually("its process id", GENEROUS, || {
            pid = written_pid(&self.pidfile);
            pid.is_some()
        });
        pid.expect("found")
    }

    /// Waits until it has ended; panics after `limit`.
    pub fn ended(self, limit: Duration) {
        let pid = self.wait();
        eventually("the server goes", limit, || !process::is_alive(pid));
        // From now on its id may be somebody else's.
        mem::forget(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = written_pid(&self.pidfile).filter(|&pid| process::is_alive(pid)) {
            process::send_signal(pid, libc::SIGKILL);
        }
    }
}

/// A running nbdkit. It is killed when this is dropped.
pub struct Server {
    process: Process,
    daemon: Option<Daemon>,
    pid: u32,
    port: u16,
    // The last one: the folder goes after the process.
    setup: Setup,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The server's folder.
    pub fn dir(&self) -> &Path {
        self.setup.dir.path()
    }

    /// A path in the server's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.setup.path(name)
    }

    /// The NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.path("nbd")
    }

    /// The TCP port, where it serves on one.
    pub fn port(&self) -> Option<u16> {
        self.setup.tcp.then_some(self.port)
    }

    /// How an NBD client finds it.
    pub fn uri(&self) -> String {
        match self.port() {
            Some(port) if self.setup.tls => {
                let keys = self.path("keys");
                format!("nbds://alice@127.0.0.1:{port}/?tls-psk-file={}", keys.display())
            }
            Some(port) => format!("nbd://127.0.0.1:{port}"),
            None => format!("nbd+unix:///?socket={}", self.socket().display()),
        }
    }

    /// The control socket.
    pub fn control_path(&self) -> PathBuf {
        self.path(self.setup.control.as_deref().expect("a control socket"))
    }

    /// A new controller.
    pub fn controller(&self) -> Controller {
        Controller::connect(&self.control_path())
    }

    /// `nc`, a controller in a process of its own, which has sent this, has its replies,
    /// and stays connected.
    pub fn nc(&self, sent: &[u8]) -> Process {
        let mut command = Command::new("nc");
        command.arg("-U").arg(self.control_path());
        let nc = Process::start_with_input(command, sent);
        eventually("a reply", GENEROUS, || nc.stdout().len() == sent.len());
        nc
    }

    /// What a new controller is told of the state.
    pub fn status(&self) -> Value {
        let mut controller = self.controller();
        controller.send(b"s");
        serde_json::from_str(&controller.line()).expect("JSON")
    }

    /// So many of them.
    pub fn controllers(&self, count: usize) -> Vec<Controller> {
        (0..count).map(|_| self.controller()).collect()
    }

    /// Returns when all commands that were sent before are carried out, or wait.
    pub fn all_is_heard(&self) {
        let mut controller = self.controller();
        controller.send(b"x");
        controller.expect("X");
    }

    /// What nbdkit-log-filter has written.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.path("log")).expect("the log")
    }

    /// How many writes have come to the filter under test. See `Setup::logged_above`.
    pub fn writes_come(&self) -> usize {
        fs::read_to_string(self.path("above")).map_or(0, |log| log.matches(" Write id=").count())
    }

    /// Waits until so many have, and the filter has had time to take them in.
    pub fn wait_for_writes(&self, count: usize) {
        eventually(&format!("{count} writes"), GENEROUS, || self.writes_come() >= count);
        thread::sleep(A_WHILE);
    }

    /// Makes a file in its folder.
    pub fn make(&self, name: &str) {
        fs::write(self.path(name), "").expect("a file");
    }

    /// Removes one.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("a file");
    }

    /// What is in one; nothing, if there is none.
    pub fn content(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// How long one is.
    pub fn size(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).map_or(0, |file| file.len())
    }

    /// Waits until there is one.
    pub fn await_file(&self, name: &str) {
        eventually(name, GENEROUS, || self.path(name).exists());
    }

    /// What is on the disk.
    pub fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk.img")).expect("the disk")
    }

    /// How much nbdkit-log-filter has written.
    pub fn logged_bytes(&self) -> u64 {
        fs::metadata(self.path("log")).expect("the log").len()
    }

    /// What the server has said so far.
    pub fn messages(&self) -> String {
        self.process.stderr()
    }

    /// Waits until it has said something with `what` in it.
    pub fn says(&self, what: &str) {
        eventually(what, GENEROUS, || self.messages().contains(what));
    }

    /// How often it has said something with `what` in it.
    pub fn messages_count(&self, what: &str) -> usize {
        self.messages().matches(what).count()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// What was started: nbdkit, or the program it runs under.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The number of its threads. Panics if it has ended.
    pub fn threads(&self) -> usize {
        assert!(process::is_alive(self.pid), "nbdkit has ended:\n{}", self.messages());
        // qemu-user has a thread of its own.
        process::threads(self.pid) - usize::from(nbdkit::emulator().is_some())
    }

    /// The number of its threads while no client is connected: its main one
    /// and the filter's. Waits until they are there.
    pub fn threads_at_rest(&self) -> usize {
        eventually("the filter's thread", GENEROUS, || self.threads() == 2);
        2
    }

    /// The filter's thread.
    pub fn control_thread(&self) -> u32 {
        process::thread_named(self.pid, "pause-control")
    }

    /// While `act` is done, which takes a second or more, that one mostly sleeps.
    pub fn expect_no_busy_loop(&self, act: impl FnOnce()) {
        let tid = self.control_thread();
        let used = process::cpu_time(self.pid, tid);
        act();
        let used = process::cpu_time(self.pid, tid) - used;
        assert!(used < Duration::from_millis(300), "busy for {used:?}");
    }

    /// Kills the program that has started it (see `under`), and only that.
    pub fn kill_parent(&self) {
        assert_ne!(self.process.pid(), self.pid, "it has started itself");
        self.process.signal(libc::SIGKILL);
    }

    /// Sets what it may have of a resource from now on, as prlimit(1) is told.
    pub fn limit(&self, option: &str) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={}", self.pid)).arg(option);
        // Root need not have the right to do that to another user's process.
        if let Some(user) = self.setup.user {
            command.uid(user).gid(user);
        }
        run(command).succeeded();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        process::send_signal(self.pid, libc::SIGTERM);
    }

    /// Waits until it has ended; panics after `limit`.
    pub fn ended(self, limit: Duration) -> Ended {
        let Server { process, daemon, setup, .. } = self;
        if let Some(daemon) = daemon {
            daemon.ended(limit);
        }
        Ended { process: process.finish(limit), setup }
    }

    /// SIGTERM, and waits until it has ended, as it must, well.
    pub fn stop(self) -> Ended {
        self.terminate();
        self.ended(PROMPT).well()
    }
}

/// A server that has ended, and its folder.
pub struct Ended {
    pub process: Finished,
    setup: Setup,
}

impl Ended {
    /// Panics unless its exit status is 0 and it left no control socket.
    pub fn well(self) -> Self {
        assert_eq!(self.process.status.code(), Some(0), "{:#?}", self.process);
        if let Some(control) = &self.setup.control {
            assert!(!self.path(control).exists(), "the control socket is left");
        }
        self
    }

    /// A path in the server's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.setup.path(name)
    }

    /// What is on the disk.
    pub fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk.img")).expect("the disk")
    }

    /// The same, to be started again in the same folder.
    pub fn again(self) -> Setup {
        for left in ["nbd", "pid"] {
            // nbdkit may have removed it.
            let _ = fs::remove_file(self.path(left));
        }
        self.setup
    }
}
