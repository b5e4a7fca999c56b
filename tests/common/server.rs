//! A real nbdkit with the filter in it: how it is set up, started and ended.
//! It runs in a folder of its own, which goes with it.

use std::fs;
use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::control::Controller;
use super::process::{self, Finished, Process, run};
use super::{A_WHILE, GENEROUS, PROMPT, alone, eventually, filter, nbdkit};

/// The user that `nbdkit -u nobody` becomes.
pub const NOBODY: u32 = 65534;

/// Whether this test may do everything.
pub fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// nbdkit's thread models, from the most liberal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadModel {
    Parallel,
    SerializeRequests,
    SerializeAllRequests,
    SerializeConnections,
}

impl ThreadModel {
    pub const ALL: [Self; 4] = [
        ThreadModel::Parallel,
        ThreadModel::SerializeRequests,
        ThreadModel::SerializeAllRequests,
        ThreadModel::SerializeConnections,
    ];

    /// How many requests of one connection the filter sees at once, and can hold.
    pub fn at_once(self) -> usize {
        match self {
            ThreadModel::Parallel => 16,
            _ => 1,
        }
    }

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
    above: Vec<String>,
    below: Vec<String>,
    plugin: Vec<String>,
    control: Option<String>,
    model: ThreadModel,
    tcp: bool,
    tls: bool,
    background: bool,
    user: Option<u32>,
    refused_call: Option<u32>,
}

/// A plugin that does as it is told by files in its folder: reads last as long as
/// there is `slow-read` (and make `reading`), flushes as long as there is `slow`;
/// they fail while there is `broken`. `flushes` has a line for each begin and end,
/// `written` what was written. No client is let in while there is `closed`.
const OBEDIENT: [&str; 11] = [
    "eval",
    "thread_model=echo parallel",
    "open=while [ -e closed ]; do sleep 0.01; done",
    "get_size=echo 1M",
    "pread=
        touch reading
        while [ -e slow-read ]; do sleep 0.01; done
        head -c $3 /dev/zero",
    "pwrite=cat >>written",
    "zero=exit 0",
    "trim=exit 0",
    "cache=exit 0",
    "extents=echo 0 1M",
    "flush=
        echo begin >>flushes
        while [ -e slow ]; do sleep 0.01; done
        if [ -e broken ]; then broken=yes; else broken=; fi
        echo end >>flushes
        if [ $broken ]; then echo 'EIO the platters are broken' >&2; exit 1; fi",
];

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

impl Setup {
    /// The filter under test over `plugin`, which comes with its parameters.
    /// The control socket is `control` in the server's folder.
    pub fn new(plugin: &[&str]) -> Self {
        alone::at_work();
        Setup {
            dir: tempfile::Builder::new().prefix("pause-").tempdir().expect("a temporary folder"),
            filter: Some(filter::ours().to_path_buf()),
            wrapper: Vec::new(),
            options: Vec::new(),
            above: Vec::new(),
            below: Vec::new(),
            plugin: owned(plugin),
            control: Some("control".to_owned()),
            model: ThreadModel::Parallel,
            tcp: false,
            tls: false,
            background: false,
            user: None,
            refused_call: None,
        }
    }

    /// A disk of 1 MiB in memory.
    pub fn in_memory() -> Self {
        Setup::new(&["memory", "1M"])
    }

    /// A disk of `mib` MiB of zeroes in a file: `disk.img` in the folder.
    pub fn with_disk(mib: u64) -> Self {
        let setup = Setup::new(&["file", "disk.img"]);
        fs::File::create(setup.path("disk.img"))
            .and_then(|file| file.set_len(mib << 20))
            .expect("a disk");
        setup
    }

    /// A disk of 1 MiB of zeroes, in a plugin that files tell what to do; see above.
    pub fn obedient() -> Self {
        Setup::new(&OBEDIENT)
    }

    /// The folder stays when the server goes, for whoever wants to look at it.
    pub fn kept(mut self) -> Self {
        self.dir.disable_cleanup(true);
        self
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

    /// One more filter above ours and below those given before.
    pub fn above(mut self, filter: &str, parameters: &[&str]) -> Self {
        self.above.push(filter.to_owned());
        self.parameters(parameters)
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

    /// nbdkit-log-filter right above what was given before: `above` in the folder
    /// has what comes to the filter under test.
    pub fn logged_above(self) -> Self {
        self.above("log", &["logfile=above"])
    }

    /// More parameters, `key=value`.
    pub fn parameters(mut self, parameters: &[&str]) -> Self {
        self.plugin.extend(owned(parameters));
        self
    }

    /// One more parameter.
    pub fn with(self, parameter: &str) -> Self {
        self.parameters(&[parameter])
    }

    pub fn holds(self) -> Self {
        self.with("pause-hold=true")
    }

    pub fn flushes(self) -> Self {
        self.with("pause-flush=true")
    }

    /// Pauses end after `LIMIT`.
    pub fn limited(self) -> Self {
        self.with("pause-timeout=600ms")
    }

    /// More options of nbdkit itself.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(owned(options));
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

    pub fn is_tcp(&self) -> bool {
        self.tcp
    }

    /// On 127.0.0.1, to clients that speak TLS and have the key.
    pub fn tls(self) -> Self {
        let keys = self.path("keys");
        fs::write(&keys, "alice:000102030405060708090a0b0c0d0e0f\n").expect("the key");
        let psk = format!("--tls-psk={}", keys.display());
        Setup { tls: true, ..self }.tcp().options(&["--tls=require", &psk])
    }

    /// It goes into the background when it is ready, as it does by default.
    pub fn background(mut self) -> Self {
        self.background = true;
        self
    }

    /// Not under root, who may do everything; the folder is the user's then.
    pub fn under_a_mere_user(mut self) -> Self {
        if !is_root() {
            return self;
        }
        let copy = self.path("libpause.so");
        fs::copy(filter::ours(), &copy).expect("a copy of the filter");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
        self.user = Some(NOBODY);
        self.folder_for_nobody().filter(copy)
    }

    /// As `nbdkit -u nobody`, which changes user in the course of its start. Only
    /// root can do that.
    pub fn changing_user(self) -> Self {
        self.folder_for_nobody().options(&["-u", "nobody"])
    }

    fn folder_for_nobody(self) -> Self {
        chown(self.path(""), Some(NOBODY), Some(NOBODY)).expect("chown");
        self
    }

    pub fn umask(self, umask: u32) -> Self {
        self.under(&["sh", "-c", &format!("umask {umask:04o} && exec \"$@\""), "sh"])
    }

    /// A limit on open descriptors.
    pub fn most_descriptors(self, count: u64) -> Self {
        self.under(&["prlimit", &format!("--nofile={count}")])
    }

    /// One system call, by its number, fails with ENOSYS, as on an old kernel
    /// or in a container that forbids it.
    pub fn refused_call(mut self, number: libc::c_long) -> Self {
        self.refused_call = Some(number.try_into().expect("a system call"));
        self
    }

    /// Started by another program, such as strace, inside of those given before.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper.extend(owned(wrapper));
        self
    }

    /// The command line of a server that serves one client, on its standard
    /// input and output. All paths in it are absolute or relative to the
    /// directory where it is run.
    pub fn on_stdin(&self) -> Vec<String> {
        self.words(&["--single".to_owned()])
    }

    /// The command line of a server that is given the socket it listens on.
    pub fn activated(&self) -> Vec<String> {
        self.words(&[])
    }

    fn command(&self, port: u16) -> Command {
        let mut options = vec!["--pidfile=pid".to_owned()];
        if !self.background {
            options.push("--foreground".to_owned());
        }
        if self.tcp {
            options.extend(["--ipaddr=127.0.0.1".to_owned(), format!("--port={port}")]);
        } else {
            options.push("--unix=nbd".to_owned());
        }
        let words = self.words(&options);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(nbdkit::environment()).current_dir(self.dir.path());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        if let Some(number) = self.refused_call {
            // SAFETY: prctl(2) is a plain system call, which may be made between fork
            // and exec; what it reads is of the callee's frame.
            unsafe { command.pre_exec(move || refuse_call(number)) };
        }
        command
    }

    fn words(&self, options: &[String]) -> Vec<String> {
        let mut words = self.wrapper.clone();
        words.extend(nbdkit::words());
        words.extend(options.iter().chain(&self.options).cloned());
        let filter = |name: &str| format!("--filter={}", nbdkit::filter(name));
        words.extend(self.above.iter().map(|name| filter(name)));
        if let Some(ours) = &self.filter {
            words.push(format!("--filter={}", ours.display()));
        }
        let noparallel = self.model.serialize().map(|_| "noparallel");
        let below = self.below.iter().map(String::as_str).chain(noparallel);
        words.extend(below.map(filter));
        if let Some((plugin, parameters)) = self.plugin.split_first() {
            words.push(nbdkit::plugin(plugin));
            words.extend(parameters.iter().cloned());
        }
        if let Some(model) = self.model.serialize() {
            words.push(format!("serialize={model}"));
        }
        if let Some(control) = &self.control {
            words.push(format!("pause-control={control}"));
        }
        words
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
        let daemon = self.background.then(|| Daemon { pidfile: self.path("pid") });
        Starting { process: Process::start(self.command(port)), daemon, port, setup: self }
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

    /// Like `refusal`, which has all of these words in it.
    pub fn refused(&self, words: &[&str]) {
        let refusal = self.refusal();
        let missing: Vec<_> =
            words.iter().filter(|word| !refusal.stderr.contains(**word)).collect();
        assert!(missing.is_empty(), "no {missing:?} in {refusal:#?}");
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
    daemon: Option<Daemon>,
    port: u16,
    setup: Setup,
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
fn wait_until_ready(process: &mut Process, pidfile: &Path) -> Option<u32> {
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

    /// So many of them.
    pub fn controllers(&self, count: usize) -> Vec<Controller> {
        (0..count).map(|_| self.controller()).collect()
    }

    /// Returns when all commands that were sent before are carried out, or wait.
    pub fn all_is_heard(&self) {
        let mut controller = self.controller();
        controller.send(b"?");
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
        process::threads(self.pid)
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
