//! How the tests call `nbdkit-pause`, and how they see from outside whether a server
//! is paused. The servers are real ones; what they have promised is tested elsewhere.

use super::*;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nbdkit-pause");

/// What it says of a snapshot that is not covered.
pub const UNUSABLE: &str = "DO NOT USE THE SNAPSHOT";

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

pub use Kind::{Holds, Plain, Stock};

pub const KINDS: [Kind; 3] = [Stock, Plain, Holds];

/// Those that hear `r` while they drain.
pub const OURS: [Kind; 2] = [Plain, Holds];

/// Those that have no holds.
pub const WITHOUT_HOLDS: [Kind; 2] = [Stock, Plain];

impl Kind {
    /// This setup, with this filter.
    pub fn of(self, setup: Setup) -> Setup {
        println!("{self:?}");
        match self {
            Stock => setup.stock(),
            Plain => setup,
            Holds => setup.holds(),
        }
    }

    /// Over a plugin that keeps its disk in memory.
    pub fn start(self) -> Server {
        self.of(Setup::in_memory()).start()
    }

    /// With a client, and a read of it that stays in the plugin until `slow-read` is
    /// removed.
    pub fn stuck(self) -> (Server, Client) {
        stuck(self.of(Setup::obedient()))
    }
}

pub fn stuck(setup: Setup) -> (Server, Client) {
    let server = setup.start();
    let mut client = Client::connect(&server);
    client.read_stays_in_plugin(&server);
    (server, client)
}

/// These words as a command, in the server's folder.
pub fn command_of(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(server.dir());
    command
}

/// `nbdkit-pause` with these words as arguments, in the server's folder.
pub fn call(server: &Server, words: &str) -> Command {
    command_of(server, &[&[PROGRAM], &words.split_whitespace().collect::<Vec<_>>()[..]].concat())
}

/// The server's control socket, as an argument.
pub fn socket(server: &Server) -> String {
    server.control_path().display().to_string()
}

/// What has ended, or will.
pub trait Ends: Sized {
    fn finished(self) -> Finished;

    /// It ends with this status, and has said all of this.
    fn ends(self, status: i32, said: &[&str]) -> Finished {
        let finished = self.finished();
        assert_eq!(finished.status.code(), Some(status), "{finished:#?}");
        for part in said {
            assert!(finished.stderr.contains(part), "not said: {part:?}: {finished:#?}");
        }
        finished
    }
}

impl Ends for Finished {
    fn finished(self) -> Finished {
        self
    }
}

impl Ends for Process {
    fn finished(self) -> Finished {
        self.finish(GENEROUS)
    }
}

impl Ends for Command {
    fn finished(self) -> Finished {
        run(self)
    }
}

/// `nbdkit-pause run OPTIONS SOCKETS -- sh -c SCRIPT`, in the first server's folder.
pub fn run_on(servers: &[&Server], options: &str, script: &str) -> Process {
    let mut command = call(servers[0], &format!("run {options}"));
    command.args(servers.iter().map(|server| server.control_path()));
    command.args(["--", "sh", "-c", script]);
    Process::start(command)
}

/// A script that tells that it runs, and ends when it is told to, or with the
/// server, whose file `pid` is.
pub const UNTIL_TOLD: &str = "echo $$ >pid.command; touch running
    while [ -e pid ] && [ ! -e go ]; do sleep 0.01; done";

/// Like `run_on`; returns when the script has made the file `running`.
pub fn start_script(servers: &[&Server], script: &str) -> Process {
    started(servers[0], run_on(servers, "", script))
}

/// Waits until the command of this helper has made that file.
pub fn started(server: &Server, mut helper: Process) -> Process {
    helper.runs_until("the command runs", || server.path("running").exists());
    helper
}

/// With `UNTIL_TOLD`.
pub fn start_run(servers: &[&Server]) -> Process {
    start_script(servers, UNTIL_TOLD)
}

/// Lets `UNTIL_TOLD` end, and returns how the helper ended.
pub fn finish_run(server: &Server, process: Process) -> Finished {
    server.make("go");
    process.finish(GENEROUS)
}

/// Ends the command of a helper that was killed. It is alive, and wrote its id.
pub fn end_command(server: &Server) {
    let pid = server.content("pid.command").trim().parse().expect("its id");
    assert!(is_alive(pid), "the command has ended");
    send_signal(pid, libc::SIGKILL);
    eventually("the command ends", GENEROUS, || !is_alive(pid));
}

/// It was not run; with all servers it is asked about, requests reach the plugin.
pub fn not_run(servers: &[&Server]) {
    assert!(!servers[0].path("ran").exists(), "the command has run");
    servers.iter().for_each(|server| expect_flow(server));
}

/// Requests reach the plugin. Not a read: those may be slow.
pub fn expect_flow(server: &Server) {
    Client::connect(server).ask(Write(0, 1));
}

/// They don't.
pub fn expect_paused(server: &Server) -> Held {
    let mut client = Client::connect(server);
    let ticket = client.held(Write(0, 1));
    Held { client, ticket }
}

/// Waits until they don't, where a pause has just been asked for.
pub fn wait_until_paused(server: &Server) -> Held {
    let mut client = Client::connect(server);
    let mut ticket = client.send(Write(0, 1));
    eventually("the server is paused", GENEROUS, || {
        let reply = client.reply_within(ticket, A_WHILE);
        if reply.is_some() {
            ticket = client.send(Write(0, 1));
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
    pub fn goes_on(mut self) {
        self.client.reply(self.ticket).expect("success");
    }

    /// It does so in time.
    pub fn goes_on_within(mut self, limit: Duration) {
        let reply = self.client.reply_within(self.ticket, limit);
        reply.unwrap_or_else(|| panic!("held for {limit:?} still")).expect("success");
    }

    /// It is held still.
    pub fn stays(&mut self) {
        self.client.expect_held(&[self.ticket], A_WHILE);
    }
}

/// The servers of a test, each by its kind.
pub fn start_all<const N: usize>(kinds: [Kind; N]) -> [Server; N] {
    kinds.map(Kind::start)
}

/// `nbdkit-pause` with these words, and its state in the server's folder.
pub fn hook(server: &Server, words: &str) -> Command {
    let mut command = call(server, words);
    command.env("XDG_RUNTIME_DIR", server.dir());
    command
}

/// `nbdkit-pause begin --id it OPTIONS SOCKETS`, which succeeds.
pub fn begin(servers: &[&Server], options: &str) -> Finished {
    let mut command = hook(servers[0], &format!("begin --id it {options}"));
    command.args(servers.iter().map(|server| server.control_path()));
    command.ends(0, &[])
}

/// `nbdkit-pause end --id it`, of what was begun in this server's folder.
pub fn end(server: &Server) -> Finished {
    run(hook(server, "end --id it"))
}

/// The process that keeps what was begun in this server's folder, if there is one.
pub fn keeper(server: &Server) -> Option<u32> {
    let ours = format!("XDG_RUNTIME_DIR={}", server.dir().display());
    let is_it = |pid: &u32| {
        let read = |what| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        read("comm") == b"pause-keeper\n"
            && read("environ").split(|&byte| byte == 0).any(|it| it == ours.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_it)
}

/// What `begin`, its keeper and `end` have left in this server's folder.
pub fn left_behind(server: &Server) -> Vec<String> {
    let left = fs::read_dir(server.path("nbdkit-pause")).into_iter().flatten();
    let mut names: Vec<_> =
        left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.extend(keeper(server).map(|pid| format!("process {pid}")));
    names
}

/// Nothing is: no name is in use.
pub fn expect_nothing_behind(server: &Server) {
    // The keeper ends a moment after its lock is free.
    eventually("nothing is left behind", PROMPT, || left_behind(server).is_empty());
}
