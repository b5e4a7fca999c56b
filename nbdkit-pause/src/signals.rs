//! Turns signals into something to poll: those that ask this program to end, and
//! the one that reports the command's end. `run`, `hooks` and `session` decide what to do
//! about a signal.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{
    SIG_BLOCK, SIG_DFL, SIG_IGN, SIG_SETMASK, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, c_int,
    signalfd_siginfo, sigset_t,
};
use rustix::process::Pid;

/// The signals that people and systems end a program with.
pub const ENDING: &[c_int] = &[SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// Takes signals in. As long as this exists they don't end the program: `next`
/// returns them.
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes in `signals` and SIGCHLD, and no others, even if they were blocked when
    /// this program started.
    ///
    /// # Errors
    /// The system has no file descriptors left.
    pub fn new(signals: &[c_int]) -> io::Result<Self> {
        // Whoever starts us with a signal ignored (nohup does) wants us to ignore it,
        // too. SIGTERM is the exception: it is the last thing short of SIGKILL that
        // makes us resume.
        let heard = signals.iter().copied().filter(|&it| it == SIGTERM || !is_ignored(it));
        let set = set_of(heard.chain([SIGCHLD]));
        // SAFETY: these calls read the set, and the first one takes two integers.
        // Signals that are blocked here are read from the descriptor.
        let (mask, fd) = unsafe {
            // If it stayed ignored, the system would not keep the command's exit
            // status (wait(2)).
            libc::signal(SIGCHLD, SIG_DFL);
            let mask = libc::pthread_sigmask(SIG_SETMASK, &raw const set, ptr::null_mut());
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            (mask, libc::signalfd(-1, &raw const set, flags))
        };
        match (mask, fd) {
            (0, -1) => Err(io::Error::last_os_error()),
            // SAFETY: signalfd(2) has just made it.
            (0, fd) => Ok(Signals(unsafe { OwnedFd::from_raw_fd(fd) })),
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Takes a signal that has come and asks this program to end.
    pub fn next(&mut self) -> Option<c_int> {
        loop {
            let mut bytes = [0; size_of::<signalfd_siginfo>()];
            // It fails when no more are there.
            rustix::io::read(&self.0, &mut bytes).ok()?;
            // The first member.
            let signal = bytes.first_chunk().copied().map(c_int::from_ne_bytes)?;
            if signal != SIGCHLD {
                return Some(signal);
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// From now on, `signals` do nothing to this process.
pub fn ignore(signals: &[c_int]) {
    for &signal in signals {
        // SAFETY: signal(2) takes two integers.
        unsafe { libc::signal(signal, SIG_IGN) };
    }
}

/// From now on, `signals` stay pending in this process.
pub fn block(signals: &[c_int]) {
    let set = set_of(signals.iter().copied());
    // SAFETY: pthread_sigmask(3) reads the set.
    unsafe { libc::pthread_sigmask(SIG_BLOCK, &raw const set, ptr::null_mut()) };
}

/// Whether `signal` is pending in the process with this id; `None` if the system does
/// not tell.
pub fn is_pending(signal: c_int, process: Pid) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_pid())).ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    // The lowest bit is that of signal 1.
    let bit = u32::try_from(signal).ok()?.checked_sub(1)?;
    Some(set.checked_shr(bit)? & 1 == 1)
}

/// The name of a signal, such as `SIGTERM`.
pub fn name(signal: c_int) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGTERM => "SIGTERM",
        SIGHUP => "SIGHUP",
        SIGQUIT => "SIGQUIT",
        _ => "a signal",
    }
}

fn set_of(signals: impl Iterator<Item = c_int>) -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) makes the set, and sigaddset(3) adds to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction(2) only writes the present one, to
    // where there is room for it; all zeroes are a value of that type.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == SIG_IGN
    }
}
