//! A real nbdkit with the filter in it: how it is set up, started and ended.
//! It runs in a folder of its own, which goes with it.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::control::Controller;
use super::process::{self, Finished, Process};
use super::{GENEROUS, PROMPT, eventually, filter};

/// nbdkit's thread models, from the most liberal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadModel {
    Parallel,
    SerializeRequests,
    SerializeAllRequests,
    SerializeConnections,
}

impl ThreadModel {
    fn serialize(self) -> Option<&'static str> {
        match self {
            ThreadModel::Parallel => None,
            ThreadModel::SerializeRequests => Some("requests"),
            ThreadModel::SerializeAllRequests => Some("all-requests"),
            ThreadModel::SerializeConnections => Some("connections"),
        }
    }
}

/// What nbdkit is to be started with.
pub struct Setup {
    dir: TempDir,
    filter: Option<PathBuf>,
    wrapper: Vec<String>,
    options: Vec<String>,
    below: Vec<String>,
    plugin: Vec<String>,
    control: Option<String>,
    model: ThreadModel,
    tcp: bool,
    user: Option<u32>,
    umask: Option<libc::mode_t>,
    most_descriptors: Option<u64>,
    refused_call: Option<u32>,
}

impl Setup {
    /// The filter under test over `plugin`, which comes with its parameters.
    /// The control socket is `control` in the server's folder.
    pub fn new(plugin: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("pause-").tempdir().expect("a temporary folder");
        Setup {
            dir,
            filter: Some(filter::ours().to_path_buf()),
            wrapper: Vec::new(),
            options: Vec::new(),
            below: Vec::new(),
            plugin: plugin.iter().map(|&part| part.to_owned()).collect(),
            control: Some("control".to_owned()),
            model: ThreadModel::Parallel,
            tcp: false,
            user: None,
            umask: None,
            most_descriptors: None,
            refused_call: None,
        }
    }

    /// A disk of `mib` MiB of zeroes in a file: `disk.img` in the folder.
    pub fn with_disk(mib: u64) -> Self {
        let setup = Setup::new(&["file", "disk.img"]);
        fs::File::create(setup.path("disk.img"))
            .and_then(|file| file.set_len(mib << 20))
            .expect("a disk");
        setup
    }

    /// A path in the server's folder, where it is started.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The filter that nbdkit ships in place of the one under test.
    pub fn stock(mut self) -> Self {
        self.filter = Some(filter::stock());
        self
    }

    /// Neither of them.
    pub fn no_filter(mut self) -> Self {
        self.filter = None;
        self.control = None;
        self
    }

    /// This filter in place of the one under test.
    pub fn filter(mut self, path: PathBuf) -> Self {
        self.filter = Some(path);
        self
    }

    /// One more filter below ours and those given before, with its parameters.
    pub fn below(mut self, filter: &str, parameters: &[&str]) -> Self {
        self.below.push(filter.to_owned());
        self.parameters(parameters)
    }

    /// nbdkit-log-filter right below what was given before: `log` in the folder.
    pub fn logged(self) -> Self {
        self.below("log", &["logfile=log"])
    }

    /// More parameters, `key=value`.
    pub fn parameters(mut self, parameters: &[&str]) -> Self {
        self.plugin.extend(parameters.iter().map(|&part| part.to_owned()));
        self
    }

    /// More options of nbdkit itself.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Debug messages on.
    pub fn verbose(self) -> Self {
        self.options(&["-v"])
    }

    /// `pause-control` is this, or is not given.
    pub fn control(mut self, path: Option<&str>) -> Self {
        self.control = path.map(str::to_owned);
        self
    }

    pub fn thread_model(mut self, model: ThreadModel) -> Self {
        self.model = model;
        self
    }

    /// Serves on 127.0.0.1 rather than on a Unix socket.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Under this user id. Only root can do that.
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = Some(umask);
        self
    }

    /// A limit on open descriptors.
    pub fn most_descriptors(mut self, count: u64) -> Self {
        self.most_descriptors = Some(count);
        self
    }

    /// One system call, by its number, fails with ENOSYS, as on an old kernel
    /// or in a container that forbids it.
    pub fn refused_call(mut self, number: libc::c_long) -> Self {
        self.refused_call = Some(number.try_into().expect("a system call"));
        self
    }

    /// Started by another program, such as strace.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&part| part.to_owned()).collect();
        self
    }

    fn command(&self, port: u16) -> Command {
        let mut words = self.wrapper.clone();
        words.extend(["nbdkit", "--foreground", "--pidfile=pid"].map(str::to_owned));
        if self.tcp {
            words.push("--ipaddr=127.0.0.1".to_owned());
            words.push(format!("--port={port}"));
        } else {
            words.push("--unix=nbd".to_owned());
        }
        words.extend(self.options.iter().cloned());
        if let Some(filter) = &self.filter {
            words.push(format!("--filter={}", filter.display()));
        }
        words.extend(self.below.iter().map(|filter| format!("--filter={filter}")));
        if self.model.serialize().is_some() {
            words.push("--filter=noparallel".to_owned());
        }
        words.extend(self.plugin.iter().cloned());
        if let Some(model) = self.model.serialize() {
            words.push(format!("serialize={model}"));
        }
        if let Some(control) = &self.control {
            words.push(format!("pause-control={control}"));
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.dir.path());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let (umask, most_descriptors) = (self.umask, self.most_descriptors);
        let refused_call = self.refused_call;
        // SAFETY: umask(2), setrlimit(2) and prctl(2) are plain system calls,
        // which may be made between fork and exec; what they read is of this frame.
        unsafe {
            command.pre_exec(move || {
                if let Some(umask) = umask {
                    libc::umask(umask);
                }
                if let Some(count) = most_descriptors {
                    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
                    if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                if let Some(number) = refused_call {
                    refuse_call(number)?;
                }
                Ok(())
            });
        }
        command
    }

    /// Starts nbdkit and returns when it serves.
    pub fn start(self) -> Server {
        self.try_start().unwrap_or_else(|refusal| panic!("nbdkit does not start: {refusal:#?}"))
    }

    /// Starts nbdkit and returns when it serves, or has ended without.
    pub fn try_start(self) -> Result<Server, Finished> {
        let mut setup = self;
        loop {
            match setup.launch().ready().map_err(|refused| *refused) {
                Ok(server) => return Ok(server),
                // Another program may take the port before nbdkit does.
                Err((again, refusal)) if again.tcp && refusal.stderr.contains("in use") => {
                    setup = again;
                }
                Err((_, refusal)) => return Err(refusal),
            }
        }
    }

    /// Starts nbdkit and returns at once. Call it on a thread that lives as
    /// long as nbdkit is to.
    pub fn launch(self) -> Starting {
        let port = if self.tcp { free_port() } else { 0 };
        Starting { process: Process::start(self.command(port)), port, setup: self }
    }

    /// Starts nbdkit, expects it to refuse that, and returns what it says.
    pub fn refusal(&self) -> Finished {
        let mut process = Process::start(self.command(0));
        assert_eq!(
            wait_until_ready(&mut process, &self.path("pid")),
            None,
            "nbdkit accepts what it should refuse"
        );
        let finished = process.finish(GENEROUS);
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        finished
    }

    /// Starts nbdkit, and expects it to end by itself, with an error, although
    /// it may have seemed to be ready.
    pub fn failure(&self) -> Finished {
        let finished = Process::start(self.command(0)).finish(GENEROUS);
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        finished
    }
}

/// An nbdkit that does not serve yet.
pub struct Starting {
    process: Process,
    port: u16,
    setup: Setup,
}

impl Starting {
    /// Waits until it serves, or has ended without.
    pub fn ready(mut self) -> Result<Server, Box<(Setup, Finished)>> {
        match wait_until_ready(&mut self.process, &self.setup.path("pid")) {
            Some(pid) => {
                Ok(Server { process: self.process, pid, port: self.port, setup: self.setup })
            }
            None => Err(Box::new((self.setup, self.process.finish(GENEROUS)))),
        }
    }
}

/// The process id that nbdkit writes when it serves; None if it ends first.
fn wait_until_ready(process: &mut Process, pidfile: &Path) -> Option<u32> {
    let mut ready = None;
    eventually("nbdkit is ready", GENEROUS, || {
        // In this order: it may serve, and end, in between.
        let ended = !process.is_running();
        ready = fs::read_to_string(pidfile)
            .ok()
            .filter(|text| text.ends_with('\n'))
            .and_then(|text| text.trim().parse().ok());
        ready.is_some() || ended
    });
    ready
}

/// A seccomp filter on this process and all that it becomes: system call
/// `number` fails with ENOSYS.
fn refuse_call(number: u32) -> io::Result<()> {
    let statement =
        |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    // The number is the first word of seccomp_data.
    let mut code = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 1),
        statement(libc::BPF_RET | libc::BPF_K, enosys, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: prctl(2) reads the program, which is of this frame.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A running nbdkit. It is killed when this is dropped.
pub struct Server {
    process: Process,
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

    /// What nbdkit-log-filter has written.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.path("log")).expect("the log")
    }

    /// How much nbdkit-log-filter has written.
    pub fn logged_bytes(&self) -> u64 {
        fs::metadata(self.path("log")).expect("the log").len()
    }

    /// What the server has said so far.
    pub fn messages(&self) -> String {
        self.process.stderr()
    }

    /// How often it has said something with `what` in it.
    pub fn messages_count(&self, what: &str) -> usize {
        self.messages().matches(what).count()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// The number of its threads. Panics if it has ended.
    pub fn threads(&self) -> usize {
        assert!(process::is_alive(self.pid), "nbdkit has ended:\n{}", self.messages());
        process::threads(self.pid)
    }

    /// The number of its threads while no client is connected: its main one
    /// and the filter's. Waits until they are there.
    pub fn threads_at_rest(&self) -> usize {
        eventually("the filter's thread", GENEROUS, || self.threads() == 2);
        2
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        process::send_signal(self.pid, libc::SIGTERM);
    }

    /// Waits until it has ended; panics after `limit`.
    pub fn ended(self, limit: Duration) -> Ended {
        let Server { process, setup, .. } = self;
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
}
