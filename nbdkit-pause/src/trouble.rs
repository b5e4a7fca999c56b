//! What can be wrong with one server, and what to do about it. What stops the whole
//! program is an `Error`.

use std::error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pause_protocol::LONGEST_SOCKET_PATH;

use crate::report::Seconds;

/// Why a server does not do what it is asked.
#[derive(Debug)]
pub enum Trouble {
    /// The path has so many bytes, more than fit into a socket address.
    TooLong(usize),
    /// Nothing is at the path.
    Missing,
    /// Not even this directory, where the socket should be.
    NoDirectory(PathBuf),
    /// The path leads to no socket, or to one of another type.
    NotASocket,
    /// Nobody listens on the socket.
    Dead,
    /// We have no permission to connect.
    Denied,
    /// The server speaks NBD here.
    Nbd,
    /// The server has sent this byte, which is no reply to what was sent.
    NotAPauseSocket(u8),
    /// The connection has ended where a reply was due.
    Closed,
    /// No reply has come within this time.
    Silent(Duration),
    /// The server was not paused within this time.
    Draining(Duration),
    /// The server refused the pause, or the pause ended before it took effect.
    Refused,
    /// The server tells its state in a way that this program does not understand.
    Unreadable(serde_json::Error),
    /// A system call failed in another way.
    Other(io::Error),
}

impl Trouble {
    /// The trouble that shows in a reply which makes no sense.
    pub fn wrong_reply(reply: u8) -> Self {
        match reply {
            // An NBD server greets with "NBDMAGIC" before it is asked.
            b'N' => Trouble::Nbd,
            reply => Trouble::NotAPauseSocket(reply),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::TooLong(bytes) => write!(
                f,
                "this path is {bytes} bytes long, but a socket path can have at most \
                 {LONGEST_SOCKET_PATH}: change to its directory and give a relative path"
            ),
            Trouble::Missing => write!(
                f,
                "no such socket: give the path that nbdkit was given as pause-control=SOCKET, \
                 and check that nbdkit is running; if systemd opens nbdkit's socket, nbdkit starts \
                 with its first client, and has no control socket before"
            ),
            Trouble::NoDirectory(directory) => write!(
                f,
                "no such socket, as there is no directory {}: check that nbdkit is running; \
                 a systemd unit with RuntimeDirectory= has its directory only while it runs",
                directory.display()
            ),
            Trouble::NotASocket => write!(
                f,
                "not a pause control socket: give the path that nbdkit was given as pause-control"
            ),
            Trouble::Dead => write!(
                f,
                "connection refused: the server of this socket is gone; check that nbdkit is \
                 running and, in a container, that the directory of the socket is mounted there, \
                 not the socket alone"
            ),
            Trouble::Denied => write!(
                f,
                "permission denied: become root or the user that started nbdkit, or start \
                 nbdkit with another pause-mode"
            ),
            Trouble::Nbd => write!(
                f,
                "not a pause control socket but one for NBD clients: give the path that \
                 nbdkit was given as pause-control"
            ),
            Trouble::NotAPauseSocket(reply) => write!(
                f,
                "not a pause control socket: it answered with byte {reply:#04x}, which makes no \
                 sense; give the path that nbdkit was given as pause-control"
            ),
            Trouble::Closed => write!(
                f,
                "the server closed the connection: nbdkit has ended, or this is \
                 not a pause control socket"
            ),
            Trouble::Silent(time) => write!(
                f,
                "no answer within {}: the server is stopped or overloaded, or, with nbdkit's own \
                 pause filter, another controller is connected or a request is still in flight",
                Seconds(*time)
            ),
            Trouble::Draining(time) => write!(
                f,
                "not paused within {}: a request or a flush is still in progress; to wait longer, \
                 give a longer --timeout (and --max, if you gave that)",
                Seconds(*time)
            ),
            Trouble::Refused => write!(
                f,
                "the pause did not take effect: someone resumed the server, pause-timeout ran \
                 out, a flush failed, or 32 connections have holds; the log of nbdkit -v says which"
            ),
            Trouble::Unreadable(e) => write!(
                f,
                "the server tells its state in a way that this program does not understand ({e}): \
                 install both from the same version"
            ),
            Trouble::Other(e) => write!(f, "cannot talk to the server: {e}"),
        }
    }
}

impl error::Error for Trouble {}
