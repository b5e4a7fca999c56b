//! A connection to the control socket of one server: one command out, one
//! reply in, without ever waiting, and what to tell a person of what goes
//! wrong. Which commands are sent, and when, is decided elsewhere.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use pause_protocol::LONGEST_SOCKET_PATH;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::report::Seconds;

/// See the file's text.
pub struct Connection(UnixStream);

/// Why a server does not do what it is asked.
#[derive(Debug)]
pub enum Trouble {
    /// The path does not fit into a socket address.
    TooLong(usize),
    /// Nothing is there.
    Missing,
    /// Something is there that is no socket, or none of this kind.
    NotASocket,
    /// A socket that nobody listens on.
    Dead,
    /// No permission to connect.
    Denied,
    /// It speaks NBD.
    Nbd,
    /// It speaks something else.
    NotAPauseSocket(u8),
    /// The connection ended where a reply was due.
    Closed,
    /// No reply within this time.
    Silent(Duration),
    /// Not paused within this time.
    Draining(Duration),
    /// The pause was refused, or ended before it took effect.
    Refused,
    /// Anything else.
    Other(io::Error),
}

impl Connection {
    /// Connects; `None` if more want to than the server lets in at once: try
    /// again. Not std's connect, which waits for that without a limit.
    ///
    /// The connection is not inherited by a command: a hold must end when this
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
            Ok(()) => Ok(Some(Connection(fd.into()))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Trouble::Missing),
            Err(Errno::ACCESS | Errno::PERM) => Err(Trouble::Denied),
            Err(Errno::PROTOTYPE) => Err(Trouble::NotASocket),
            // Also what a regular file answers.
            Err(Errno::CONNREFUSED) => match fs::metadata(socket) {
                Ok(metadata) if !metadata.file_type().is_socket() => Err(Trouble::NotASocket),
                _ => Err(Trouble::Dead),
            },
            Err(e) => Err(Trouble::Other(e.into())),
        }
    }

    /// Sends one command.
    pub fn send(&mut self, command: u8) -> Result<(), Trouble> {
        // A single byte always has room: one command is under way at a time.
        self.0.write_all(&[command]).map_err(trouble)
    }

    /// The next reply, if it has come.
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
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Trouble {
    /// What a reply means that is none.
    pub fn wrong_reply(reply: u8) -> Self {
        match reply {
            // An NBD server greets with "NBDMAGIC" before it is asked.
            b'N' => Trouble::Nbd,
            reply => Trouble::NotAPauseSocket(reply),
        }
    }
}

fn trouble(e: io::Error) -> Trouble {
    match e.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Trouble::Closed,
        _ => Trouble::Other(e),
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::TooLong(bytes) => write!(
                f,
                "this path has {bytes} bytes, but the path of a socket can have {LONGEST_SOCKET_PATH} at most: \
                 change to its folder and give a shorter one"
            ),
            Trouble::Missing => write!(
                f,
                "there is no such socket: give the path that nbdkit made for its \
                 pause-control=SOCKET, and see that nbdkit is running"
            ),
            Trouble::NotASocket => write!(
                f,
                "this is not a pause socket: give the path that nbdkit has for pause-control"
            ),
            Trouble::Dead => {
                write!(f, "refused: the server of this socket is gone; see that nbdkit is running")
            }
            Trouble::Denied => write!(
                f,
                "permission denied: become root or the user that nbdkit runs as, or start \
                 nbdkit with another pause-mode"
            ),
            Trouble::Nbd => write!(
                f,
                "this is not a pause socket but the one of NBD clients: give the path that \
                 nbdkit has for pause-control"
            ),
            Trouble::NotAPauseSocket(reply) => write!(
                f,
                "this is not a pause socket: its answer, byte {reply:#04x}, makes no sense; \
                 give the path that nbdkit has for pause-control"
            ),
            Trouble::Closed => write!(
                f,
                "the server has closed the connection: nbdkit has ended, or this is \
                 not a pause socket"
            ),
            Trouble::Silent(time) => write!(
                f,
                "no answer within {}: it is stopped, or, with the filter that nbdkit ships, \
                 another controller is connected or a request to the plugin has not finished",
                Seconds(*time)
            ),
            Trouble::Draining(time) => write!(
                f,
                "not paused within {}: a request to the plugin has not finished",
                Seconds(*time)
            ),
            Trouble::Refused => write!(
                f,
                "the pause did not take effect: somebody resumed, its time ran out, or a \
                 flush failed; nbdkit's log says which"
            ),
            Trouble::Other(e) => write!(f, "{e}"),
        }
    }
}
