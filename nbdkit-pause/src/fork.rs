//! Starts processes that are this program, too: the command before it executes
//! its program (`command`), and the one that writes to standard error (`writer`).
//! They start before the program connects to any server, and so hold nothing that
//! could keep one paused. The keeper of `hooks` starts after that, and is to hold it.

use std::io;

use rustix::process::Pid;

/// Starts a process that goes on from here as this one does. Returns its id; in
/// the new process, `None`.
///
/// # Errors
/// The system has no room for another process.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: what another thread holds while its process is copied, such as the
    // allocator's lock, the copy would never get. This program has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        id => Ok(Pid::from_raw(id)),
    }
}
