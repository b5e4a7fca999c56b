//! The safe face of the few system calls that std does not offer. No decisions
//! are taken here.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// What to poll a descriptor for, and what was found.
pub use libc::pollfd as PollFd;
pub use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT};

/// Waits until one of `fds` is ready or `limit` has passed (poll(2)). A signal
/// ends the wait early, with nothing ready.
pub fn poll(fds: &mut [PollFd], limit: Option<Duration>) -> io::Result<()> {
    let limit = match limit {
        None => -1,
        // Rounded up, so that a deadline is past when the wait ends by it.
        Some(limit) => {
            i32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        }
    };
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: poll(2) reads and writes `count` pollfds, which `fds` holds.
    if unsafe { libc::poll(fds.as_mut_ptr(), count, limit) } >= 0 {
        return Ok(());
    }
    for fd in fds.iter_mut() {
        fd.revents = 0;
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}

/// Whether a short write to standard error would not wait, now or before
/// `patience` is over.
pub fn stderr_takes_more(patience: Duration) -> bool {
    let mut fds = [PollFd { fd: libc::STDERR_FILENO, events: POLLOUT, revents: 0 }];
    // An error of it counts as well: the write finds that, and returns.
    poll(&mut fds, Some(patience)).is_ok() && fds.iter().all(|fd| fd.revents != 0)
}

/// A bell that any thread may ring and one thread polls (eventfd(2)).
pub struct Bell(File);

impl Bell {
    /// A bell that has not been rung.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd(2) takes two integers and returns a new descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Bell(File::from(owned(fd)?)))
    }

    /// Makes the bell's descriptor readable. Never blocks.
    pub fn ring(&self) {
        // Fails only where the bell has been rung 2^64 times and not heard.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Makes it silent again.
    pub fn silence(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What came of a system call that returns 0 or fails.
fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned it, so it is open and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the advisory lock of an open file if it is free (flock(2)). It is
/// given back when the file is closed.
pub fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: flock(2) takes a descriptor, which `file` keeps open, and a flag.
    done(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })
}

/// Binds a new stream socket to `path`, where its file is made, with as much of
/// `mode` as the umask leaves and never a bit more. Nobody can connect to it
/// before `listen`, and accept(2) never blocks.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let address = address(path)?;
    let socket = File::from(unix_socket(libc::SOCK_STREAM)?);
    // On Linux the file gets the permissions of the socket it is made for, less
    // the umask. So no umask has to be set, which all threads would share.
    socket.set_permissions(Permissions::from_mode(mode))?;
    let size = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: bind(2) reads `size` bytes, all of `address`.
    done(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(OwnedFd::from(socket).into())
}

/// Lets controllers connect from now on, as many at once as the system allows.
pub fn listen(listener: &UnixListener) -> io::Result<()> {
    // SAFETY: listen(2) takes two integers; more than the system allows is cut
    // down to that.
    done(unsafe { libc::listen(listener.as_raw_fd(), libc::c_int::MAX) })
}

/// Whoever connects from now on is refused; who has connected before can still
/// be accepted.
pub fn stop_listening(listener: &UnixListener) -> io::Result<()> {
    // SAFETY: shutdown(2) takes two integers.
    done(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) })
}

/// Connects a datagram socket to the Unix socket at `path`, and closes it. The
/// owner of a stream socket hears nothing of it: the kernel refuses the wrong
/// type (EPROTOTYPE) on its behalf, and says ECONNREFUSED if there is no owner.
pub fn try_connect(path: &Path) -> io::Result<()> {
    let address = address(path)?;
    let socket = unix_socket(libc::SOCK_DGRAM)?;
    let size = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: connect(2) reads `size` bytes, all of `address`.
    done(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) })
}

/// A socket of type `kind` that never blocks.
fn unix_socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes three integers and returns a new descriptor.
    owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: sockaddr_un is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays NUL.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

/// An open directory. Anything else is an error at once; to open a FIFO, say,
/// would take a writer.
pub fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// The file at `path` itself, not what a symbolic link there leads to; neither
/// read nor written, only looked at (O_PATH).
pub fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// Sets the permissions of this very file, whatever its name is now. fchmod(2)
/// does not take what `open_path` returns, and chmod(2) takes it by its name in
/// /proc.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    fs::set_permissions(proc_name(file), Permissions::from_mode(mode))
}

/// Gives this very file to another user or group, like `set_mode`. `None` leaves
/// it as it is.
pub fn set_owner(file: &File, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    chown(proc_name(file), user, group)
}

fn proc_name(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Process and user at the other end of a Unix socket when it was connected
/// (SO_PEERCRED, unix(7)), for the log.
pub fn peer(stream: &UnixStream) -> Option<(libc::pid_t, libc::uid_t)> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = mem::size_of_val(&peer) as libc::socklen_t;
    // SAFETY: SO_PEERCRED writes a ucred of at most `size` bytes, which `peer` has.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    (got == 0).then_some((peer.pid, peer.uid))
}

/// Runs `spawn` with all signals blocked in the calling thread, so that a
/// thread it starts never runs one of nbdkit's signal handlers, nor dies of
/// SIGPIPE.
pub fn without_signals<R>(spawn: impl FnOnce() -> R) -> R {
    // SAFETY: sigset_t is plain data; sigfillset(3) and pthread_sigmask(3) get
    // sets of this frame.
    let before = unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let result = spawn();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    result
}
