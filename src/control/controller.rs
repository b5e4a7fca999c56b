//! One controller as `core` knows it: its name, its dialogue, and whether it can
//! still send and receive.

use std::fmt;
use std::time::Instant;

use log::error;

use super::protocol::{Command, Dialogue};

/// Tells a controller apart from all others since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub u64);

/// Process and user of a controller, for the log.
pub type Peer = (libc::pid_t, libc::uid_t);

/// A connected controller.
pub struct Controller {
    pub name: Name,
    pub dialogue: Dialogue,
    /// When it last sent something.
    pub active: Instant,
    /// Whether what it sends looks like the control protocol.
    pub speaks: Speaks,
    /// One of its commands was carried out.
    pub was_heard: bool,
    /// It will send nothing more.
    pub input_ended: bool,
    /// It can hold nothing any more; what it sent before still counts.
    pub hung_up: bool,
    /// No reply can be sent to it any more.
    pub unreachable: bool,
}

/// Whether a controller means the commands that it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// It has sent only commands so far.
    Commands,
    /// It has sent something else: perhaps it mistakes the socket for another one.
    Something,
    /// And then a command to pause; this has been logged.
    Paused,
}

/// How the log calls a controller.
#[derive(Clone, Copy)]
pub struct Name {
    pub id: Id,
    pub peer: Option<Peer>,
}

impl Controller {
    /// It sends `command`. Logs, once, if it seems not to mean that.
    pub fn listen_for_another_protocol(&mut self, command: Command) {
        match (self.speaks, command) {
            (Speaks::Commands, Command::Unknown) => self.speaks = Speaks::Something,
            (Speaks::Something, Command::Pause) => {
                self.speaks = Speaks::Paused;
                error!(
                    "{} paused the server with a p among bytes that are not commands: if it \
                     mistook the control socket for another one, resume the server (send r)",
                    self.name
                );
            }
            _ => {}
        }
    }

    /// Whether everything it sent is carried out, and no more comes.
    pub fn says_no_more(&self) -> bool {
        self.input_ended && self.dialogue.is_done()
    }

    /// And its replies are sent.
    pub fn is_finished(&self) -> bool {
        self.says_no_more() && self.dialogue.replies().is_empty()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "controller {}", self.id.0)?;
        if let Some((pid, uid)) = self.peer {
            write!(f, " (pid {pid}, uid {uid})")?;
        }
        Ok(())
    }
}
