//! What the servers tell, for a person: a line for each of them, and below it who is
//! behind that.

use std::fmt::Display;

use super::Server;
use super::ask::{Answer, Filter};
use super::program::{self, Program};
use super::state::{Asked, Ended, Person, Stage, State};
use crate::date;

const HEAD: [&str; 8] =
    ["SOCKET", "STATE", "SINCE", "FOR", "IN FLIGHT", "HELD", "OLDEST HELD", "TIME LEFT"];

/// A day, in seconds.
const DAY: f64 = 86_400.0;

/// The table, with a newline at the end.
pub fn draw(servers: &[Server]) -> String {
    let rows: Vec<Vec<String>> = servers.iter().map(row).collect();
    let head: Vec<String> = HEAD.map(str::to_owned).to_vec();
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&head);
    for (server, row) in servers.iter().zip(&rows) {
        text.push_str(&line(row));
        for detail in details(server) {
            text.push_str(&format!("  {}\n", printable(&detail)));
        }
    }
    text
}

/// What to say of a server that does not tell its state.
pub fn how_to_see_more(filter: Filter) -> &'static str {
    match filter {
        Filter::Ours => {
            "reachable, but does not tell its state: its filter is libpause, without \
             pause-status; to see more, start nbdkit with pause-status=true"
        }
        Filter::Stock => {
            "reachable, but can't tell its state: its filter is nbdkit's own; to see more, start \
             nbdkit with --filter=libpause and pause-status=true"
        }
    }
}

fn row(server: &Server) -> Vec<String> {
    let socket = printable(&server.socket.display().to_string());
    let Some(Ok(Answer::Told(_, state))) = &server.outcome else {
        return vec![socket, "UNKNOWN".to_owned()];
    };
    let or_none = |time: Option<f64>| time.map_or("-".to_owned(), lasting);
    // What is not as it should be meets the eye.
    let name = match state.state {
        Stage::Running => "running",
        Stage::Draining => "DRAINING",
        Stage::Flushing => "FLUSHING",
        Stage::Paused => "PAUSED",
    };
    vec![
        socket,
        name.to_owned(),
        local_time(state.since, state.lasts),
        lasting(state.lasts),
        state.in_flight.to_string(),
        state.held.to_string(),
        or_none(state.oldest_held),
        match state.timeout_left {
            None if !state.state.flows() => "no limit".to_owned(),
            left => or_none(left),
        },
    ]
}

fn details(server: &Server) -> Vec<String> {
    match &server.outcome {
        Some(Ok(Answer::Told(_, state))) => people(state),
        Some(Ok(Answer::Untold(filter))) => vec![how_to_see_more(*filter).to_owned()],
        Some(Err(trouble)) => vec![trouble.to_string()],
        None => vec!["has not answered yet".to_owned()],
    }
}

/// Who is behind the state.
fn people(state: &State) -> Vec<String> {
    let shares_ids = program::shares_our_ids(&state.you);
    let name = |who: &Person, ago| person(who, ago, shares_ids);
    let mut lines = Vec::new();
    if let Some(Asked { who, age }) = &state.paused_by {
        lines.push(format!("paused by p of {}, {} ago", name(who, *age), lasting(*age)));
    }
    for Asked { who, age } in &state.holds {
        lines.push(format!("hold of {}, for {}", name(who, *age), lasting(*age)));
    }
    if let Some(Ended { who, by, ago, length, held, reached }) = state.ended.first() {
        let whom = match (who.pid, who.uid) {
            (None, None) => by.clone(),
            _ => format!("{by} of {}", name(who, *ago)),
        };
        let unless_paused = match reached {
            Stage::Paused => "",
            _ => ", never in force",
        };
        lines.push(format!(
            "last pause: {}{unless_paused}, requests held: {held}, ended by {whom}, {} ago",
            lasting(*length),
            lasting(*ago)
        ));
    }
    lines
}

fn person(who: &Person, ago: f64, shares_ids: bool) -> String {
    let uid = who.uid.map_or("an unknown user".to_owned(), |uid| format!("uid {uid}"));
    let Some(pid) = who.pid else { return format!("an unknown process, {uid}") };
    match if shares_ids { program::behind(pid, ago) } else { Program::Unknown } {
        Program::Named(name) => format!("pid {pid} ({name}), {uid}"),
        Program::Gone => format!("pid {pid} (gone), {uid}"),
        Program::Unknown => format!("pid {pid}, {uid}"),
    }
}

/// A time as people say it.
fn lasting(seconds: f64) -> String {
    let parts = |large: f64, small: f64, names: [&str; 2]| {
        let whole = (seconds / large).floor();
        let rest = ((seconds - whole * large) / small).floor();
        format!("{whole} {} {rest} {}", names[0], names[1])
    };
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        ..3600.0 => parts(60.0, 1.0, ["min", "s"]),
        ..DAY => parts(3600.0, 60.0, ["h", "min"]),
        _ => parts(DAY, 3600.0, ["d", "h"]),
    }
}

/// A moment of the server's clock, `ago` seconds before now, as the clock on the wall
/// has it.
fn local_time(moment: f64, ago: f64) -> String {
    // What is no time at all becomes the nearest one.
    let (day, clock) = date::local(moment as libc::time_t);
    match ago {
        ..DAY => clock,
        _ => format!("{day} {clock}"),
    }
}

/// A path or the name of a program can have anything in it, and a terminal would obey.
fn printable(text: &impl Display) -> String {
    let mask = |c: char| if c.is_control() { '?' } else { c };
    text.to_string().chars().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_two_units_that_matter() {
        for (seconds, text) in [
            (0.0, "0.0 s"),
            (12.34, "12.3 s"),
            (60.0, "1 min 0 s"),
            (61.9, "1 min 1 s"),
            (3_600.0, "1 h 0 min"),
            (90_061.0, "1 d 1 h"),
        ] {
            assert_eq!(lasting(seconds), text);
        }
    }

    #[test]
    fn nothing_that_is_told_commands_a_terminal() {
        assert_eq!(printable(&"a\x1b[2Jb\n\u{9b}c é"), "a?[2Jb??c é");
    }
}
