//! Files as others may put them in the server's way: what they are, and how they
//! change places. Whose they are is known elsewhere.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::process::run;
use super::{GENEROUS, eventually};

/// What a file is and contains, but for the time of the last access.
pub type Look = (u64, u64, u32, u64, i64, i64, Option<Vec<u8>>);

pub fn look(path: &Path) -> Look {
    let found = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let content = found.is_file().then(|| fs::read(path).expect("its content"));
    (
        found.dev(),
        found.ino(),
        found.mode(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        content,
    )
}

/// The permissions of the socket at `path`; None if none is there.
pub fn socket_mode(path: &Path) -> Option<u32> {
    let found = fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then(|| found.permissions().mode() & 0o7777)
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

pub fn make_fifo(path: &Path) {
    let mut mkfifo = Command::new("mkfifo");
    mkfifo.arg(path);
    run(mkfifo).succeeded();
}

/// A socket at `path` whose owner does not listen, or not yet.
pub fn bound_socket(path: &Path) -> OwnedFd {
    // SAFETY: sockaddr_un is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from as libc::c_char;
    }
    // SAFETY: socket(2) takes integers, and what it returns is ours alone; bind(2)
    // reads as much as it is told, all of `address`.
    let (socket, bound) = unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        let size = mem::size_of_val(&address) as libc::socklen_t;
        (OwnedFd::from_raw_fd(fd), libc::bind(fd, (&raw const address).cast(), size))
    };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

/// Closes the socket that is bound to `path`, and leaves it dead. A child that another
/// test has just forked may have it open until it executes its program.
pub fn leave_dead(path: &Path, socket: impl Into<OwnedFd>) {
    drop(socket.into());
    let path = path.to_str().expect("UTF-8");
    eventually("nobody has the socket open", GENEROUS, || {
        let sockets = fs::read_to_string("/proc/net/unix").expect("a list");
        !sockets.lines().any(|socket| socket.ends_with(path))
    });
}

/// The lock of a directory, until it is dropped.
pub fn lock(directory: &Path) -> File {
    let file = File::open(directory).expect("a directory");
    // SAFETY: flock(2) takes two integers.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    assert_eq!(locked, 0, "{}", io::Error::last_os_error());
    file
}

/// Each of two files gets the other's name, with no moment in between.
pub fn exchange(one: &Path, other: &Path) {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let (one, other) = (name(one), name(other));
    let (here, exchange) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    // SAFETY: renameat2(2) reads two strings that end in NUL.
    let done = unsafe { libc::renameat2(here, one.as_ptr(), here, other.as_ptr(), exchange) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
