//! What can be wrong with one server, and what a person can do about it. What
//! stops the whole program is an `Error`.

use std::error;
use std::fmt;
use std::io;
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
                "the pause did not take effect: somebody resumed, its time ran out, a flush \
                 failed, or 32 holds are in force already; nbdkit's log says which"
            ),
            Trouble::Other(e) => write!(f, "{e}"),
        }
    }
}

impl error::Error for Trouble {}
