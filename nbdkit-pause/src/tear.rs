//! Why a snapshot is no good: the pause did not last as long as it had to, or may not
//! have.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::report::Seconds;
use crate::signals;

/// Why not to use the snapshot.
#[derive(Clone, Debug)]
pub enum Tear {
    /// The pauses of these servers had a break.
    Broken(Vec<PathBuf>),
    /// Nobody can tell whether the pauses of these servers lasted.
    Unknown(Vec<PathBuf>),
    /// This command was still running when the servers resumed.
    Outlived(PathBuf),
    /// The pause had lasted this long, as long as it was allowed to.
    Limit(Duration),
    /// The keeper was told to end by this signal.
    Signal(i32),
    /// The keeper was killed.
    Killed,
    /// The machine has started again.
    Restarted,
}

impl fmt::Display for Tear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DO NOT USE THE SNAPSHOT: ")?;
        match self {
            Tear::Broken(servers) => write!(f, "the pause of {} had a break", list(servers)),
            Tear::Unknown(servers) => {
                write!(f, "nobody can tell whether the pause of {} lasted", list(servers))
            }
            Tear::Outlived(command) => {
                write!(f, "{} was still running when the servers resumed", command.display())
            }
            Tear::Limit(max) => {
                write!(f, "the servers resumed too early, when --max ({}) was over", Seconds(*max))
            }
            Tear::Signal(signal) => write!(
                f,
                "the servers resumed before `end`: the process that kept the pause got {}",
                signals::name(*signal)
            ),
            Tear::Killed => {
                write!(f, "something killed the process that kept the pause, before `end`")
            }
            Tear::Restarted => write!(f, "the machine has started again since `begin`"),
        }
    }
}

fn list(servers: &[PathBuf]) -> String {
    let names: Vec<_> = servers.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}
