//! The program behind a process id, where that can be had (proc(5)).

use std::fs;

use rustix::io::Errno;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, getpid, test_kill_process};

use super::state::Person;

/// The system counts the age of a process in hundredths of a second.
const ROUNDING: f64 = 0.1;

/// What is known of a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Program {
    /// It runs, and has this name.
    Named(String),
    /// It has ended.
    Gone,
    /// It may run.
    Unknown,
}

/// Whether a server that takes this program for `you` has the same process ids as we
/// have. In a container it may have others.
pub fn shares_our_ids(you: &Person) -> bool {
    you.pid == Some(getpid().as_raw_pid())
}

/// The process that had this id so many seconds ago.
pub fn behind(pid: i32, ago: f64) -> Program {
    let gone = Pid::from_raw(pid).is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH));
    // A younger process has got the id of one that has ended.
    if gone || age(pid).is_some_and(|age| age + ROUNDING < ago) {
        return Program::Gone;
    }
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => Program::Named(name.trim_end().to_owned()),
        Err(_) => Program::Unknown,
    }
}

/// How long this process has been there, in seconds.
fn age(pid: i32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name can have anything in it, and ends with the last parenthesis. The 22nd
    // field is the time of the start.
    let (_, fields) = stat.rsplit_once(')')?;
    let start: f64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some(uptime - start / clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_process_is_named_unless_it_is_younger_than_what_it_is_to_have_done() {
        let pid = process::id().cast_signed();
        let name = fs::read_to_string("/proc/self/comm").unwrap_or_default();
        assert_eq!(behind(pid, 0.0), Program::Named(name.trim_end().to_owned()));
        assert_eq!(behind(pid, 1e6), Program::Gone);
    }

    #[test]
    fn one_that_has_ended_is_gone() {
        let mut child = process::Command::new("true").spawn().expect("true");
        let pid = child.id().cast_signed();
        child.wait().expect("its end");
        assert_eq!(behind(pid, 0.0), Program::Gone);
    }
}
