//! The lines that say, in a log, how long the servers have been paused for a command. On
//! a terminal `writer` counts the seconds.

use std::time::{Duration, Instant};

use crate::command::Command;
use crate::report::Report;

/// When the first line is due, in seconds. It says what else there is to say.
const FIRST: u64 = 10;

/// When each line is due.
pub struct Progress {
    since: Instant,
    /// In seconds.
    due: u64,
}

impl Progress {
    /// From now on.
    pub fn new() -> Self {
        Progress { since: Instant::now(), due: FIRST }
    }

    /// Says the line that is due, if one is.
    pub fn say(&mut self, report: &Report, command: &Command) {
        let seconds = self.since.elapsed().as_secs();
        if seconds < self.due {
            return;
        }
        let doing = command.doing();
        match self.due {
            FIRST => report.say(format_args!(
                "paused for {seconds} s, {doing}; if it reads through a paused server, it waits \
                 forever: let it copy the storage itself"
            )),
            _ => report.log(format_args!("paused for {seconds} s, {doing}")),
        }
        self.due = after(seconds);
    }

    /// How long until the next one is due.
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.due).saturating_sub(self.since.elapsed())
    }
}

/// When the next line after this time is due: 30 seconds, and then each minute.
fn after(seconds: u64) -> u64 {
    match seconds {
        ..30 => 30,
        seconds => (seconds / 60).saturating_add(1).saturating_mul(60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_at_30_seconds_and_then_each_minute() {
        for (seconds, next) in
            [(10, 30), (12, 30), (30, 60), (59, 60), (60, 120), (119, 120), (600, 660)]
        {
            assert_eq!(after(seconds), next, "{seconds}");
        }
    }
}
