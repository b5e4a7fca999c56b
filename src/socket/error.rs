//! Why a control socket can't be had, in words: what is in the way or which step
//! failed, and what to do about it.

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
    /// nbdkit can still be told to stop, and can wait.
    Start,
    /// There may be clients, controllers and a pause, none of which can wait.
    Serving,
}

#[derive(Debug)]
pub(super) enum Reason {
    /// Something else than a socket is there; what, in words.
    Occupied(&'static str),
    /// A process has the socket open that is there.
    Alive,
    /// It can't be told whether a process has it open.
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
                "the control socket is not at its path any more, and cannot be put back yet: \
                 {reason}{remedy}; this is tried again every few seconds"
            ),
        }
    }
}

/// A directory does not permit it. (A right that the process lacks is another error.)
fn is_forbidden(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EACCES)
}

impl Reason {
    /// What to do, where the error itself has not said it. Another path can be
    /// chosen at the start only.
    fn remedy(&self, moment: Moment) -> &'static str {
        let (at_start, while_serving) = match self {
            Reason::Occupied(_) => (": choose another path", ": move it away"),
            Reason::Alive => (": choose another path, or stop that process", ": stop that process"),
            Reason::Unclear(e) if advice::remedy(e).is_some() => ("", ""),
            Reason::Unclear(_) => (
                ": choose another path, or see who has it open (ss -xlp) and remove it if \
                 nobody does",
                ": see who has it open (ss -xlp), and remove it if nobody does",
            ),
            Reason::Locked => (": end that lock", ": end that lock"),
            Reason::Directory(_, e) if is_absent(e) => {
                (": make it, or choose another path", ": make it again")
            }
            Reason::Directory(_, e) if is_forbidden(e) => (
                ": permit the user that starts nbdkit to read there, remove the dead socket in \
                 it, or choose another path",
                ": permit the user that this server runs as to read there, or remove the dead \
                 socket in it",
            ),
            Reason::Failed(Step::LookAtPath, e) if is_forbidden(e) => (
                ": permit the user that starts nbdkit to look there, or choose another path",
                ": permit the user that this server runs as to look there",
            ),
            Reason::Failed(Step::Make | Step::RemoveDead, e) if is_forbidden(e) => (
                ": permit the user that starts nbdkit to write there, or choose another path",
                ": permit the user that this server runs as to write there",
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
                write!(f, "{what} is there, and only a dead socket is ever replaced")
            }
            Reason::Alive => write!(f, "a process has the socket open that is there"),
            Reason::Unclear(e) => write!(
                f,
                "cannot tell whether a process has the socket open that is there: {}",
                Advised(e)
            ),
            Reason::Directory(directory, e) => {
                write!(f, "cannot open the directory {}: {}", directory.display(), Advised(e))
            }
            Reason::Locked => write!(
                f,
                "a dead socket is there, and another process has its directory locked (flock)"
            ),
            Reason::Failed(step, e) => write!(f, "cannot {step}: {}", Advised(e)),
        }
    }
}

impl std::error::Error for SocketError {}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::LookAtPath => "look at this path",
            Step::LookAtLost => "look at the lost socket",
            Step::RemoveDead => "remove the dead socket that is there",
            Step::Make => "make the socket",
            Step::LookAtMade => "look at the socket just made",
            Step::SetMode => "set the permissions of the socket, through /proc",
            Step::Listen => "listen on the socket just made",
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
