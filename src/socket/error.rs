//! Why the control socket can't be created, in words: what is in the way or which
//! step failed, and what to do about it.

use std::fmt;
use std::fs::FileType;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use super::is_absent;
use crate::os::advice::{self, Advised};

/// Why there is no control socket at `path`.
#[derive(Debug)]
pub struct SocketError {
    pub(super) path: PathBuf,
    pub(super) moment: Moment,
    pub(super) reason: Reason,
}

/// A step on the way to a socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    LookAtPath,
    LookAtLost,
    RemoveDead,
    Make,
    LookAtMade,
    SetMode,
    Listen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// nbdkit can still refuse to start, and can wait.
    Start,
    /// There may be clients, controllers and a pause, none of which can wait.
    Serving,
}

#[derive(Debug)]
pub(super) enum Reason {
    /// Something other than a socket is there; what, in words.
    Occupied(&'static str),
    /// A process has this socket open.
    Alive,
    /// We can't tell whether a process has it open.
    Unclear(io::Error),
    /// The directory can't be opened.
    Directory(PathBuf, io::Error),
    /// A dead socket is there, and another process has its directory locked.
    Locked,
    /// A step that should have worked failed.
    Failed(Step, io::Error),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SocketError { path, moment, reason } = self;
        let remedy = reason.remedy(*moment);
        write!(f, "pause-control={}: ", path.display())?;
        match moment {
            Moment::Start => write!(f, "{reason}{remedy}"),
            Moment::Serving => write!(
                f,
                "the control socket is gone from its path and cannot be put back yet: \
                 {reason}{remedy}; retrying every few seconds"
            ),
        }
    }
}

/// A directory does not permit it. (A missing capability is another error.)
fn is_forbidden(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EACCES)
}

impl Reason {
    /// What to do, if the error itself does not say. Another path is an option only
    /// at the start.
    fn remedy(&self, moment: Moment) -> &'static str {
        let (at_start, while_serving) = match self {
            Reason::Occupied(_) => (": choose another path", ": move it away"),
            Reason::Alive => (": choose another path, or stop that process", ": stop that process"),
            Reason::Unclear(e) if advice::remedy(e).is_some() => ("", ""),
            Reason::Unclear(_) => (
                ": choose another path, or check who has it open (ss -xlp) and remove it if \
                 nobody does",
                ": check who has it open (ss -xlp), and remove it if nobody does",
            ),
            Reason::Locked => {
                (": choose another path, or stop that process", ": stop that process")
            }
            Reason::Directory(_, e) if is_absent(e) => {
                (": create it, or choose another path", ": create it again")
            }
            Reason::Directory(_, e) if is_forbidden(e) => (
                ": give the user that starts nbdkit read permission on it, remove the dead \
                 socket in it, or choose another path",
                ": give the user that this server runs as read permission on it, or remove the \
                 dead socket in it",
            ),
            Reason::Failed(Step::LookAtPath, e) if is_forbidden(e) => (
                ": give the user that starts nbdkit search permission there, or choose another path",
                ": give the user that this server runs as search permission there",
            ),
            Reason::Failed(Step::Make | Step::RemoveDead, e) if is_forbidden(e) => (
                ": give the user that starts nbdkit write permission there, or choose another path",
                ": give the user that this server runs as write permission there",
            ),
            Reason::Directory(..) | Reason::Failed(..) => ("", ""),
        };
        match moment {
            Moment::Start => at_start,
            Moment::Serving => while_serving,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Occupied(what) => {
                write!(f, "{what} is there, and the filter replaces only a dead socket")
            }
            Reason::Alive => write!(f, "a process has this socket open"),
            Reason::Unclear(e) => {
                write!(f, "cannot tell whether a process has this socket open: {}", Advised(e))
            }
            Reason::Directory(directory, e) => {
                write!(f, "cannot open the directory {}: {}", directory.display(), Advised(e))
            }
            Reason::Locked => write!(
                f,
                "a dead socket is there, but another process has locked its directory (flock)"
            ),
            Reason::Failed(step, e) => write!(f, "cannot {step}: {}", Advised(e)),
        }
    }
}

impl std::error::Error for SocketError {}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::LookAtPath => "stat this path",
            Step::LookAtLost => "stat the lost socket",
            Step::RemoveDead => "remove the dead socket there",
            Step::Make => "create the socket",
            Step::LookAtMade => "stat the new socket",
            Step::SetMode => "set the permissions of the new socket through /proc",
            Step::Listen => "listen on the new socket",
        })
    }
}

pub(super) fn kind_in_words(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "a file"
    }
}
