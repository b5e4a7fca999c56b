//! How a pause can end at one server, and what to say about it. `target` ends it.

use std::time::Duration;

use crate::report::{Report, Seconds, how_to_resume};
use crate::target::Target;
use crate::trouble::Trouble;

/// How a pause has ended at one server.
#[derive(Debug)]
pub enum Ending {
    /// We had asked for nothing.
    Untouched,
    /// The request for a hold ended with its connection.
    Withdrawn,
    /// The hold was in force for this long, uninterrupted.
    Covered(Duration),
    /// The server answered `r`, this long after the pause if it was ours.
    Resumed(Option<Duration>),
    /// The hold was interrupted: the server refused `-`.
    Broken,
    /// The hold has ended early, with its connection: the server has closed it, or
    /// we have, because of a reply that makes no sense.
    Lost(Trouble),
    /// Unknown: the connection has ended, which ends no pause by `p`, but perhaps
    /// the server has ended, too. The pause is still to be undone.
    Cut(Trouble),
    /// The server answered `r`, on another connection than the one that ended early.
    ResumedAnew,
    /// Unknown, as there was no good answer to `-`. We have closed the connection,
    /// which ends the hold.
    Unproved(Trouble),
    /// Unknown, as there was no good answer to `r`.
    Unresumed(Trouble),
}

impl Ending {
    /// Whether the server runs again, and nothing interrupted its pause as far as
    /// anyone can know.
    pub fn is_good(&self) -> bool {
        matches!(
            self,
            Ending::Untouched | Ending::Withdrawn | Ending::Covered(_) | Ending::Resumed(_)
        )
    }

    /// Whether the pause surely had a break.
    pub fn is_break(&self) -> bool {
        matches!(self, Ending::Broken | Ending::Lost(_))
    }

    /// Says how it ended with `target`.
    pub fn say(&self, report: &Report, target: &Target) {
        match self {
            Ending::Untouched => {}
            Ending::Withdrawn => report.say(format_args!("{target}: withdrew the request to pause")),
            Ending::Covered(time) => report.say(format_args!(
                "{target}: released after a pause of {}, unbroken; others may still hold it",
                Seconds(*time)
            )),
            Ending::Resumed(None) => report.say(format_args!("{target}: resumed")),
            Ending::Resumed(Some(time)) => {
                report.say(format_args!("{target}: resumed after a pause of {}", Seconds(*time)))
            }
            Ending::Broken => report.say(format_args!(
                "{target}: THE PAUSE WAS INTERRUPTED: someone resumed the server, pause-timeout ran \
                 out, or the server began to shut down; nbdkit's log says which"
            )),
            Ending::Lost(trouble) => {
                report.say(format_args!("{target}: THE PAUSE ENDED EARLY: {trouble}"))
            }
            Ending::Cut(trouble) => {
                report.say(format_args!("{target}: THE PAUSE MAY HAVE BEEN INTERRUPTED: {trouble}"))
            }
            Ending::ResumedAnew => report.say(format_args!(
                "{target}: resumed on a new connection, as the first one had ended: \
                 THE PAUSE MAY HAVE BEEN INTERRUPTED"
            )),
            Ending::Unproved(trouble) => report.say(format_args!(
                "{target}: THE SERVER MAY STILL BE PAUSED: {trouble}. It resumes by itself once it \
                 notices that this program has disconnected; if it does not, type: {}",
                how_to_resume(target.socket())
            )),
            Ending::Unresumed(trouble) if !target.was_asked() => {
                report.say(format_args!("{target}: not resumed: {trouble}"));
            }
            Ending::Unresumed(trouble) => report.say(format_args!(
                "{target}: THE SERVER MAY STILL BE PAUSED: {trouble}. To resume it, type: {}",
                how_to_resume(target.socket())
            )),
        }
    }
}
