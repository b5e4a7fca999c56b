//! The command that `run` executes. Its process starts before the helper connects to
//! any server, and executes the program when it gets the word. So whatever blocks
//! loading the program, such as a paused disk, blocks that process alone; and if the
//! helper is killed, that process holds no connection to a server. `run` decides
//! when to give the word.
//!
//! A signal for the helper's process group is for the command, too, and the helper
//! passes on what it gets. So that one such signal does not reach the command twice,
//! it has its own process group, and gets all signals from the helper. But in the
//! foreground of a terminal it stays in the helper's group: in another one, it
//! could not read from the terminal, and Ctrl-Z would not stop it. There the helper
//! checks whether the group has the signal before it passes it on.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus};

use rustix::process::{
    Pid, Signal, WaitOptions, getpgid, getpgrp, kill_process, kill_process_group, setpgid, waitpid,
};
use rustix::termios::tcgetpgrp;

use crate::error::Error;
use crate::fork::fork;

/// What the waiting process exits with if the word never comes. Nobody sees it.
const NO_WORD: i32 = 1;

/// The command and its process.
pub struct Command {
    program: PathBuf,
    pid: Pid,
    /// To the process, until it executes the program. It sends the error if that
    /// fails. Otherwise its end is closed by then.
    word: Option<UnixStream>,
}

impl Command {
    /// Starts the process. Call this before catching or blocking signals, since the
    /// command inherits that.
    pub fn prepare(words: &[OsString]) -> Result<Self, Error> {
        let (program, arguments) = words.split_first().ok_or(Error::NoCommand)?;
        let (ours, its) = UnixStream::pair().map_err(Error::NoProcess)?;
        ours.set_nonblocking(true).map_err(Error::NoProcess)?;
        match fork().map_err(Error::NoProcess)? {
            Some(pid) => Ok(Command { program: program.into(), pid, word: Some(ours) }),
            None => {
                // Or the end of this program would never show.
                drop(ours);
                if !is_in_foreground() {
                    let _ = setpgid(None, None);
                }
                process::exit(execute(its, process::Command::new(program).args(arguments)))
            }
        }
    }

    /// Gives the word.
    pub fn start(&mut self) {
        if let Some(word) = &mut self.word {
            // This fails if something has ended the process. Its exit status tells.
            let _ = word.write_all(b"!");
        }
    }

    /// Whether the program runs by now, or the process has ended before that.
    ///
    /// # Errors
    /// The program can't be executed. Then the process ends.
    pub fn has_started(&mut self) -> io::Result<bool> {
        let Some(word) = &mut self.word else {
            return Ok(true);
        };
        let mut errno = [0; size_of::<i32>()];
        match word.read(&mut errno) {
            Ok(count) if count > 0 => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(false)
            }
            // An error, if a signal has ended it before it took the word.
            Ok(_) | Err(_) => {
                self.word = None;
                Ok(true)
            }
        }
    }

    /// What to poll for the start of the program. Its end comes as a SIGCHLD.
    pub fn word(&self) -> Option<BorrowedFd<'_>> {
        self.word.as_ref().map(AsFd::as_fd)
    }

    /// How it has ended, if it has. Then don't call this or `signal` again: from here
    /// on, another process can have its id.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let ended = waitpid(Some(self.pid), WaitOptions::NOHANG)?;
        Ok(ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw())))
    }

    /// Whether it gets what is sent to our process group.
    pub fn is_in_our_group(&self) -> bool {
        getpgid(Some(self.pid)) == Ok(getpgrp())
    }

    /// Sends a signal to it, and to all others of its process group if that is its
    /// own: what it waits for has to end, too.
    pub fn signal(&self, signal: i32) {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return;
        };
        // This fails if the command is ending right now.
        let _ = match getpgid(Some(self.pid)) == Ok(self.pid) {
            true => kill_process_group(self.pid, signal),
            false => kill_process(self.pid, signal),
        };
    }

    /// What it does at present, for a person.
    pub fn doing(&self) -> String {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        let name = name.to_string_lossy();
        match self.word {
            None => format!("`{name}` runs"),
            Some(_) => format!("`{name}` is being loaded"),
        }
    }

    /// The program, as it was given.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        // Don't leave a process that waits for the word, or has failed to execute the
        // program, to an init that may not reap it. It ends at once.
        let is_there = || matches!(waitpid(Some(self.pid), WaitOptions::NOHANG), Ok(None));
        if self.word.is_some() && is_there() {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())
    }
}

/// Whether our process group is in the foreground of a terminal.
fn is_in_foreground() -> bool {
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(&terminal) == Ok(getpgrp()))
}

/// Waits for the word, and then becomes `command`. Returns if that fails.
fn execute(mut word: UnixStream, command: &mut process::Command) -> i32 {
    if word.read_exact(&mut [0]).is_err() {
        return NO_WORD;
    }
    let e = command.exec();
    let errno = e.raw_os_error().unwrap_or(libc::EINVAL);
    let _ = word.write_all(&errno.to_ne_bytes());
    NO_WORD
}
