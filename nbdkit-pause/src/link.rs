//! A connection to a server's control socket: one byte out, one byte in, and
//! no call waits. What can go wrong is a `Trouble`. `target` decides which commands
//! to send, and when.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use pause_protocol::LONGEST_SOCKET_PATH;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::trouble::Trouble;

/// A connection to a control socket.
pub struct Link(UnixStream);

impl Link {
    /// Connects. Returns `None` if the server's backlog is full: try again. (std's
    /// connect would wait for room in it, without a limit.)
    ///
    /// The command does not inherit the connection: a hold must end when this
    /// program does.
    pub fn open(socket: &Path) -> Result<Option<Self>, Trouble> {
        let bytes = socket.as_os_str().as_bytes().len();
        if bytes > LONGEST_SOCKET_PATH {
            return Err(Trouble::TooLong(bytes));
        }
        let address = SocketAddrUnix::new(socket).map_err(|e| Trouble::Other(e.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| Trouble::Other(e.into()))?;
        match connect(&fd, &address) {
            Ok(()) => Ok(Some(Link(fd.into()))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::NOENT | Errno::NOTDIR) => match socket.parent() {
                // A path in the working directory has an empty one.
                Some(parent) if parent != Path::new("") && !parent.exists() => {
                    Err(Trouble::NoDirectory(parent.to_owned()))
                }
                _ => Err(Trouble::Missing),
            },
            Err(Errno::ACCESS | Errno::PERM) => Err(Trouble::Denied),
            Err(Errno::PROTOTYPE) => Err(Trouble::NotASocket),
            // A regular file answers the same as a dead socket.
            Err(Errno::CONNREFUSED) => match fs::metadata(socket) {
                Ok(metadata) if !metadata.file_type().is_socket() => Err(Trouble::NotASocket),
                _ => Err(Trouble::Dead),
            },
            Err(e) => Err(Trouble::Other(e.into())),
        }
    }

    /// Sends one command.
    pub fn send(&mut self, command: u8) -> Result<(), Trouble> {
        // The socket has room for it: only one command is under way at a time.
        self.0.write_all(&[command]).map_err(trouble)
    }

    /// Takes the next reply, if it has come.
    pub fn reply(&mut self) -> Result<Option<u8>, Trouble> {
        let mut reply = [0];
        match self.0.read(&mut reply) {
            Ok(0) => Err(Trouble::Closed),
            Ok(_) => Ok(Some(u8::from_ne_bytes(reply))),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(e) => Err(trouble(e)),
        }
    }

    /// Takes what has come of a longer reply, to the end of `reply`. False if nothing
    /// has.
    pub fn take(&mut self, reply: &mut Vec<u8>) -> Result<bool, Trouble> {
        let mut part = [0; 4096];
        match self.0.read(&mut part) {
            Ok(0) => Err(Trouble::Closed),
            Ok(count) => {
                reply.extend_from_slice(part.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(false)
            }
            Err(e) => Err(trouble(e)),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn trouble(e: io::Error) -> Trouble {
    match e.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Trouble::Closed,
        _ => Trouble::Other(e),
    }
}
