//! Turns signals into something to poll: those that ask this program to end, and
//! the one that tells of the command's end. What to do about a signal is up to
//! `actions` and `session`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use libc::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, c_int};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::low_level::signal_name;

/// The signals that people and systems end a program with.
pub const ENDING: &[c_int] = &[SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// Catches signals. As long as this exists they don't end the program: `next`
/// returns them. The command starts with each of them as this program found it,
/// since exec(2) puts back the default of those that are caught.
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Begins to catch `signals`, and SIGCHLD.
    ///
    /// # Errors
    /// The system has no file descriptors left.
    pub fn new(signals: &[c_int]) -> io::Result<Self> {
        // Whoever starts us with a signal ignored (nohup does) wants the command to
        // ignore it, too. It does if we leave that signal alone.
        let mut signals: Vec<c_int> =
            signals.iter().copied().filter(|&signal| !is_ignored(signal)).collect();
        // It wakes the thread when the command ends. Caught even where it was
        // ignored: the system would not keep the command's exit status (wait(2)).
        signals.push(SIGCHLD);
        let (read, write) = UnixStream::pair()?;
        SignalDelivery::with_pipe(read, write, SignalOnly, signals).map(Signals)
    }

    /// Takes a signal that has come and asks this program to end.
    pub fn next(&mut self) -> Option<c_int> {
        // Signals that this does not take stay pending.
        self.0.pending().find(|&signal| signal != SIGCHLD)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// The name of a signal, such as `SIGTERM`.
pub fn name(signal: c_int) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction(2) only writes the present one, to
    // where there is room for it; all zeroes are a value of that type.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
