//! Which replies the controllers can have had, and when the server was surely
//! paused: an oracle that knows what the protocol promises, and nothing of how
//! the filter keeps it. It judges what has happened to a real server, where times
//! are known roughly (the soak), and to the core alone, where they are known
//! exactly (the core's tests, and the fuzz target).
//!
//! For each command it knows when it was sent and when its reply had come. At
//! some moment in between it was carried out; commands of one connection in
//! their order, those of several in any order that these times allow. What is
//! right in one such order is right. So two questions decide everything: *can*
//! this have been between those two, and *must* it have been? (A command that
//! was sent, and did not queue behind others, before a second controller even
//! connected comes before anything that one sends.)
//!
//! | command | reply | right if |
//! |---|---|---|
//! | `r` | `R` | always |
//! | `p` `+` | `P` `+` | the plugin was idle for a moment, and no `r` must have come before that |
//! | `p` `+` | `X` | an `r` of another, a timeout, SIGTERM or a flush that failed can have come while it waited, or such a failure was not reported yet |
//! | `+` | `X` | 32 others can have had a hold |
//! | `+` | `+` | no 32 others must have had one |
//! | `-` | `-` | there is a hold, and no `r` and no timeout must have come since its `+` |
//! | `-` | `X` | there is no hold, or an `r`, a timeout or SIGTERM can have come since its `+` |
//! | `?` | `H` | with pause-hold, and nothing else then |
//! | `s` | `{`, as the line of JSON begins | with pause-status; if much is unread, `X` is right, too |
//! | any other | `X` | always; `+` and `-` are such without pause-hold |
//!
//! A timeout counts from when the gate was closed. What closed it? The first
//! `p` or `+` of a stretch of time without a moment at which nobody can have
//! wanted it closed (`earliest`). If a command is known to have found it closed,
//! it was closed no later than that (`latest`).
//!
//! From the reply `P` or `+` on the server is *surely paused*, until something
//! is sent that may end that very pause or hold: any `r`; for a hold its `-` and
//! the end of its connection; or until the timeout or SIGTERM may come. It is not
//! sure at all if an `r` or SIGTERM was under way together with the command.
//! SIGTERM ends a pause if a request waits that must not be dropped; if none does,
//! it need not.

#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::time::Duration;

/// This many controllers can have a hold at once.
const MOST_HOLDS: usize = 32;

/// A moment: the time since the beginning, and how long the log of requests was then.
///
/// One taken before something is no later than that, in both; one taken after it is
/// no earlier.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Since the beginning.
    pub at: Duration,
    /// In bytes, or in any other unit.
    pub log: u64,
}

impl Mark {
    /// It has not come.
    pub const NEVER: Mark = Mark { at: Duration::MAX, log: u64::MAX };
}

/// What a controller has sent, and what came of it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What it is.
    pub byte: u8,
    /// It was not sent before this.
    pub sent: Mark,
    /// All of it was sent by then.
    pub written: Duration,
    /// None if there was none before the connection was closed.
    pub reply: Option<u8>,
    /// When the reply had come; without one, when the command was carried out
    /// at last, or had begun to wait.
    pub until: Mark,
}

/// A controller's connection from its beginning to its end.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// It did not exist before this.
    pub connected: Duration,
    /// In their order.
    pub commands: Vec<Exchange>,
    /// It was not closed before this, in no direction.
    pub closed: Mark,
    /// By then its hold has ended with it.
    pub gone: Mark,
}

impl Transcript {
    /// Nothing was said yet.
    pub fn new(connected: Duration) -> Self {
        let (closed, gone) = (Mark::NEVER, Mark::NEVER);
        Transcript { connected, commands: Vec::new(), closed, gone }
    }
}

/// The parameters, as far as they matter here.
#[derive(Clone, Copy)]
pub struct Rules {
    /// pause-hold
    pub holds: bool,
    /// pause-status
    pub status: bool,
    /// pause-timeout
    pub timeout: Option<Duration>,
}

/// The server was surely paused.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// It was in force by then.
    pub from: Mark,
    /// It was in force up to then.
    pub until: Mark,
}

impl Pause {
    /// Whether it was surely in force at `mark`.
    pub fn has(&self, mark: Mark) -> bool {
        self.from.at <= mark.at && mark.at < self.until.at
    }
}

/// A command and its place.
#[derive(Clone, Copy)]
struct Step<'a> {
    connection: usize,
    /// When that connection did not exist yet.
    connected: Duration,
    index: usize,
    command: &'a Exchange,
    /// When it was sent, one before it on its connection had no reply.
    queued: bool,
}

impl Step<'_> {
    /// It must have been carried out before `other` was.
    fn must_precede(self, other: Step) -> bool {
        if self.connection == other.connection {
            return self.index < other.index;
        }
        let was_there_first = !self.queued && self.command.written <= other.connected;
        was_there_first || self.command.until.at <= other.command.sent.at
    }

    /// It can have been.
    fn can_precede(self, other: Step) -> bool {
        !other.must_precede(self)
    }

    fn is_answered(self) -> bool {
        self.command.reply.is_some()
    }
}

/// The commands of that connection.
fn steps(connection: usize, all: &Transcript) -> impl Iterator<Item = Step<'_>> {
    all.commands.iter().enumerate().map(move |(index, command)| {
        let before = index.checked_sub(1).map(|before| &all.commands[before]);
        let queued = before.is_some_and(|before| before.until.at > command.sent.at);
        Step { connection, connected: all.connected, index, command, queued }
    })
}

/// What is known of the pause that a `p` or `+` asked for.
struct Closing<'a> {
    step: Step<'a>,
    /// The gate was closed, for the pause that it found or began, between these.
    earliest: Duration,
    latest: Duration,
    /// From here on it does not want the gate closed any more.
    end: Duration,
    sure: Option<Pause>,
}

/// See the file's text.
pub struct Model<'a> {
    history: &'a [Transcript],
    rules: Rules,
    /// When SIGTERM was sent at the earliest.
    terminated: Mark,
    /// From when to when a loss was not reported to anyone.
    losses: Vec<(Duration, Duration)>,
    resumes: Vec<Step<'a>>,
    closings: Vec<Closing<'a>>,
}

impl<'a> Model<'a> {
    /// `log_at` is how long the log was at a moment, or shortly before.
    pub fn new(
        history: &'a [Transcript],
        rules: Rules,
        terminated: Mark,
        log_at: impl Fn(Duration) -> u64,
    ) -> Self {
        let steps = history.iter().enumerate().flat_map(|(connection, all)| steps(connection, all));
        let (resumes, others): (Vec<_>, Vec<_>) = steps.partition(|step| step.command.byte == b'r');
        let closes = |step: &Step| match step.command.byte {
            b'p' => true,
            b'+' => rules.holds,
            _ => false,
        };
        let mut closers: Vec<Step> = others.into_iter().filter(closes).collect();
        closers.sort_by_key(|step| step.command.until.at);
        let (losses, closings) = (Vec::new(), Vec::new());
        let mut model = Model { history, rules, terminated, losses, resumes, closings };
        for place in 0..closers.len() {
            let closing = model.closing(closers[place], &closers[place + 1..], &log_at);
            model.closings.push(closing);
        }
        model
    }

    /// A flush failed, or writes were lost, at the first of these times, and no
    /// controller knew before the second. In between no pause could take effect.
    pub fn had_losses(&mut self, losses: Vec<(Duration, Duration)>) {
        self.losses = losses;
    }

    /// Whether nobody can have wanted the gate closed at that time. When the server
    /// ends it need not be opened.
    pub fn is_surely_open(&self, at: Duration) -> bool {
        at < self.terminated.at
            && !self.closings.iter().any(|it| it.step.command.sent.at <= at && at <= it.end)
    }

    /// Whether that connection surely had a hold at that time.
    pub fn surely_has_hold(&self, connection: usize, at: Duration) -> bool {
        let its = self.closings.iter().filter(|it| it.step.connection == connection);
        let mark = Mark { at, log: 0 };
        let mut holds = its.filter(|it| it.step.command.byte == b'+').filter_map(|it| it.sure);
        holds.any(|pause| pause.has(mark))
    }

    /// When the server was surely paused.
    pub fn pauses(&self) -> Vec<Pause> {
        self.closings.iter().filter_map(|closing| closing.sure).collect()
    }

    /// The times in which the plugin was idle for a moment, since `P` or `+` says
    /// so: from the command to its reply, or to an `r` that it must have waited for.
    pub fn idle_moments(&self) -> Vec<(Pause, String)> {
        let granted = |step: &&Step| matches!(step.command.reply, Some(b'P' | b'+'));
        let steps = self.closings.iter().map(|closing| &closing.step).filter(granted);
        let moment = |step: &Step| {
            let later = self.resumes.iter().filter(|r| step.must_precede(**r) && r.is_answered());
            let ends = later.map(|r| r.command.until).chain([step.command.until]);
            let until = ends.min_by_key(|mark| mark.at).unwrap_or(Mark::NEVER);
            (Pause { from: step.command.sent, until }, describe(step.command))
        };
        steps.map(moment).collect()
    }

    /// All that was answered and can't be right.
    pub fn wrong_replies(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (connection, all) in self.history.iter().enumerate() {
            for step in steps(connection, all) {
                let Step { index, command, .. } = step;
                if let Some(Err(why)) = command.reply.map(|reply| self.judge(step, reply)) {
                    wrong.push(format!(
                        "controller {connection}, command {index}, {}: {why}",
                        describe(command)
                    ));
                }
            }
        }
        wrong
    }

    fn judge(&self, step: Step, reply: u8) -> Result<(), String> {
        let holds = self.rules.holds;
        match (step.command.byte, reply) {
            (b'r', b'R') | (b'p', b'P') => Ok(()),
            (b'+', b'+') if holds => match self.holders(step, Self::must_hold) < MOST_HOLDS {
                true => Ok(()),
                false => Err(format!("{MOST_HOLDS} others had a hold")),
            },
            (b'+', b'X') if holds && self.holders(step, Self::can_hold) >= MOST_HOLDS => Ok(()),
            (b'p', b'X') => self.can_have_ended(step, step),
            (b'+', b'X') if holds => self.can_have_ended(step, step),
            (b'-', b'-') if holds => match self.hold_of(step) {
                Some(hold) => self.can_have_lasted(hold, step),
                None => Err("there was no hold".into()),
            },
            (b'-', b'X') if holds => match self.hold_of(step) {
                Some(hold) => self.can_have_ended(hold, step),
                None => Ok(()),
            },
            (b'?', b'H') if holds => Ok(()),
            (b'?', b'X') if holds => Err("there are holds".into()),
            (b's', b'{') if self.rules.status => Ok(()),
            (b'r' | b'p', _) => Err("no such reply".into()),
            (_, b'X') => Ok(()),
            _ => Err("no such reply".into()),
        }
    }

    /// How many others have a hold, by `has`, when `step` is carried out.
    fn holders(&self, step: Step, has: fn(&Closing, Step) -> bool) -> usize {
        let holds = self.closings.iter().filter(|other| {
            other.step.command.byte == b'+'
                && other.step.connection != step.connection
                && has(other, step)
        });
        holds.map(|other| other.step.connection).collect::<BTreeSet<_>>().len()
    }

    fn must_hold(other: &Closing, step: Step) -> bool {
        let covers = |pause: Pause| pause.has(step.command.sent) && pause.has(step.command.until);
        other.sure.is_some_and(covers)
    }

    fn can_hold(other: &Closing, step: Step) -> bool {
        other.step.can_precede(step) && other.end >= step.command.sent.at
    }

    /// The hold that a `-` gives back, if it wasn't refused or given back before.
    fn hold_of(&self, step: Step) -> Option<Step<'a>> {
        let (connection, history) = (step.connection, self.history);
        let before = steps(connection, &history[connection]).take(step.index);
        let last = before.filter(|step| matches!(step.command.byte, b'+' | b'-')).last();
        last.filter(|step| step.command.reply == Some(b'+'))
    }

    /// Something can have ended the pause that `from` asked for before `to`, of
    /// the same connection, had its reply.
    fn can_have_ended(&self, from: Step, to: Step) -> Result<(), String> {
        let resumed = self.resumes.iter().any(|r| {
            let can_end = match std::ptr::eq(from.command, to.command) {
                // It waited, and then only another can have sent it.
                true => r.connection != to.connection,
                false => r.can_precede(to),
            };
            can_end && from.can_precede(*r) && r.command.sent.at < to.command.until.at
        });
        let deadline = self.rules.timeout.zip(self.closing_of(from));
        let deadline = deadline.map(|(timeout, closing)| closing.earliest + timeout);
        let enders = [deadline.unwrap_or(Duration::MAX), self.terminated.at];
        let failed = self
            .losses
            .iter()
            .any(|&(at, told)| from.command.sent.at <= told && at <= from.command.until.at);
        match resumed || failed || enders.iter().any(|&end| end <= to.command.until.at) {
            true => Ok(()),
            false => Err(format!("nothing can have ended {}", describe(from.command))),
        }
    }

    /// Nothing must have ended the hold that `from` asked for before `to` did.
    fn can_have_lasted(&self, from: Step, to: Step) -> Result<(), String> {
        let ends = |r: &&Step| r.is_answered() && from.must_precede(**r) && r.must_precede(to);
        if let Some(r) = self.resumes.iter().find(ends) {
            return Err(format!("the hold was ended by {}", describe(r.command)));
        }
        let deadline = self.rules.timeout.zip(self.closing_of(from));
        let deadline = deadline.map(|(timeout, closing)| closing.latest.saturating_add(timeout));
        match deadline.is_some_and(|deadline| deadline <= to.command.sent.at) {
            true => Err("the hold has lasted for longer than pause-timeout".into()),
            false => Ok(()),
        }
    }

    /// Each `p` and `+` has one.
    fn closing_of(&self, closer: Step) -> Option<&Closing<'a>> {
        self.closings.iter().find(|closing| std::ptr::eq(closing.step.command, closer.command))
    }

    /// What is known of a `p` or `+`; those in `self.closings` were answered
    /// before it, and those in `unanswered` were not.
    fn closing(
        &self,
        step: Step<'a>,
        unanswered: &[Step],
        log_at: impl Fn(Duration) -> u64,
    ) -> Closing<'a> {
        let (command, connection) = (step.command, &self.history[step.connection]);
        let own_minus = connection.commands[step.index..].iter().find(|other| other.byte == b'-');
        let is_hold = command.byte == b'+';
        // The pause that it found in force was closed no later than this. One that
        // may have ended before the command was carried out need not be it.
        let covers = |pause: Pause| pause.has(command.sent) && pause.has(command.until);
        let found = self.closings.iter().filter(|other| other.sure.is_some_and(covers));
        let latest = found.map(|other| other.latest).min().unwrap_or(command.until.at);

        // What surely ends what it wants.
        let mut ends = vec![Duration::MAX];
        if command.reply == Some(b'X') {
            ends.push(command.until.at);
        }
        ends.extend(self.rules.timeout.map(|timeout| latest.saturating_add(timeout)));
        let later_r = self.resumes.iter().filter(|r| r.is_answered() && step.must_precede(**r));
        ends.extend(later_r.map(|r| r.command.until.at));
        if is_hold {
            ends.push(connection.gone.at.max(command.until.at));
            ends.extend(own_minus.map(|minus| minus.until.at));
        }
        let end = ends.into_iter().min().unwrap_or(Duration::MAX);

        // Back through all that can have kept it closed.
        let mut earliest = command.sent.at;
        if self.rules.timeout.is_some() {
            let known = self.closings.iter().map(|other| (other.step, other.end));
            let unknown = unanswered.iter().map(|other| (*other, Duration::MAX));
            let others: Vec<_> = known.chain(unknown).collect();
            let before = |earliest| {
                let keeps = others
                    .iter()
                    .filter(|(other, end)| other.command.sent.at < earliest && *end >= earliest);
                keeps.map(|(other, _)| other.command.sent.at).min()
            };
            while let Some(sooner) = before(earliest) {
                earliest = sooner;
            }
        }

        let granted = matches!(command.reply, Some(b'P' | b'+'));
        let by_sigterm = self.terminated.at < command.until.at;
        let by = |r: &Step| step.can_precede(*r) && r.command.sent.at < command.until.at;
        let overtaken = by_sigterm || self.resumes.iter().any(by);
        let mut sure = None;
        if granted && !overtaken {
            let resumes = self.resumes.iter().map(|r| r.command.sent);
            let mut enders: Vec<Mark> = resumes.chain([self.terminated]).collect();
            enders.retain(|sent| sent.at >= command.until.at);
            if is_hold {
                enders.push(connection.closed);
                enders.extend(own_minus.map(|minus| minus.sent));
            }
            enders.extend(self.rules.timeout.map(|timeout| {
                let at = earliest + timeout;
                Mark { at, log: log_at(at) }
            }));
            let until = enders.into_iter().min_by_key(|mark| mark.at).unwrap_or(Mark::NEVER);
            let pause = Pause { from: command.until, until };
            sure = (until.at > command.until.at).then_some(pause);
        }
        Closing { step, earliest, latest, end, sure }
    }
}

/// A command, its reply, and when they were.
pub fn describe(command: &Exchange) -> String {
    let reply = command.reply.map_or("no reply".to_owned(), |reply| (reply as char).to_string());
    let times = [command.sent, command.until].map(|mark| match mark.at {
        Duration::MAX => "?".to_owned(),
        at => format!("{:.6}", at.as_secs_f64()),
    });
    format!("{:?} at {} s -> {reply} at {} s", command.byte as char, times[0], times[1])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;

    /// Controllers are divided by `|`, commands by `,`: command, sent, answered or
    /// heard, reply if any; `close` and when.
    fn history(text: &str) -> Vec<Transcript> {
        let mark = |second: &str| {
            let log = second.parse().expect("a number");
            Mark { at: Duration::from_secs(log), log }
        };
        let connection = |text: &str| {
            let mut connection = Transcript::new(Duration::ZERO);
            for command in text.split(',') {
                match *command.split_whitespace().collect::<Vec<_>>() {
                    ["close", at] => (connection.closed, connection.gone) = (mark(at), mark(at)),
                    [byte, sent, until, ref reply @ ..] => connection.commands.push(Exchange {
                        byte: byte.as_bytes()[0],
                        sent: mark(sent),
                        written: mark(sent).at,
                        reply: reply.first().map(|reply| reply.as_bytes()[0]),
                        until: mark(until),
                    }),
                    _ => panic!("{command}"),
                }
            }
            connection.connected = connection.commands[0].sent.at;
            connection
        };
        text.split('|').map(connection).collect()
    }

    #[test]
    fn the_model_finds_replies_that_cannot_be_right_and_no_others() {
        let right = [
            "p 0 1 P, r 2 3 R, ? 4 5 H, - 6 7 X, x 8 9 X",
            // An r that can have ended the drain, also of one who never heard of it.
            "p 0 3 X | r 1 2 R",
            "? 0 1 H, p 2 3 X | r 1 9",
            // One that can have ended the hold, and need not.
            "+ 0 1 +, - 4 5 X | r 1 2 R",
            "+ 0 1 +, - 4 5 - | r 3 6 R",
            "+ 0 9 +, r 0 9 R, - 0 9 X, + 0 9 +, - 0 9 -, - 0 9 X",
            // The timeout may come from 10 s on, and must have by 11 s.
            "+ 0 1 +, - 9 10 X",
            "+ 0 1 +, - 10 13 -",
            "p 0 1 P | p 5 12 X",
            // The pause that was there when it was sent may have ended before it was heard.
            "p 0 1 P | + 9 12 +, - 14 15 -",
            // Another pause has another deadline.
            "p 0 1 P, r 2 3 R, + 4 5 +, - 14 15 -",
            "+ 0 1 +, - 2 3 - | + 8 9 +, - 18 19 -",
            // One that was connected can have been heard before, or after.
            "+ 1 9 +, - 9 10 - | ? 0 1 H, r 2 3 R",
            "+ 1 9 +, - 9 10 X | ? 0 1 H, r 2 3 R",
            // One that came later can have been, if the first one was busy.
            "? 0 9 H, + 0 9 +, - 9 10 - | r 2 3 R",
        ];
        let wrong = [
            "p 0 1 R",
            "r 0 1 X",
            "? 0 1 R",
            "? 0 1 X",
            "s 0 1 {",
            "x 0 1 P",
            "p 0 1 X",
            "p 0 1 X | r 2 3 R",
            "p 0 9 X, r 0 9 R",
            "- 0 1 -",
            "+ 0 1 +, - 2 3 -, - 4 5 -",
            "+ 0 9 +, r 0 9 R, - 0 9 -",
            "+ 0 1 +, - 4 5 X",
            "+ 0 1 +, - 4 5 X | r 6 7 R",
            "+ 0 1 +, - 4 5 - | r 2 3 R",
            "+ 0 1 +, - 8 9 X",
            "+ 0 1 +, - 11 12 -",
            "p 0 1 P | + 5 6 +, - 11 12 -",
            "p 0 1 P, r 2 3 R, + 4 5 +, - 11 12 X",
            // One that came later is heard later.
            "+ 1 9 +, - 9 10 - | r 2 3 R",
            "p 1 2 X | r 0 9",
        ];
        let rules = Rules { holds: true, status: false, timeout: Some(Duration::from_secs(10)) };
        for (texts, count) in [(&right[..], 0), (&wrong[..], 1)] {
            for text in texts {
                let history = history(text);
                let found = Model::new(&history, rules, Mark::NEVER, |_| 0).wrong_replies();
                assert_eq!(found.len(), count, "{text}: {found:?}");
            }
        }
    }

    #[test]
    fn the_model_is_sure_of_a_pause_until_something_can_end_it() {
        let cases: [(&str, &[(u64, u64)]); 12] = [
            ("p 0 1 P, r 3 4 R", &[(1, 3)]),
            ("p 0 1 P | r 3 4", &[(1, 3)]),
            ("p 0 2 P | r 1 3 R", &[]),
            ("r 0 2 R, p 0 2 P", &[(2, 10)]),
            ("p 0 2 P, r 0 2 R", &[]),
            ("p 0 2 X | r 1 3 R", &[]),
            ("+ 0 1 +, - 3 4 -", &[(1, 3)]),
            ("+ 0 1 +, close 5", &[(1, 5)]),
            ("+ 0 1 +, - 3 4 - | + 2 3 +, close 7", &[(1, 3), (3, 7)]),
            // Until the timeout can come, counted from the first that can have closed the gate.
            ("p 2 4 P | p 0 5 P", &[(4, 10), (5, 10)]),
            ("p 0 1 P, r 2 3 R, p 4 5 P", &[(1, 2), (5, 14)]),
            ("p 0 1 P | p 12 13 P", &[(1, 10), (13, 22)]),
        ];
        let rules = Rules { holds: true, status: false, timeout: Some(Duration::from_secs(10)) };
        for (text, pauses) in cases {
            let history = history(text);
            let found = Model::new(&history, rules, Mark::NEVER, |at| at.as_secs()).pauses();
            let found: Vec<_> =
                found.iter().map(|pause| (pause.from.log, pause.until.log)).collect();
            assert_eq!(found, pauses, "{text}");
        }
    }

    #[test]
    fn for_the_model_sigterm_can_end_a_pause_and_need_not() {
        let rules = Rules { holds: true, status: false, timeout: None };
        let terminated = Mark { at: Duration::from_secs(5), log: 5 };
        let cases = [
            ("+ 0 1 +, - 7 8 X", 0),
            ("+ 0 1 +, - 7 8 -", 0),
            ("p 4 6 X", 0),
            ("+ 0 1 +, - 2 3 X", 1),
            ("p 0 4 X", 1),
        ];
        for (text, count) in cases {
            let history = history(text);
            let model = Model::new(&history, rules, terminated, |_| 0);
            assert_eq!(model.wrong_replies().len(), count, "{text}");
        }
        // Nor is one sure that was granted when SIGTERM was under way.
        for (text, ends) in [("p 0 1 P, r 8 9 R", &[5][..]), ("p 4 6 P, r 8 9 R", &[])] {
            let history = history(text);
            let pauses = Model::new(&history, rules, terminated, |_| 0).pauses();
            assert_eq!(
                pauses.iter().map(|pause| pause.until.log).collect::<Vec<_>>(),
                ends,
                "{text}"
            );
        }
    }
}
