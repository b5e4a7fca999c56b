//! What an nbdkit with the filter in it is started with. It runs in a folder of its
//! own, which goes with it. What it is asked and says as it runs is in `server.rs`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::process::{Finished, Process};
use super::server::{Daemon, Server, Starting, wait_until_ready};
use super::{GENEROUS, alone, filter, nbdkit};

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
    pub(super) dir: TempDir,
    filter: Option<PathBuf>,
    wrapper: Vec<String>,
    options: Vec<String>,
    above: Vec<String>,
    below: Vec<String>,
    plugin: Vec<String>,
    pub(super) control: Option<String>,
    model: ThreadModel,
    pub(super) tcp: bool,
    pub(super) tls: bool,
    pub(super) background: bool,
    pub(super) user: Option<u32>,
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

    pub fn tells(self) -> Self {
        self.with("pause-status=true")
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

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}
