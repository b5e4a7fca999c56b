//! One server, from the request to pause it to its being resumed: what is in
//! force there at each moment, and so what it takes to undo it. Never waits.
//! Who else is paused, and what for, is decided elsewhere.
//!
//! A *hold* (`+`, given back with `-`) is what a server is asked for: it ends
//! with this program, however that ends, and its end tells whether the pause
//! had a break. A server that has none, like the filter that nbdkit ships,
//! answers `X` to `+`, and is paused with `p`. But so does a server that has
//! holds when the pause did not take effect: somebody resumed while it
//! drained, its time ran out, a flush failed. Then `p` in its place would set
//! itself over the operator's `r`, and stay in force if this program is
//! killed. What tells the two apart:
//!
//! - An `X` that takes its time comes from a drain: a server without holds
//!   answers at once. (That it is served at all is known by then, since it has
//!   answered the greeting.)
//! - After a quick `X` comes `p`, and after the `P` another `+`. The server is
//!   idle then, and one that has holds grants it: `X` means that it has none.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pause_protocol::{command, reply};

use crate::control::{Connection, Trouble};

/// No command: a pause filter answers `X`, and nothing else does. That it
/// answers is good to know before any server is paused.
const GREETING: u8 = b'?';

/// A server without holds has answered `+` by then.
const AT_ONCE: Duration = Duration::from_secs(2);

/// See the file's text.
pub struct Server {
    socket: PathBuf,
    stage: Stage,
    connection: Option<Connection>,
    /// It was asked to pause by us.
    asked: bool,
    paused: Option<Instant>,
}

/// How a server is to be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With a hold if it has them, and otherwise with `p`.
    Hold,
    /// With `p`.
    Plain,
}

/// What was sent last, and what is in force at the server:
///
/// | stage | sent, not answered | in force |
/// |---|---|---|
/// | Fresh | | nothing |
/// | Greeted | `?` | nothing |
/// | Ready | | nothing |
/// | HoldAsked | `+` | perhaps the hold, for as long as we are connected |
/// | PauseAsked | `p` | perhaps the pause |
/// | HoldTried | `+` | the pause, perhaps the hold, too |
/// | Held | | the hold |
/// | Paused | | the pause |
/// | HoldReturned | `-` | perhaps the hold, for as long as we are connected |
/// | ResumeDue | | perhaps the pause |
/// | ResumeAsked | `r` | perhaps the pause |
/// | Over | | nothing, as far as we can help it |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fresh,
    Greeted,
    Ready,
    HoldAsked(Instant),
    PauseAsked(How),
    HoldTried,
    Held,
    Paused(How),
    HoldReturned,
    ResumeDue,
    /// On a connection made for that.
    ResumeAsked {
        anew: bool,
    },
    Over,
}

/// How it ended.
#[derive(Debug)]
pub enum Ending {
    /// Nothing had been asked for.
    Untouched,
    /// The request for a hold ended with its connection.
    Withdrawn,
    /// The hold was in force without a break for so long.
    Covered(Duration),
    /// `r` was answered, so long after the pause.
    Resumed(Option<Duration>),
    /// The hold had a break: `-` was refused.
    Broken,
    /// The hold ended with its connection, which the server closed or which
    /// makes no sense any more.
    Lost(Trouble),
    /// There is no telling: no good answer to `-`. The connection is closed,
    /// which ends the hold.
    Unproved(Trouble),
    /// There is no telling: no good answer to `r`.
    Unresumed(Trouble),
}

impl Server {
    /// Neither connected nor asked for anything.
    pub fn new(socket: PathBuf) -> Self {
        Server { socket, stage: Stage::Fresh, connection: None, asked: false, paused: None }
    }

    /// One that is to be resumed, whoever paused it.
    pub fn to_resume(socket: PathBuf) -> Self {
        Server { stage: Stage::ResumeDue, ..Server::new(socket) }
    }

    /// The path of its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The connection to it, to be polled for what it sends.
    pub fn connection(&self) -> Option<&Connection> {
        self.connection.as_ref()
    }

    /// Whether it has to be looked at without being polled.
    pub fn is_knocking(&self) -> bool {
        self.connection.is_none() && matches!(self.stage, Stage::Fresh | Stage::ResumeDue)
    }

    /// Whether it is paused, as far as is known.
    pub fn is_paused(&self) -> bool {
        matches!(self.stage, Stage::Held | Stage::Paused(_))
    }

    /// Whether it is paused without the hold that was wanted.
    pub fn lacks_holds(&self) -> bool {
        self.stage == Stage::Paused(How::Hold)
    }

    /// Whether we have asked it to pause.
    pub fn was_asked(&self) -> bool {
        self.asked
    }

    /// Whether it needs nothing more.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Makes its acquaintance; false as long as it has not answered.
    pub fn greet(&mut self) -> Result<bool, Trouble> {
        if self.stage == Stage::Fresh && self.connect()? {
            self.stage = Stage::Greeted;
            self.send(GREETING)?;
        }
        if self.stage == Stage::Greeted {
            match self.reply()? {
                None => {}
                Some(reply::NO) => self.stage = Stage::Ready,
                Some(reply) => return Err(Trouble::wrong_reply(reply)),
            }
        }
        Ok(self.stage == Stage::Ready)
    }

    /// Asks it to pause. It has answered the greeting.
    pub fn ask(&mut self, how: How) -> Result<(), Trouble> {
        let (command, stage) = match how {
            How::Hold => (command::HOLD, Stage::HoldAsked(Instant::now())),
            How::Plain => (command::PAUSE, Stage::PauseAsked(How::Plain)),
        };
        // Before it is sent: what fails may have reached the server.
        self.asked = true;
        self.stage = stage;
        self.send(command)
    }

    /// Takes what it has answered. When this fails, the stage still says what
    /// there may be to undo.
    pub fn hear(&mut self) -> Result<(), Trouble> {
        while let Some(reply) = self.reply()? {
            match (self.stage, reply) {
                (Stage::HoldAsked(_), reply::HELD) => self.is_now(Stage::Held),
                (Stage::HoldAsked(when), reply::NO) if when.elapsed() > AT_ONCE => {
                    self.stage = Stage::Ready;
                    return Err(Trouble::Refused);
                }
                (Stage::HoldAsked(_), reply::NO) => {
                    self.stage = Stage::PauseAsked(How::Hold);
                    self.send(command::PAUSE)?;
                }
                (Stage::PauseAsked(_), reply::NO) => {
                    self.stage = Stage::Ready;
                    return Err(Trouble::Refused);
                }
                (Stage::PauseAsked(How::Plain), reply::PAUSED) => {
                    self.is_now(Stage::Paused(How::Plain))
                }
                (Stage::PauseAsked(How::Hold), reply::PAUSED) => {
                    self.stage = Stage::HoldTried;
                    self.send(command::HOLD)?;
                }
                (Stage::HoldTried, reply::NO) => self.is_now(Stage::Paused(How::Hold)),
                // It has holds: the first X was the operator's word.
                (Stage::HoldTried, reply::HELD) => return Err(Trouble::Refused),
                _ => return Err(Trouble::wrong_reply(reply)),
            }
        }
        Ok(())
    }

    /// Looks after it while the command runs. It says nothing of its own
    /// accord, so there is only the end of the connection to hear of; with it
    /// ends a hold, but not a pause.
    pub fn watch(&mut self) -> Option<Ending> {
        if !self.is_paused() || self.connection.is_none() {
            return None;
        }
        let trouble = match self.reply() {
            Ok(None) => return None,
            Ok(Some(reply)) => Trouble::wrong_reply(reply),
            Err(trouble) => trouble,
        };
        self.connection = None;
        match self.stage {
            Stage::Held => self.over(Ending::Lost(trouble)),
            _ => None,
        }
    }

    /// Undoes what may be in force, or begins to; `finish` tells how that went.
    pub fn let_go(&mut self) -> Option<Ending> {
        match self.stage {
            Stage::Fresh | Stage::Greeted | Stage::Ready => self.over(Ending::Untouched),
            Stage::HoldAsked(_) => self.over(Ending::Withdrawn),
            Stage::Held => match self.send(command::LET_GO) {
                Ok(()) => self.goes_on(Stage::HoldReturned),
                Err(trouble) => self.over(Ending::Lost(trouble)),
            },
            // On the same connection, as long as there is one: a server that
            // serves one controller at a time would not hear another.
            Stage::Paused(_) => match self.send(command::RESUME) {
                Ok(()) => self.goes_on(Stage::ResumeAsked { anew: false }),
                Err(_) => self.begin_anew(),
            },
            // The reply to the command before is not here yet, and a server
            // does not look at the next one until it has sent it. On another
            // connection `r` ends a pause that still drains, too.
            Stage::PauseAsked(_) | Stage::HoldTried => self.begin_anew(),
            _ => None,
        }
    }

    /// How it ended, once that is known.
    pub fn finish(&mut self) -> Option<Ending> {
        match self.stage {
            Stage::HoldReturned => match self.reply() {
                Ok(None) => None,
                Ok(Some(reply::LET_GO)) => {
                    let time = self.time_paused().unwrap_or_default();
                    self.over(Ending::Covered(time))
                }
                Ok(Some(reply::NO)) => self.over(Ending::Broken),
                Ok(Some(reply)) => self.over(Ending::Unproved(Trouble::wrong_reply(reply))),
                Err(trouble) => self.over(Ending::Lost(trouble)),
            },
            Stage::ResumeDue => match self.connect() {
                Ok(false) => None,
                Ok(true) => match self.send(command::RESUME) {
                    Ok(()) => self.goes_on(Stage::ResumeAsked { anew: true }),
                    Err(trouble) => self.over(Ending::Unresumed(trouble)),
                },
                Err(trouble) => self.over(Ending::Unresumed(trouble)),
            },
            Stage::ResumeAsked { anew } => match self.reply() {
                Ok(None) => None,
                Ok(Some(reply::RESUMED)) => {
                    let time = self.time_paused();
                    self.over(Ending::Resumed(time))
                }
                Ok(Some(reply)) => self.over(Ending::Unresumed(Trouble::wrong_reply(reply))),
                // A server may close an idle connection to make room.
                Err(_) if !anew => self.begin_anew(),
                Err(trouble) => self.over(Ending::Unresumed(trouble)),
            },
            _ => None,
        }
    }

    /// Waits no longer for the end, which took longer than `limit`.
    pub fn give_up(&mut self, limit: Duration) -> Option<Ending> {
        let trouble = self.overdue(limit);
        match self.stage {
            Stage::Over => None,
            Stage::HoldReturned => self.over(Ending::Unproved(trouble)),
            _ => self.over(Ending::Unresumed(trouble)),
        }
    }

    /// What it means that it has not answered for so long.
    pub fn overdue(&self, time: Duration) -> Trouble {
        match self.stage {
            Stage::HoldAsked(_) | Stage::PauseAsked(_) => Trouble::Draining(time),
            _ => Trouble::Silent(time),
        }
    }

    /// Connects; false if that has to be tried again.
    fn connect(&mut self) -> Result<bool, Trouble> {
        if self.connection.is_none() {
            self.connection = Connection::open(&self.socket)?;
        }
        Ok(self.connection.is_some())
    }

    fn send(&mut self, command: u8) -> Result<(), Trouble> {
        match &mut self.connection {
            Some(connection) => connection.send(command),
            None => Err(Trouble::Closed),
        }
    }

    fn reply(&mut self) -> Result<Option<u8>, Trouble> {
        match &mut self.connection {
            Some(connection) => connection.reply(),
            None => Err(Trouble::Closed),
        }
    }

    fn is_now(&mut self, stage: Stage) {
        self.stage = stage;
        self.paused = Some(Instant::now());
    }

    fn time_paused(&self) -> Option<Duration> {
        self.paused.map(|since| since.elapsed())
    }

    fn begin_anew(&mut self) -> Option<Ending> {
        self.connection = None;
        self.stage = Stage::ResumeDue;
        self.finish()
    }

    fn goes_on(&mut self, stage: Stage) -> Option<Ending> {
        self.stage = stage;
        None
    }

    fn over(&mut self, ending: Ending) -> Option<Ending> {
        self.connection = None;
        self.stage = Stage::Over;
        Some(ending)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.socket.display())
    }
}
