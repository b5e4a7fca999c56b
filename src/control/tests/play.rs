//! Any sequence of operations on the stage, judged by the model. The fuzz target
//! plays what it makes up; the unit tests play what it has found.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use pause_model::{Mark, Model, Rules, describe};
use pause_protocol::parse_duration;

use super::stage::{Ground, Stage};

/// This many requests at once.
const PLACES: usize = 3;

/// Who comes after these comes in vain. The core has room for 64.
const MOST_ACTORS: usize = 80;

/// What happens.
#[derive(Arbitrary, Debug)]
enum Op {
    Connect,
    /// This many connect, and each sends the command.
    Crowd(u8, Byte),
    Send(u8, Byte),
    /// Sends this, and is not listened to before the next turn.
    SendOn(u8, Byte, Byte),
    SendNoMore(u8),
    HangUp(u8),
    /// It stops reading its replies, or begins again.
    Read(u8),
    /// A request enters in this place, or the one that is there leaves.
    Request(u8),
    /// A request that is inside writes.
    Write,
    /// A connection ends with writes that could not be flushed.
    Lose,
    FlushEnds(bool),
    /// nbdkit says that the server ends.
    End,
    /// In milliseconds.
    Wait(u8),
}

/// What a controller sends.
#[derive(Clone, Copy, Debug)]
struct Byte(u8);

impl<'a> Arbitrary<'a> for Byte {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        const COMMON: &[u8; 20] = b"pppprrrr++++----?x \n";
        Ok(Byte(match u8::arbitrary(u)? {
            240.. => b's',
            byte => COMMON[usize::from(byte) % COMMON.len()],
        }))
    }

    fn size_hint(_depth: usize) -> (usize, Option<usize>) {
        (1, Some(1))
    }
}

/// Which commands there are beside `p` and `r`.
#[derive(Debug)]
struct Offered {
    holds: bool,
    status: bool,
}

impl<'a> Arbitrary<'a> for Offered {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let bits = u8::arbitrary(u)?;
        Ok(Offered { holds: bits & 1 != 0, status: bits & 2 != 0 })
    }

    fn size_hint(_depth: usize) -> (usize, Option<usize>) {
        (1, Some(1))
    }
}

/// The parameters, and what happens.
#[derive(Arbitrary, Debug)]
pub struct Play {
    offered: Offered,
    /// In milliseconds.
    timeout: Option<u8>,
    flushes: bool,
    ops: Vec<Op>,
}

/// What has come of a play.
pub struct Ending {
    /// All replies, of all controllers.
    pub replies: Vec<u8>,
    /// How many requests were held.
    pub held: usize,
    /// The states that were told.
    pub states: BTreeSet<String>,
}

impl Play {
    /// # Panics
    /// What has come of it can't be right.
    pub fn play(&self) -> Ending {
        let timeout = self.timeout.map(|millis| Duration::from_millis(u64::from(millis) + 1));
        let Offered { holds, status } = self.offered;
        let rules = Rules { holds, status, timeout };
        let ground = Ground::new(PLACES);
        let mut stage = Stage::new(&ground, rules, self.flushes);
        stage.connect();
        for op in &self.ops {
            act(&mut stage, op);
            assert_is_settled(&stage, op);
        }
        judge(&stage)
    }
}

fn act(stage: &mut Stage, op: &Op) {
    let who = |number: u8| usize::from(number) % stage.actors.len();
    match *op {
        Op::Connect if stage.actors.len() < MOST_ACTORS => stage.connect(),
        Op::Connect => {}
        Op::Crowd(count, Byte(byte)) => {
            for _ in 0..count {
                if stage.actors.len() < MOST_ACTORS {
                    stage.connect();
                    stage.send(stage.actors.len() - 1, &[byte]);
                    stage.turn();
                }
            }
        }
        Op::Send(number, Byte(byte)) => {
            stage.send(who(number), &[byte]);
        }
        Op::SendOn(number, Byte(one), Byte(two)) => {
            stage.send(who(number), &[one, two]);
            return;
        }
        Op::SendNoMore(number) => stage.send_no_more(who(number)),
        Op::HangUp(number) => stage.hang_up(who(number)),
        Op::Read(number) => {
            let who = who(number);
            stage.actors[who].reads = !stage.actors[who].reads;
        }
        Op::Request(number) => {
            let place = usize::from(number) % PLACES;
            match stage.inside[place].is_some() {
                true => stage.leave(place),
                false => drop(stage.enter(place)),
            }
        }
        Op::Write if stage.inside.iter().any(Option::is_some) => stage.below.lock().written += 1,
        Op::Write => {}
        Op::Lose => stage.below.lock().lost = stage.flushes,
        Op::End => stage.end(),
        Op::FlushEnds(well) => drop(stage.end_flush(well)),
        Op::Wait(millis) => stage.wait(Duration::from_millis(millis.into())),
    }
    stage.turn();
}

/// Whoever still waits, waits for something.
fn assert_is_settled(stage: &Stage, op: &Op) {
    if matches!(op, Op::SendOn(..)) || stage.is_at_work() {
        return;
    }
    for who in 0..stage.actors.len() {
        assert!(!stage.waits(who), "controller {who} waits in vain, after {op:?}");
    }
}

/// When a line was told, and which state it has.
fn told(line: &str) -> (Duration, &str) {
    let seconds = |name: &str| {
        let (_, value) = line.split_once(&format!("\"{name}\":")).expect(name);
        parse_duration(value.split(',').next().unwrap()).expect(name)
    };
    (seconds("since") + seconds("for"), line.split('"').nth(3).expect("a state"))
}

fn judge(stage: &Stage) -> Ending {
    let history = stage.history();
    let ended = stage.ended.unwrap_or(Mark::NEVER);
    let mut model = Model::new(&history, stage.rules, ended, |_| 0);
    model.had_losses(stage.losses());
    let mut wrong = model.wrong_replies();
    let pauses = model.pauses();
    let is_paused = |at| pauses.iter().any(|pause| pause.has(Mark { at, log: 0 }));
    for &(at, is_in) in &stage.requests {
        match is_in {
            true if is_paused(at) => wrong.push(format!("a request is let in at {at:?}")),
            false if model.is_surely_open(at) => {
                wrong.push(format!("a request is held at {at:?}"));
            }
            _ => {}
        }
    }
    let lines = stage.actors.iter().flat_map(|actor| &actor.lines);
    for line in lines.clone() {
        let (at, state) = told(line);
        let is_paused = pauses.iter().any(|it| it.from.at < at && it.has(Mark { at, log: 0 }));
        if is_paused && state != "paused" || model.is_surely_open(at) && state != "running" {
            wrong.push(format!("the state is told to be {state} at {at:?}"));
        }
    }
    for (window, why) in model.idle_moments() {
        let before = stage.in_flight.partition_point(|(at, _)| *at <= window.from.at) - 1;
        let within = stage.in_flight[before..].iter();
        let mut within = within.take_while(|(at, _)| *at <= window.until.at);
        if !within.any(|(_, count)| *count == 0) {
            wrong.push(format!("{why}, and there was always a request inside"));
        }
    }
    for &(at, who) in &stage.closed {
        if model.surely_has_hold(who, at) {
            wrong.push(format!("controller {who} was closed at {at:?} though it had a hold"));
        }
    }
    for (at, when) in &stage.unstable {
        wrong.push(format!("{when} at {at:?}, and not all was stable, or the server ended"));
    }
    if !wrong.is_empty() {
        for (number, connection) in history.iter().enumerate() {
            for command in &connection.commands {
                println!("controller {number}: {}", describe(command));
            }
        }
        panic!("{}", wrong.join("\n"));
    }
    Ending {
        replies: stage.actors.iter().flat_map(|actor| actor.received.clone()).collect(),
        held: stage.requests.iter().filter(|(_, is_in)| !is_in).count(),
        states: lines.map(|line| told(line).1.to_owned()).collect(),
    }
}

#[cfg(test)]
#[test]
fn what_the_fuzzer_has_found_is_right() {
    use std::{fs, path::Path};

    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/core");
    let mut replies = Vec::new();
    let mut held = 0;
    let mut states = BTreeSet::new();
    for file in fs::read_dir(&corpus).unwrap() {
        let path = file.unwrap().path();
        // Shown where `play` panics.
        println!("{}", path.display());
        let bytes = fs::read(&path).unwrap();
        let play = Play::arbitrary_take_rest(Unstructured::new(&bytes)).unwrap();
        let ending = play.play();
        replies.extend(ending.replies);
        held += ending.held;
        states.extend(ending.states);
    }
    // So that nothing is replayed that has lost its meaning.
    for reply in *b"PR+-X{" {
        assert!(replies.contains(&reply), "{reply}");
    }
    assert!(held > 0);
    assert_eq!(states.len(), 4, "{states:?}");
}
