//! What must never be among the lines of nbdkit-log-filter.

use std::collections::HashMap;

use crate::common::log::{self, Line};
use crate::load::{Life, REGION};
use pause_model::Pause;

pub struct Log<'a> {
    lines: Vec<Line<'a>>,
    /// How many requests are at work before each line, and after the last.
    at_work: Vec<i64>,
}

impl<'a> Log<'a> {
    pub fn new(text: &'a str) -> Self {
        let lines = log::lines(text);
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
        let starts = pauses.iter().map(|pause| pause.from.log).collect();
        log::unflushed_at(&self.lines, starts).into_iter().collect()
    }
}

/// The connection of client `life`, if a request of it has reached the plugin.
pub fn connection_of(life: u64, text: &str) -> Option<u32> {
    let its = |line: &&Line| line.offset.is_some_and(|offset| offset / REGION == life);
    log::lines(text).iter().find(its).map(|line| line.connection)
}

/// Whether the server has closed that connection; no request of it waits then.
pub fn has_ended(connection: u32, text: &str) -> bool {
    text.contains(&format!(" connection={connection} Disconnect "))
}
