//! Which process listens at the other end of a connection.

use std::os::fd::{AsRawFd, OwnedFd};

use libc::{SO_PEERCRED, SOL_SOCKET, socklen_t, ucred};
use rustix::process::Pid;

/// The id of the process that called listen(2). `None` if it is not to be seen from here,
/// as from another container: then the system says 0, which would be everybody.
pub fn of(connection: &OwnedFd) -> Option<Pid> {
    let mut peer = ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = socklen_t::try_from(size_of::<ucred>()).ok()?;
    let fd = connection.as_raw_fd();
    // SAFETY: getsockopt(2) writes no more than `size` bytes, all of them to `peer`, which
    // has that many and may have any value.
    let failed = unsafe {
        libc::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, (&raw mut peer).cast(), &raw mut size)
    };
    match failed {
        0 => Pid::from_raw(peer.pid),
        _ => None,
    }
}
