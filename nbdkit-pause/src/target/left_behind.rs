//! What to do with a server whose keeper was killed: a hold has gone with the keeper's
//! connection, a pause by `p` has not.

use std::path::PathBuf;
use std::time::Duration;

use super::{How, Stage, Target};
use crate::ending::Ending;

impl Target {
    /// A server that was paused by a process which is gone. This does not connect to it
    /// yet.
    pub fn left_behind(socket: PathBuf) -> Self {
        Target { asked: true, ..Target::new(socket) }
    }

    /// Finds out whether the server has holds, and so whether it needs to be resumed:
    /// then `undo` does it. Call it until `is_greeting` is false.
    pub fn take_over(&mut self) -> Option<Ending> {
        match self.greet() {
            Ok(false) => None,
            Ok(true) if self.has_holds => self.end(Ending::Untouched),
            // Over this connection, as a server that serves one at a time would not
            // serve another one.
            Ok(true) => self.enter(Stage::Paused(How::Plain)),
            Err(trouble) => self.end(Ending::Unresumed(trouble)),
        }
    }

    /// Whether the server has not said yet whether it has holds.
    pub fn is_greeting(&self) -> bool {
        matches!(self.stage, Stage::Fresh | Stage::Greeted)
    }

    /// Stops waiting for a greeting that has not come within `limit`.
    pub fn give_up_greeting(&mut self, limit: Duration) -> Option<Ending> {
        let trouble = self.overdue(limit);
        self.is_greeting().then(|| self.end(Ending::Unresumed(trouble))).flatten()
    }
}
