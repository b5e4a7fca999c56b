//! Asks one server for its state. Nothing here waits: `status` polls.
//!
//! A server that has no `s` is asked for what else can be known of it. Ours with holds
//! says so. Without holds it answers each command as nbdkit's own filter does, but that
//! one serves a single controller at a time. So we connect once more: ours answers there
//! at once, nbdkit's own when the first connection is closed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pause_protocol::{command, reply};

use super::state::State;
use crate::link::Link;
use crate::trouble::Trouble;

/// While a server's backlog is full we try this often to connect.
const RETRY: Duration = Duration::from_millis(10);

/// How long our own filter has for its answer on the second connection. It takes less
/// than a millisecond, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// A state is some KiB long at most.
const LONGEST: usize = 1 << 16;

/// The pause filter of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// libpause.
    Ours,
    /// The one that nbdkit ships.
    Stock,
}

/// What has come of it.
#[derive(Debug)]
pub enum Answer {
    /// The line as it came, and what it says.
    Told(String, Box<State>),
    /// The server does not tell its state, and has this filter.
    Untold(Filter),
}

/// An inquiry, and how far it is.
pub struct Inquiry {
    socket: PathBuf,
    /// The filter, if it is known from before.
    filter: Option<Filter>,
    stage: Stage,
    /// In the order in which they were opened.
    links: Vec<Link>,
    line: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Stage {
    Fresh,
    /// `s` was sent.
    Asked,
    /// `?` was sent on the same connection.
    HoldsAsked,
    /// To be asked on a second connection, for an answer until then.
    BesideDue(Instant),
    /// That was sent.
    BesideAsked(Instant),
    /// The first connection is closed.
    AloneAsked,
}

/// The reply to `s`.
enum Reply {
    /// Without its newline.
    Line(String),
    /// The server does not know that command.
    No,
}

impl Inquiry {
    /// Of the server with this control socket. `filter` is that which it was found to
    /// have before.
    pub fn new(socket: PathBuf, filter: Option<Filter>) -> Self {
        Inquiry { socket, filter, stage: Stage::Fresh, links: Vec::new(), line: Vec::new() }
    }

    /// The connections to poll for what the server sends.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// When to `step` even if nothing has come.
    pub fn look_again(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            Stage::Fresh | Stage::BesideDue(_) => now.checked_add(RETRY),
            Stage::BesideAsked(until) => Some(until),
            Stage::Asked | Stage::HoldsAsked | Stage::AloneAsked => None,
        }
    }

    /// Goes as far as possible. `None` as long as there is no answer.
    pub fn step(&mut self, now: Instant) -> Result<Option<Answer>, Trouble> {
        loop {
            self.stage = match self.stage {
                Stage::Fresh => match self.ask_on_another(command::STATUS)? {
                    true => Stage::Asked,
                    false => return Ok(None),
                },
                Stage::Asked => match (self.state()?, self.filter) {
                    (None, _) => return Ok(None),
                    (Some(Reply::Line(line)), _) => {
                        let state = serde_json::from_str(&line).map_err(Trouble::Unreadable)?;
                        return Ok(Some(Answer::Told(line, Box::new(state))));
                    }
                    (Some(Reply::No), Some(filter)) => return Ok(Some(Answer::Untold(filter))),
                    (Some(Reply::No), None) => {
                        self.ask(command::ASK)?;
                        Stage::HoldsAsked
                    }
                },
                Stage::HoldsAsked => match self.last_reply()? {
                    None => return Ok(None),
                    Some(reply::HAS_HOLDS) => return Ok(Some(Answer::Untold(Filter::Ours))),
                    Some(_) => Stage::BesideDue(now.checked_add(PATIENCE).unwrap_or(now)),
                },
                Stage::BesideDue(until) => match self.ask_on_another(command::ASK)? {
                    true => Stage::BesideAsked(until),
                    false => return Ok(None),
                },
                Stage::BesideAsked(until) => match self.last_reply()? {
                    Some(_) => return Ok(Some(Answer::Untold(Filter::Ours))),
                    None if now < until => return Ok(None),
                    None => {
                        let last = self.links.pop();
                        self.links = last.into_iter().collect();
                        Stage::AloneAsked
                    }
                },
                Stage::AloneAsked => {
                    let reply = self.last_reply()?;
                    return Ok(reply.map(|_| Answer::Untold(Filter::Stock)));
                }
            }
        }
    }

    /// On a new connection; false if that has to be tried again.
    fn ask_on_another(&mut self, command: u8) -> Result<bool, Trouble> {
        let Some(link) = Link::open(&self.socket)? else { return Ok(false) };
        self.links.push(link);
        self.ask(command)?;
        Ok(true)
    }

    fn ask(&mut self, command: u8) -> Result<(), Trouble> {
        self.links.last_mut().map_or(Err(Trouble::Closed), |link| link.send(command))
    }

    /// To `?`, which every pause filter knows or answers with `X`.
    fn last_reply(&mut self) -> Result<Option<u8>, Trouble> {
        match self.links.last_mut().map_or(Err(Trouble::Closed), Link::reply)? {
            None => Ok(None),
            Some(reply @ (reply::HAS_HOLDS | reply::NO)) => Ok(Some(reply)),
            Some(reply) => Err(Trouble::wrong_reply(reply)),
        }
    }

    /// To `s`.
    fn state(&mut self) -> Result<Option<Reply>, Trouble> {
        let Some(link) = self.links.last_mut() else { return Err(Trouble::Closed) };
        while self.line.last() != Some(&b'\n') && link.take(&mut self.line)? {
            match self.line[..] {
                [b'{', ..] if self.line.len() < LONGEST => {}
                [reply::NO] => return Ok(Some(Reply::No)),
                [reply, ..] => return Err(Trouble::wrong_reply(reply)),
                [] => {}
            }
        }
        if self.line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        Ok(Some(Reply::Line(line)))
    }
}
