//! What a plugin saw: nbdkit-log-filter's lines on data requests, and what is not
//! stable by them. See `Setup::logged`.

use std::collections::{HashMap, HashSet};

const KINDS: [&str; 7] = ["Read", "Write", "Zero", "Trim", "Extents", "Cache", "Flush"];

/// One line: a request begins, or ends.
pub struct Line<'a> {
    /// Where it begins in the log.
    pub position: u64,
    pub text: &'a str,
    pub connection: u32,
    pub kind: &'a str,
    pub id: u64,
    pub begins: bool,
    pub offset: Option<u64>,
}

/// The log may still grow: its last line is left out if it is not whole.
pub fn lines(text: &str) -> Vec<Line<'_>> {
    let mut position = 0;
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        lines.extend(parse(position, line.trim_end()));
        position += line.len() as u64;
    }
    lines
}

/// `DATE TIME connection=1 Write id=2 offset=0x200 count=0x200 ...`, and at its
/// end `DATE TIME connection=1 ...Write id=2 return=0`. None for other lines. (1.48
/// has `!` in place of the time on a thread without a connection, as the filter's own.)
fn parse(position: u64, text: &str) -> Option<Line<'_>> {
    let mut words = text.split(' ').skip_while(|word| !word.starts_with("connection="));
    let connection = words.next()?.strip_prefix("connection=")?.parse().ok()?;
    let action = words.next()?;
    let ends = action.strip_prefix("...");
    let kind = ends.unwrap_or(action);
    let id = words.next()?.strip_prefix("id=")?.parse().ok()?;
    let offset = words.next().and_then(|word| word.strip_prefix("offset=0x"));
    let offset = offset.and_then(|offset| u64::from_str_radix(offset, 16).ok());
    let begins = ends.is_none();
    KINDS.contains(&kind).then_some(Line { position, text, connection, kind, id, begins, offset })
}

/// The last change of each connection that had changed something and had not flushed
/// that since when the log was as long as one of `positions`.
pub fn unflushed_at(lines: &[Line], mut positions: Vec<u64>) -> HashSet<String> {
    #[derive(Default)]
    struct State<'a> {
        /// Changes that are done, and how many of them are stable.
        changes: u64,
        stable: u64,
        last: &'a str,
        flushes: HashMap<u64, u64>,
    }
    positions.sort_unstable();
    let mut positions = positions.into_iter().peekable();
    let mut connections: HashMap<u32, State> = HashMap::new();
    let mut wrong = HashSet::new();
    // One more, so that the last positions are looked at.
    for line in lines.iter().map(Some).chain([None]) {
        let position = line.map_or(u64::MAX, |line| line.position);
        while positions.next_if(|&at| at <= position).is_some() {
            let unflushed = connections.values().filter(|state| state.stable < state.changes);
            wrong.extend(unflushed.map(|state| format!("not flushed: {}", state.last)));
        }
        let Some(line) = line else { break };
        let state = connections.entry(line.connection).or_default();
        match (line.kind, line.begins) {
            ("Write" | "Zero" | "Trim", false) => {
                state.changes += 1;
                state.last = line.text;
            }
            ("Flush", true) => {
                state.flushes.insert(line.id, state.changes);
            }
            ("Flush", false) => {
                let flushed = state.flushes.remove(&line.id).unwrap_or(0);
                state.stable = state.stable.max(flushed);
            }
            _ => {}
        }
    }
    wrong
}
