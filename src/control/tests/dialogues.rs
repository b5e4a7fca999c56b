//! The rules of the control protocol, one table a rule. The words are explained in
//! `super`.

use std::collections::BTreeMap;
use std::time::Duration;

use pause_model::Rules;

use super::stage::{Ground, Stage};

/// The place of the request that comes to see if requests flow.
const PROBE: usize = 9;

/// Plays each row, and panics with it where something else happens.
fn all(rows: &[&str]) {
    for row in rows {
        let words: Vec<&str> = row.split_whitespace().collect();
        let is_parameter = |word: &&str| {
            matches!(*word, "hold" | "flush" | "status") || word.starts_with("timeout=")
        };
        let (parameters, words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(is_parameter);
        let timeout = parameters.iter().find_map(|word| word.strip_prefix("timeout="));
        let rules = Rules {
            holds: parameters.contains(&"hold"),
            status: parameters.contains(&"status"),
            timeout: timeout.map(millis),
        };
        let ground = Ground::new(PROBE + 1);
        let mut scene = Scene {
            stage: Stage::new(&ground, rules, parameters.contains(&"flush")),
            cast: BTreeMap::new(),
        };
        for (number, word) in words.iter().enumerate() {
            scene.act(word, &format!("word {} ({word}) of: {row}", number + 1));
        }
    }
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.trim_end_matches("ms").parse().expect("milliseconds"))
}

struct Scene<'a> {
    stage: Stage<'a>,
    /// Who each letter is, and how much of what it has was compared.
    cast: BTreeMap<char, (usize, usize)>,
}

impl Scene<'_> {
    fn act(&mut self, word: &str, place: &str) {
        let first = word.chars().next().expect("a word");
        match word {
            "held" | "flow" => {
                let flows = self.stage.enter(PROBE);
                self.stage.leave(PROBE);
                assert_eq!(flows, word == "flow", "{place}");
            }
            "written" => self.stage.below.lock().written += 1,
            "flushed" | "unflushed" => assert!(self.stage.end_flush(word == "flushed"), "{place}"),
            "lost" => self.stage.below.lock().lost = true,
            "ends" => self.stage.end(),
            _ if word.ends_with("ms") => self.stage.wait(millis(word)),
            _ if first.is_ascii_digit() => {
                let request = first.to_digit(10).unwrap() as usize;
                match &word[1..] {
                    "+" => assert!(self.stage.enter(request), "{place}"),
                    "-" => self.stage.leave(request),
                    _ => panic!("{place}"),
                }
            }
            _ => self.controller(first, &word[1..], place),
        }
        self.stage.turn();
    }

    fn controller(&mut self, name: char, does: &str, place: &str) {
        if !self.cast.contains_key(&name) {
            self.stage.connect();
            self.cast.insert(name, (self.stage.actors.len() - 1, 0));
        }
        let (who, compared) = self.cast.get_mut(&name).unwrap();
        let (sends, has) = match does.split_once('=') {
            Some((sends, has)) => (sends, Some(has)),
            None => (does, None),
        };
        match sends {
            "" => {}
            "." => self.stage.send_no_more(*who),
            "!" => self.stage.hang_up(*who),
            _ => {
                let bytes = sends.strip_prefix(':').expect(place);
                assert!(self.stage.send(*who, bytes.as_bytes()), "{place}");
            }
        }
        self.stage.turn();
        if let Some(has) = has {
            let received = &self.stage.actors[*who].received[*compared..];
            assert_eq!(received.escape_ascii().to_string(), has, "{place}");
            *compared += received.len();
        }
    }
}

#[test]
fn each_command_has_one_reply_in_order() {
    all(&[
        "A:p=P held A:r=R flow",
        "A:prpr=PRPR flow",
        "A:xQ?=XXX flow A:p=P A:x=X held",
        // Without pause-hold these are no commands, nor is s without pause-status.
        "A:+-=XX flow",
        "hold A:s=X flow A:ps=PX held",
        "status A:ss={{ flow A:psrs=P{R{ flow",
        // What is behind a command that waits has to wait, others have not.
        "status 1+ A:ps= B:s={ 1- A=P{",
        "hold A:+=+ held A:-=- flow A:-=X",
        "hold A:?=H flow A:p=P A:?=H held",
        // What is behind a command that waits has to wait, too.
        "1+ A:prx= A. held 1- A=PRX flow",
    ]);
}

#[test]
fn white_space_is_ignored() {
    let ground = Ground::new(1);
    let rules = Rules { holds: false, status: false, timeout: None };
    let mut stage = Stage::new(&ground, rules, false);
    stage.connect();
    stage.send(0, b" \t\np \n\tr\n");
    stage.turn();
    assert_eq!(stage.actors[0].received, b"PR");
}

#[test]
fn a_pause_is_in_force_once_all_that_was_let_in_has_left() {
    all(&[
        "1+ 2+ A:p= held 1- A= held 2- A=P held",
        // Others have it as well, whoever asks later.
        "1+ A:p= B:p= 1- A=P B=P C:p=P",
        "hold 1+ A:p= B:+= C:p= 1- A=P B=+ C=P",
        "A:p=P B:p=P A:p=P held",
    ]);
}

#[test]
fn r_lets_requests_flow_whoever_paused() {
    all(&[
        "A:r=R flow A:rrr=RRR flow",
        "A:p=P B:r=R flow A:r=R flow",
        "A:p=P A:p=P B:r=R flow",
        // Also before the pause is in force, which it never is then.
        "1+ A:p= B:p= C:r=R A=X B=X flow 1-",
        "1+ A:p= B:r=R A=X flow A:p= held 1- A=P held",
        "hold 1+ A:+= B:p= C:r=R A=X B=X flow 1- A:-=X",
        "hold A:+=+ B:+=+ C:p=P D:r=R flow A:-=X B:-=X flow",
    ]);
}

#[test]
fn a_pause_outlives_its_connection_and_a_hold_does_not() {
    all(&[
        "A:p=P A. held A! held B:r=R flow",
        "A:p=P A! held B:r=R flow",
        "1+ A:p= A! held 1- held B:p=P B:r=R flow",
        "hold A:+=+ A! flow",
        "hold A:+=+ A. flow",
        // Nor one that is not in force yet.
        "hold 1+ A:+= A! flow 1- flow",
        "hold 1+ A:+= B:p= A! held 1- B=P held",
        // Who sends no more and waits still has its reply.
        "hold 1+ A:+= A. 1- A=+ flow",
    ]);
}

#[test]
fn requests_are_held_as_long_as_p_or_any_hold_wants_it() {
    all(&[
        "hold A:+=+ B:+=+ A:-=- held B:-=- flow",
        "hold A:+=+ B:+=+ A! held B! flow",
        "hold A:p=P B:+=+ B:-=- held A:r=R flow",
        "hold B:+=+ A:p=P B:-=- held A:r=R flow",
        "hold A:+=+ B:p=P A! held B:r=R flow",
        // A hold a connection, however often it asks.
        "hold A:++=++ A:-=- flow A:-=X",
        "hold 1+ A:+= B:+= A! held 1- B=+ held B:-=- flow",
    ]);
}

#[test]
fn a_dash_says_whether_the_hold_was_in_force_without_a_break() {
    all(&[
        "hold A:-=X flow",
        "hold A:+=+ B:r=R A:-=X",
        // A pause that was asked for since is not the hold.
        "hold A:+=+ B:r=R B:p=P A:-=X held",
        "hold A:+=+ B:r=R B:+=+ A:-=X held B:-=- flow",
        "hold A:+=+ B:r=R A:+=+ A:-=- flow",
        "hold timeout=30ms A:+=+ 31ms A:-=X",
    ]);
}

#[test]
fn pause_timeout_ends_the_pause_and_all_holds() {
    all(&[
        "timeout=30ms A:p=P 29ms held 1ms flow A:p=P held 29ms held 1ms flow",
        "hold timeout=30ms A:+=+ B:p=P 30ms flow A:-=X",
        // Counted from when the gate was closed, drain or not, whoever asks later.
        "timeout=30ms 1+ A:p= 20ms 1- A=P held 10ms flow",
        "timeout=30ms A:p=P 20ms B:p=P 9ms held 1ms flow",
        "hold timeout=30ms A:+=+ 20ms B:+=+ 10ms flow B:-=X A:-=X",
        // Also while it drains.
        "hold timeout=30ms 1+ A:p= B:+= 30ms A=X B=X flow 1- B:-=X",
        // Another pause has another deadline.
        "timeout=30ms A:p=P 20ms A:r=R A:p=P 20ms held 10ms flow",
        "timeout=30ms A:p=P 29ms A:r=R 100ms flow A:p=P 29ms held",
    ]);
}

#[test]
fn pause_flush_vouches_only_for_what_is_stable() {
    all(&[
        "flush A:p=P held A:r=R",
        "flush 1+ written 1- A:p= held flushed A=P held A:r=R flow",
        "flush 1+ written A:p= 1- A= flushed A=P",
        // Once is enough.
        "flush 1+ written 1- A:p= flushed A=P A:r=R A:p=P",
        // One that fails ends the pause, for all who wait.
        "flush hold 1+ written 1- A:p= B:+= unflushed A=X B=X flow",
        "flush 1+ written 1- A:p= unflushed A=X A:p= flushed A=P held",
        // What was lost can't be made stable by another flush, and is told once.
        "flush lost A:p=X flow A:p=P",
        "flush 1+ written 1- lost A:p= flushed A=X flow A:p=P",
    ]);
}

#[test]
fn a_loss_is_told_until_somebody_has_heard_of_it() {
    all(&[
        "flush 1+ written 1- A:p= A! unflushed flow B:p=X flow B:p= flushed B=P",
        "flush hold 1+ written 1- A:+= B:+= A! B! unflushed C:x=X C:+=X C:+= flushed C=+",
        // An X for anything else does not tell it.
        "flush 1+ written 1- A:p= A! unflushed B:x=X B:-=X B:p=X B:p= flushed B=P",
    ]);
}

#[test]
fn when_the_server_ends_no_pause_is_vouched_for_any_more() {
    all(&[
        "hold A:+=+ ends A:-=X",
        "hold A:p=P ends A:p=X A:+=X A:r=R flow A:p=X",
        "hold 1+ A:p= B:+= ends A=X B=X 1- A:p=X B:-=X",
        "A:p=P A:r=R ends A:r=R A:p=X flow",
        "status A:ps=P{ ends B:s=X A:s=X",
    ]);
}

#[test]
fn a_flush_that_is_cancelled_has_to_end_before_the_next_one_begins() {
    all(&[
        "flush 1+ written 1- A:p= B:r=R A=X flow 1+ written 1- A:p= held flushed A= flushed A=P",
        "flush 1+ written 1- A:p= B:r=R A=X A:p= flushed A= held flushed A=P",
        // Its failure counts though nobody waited for it.
        "flush 1+ written 1- A:p= B:r=R A=X flow unflushed A:p=X flow",
        "flush 1+ written 1- A:p= B:r=R A=X A:p= unflushed A=X flow",
        "flush timeout=30ms 1+ written 1- A:p= 30ms A=X flow flushed A:p= flushed A=P",
        "flush hold 1+ written 1- A:+= A! flow flushed B:+= flushed B=+",
    ]);
}
