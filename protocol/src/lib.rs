//! What the filter and `nbdkit-pause` must agree on: the bytes of the control
//! protocol, the longest path of its socket, and how a person writes a
//! duration. The filter's `control` carries out commands; the helper's `target`
//! decides which to send when.

mod duration;

pub use duration::{DurationError, parse_duration};

/// The longest path of a Unix socket, in bytes: with its NUL it fits into
/// `sun_path` of sockaddr_un (unix(7)).
pub const LONGEST_SOCKET_PATH: usize = 107;

/// What a controller asks for.
pub mod command {
    /// Pause, until anyone resumes.
    pub const PAUSE: u8 = b'p';
    /// Resume, no matter who paused.
    pub const RESUME: u8 = b'r';
    /// Pause, until this connection releases its hold.
    pub const HOLD: u8 = b'+';
    /// Release the hold of this connection.
    pub const LET_GO: u8 = b'-';
    /// Does this server have holds? It changes nothing.
    pub const ASK: u8 = b'?';
    /// What is the state? It changes nothing. The reply is one line of JSON, which
    /// begins with a brace, or [`super::reply::NO`].
    pub const STATUS: u8 = b's';
}

/// What the server replies.
pub mod reply {
    /// Paused, and no request is in flight.
    pub const PAUSED: u8 = b'P';
    /// Requests flow.
    pub const RESUMED: u8 = b'R';
    /// Held, and no request is in flight.
    pub const HELD: u8 = b'+';
    /// The hold was in force until now.
    pub const LET_GO: u8 = b'-';
    /// This server has holds.
    pub const HAS_HOLDS: u8 = b'H';
    /// No such command, or it did not take effect.
    pub const NO: u8 = b'X';
}
