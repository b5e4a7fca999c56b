//! One server that this run pauses or resumes, through its control socket: what
//! is in force there at each moment, and so what it takes to undo it. Nothing
//! here waits. `session` handles several servers together.
//!
//! A server that has holds says so (`H`) when we ask (`?`). From such a server we
//! take a *hold* (`+`, released with `-`): it ends with this program, however that
//! ends, and the reply to `-` says whether the pause lasted. If the server
//! refuses the hold, it is not paused: a `p` would override the operator's `r`, and
//! the `r` after it would end everybody else's holds. A server without holds, such
//! as one with the filter that nbdkit ships, is paused with `p` and resumed with
//! `r`.

mod left_behind;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pause_protocol::{command, reply};

use crate::ending::Ending;
use crate::link::Link;
use crate::trouble::Trouble;

/// One server, and how far we are with it.
pub struct Target {
    socket: PathBuf,
    stage: Stage,
    link: Option<Link>,
    /// It has said that it has holds.
    has_holds: bool,
    /// We have asked the server to pause.
    asked: bool,
    paused: Option<Instant>,
    /// The connection has ended while the server was paused by `p`. It may have
    /// ended, too, and another may serve the disk by now.
    cut: bool,
}

/// How to pause a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With a hold if the server has holds, and otherwise with `p`.
    Hold,
    /// With `p`.
    Plain,
}

/// What we sent last, and what is in force at the server:
///
/// | stage | sent, not answered | in force |
/// |---|---|---|
/// | Fresh | | nothing |
/// | Greeted | `?` | nothing |
/// | Ready | | nothing |
/// | HoldAsked | `+` | perhaps the hold, for as long as we are connected |
/// | PauseAsked | `p` | perhaps the pause |
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
    HoldAsked,
    PauseAsked(How),
    Held,
    Paused(How),
    HoldReturned,
    ResumeDue,
    ResumeAsked {
        /// On a connection made for that.
        anew: bool,
    },
    Over,
}

impl Target {
    /// A server to pause. This does not connect to it yet.
    pub fn new(socket: PathBuf) -> Self {
        Target {
            socket,
            stage: Stage::Fresh,
            link: None,
            has_holds: false,
            asked: false,
            paused: None,
            cut: false,
        }
    }

    /// A server to resume, whoever paused it. This does not connect to it yet.
    pub fn to_resume(socket: PathBuf) -> Self {
        Target { stage: Stage::ResumeDue, ..Target::new(socket) }
    }

    /// The path of the control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The connection to poll for what the server sends.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Whether to try again to connect: no descriptor tells when there is room in
    /// the server's backlog.
    pub fn is_connecting(&self) -> bool {
        self.link.is_none() && matches!(self.stage, Stage::Fresh | Stage::ResumeDue)
    }

    /// Whether the server is paused, as far as we know.
    pub fn is_paused(&self) -> bool {
        matches!(self.stage, Stage::Held | Stage::Paused(_))
    }

    /// Whether the server is paused without the hold that we wanted.
    pub fn lacks_holds(&self) -> bool {
        self.stage == Stage::Paused(How::Hold)
    }

    /// Whether we have asked the server to pause.
    pub fn was_asked(&self) -> bool {
        self.asked
    }

    /// Whether nothing is left to do for this server.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Connects, and asks whether the server has holds. Only a pause filter answers
    /// that as it should, so this shows, too, before we pause any server, that this
    /// one is served. Returns false as long as it has not answered.
    pub fn greet(&mut self) -> Result<bool, Trouble> {
        if self.stage == Stage::Fresh && self.connect()? {
            self.stage = Stage::Greeted;
            self.send(command::ASK)?;
        }
        if self.stage == Stage::Greeted {
            match self.reply()? {
                None => {}
                Some(reply @ (reply::HAS_HOLDS | reply::NO)) => {
                    self.has_holds = reply == reply::HAS_HOLDS;
                    self.stage = Stage::Ready;
                }
                Some(reply) => return Err(Trouble::wrong_reply(reply)),
            }
        }
        Ok(self.stage == Stage::Ready)
    }

    /// Asks the server to pause. `greet` has returned true before.
    pub fn ask_to_pause(&mut self, how: How) -> Result<(), Trouble> {
        let (command, stage) = match how {
            How::Hold if self.has_holds => (command::HOLD, Stage::HoldAsked),
            how => (command::PAUSE, Stage::PauseAsked(how)),
        };
        // First, since a command may reach the server even if sending it fails.
        self.asked = true;
        self.stage = stage;
        self.send(command)
    }

    /// Takes the reply that has come since `ask_to_pause`. If this fails, the stage
    /// still says what there may be to undo.
    pub fn go_on_pausing(&mut self) -> Result<(), Trouble> {
        while let Some(reply) = self.reply()? {
            match (self.stage, reply) {
                (Stage::HoldAsked, reply::HELD) => self.enter_pause(Stage::Held),
                (Stage::PauseAsked(how), reply::PAUSED) => self.enter_pause(Stage::Paused(how)),
                (Stage::HoldAsked | Stage::PauseAsked(_), reply::NO) => {
                    self.stage = Stage::Ready;
                    return Err(Trouble::Refused);
                }
                _ => return Err(Trouble::wrong_reply(reply)),
            }
        }
        Ok(())
    }

    /// Looks whether the pause has ended while the command runs. A server sends
    /// nothing unasked, so all that can come is the end of the connection. It ends
    /// a hold. A pause may last, and still needs undoing, but we can't know
    /// whether it has lasted: the server may have ended, too.
    pub fn watch(&mut self) -> Option<Ending> {
        if !self.is_paused() || self.link.is_none() {
            return None;
        }
        let trouble = match self.reply() {
            Ok(None) => return None,
            Ok(Some(reply)) => Trouble::wrong_reply(reply),
            Err(trouble) => trouble,
        };
        match self.stage {
            Stage::Held => self.end(Ending::Lost(trouble)),
            _ => {
                (self.link, self.cut) = (None, true);
                Some(Ending::Cut(trouble))
            }
        }
    }

    /// Undoes what may be in force, or begins to: then `finish` returns how that
    /// went.
    pub fn undo(&mut self) -> Option<Ending> {
        match self.stage {
            Stage::Fresh | Stage::Greeted | Stage::Ready => self.end(Ending::Untouched),
            Stage::HoldAsked => self.end(Ending::Withdrawn),
            Stage::Held => match self.send(command::LET_GO) {
                Ok(()) => self.enter(Stage::HoldReturned),
                Err(trouble) => self.end(Ending::Lost(trouble)),
            },
            // On the same connection, as long as there is one: a server that
            // serves one controller at a time would not serve another connection.
            Stage::Paused(_) => match self.send(command::RESUME) {
                Ok(()) => self.enter(Stage::ResumeAsked { anew: false }),
                Err(_) => self.resume_cut(),
            },
            // On this connection the server would look at `r` only after its reply
            // to the command before. On another one `r` ends even a drain.
            Stage::PauseAsked(_) => self.resume_anew(),
            _ => None,
        }
    }

    /// Goes on undoing. Returns how the pause has ended, once that is known.
    pub fn finish(&mut self) -> Option<Ending> {
        match self.stage {
            Stage::HoldReturned => match self.reply() {
                Ok(None) => None,
                Ok(Some(reply::LET_GO)) => {
                    self.end(Ending::Covered(self.time_paused().unwrap_or_default()))
                }
                Ok(Some(reply::NO)) => self.end(Ending::Broken),
                Ok(Some(reply)) => self.end(Ending::Unproved(Trouble::wrong_reply(reply))),
                Err(trouble) => self.end(Ending::Lost(trouble)),
            },
            Stage::ResumeDue => match self.connect() {
                Ok(false) => None,
                Ok(true) => match self.send(command::RESUME) {
                    Ok(()) => self.enter(Stage::ResumeAsked { anew: true }),
                    Err(trouble) => self.end(Ending::Unresumed(trouble)),
                },
                Err(trouble) => self.end(Ending::Unresumed(trouble)),
            },
            Stage::ResumeAsked { anew } => match self.reply() {
                Ok(None) => None,
                Ok(Some(reply::RESUMED)) if self.cut => self.end(Ending::ResumedAnew),
                Ok(Some(reply::RESUMED)) => self.end(Ending::Resumed(self.time_paused())),
                Ok(Some(reply)) => self.end(Ending::Unresumed(Trouble::wrong_reply(reply))),
                Err(_) if !anew => self.resume_cut(),
                Err(trouble) => self.end(Ending::Unresumed(trouble)),
            },
            _ => None,
        }
    }

    /// Stops waiting for a reply that has not come within `limit`.
    pub fn give_up(&mut self, limit: Duration) -> Option<Ending> {
        let trouble = self.overdue(limit);
        match self.stage {
            Stage::Over => None,
            Stage::HoldReturned => self.end(Ending::Unproved(trouble)),
            _ => self.end(Ending::Unresumed(trouble)),
        }
    }

    /// What is wrong if the server has not answered for so long.
    pub fn overdue(&self, time: Duration) -> Trouble {
        match self.stage {
            Stage::HoldAsked | Stage::PauseAsked(_) => Trouble::Draining(time),
            _ => Trouble::Silent(time),
        }
    }

    /// Connects. Returns false if that has to be tried again.
    fn connect(&mut self) -> Result<bool, Trouble> {
        if self.link.is_none() {
            self.link = Link::open(&self.socket)?;
        }
        Ok(self.link.is_some())
    }

    fn send(&mut self, command: u8) -> Result<(), Trouble> {
        match &mut self.link {
            Some(link) => link.send(command),
            None => Err(Trouble::Closed),
        }
    }

    fn reply(&mut self) -> Result<Option<u8>, Trouble> {
        match &mut self.link {
            Some(link) => link.reply(),
            None => Err(Trouble::Closed),
        }
    }

    fn enter_pause(&mut self, stage: Stage) {
        self.stage = stage;
        self.paused = Some(Instant::now());
    }

    fn time_paused(&self) -> Option<Duration> {
        self.paused.map(|since| since.elapsed())
    }

    /// Resumes on a new connection, as the one before has ended.
    fn resume_cut(&mut self) -> Option<Ending> {
        self.cut = true;
        self.resume_anew()
    }

    /// Resumes on a new connection.
    fn resume_anew(&mut self) -> Option<Ending> {
        self.link = None;
        self.stage = Stage::ResumeDue;
        self.finish()
    }

    fn enter(&mut self, stage: Stage) -> Option<Ending> {
        self.stage = stage;
        None
    }

    fn end(&mut self, ending: Ending) -> Option<Ending> {
        self.link = None;
        self.stage = Stage::Over;
        Some(ending)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.socket.display())
    }
}
