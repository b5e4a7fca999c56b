//! The few system calls that std does not offer, as the filter wants them. It makes
//! no decisions.

pub mod advice;
pub mod exit;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::ptr;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{self, AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// What to poll a descriptor for, and what poll(2) found.
pub use rustix::event::{PollFd, PollFlags};

/// Waits until one of `fds` is ready or `limit` has passed (poll(2)). A signal
/// ends the wait early, with nothing ready.
pub fn poll(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    // A time too long for the system's clock is no limit.
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match rustix::event::poll(fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whether a read of it, or accept(2), would return at once.
pub fn is_readable(fd: impl AsFd) -> bool {
    is_ready(fd, PollFlags::IN, Duration::ZERO)
}

/// Whether a short write to standard error would not block, now or before
/// `patience` is over.
pub fn stderr_takes_more(patience: Duration) -> bool {
    is_ready(io::stderr(), PollFlags::OUT, patience)
}

/// Whether it is ready for what is wanted, now or before `patience` is over. An error
/// counts, too: a read or write finds it, and does not block.
fn is_ready(fd: impl AsFd, wanted: PollFlags, patience: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, wanted)];
    poll(&mut fds, Some(patience)).is_ok() && fds.iter().all(|fd| !fd.revents().is_empty())
}

/// An event that any thread may signal and one thread polls (eventfd(2)).
pub struct EventFd(OwnedFd);

impl EventFd {
    /// An event that is not signalled.
    pub fn new() -> io::Result<Self> {
        Ok(EventFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes its descriptor readable. Never blocks.
    pub fn signal(&self) {
        // Fails only where it was signalled 2^64 times and never cleared.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Undoes all signals.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes the advisory lock of an open file if it is free (flock(2)). Closing the
/// file releases it.
pub fn try_lock(file: &File) -> io::Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

/// Binds a new stream socket to `path`, which creates its file, with as much of
/// `mode` as the umask leaves and never a bit more. Nobody can connect to it
/// before `listen`, and accept(2) never blocks.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = File::from(unix_socket(SocketType::STREAM)?);
    // On Linux the file gets the permissions of its socket, less the umask. So
    // there is no need to set the umask, which all threads share.
    socket.set_permissions(Permissions::from_mode(mode))?;
    net::bind(&socket, &address)?;
    Ok(OwnedFd::from(socket).into())
}

/// Lets controllers connect from now on, with the largest backlog that the system
/// allows.
pub fn listen(listener: &UnixListener) -> io::Result<()> {
    // The system cuts it down to what it allows.
    Ok(net::listen(listener, i32::MAX)?)
}

/// Refuses new connections from now on; accept(2) still returns those from before.
pub fn stop_listening(listener: &UnixListener) -> io::Result<()> {
    Ok(net::shutdown(listener, Shutdown::Both)?)
}

/// The next connection; neither this nor a read or write of it blocks.
pub fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    Ok(net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?.into())
}

/// Connects a datagram socket to the Unix socket at `path`, and closes it. The
/// owner of a stream socket does not notice: the kernel refuses the wrong type
/// (EPROTOTYPE) on its behalf, and says ECONNREFUSED if there is no owner.
pub fn try_connect(path: &Path) -> io::Result<()> {
    let address = SocketAddrUnix::new(path)?;
    Ok(net::connect(unix_socket(SocketType::DGRAM)?, &address)?)
}

/// A socket of type `kind` that never blocks.
fn unix_socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

/// An open directory. Anything else is an error at once; to open a FIFO, say,
/// would take a writer.
pub fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// The file at `path` itself, not what a symbolic link there leads to; open neither
/// for reading nor for writing (O_PATH).
pub fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// Sets the permissions of this very file, whatever its name is now. fchmod(2)
/// refuses what `open_path` returns, but chmod(2) takes its name in /proc.
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
/// (SO_PEERCRED, unix(7)), for the log. The process is 0 if it is not in this PID
/// namespace, and rustix's own type has no room for that.
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

/// How many threads this process has; `None` where /proc does not say.
pub fn threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
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
