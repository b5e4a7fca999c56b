//! Errors that stop the program. `status` has the exit status of each. What is wrong
//! with a single server is a `Trouble`.

use std::error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::signals;
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
    /// The pause did not last for the whole of the command.
    Torn,
    /// Standard output is not a terminal, which `--watch` draws on.
    NoTerminal,
    /// The state could not be written.
    Output(io::Error),
    /// The completions could not be written.
    Completions(io::Error),
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
    /// say why they give up before they resume the servers, a session says of each
    /// server that it is not resumed, and whatever reads completions may stop early.
    pub fn is_silent(&self) -> bool {
        matches!(self, Error::NotPaused(_) | Error::NotResumed | Error::Completions(_))
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
            Error::NotStarted(program, e) => write!(f, "cannot run {}: {e}", program.display()),
            Error::EndMissed(program, e) => {
                write!(f, "cannot tell how {} ended: {e}", program.display())
            }
            Error::Torn => write!(
                f,
                "DO NOT USE THE SNAPSHOT: the servers may not have been paused the whole time"
            ),
            Error::NoTerminal => {
                write!(f, "--watch draws on a terminal, and standard output is none: leave it out")
            }
            Error::Output(e) => write!(f, "cannot write the state of the servers: {e}"),
            Error::Completions(e) => write!(f, "cannot write the completions: {e}"),
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
impl error::Error for PauseError {}
impl error::Error for ServerError {}

impl From<PauseError> for Error {
    fn from(e: PauseError) -> Self {
        Error::NotPaused(e)
    }
}
