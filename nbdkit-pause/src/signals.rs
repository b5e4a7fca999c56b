//! The signals that end this program, turned into something to poll. What is
//! done about one is decided elsewhere.

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

/// From when this is made, these signals don't end the program: `next` tells
/// of them. They are what a command starts with as well, since exec(2) puts
/// them back to what they were.
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// # Errors
    /// No descriptors could be had.
    pub fn new(signals: &[c_int]) -> io::Result<Self> {
        // Who ignores one (nohup does) wants that for the command as well, and
        // gets it by our leaving it alone.
        let mut signals: Vec<c_int> =
            signals.iter().copied().filter(|&signal| !is_ignored(signal)).collect();
        // Wakes who waits for the command to end. Ignored, it would take the
        // command's exit status with it (wait(2)).
        signals.push(SIGCHLD);
        let (read, write) = UnixStream::pair()?;
        SignalDelivery::with_pipe(read, write, SignalOnly, signals).map(Signals)
    }

    /// A signal that has come and asks this program to end.
    pub fn next(&mut self) -> Option<c_int> {
        // What is not taken here stays pending.
        self.0.pending().find(|&signal| signal != SIGCHLD)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// `SIGTERM` and the like.
pub fn name(signal: c_int) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction(2) only writes the present one,
    // to where there is room for it; all zeroes are a value of that type.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
