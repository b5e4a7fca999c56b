//! What `s` is answered: the state of the pause, as one line of JSON (RFC 8259). The
//! manual page says what is in it. Nothing here waits, or changes anything.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::time::{Duration, Instant, SystemTime};

use super::controller::{Id, Peer};
use super::history::{Ended, History};
use super::stage::Stage;
use crate::gate::Gate;
use crate::nbdkit;

/// A pause or a hold that somebody has asked for.
#[derive(Clone, Copy)]
pub struct Asked {
    pub peer: Option<Peer>,
    pub at: Instant,
}

/// The state, as `pause` has it.
pub struct Status<'a> {
    pub stage: &'a Stage,
    /// When that began.
    pub since: Instant,
    pub gate: &'a Gate,
    /// By `p`.
    pub asked: Option<Asked>,
    pub holds: &'a BTreeMap<Id, Asked>,
    pub history: &'a History,
}

impl Status<'_> {
    /// The state as it is `now`, which is at this time of day, for a controller of `you`.
    pub fn to_line(&self, you: Option<Peer>, now: Instant, time_of_day: SystemTime) -> String {
        let age = |then: Instant| now.saturating_duration_since(then);
        let time = time_of_day.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let in_flight = match self.stage {
            Stage::Running | Stage::Draining(_) => self.gate.in_flight(),
            // One that is about to wait is counted for a moment, too.
            Stage::Flushing(_) | Stage::Paused(_) => 0,
        };
        let deadline = self.stage.closed().and_then(|closed| closed.deadline);
        let asked = |it: &Asked| person(it.peer).and("age", Seconds(age(it.at)));
        let ended = |it: &Ended| {
            person(it.cause.peer())
                .and("by", Text(it.cause.name()))
                .and("ago", Seconds(age(it.at)))
                .and("length", Seconds(it.length()))
                .and("held", it.held)
                .and("reached", Text(it.stage.name()))
        };
        let status = Object::new()
            .and("state", Text(self.stage.name()))
            .and("since", Seconds(time.saturating_sub(age(self.since))))
            .and("for", Seconds(age(self.since)))
            .and("in_flight", in_flight)
            .and("held", self.gate.held())
            .and("oldest_held", OrNull(self.gate.oldest_held().map(|it| Seconds(age(it)))))
            .and("paused_by", OrNull(self.asked.as_ref().map(asked)))
            .and("holds", list(self.holds.values().map(asked)))
            .and(
                "timeout_left",
                OrNull(deadline.map(|it| Seconds(it.saturating_duration_since(now)))),
            )
            .and("ended", list(self.history.iter().map(ended)))
            .and("you", person(you))
            .and("filter", Text(env!("CARGO_PKG_VERSION")))
            .and("nbdkit", Text(nbdkit::version()));
        format!("{status}\n")
    }
}

/// A process, 0 where it is in another PID namespace, and a user.
fn person(peer: Option<Peer>) -> Object {
    let pid = peer.map(|(pid, _)| pid).filter(|&pid| pid != 0);
    Object::new().and("pid", OrNull(pid)).and("uid", OrNull(peer.map(|(_, uid)| uid)))
}

/// A JSON object, member by member.
struct Object(String);

impl Object {
    fn new() -> Self {
        Object(String::new())
    }

    fn and(mut self, name: &str, value: impl Display) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        // Writing to memory does not fail.
        let _ = write!(self.0, "{comma}{}:{value}", Text(name));
        self
    }
}

impl Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.0)
    }
}

fn list(items: impl Iterator<Item = Object>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    format!("[{}]", items.join(","))
}

struct OrNull<T>(Option<T>);

impl<T: Display> Display for OrNull<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// A time in seconds, to the microsecond.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
}

/// A string.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\0'..' ' => write!(f, "\\u{:04x}", u32::from(c))?,
                _ => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_escaped_where_json_asks_for_it() {
        for (text, json) in [
            ("1.32.5", r#""1.32.5""#),
            (r#"a "b" \c"#, r#""a \"b\" \\c""#),
            ("\n\u{1f}\0é", r#""\u000a\u001f\u0000é""#),
        ] {
            assert_eq!(Text(text).to_string(), json);
        }
    }
}
