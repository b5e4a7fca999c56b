//! Errors that stop the program. `status` has the exit status of each. What is wrong
//! with a single server is a `Trouble`; why a snapshot is no good, a `Tear`.

use std::error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use crate::name::Name;
use crate::signals;
use crate::tear::Tear;
use crate::trouble::Trouble;

/// Why an action has failed.
#[derive(Debug)]
pub enum Error {
    /// The program can't start a process of its own.
    NoProcess(io::Error),
    /// The program can't listen to signals.
    Signals(io::Error),
    /// Two paths lead to one socket.
    SameSocket(PathBuf, PathBuf),
    /// Not all servers could be paused.
    NotPaused(PauseError),
    /// Not all servers could be resumed.
    NotResumed,
    /// `run` was given no command.
    NoCommand,
    /// This command could not be started.
    NotStarted(PathBuf, io::Error),
    /// We can't find out how this command ended.
    EndMissed(PathBuf, io::Error),
    /// Standard output is not a terminal, which `--watch` draws on.
    NoTerminal,
    /// The state could not be written.
    Output(io::Error),
    /// The command got this signal, and then ended as if nothing was.
    Interrupted(i32),
    /// The pause did not last as long as it had to, or may not have.
    Torn(Tear),
    /// The same, and the keeper has said why.
    TornAsTold,
    /// The state of a pause can't be kept.
    State(StateError),
    /// There is a pause of this name already.
    InUse(Name),
    /// There was a pause of this name, and nobody has asked yet how it ended.
    Untold(Name),
    /// The keeper could not be started.
    NoKeeper(io::Error),
    /// The keeper, or the pause, has ended before the keeper had the pause.
    NotHandedOver,
    /// This keeper does not end, and we can't kill it.
    KeeperStuck(Name),
    /// There is no pause of this name, with its state in this directory.
    NotBegun(Name, PathBuf),
    /// The `begin` of this name has not come to its end.
    StillBegins(Name),
    /// The completions could not be written.
    Completions(io::Error),
}

/// Why the state of a pause can't be kept or found.
#[derive(Debug)]
pub enum StateError {
    /// A system call failed on this path.
    System(PathBuf, io::Error),
    /// Other users may enter this directory.
    NotPrivate(PathBuf),
}

/// Why not all servers could be paused.
#[derive(Debug)]
pub enum PauseError {
    /// These servers are in trouble.
    Servers(Vec<ServerError>),
    /// This signal came first.
    Signal(i32),
}

/// What is wrong with one of the servers.
#[derive(Debug)]
pub struct ServerError {
    /// The path of its control socket.
    pub socket: PathBuf,
    /// What is wrong.
    pub trouble: Trouble,
}

impl Error {
    /// Whether there is nothing to add when the program exits: `run` and `pause`
    /// say why they give up before they resume the servers, `run` says that the command was
    /// interrupted, a session says of each
    /// server that it is not resumed, the keeper has said it before, and whatever reads
    /// completions may stop early.
    pub fn is_silent(&self) -> bool {
        matches!(
            self,
            Error::NotPaused(_)
                | Error::NotResumed
                | Error::Interrupted(_)
                | Error::TornAsTold
                | Error::Completions(_)
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoProcess(e) => write!(f, "cannot start a process: {e}"),
            Error::Signals(e) => write!(f, "cannot set up signal handling: {e}"),
            Error::SameSocket(one, other) => write!(
                f,
                "{} and {} are the same socket: name it once",
                one.display(),
                other.display()
            ),
            Error::NotPaused(e) => e.fmt(f),
            Error::NotResumed => write!(f, "some servers were not resumed"),
            Error::NoCommand => write!(f, "no command to run: give one after --"),
            Error::NotStarted(program, e) => {
                write!(f, "cannot run {}: {e}", program.display())?;
                match e.kind() {
                    ErrorKind::NotFound => write!(
                        f,
                        "; a pipeline or a function of the shell needs a shell: sh -c 'COMMAND'"
                    ),
                    _ => Ok(()),
                }
            }
            Error::EndMissed(program, e) => {
                write!(f, "cannot tell how {} ended: {e}", program.display())
            }
            Error::Interrupted(signal) => write!(f, "interrupted by {}", signals::name(*signal)),
            Error::Torn(tear) => tear.fmt(f),
            Error::TornAsTold => write!(f, "the pause did not last"),
            Error::State(e) => e.fmt(f),
            Error::InUse(name) => write!(
                f,
                "a pause named {name} is in force: choose another --id, or type: \
                 nbdkit-pause end --id {name}"
            ),
            Error::Untold(name) => write!(
                f,
                "a pause named {name} has ended, and nobody has asked how: first type: \
                 nbdkit-pause end --id {name}"
            ),
            Error::NoKeeper(e) => write!(f, "cannot start the process that keeps the pause: {e}"),
            Error::NotHandedOver => write!(
                f,
                "the process that was to keep the pause did not get it: something killed it, a \
                 server ended, or --max is too short"
            ),
            Error::KeeperStuck(name) => write!(
                f,
                "the process that keeps the pause {name} does not end: kill it, in the container \
                 where `begin` was run"
            ),
            Error::NotBegun(name, folder) => write!(
                f,
                "no pause named {name} in {}: `begin` has failed, its pause was ended before, or it \
                 was given another XDG_RUNTIME_DIR",
                folder.display()
            ),
            Error::StillBegins(name) => write!(
                f,
                "`begin` still waits for the servers of {name}: end it first, with Ctrl-C or SIGTERM"
            ),
            Error::NoTerminal => {
                write!(f, "--watch draws on a terminal, and standard output is none: leave it out")
            }
            Error::Output(e) => write!(f, "cannot write the state of the servers: {e}"),
            Error::Completions(e) => write!(f, "cannot write the completions: {e}"),
        }
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, e) = match self {
            StateError::System(path, e) => (path, e),
            StateError::NotPrivate(path) => {
                return write!(
                    f,
                    "{} must be a directory of this user that nobody else can enter: remove it, or \
                     type: chmod go= {}",
                    path.display(),
                    path.display()
                );
            }
        };
        write!(f, "cannot keep a pause in {}: {e}", path.display())?;
        match e.kind() {
            _ if path.starts_with("/proc") => write!(f, "; mount /proc"),
            ErrorKind::NotFound => write!(
                f,
                "; make the directory, or set XDG_RUNTIME_DIR to another; for a systemd unit, \
                 RuntimeDirectory= makes one"
            ),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => write!(
                f,
                "; set XDG_RUNTIME_DIR to a directory that you can write to; for a systemd unit, \
                 RuntimeDirectory= makes one"
            ),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for PauseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PauseError::Servers(errors) => {
                let texts: Vec<_> = errors.iter().map(ServerError::to_string).collect();
                f.write_str(&texts.join("; "))
            }
            PauseError::Signal(signal) => write!(f, "{}: giving up", signals::name(*signal)),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.socket.display(), self.trouble)
    }
}

impl error::Error for Error {}
impl error::Error for StateError {}
impl error::Error for PauseError {}
impl error::Error for ServerError {}

impl From<StateError> for Error {
    fn from(e: StateError) -> Self {
        Error::State(e)
    }
}

impl From<PauseError> for Error {
    fn from(e: PauseError) -> Self {
        Error::NotPaused(e)
    }
}
