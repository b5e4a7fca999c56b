//! What the plugin saw: nbdkit-log-filter's lines, and what must never be
//! among them.

use std::collections::{HashMap, HashSet};

use crate::load::{Life, REGION};
use pause_model::Pause;

const KINDS: [&str; 7] = ["Read", "Write", "Zero", "Trim", "Extents", "Cache", "Flush"];

/// One line: a request begins, or ends.
struct Line<'a> {
    /// Where it begins in the log.
    position: u64,
    text: &'a str,
    connection: u32,
    kind: &'a str,
    id: u64,
    begins: bool,
    offset: Option<u64>,
}

pub struct Log<'a> {
    lines: Vec<Line<'a>>,
    /// How many requests are at work before each line, and after the last.
    at_work: Vec<i64>,
}

impl<'a> Log<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut position = 0;
        let mut lines = Vec::new();
        for line in text.split_inclusive('\n') {
            lines.extend(parse(position, line.trim_end()));
            position += line.len() as u64;
        }
        let mut at_work = vec![0];
        for line in &lines {
            at_work.push(at_work[at_work.len() - 1] + if line.begins { 1 } else { -1 });
        }
        Log { at_work, lines }
    }

    pub fn requests(&self) -> usize {
        self.lines.iter().filter(|line| line.begins).count()
    }

    /// The first line that begins at `position` or later.
    fn line_at(&self, position: u64) -> usize {
        self.lines.partition_point(|line| line.position < position)
    }

    /// In a pause no request is at work, none begins and none ends.
    pub fn work_in(&self, pauses: &[Pause]) -> Vec<String> {
        let mut wrong = Vec::new();
        for pause in pauses {
            let (first, last) = (self.line_at(pause.from.log), self.line_at(pause.until.log));
            let at_work = self.at_work[first];
            if at_work != 0 {
                wrong.push(format!("{at_work} requests at work as it is paused: {pause:?}"));
            }
            for line in self.lines.get(first..last).unwrap_or_default() {
                wrong.push(format!("in a pause, {pause:?}: {}", line.text));
            }
        }
        wrong
    }

    /// In each of these times there is a moment at which no request is at work.
    pub fn never_idle_in(&self, times: &[(Pause, String)]) -> Vec<String> {
        let busy = times.iter().filter(|(time, _)| {
            let (first, last) = (self.line_at(time.from.log), self.line_at(time.until.log));
            !self.at_work[first..=last].contains(&0)
        });
        busy.map(|(time, why)| format!("{why}, but the plugin was busy throughout {time:?}"))
            .collect()
    }

    /// All that has begun has ended, once.
    pub fn unended(&self) -> Vec<String> {
        let mut open = HashMap::new();
        let mut wrong = Vec::new();
        for line in &self.lines {
            let key = (line.connection, line.id, line.kind);
            let fits = match line.begins {
                true => open.insert(key, line.text).is_none(),
                false => open.remove(&key).is_some(),
            };
            if !fits {
                wrong.push(format!("out of order: {}", line.text));
            }
        }
        wrong.extend(open.into_values().map(|text| format!("never ended: {text}")));
        wrong
    }

    /// Nothing that was held for a client is begun after it has died in that pause.
    pub fn work_for_the_dead(&self, lives: &[Life], pauses: &[Pause]) -> Vec<String> {
        // The place in the log from which on each one is dead.
        let dead: HashMap<u64, usize> = lives
            .iter()
            .filter(|life| life.was_held)
            .filter_map(|life| {
                let died = life.died?;
                let pause = pauses.iter().find(|pause| pause.has(died))?;
                Some((life.number, self.line_at(pause.from.log)))
            })
            .collect();
        let mut whose = HashMap::new();
        let mut wrong = Vec::new();
        for (place, line) in self.lines.iter().enumerate() {
            if let Some(offset) = line.offset {
                whose.entry(line.connection).or_insert(offset / REGION);
            }
            let life = whose.get(&line.connection);
            let since = life.and_then(|life| dead.get(life));
            if line.begins && since.is_some_and(|&since| place >= since) {
                wrong.push(format!("for client {life:?}, who died in a pause: {}", line.text));
            }
        }
        wrong
    }

    /// When a pause is in force, all that was changed was flushed since.
    pub fn unflushed_in(&self, pauses: &[Pause]) -> Vec<String> {
        #[derive(Default)]
        struct State<'a> {
            /// Changes that are done, and how many of them are stable.
            changes: u64,
            stable: u64,
            last: &'a str,
            flushes: HashMap<u64, u64>,
        }
        let mut starts: Vec<u64> = pauses.iter().map(|pause| pause.from.log).collect();
        starts.sort_unstable();
        let mut starts = starts.into_iter().peekable();
        let mut connections: HashMap<u32, State> = HashMap::new();
        let mut wrong = HashSet::new();
        // One more, so that the last pauses are looked at.
        for line in self.lines.iter().map(Some).chain([None]) {
            let position = line.map_or(u64::MAX, |line| line.position);
            while starts.next_if(|&start| start <= position).is_some() {
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
        wrong.into_iter().collect()
    }
}

/// The connection of client `life`, if a request of it has reached the plugin.
/// The log may still grow: its last line may not be whole.
pub fn connection_of(life: u64, text: &str) -> Option<u32> {
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let mut lines = whole.filter_map(|line| parse(0, line.trim_end()));
    let its = |line: &Line| line.offset.is_some_and(|offset| offset / REGION == life);
    lines.find(its).map(|line| line.connection)
}

/// Whether the server has closed that connection; no request of it waits then.
pub fn has_ended(connection: u32, text: &str) -> bool {
    text.contains(&format!(" connection={connection} Disconnect "))
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
