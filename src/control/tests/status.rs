//! What `s` tells, member by member, read with a parser that others wrote.

use std::thread;
use std::time::Duration;

use pause_model::Rules;
use serde_json::{Value, json};

use super::stage::{FIRST_PID, Ground, MOST_UNSENT, Stage, UID};
use crate::gate::Worth;

const SECOND: Duration = Duration::from_secs(1);

/// On a stage of its own, where a pause lasts a minute at most.
fn with_timeout(test: impl FnOnce(&mut Stage, &Ground)) {
    let ground = Ground::new(1);
    let rules = Rules { holds: true, status: true, timeout: Some(60 * SECOND) };
    let mut stage = Stage::new(&ground, rules, true);
    (0..4).for_each(|_| stage.connect());
    test(&mut stage, &ground);
}

fn say(stage: &mut Stage, who: usize, bytes: &[u8]) {
    stage.send(who, bytes);
    stage.turn();
}

/// What the last of the four is told.
fn status(stage: &mut Stage) -> Value {
    let before = stage.actors[3].lines.len();
    say(stage, 3, b"s");
    let lines = &stage.actors[3].lines[before..];
    assert_eq!(lines.len(), 1, "{lines:?}");
    serde_json::from_str(&lines[0]).unwrap_or_else(|e| panic!("{e}: {}", lines[0]))
}

/// Each event on the stage takes a microsecond.
#[track_caller]
fn assert_near(value: &Value, seconds: f64) {
    let near = value.as_f64().is_some_and(|value| (value - seconds).abs() < 0.001);
    assert!(near, "{value} is not about {seconds}");
}

fn person(who: usize) -> Value {
    json!({ "pid": FIRST_PID as usize + who, "uid": UID })
}

/// This person, so many seconds ago.
#[track_caller]
fn assert_asked(value: &Value, who: usize, seconds: f64) {
    assert_near(&value["age"], seconds);
    let mut value = value.clone();
    value.as_object_mut().unwrap().remove("age");
    assert_eq!(value, person(who));
}

#[test]
fn each_state_is_told_with_since_when_and_for_how_long_it_is_and_what_is_left() {
    with_timeout(|stage, _| {
        let expect =
            |stage: &mut Stage, name: &str, [since, lasts, left]: [f64; 3], inside: u64| {
                let told = status(stage);
                assert_eq!((&told["state"], &told["in_flight"]), (&json!(name), &json!(inside)));
                assert_near(&told["since"], since);
                assert_near(&told["for"], lasts);
                match left {
                    0.0 => assert_eq!(told["timeout_left"], Value::Null),
                    left => assert_near(&told["timeout_left"], left),
                }
            };
        stage.wait(5 * SECOND);
        expect(stage, "running", [0.0, 5.0, 0.0], 0);
        assert!(stage.enter(0));
        expect(stage, "running", [0.0, 5.0, 0.0], 1);
        say(stage, 0, b"p");
        stage.wait(2 * SECOND);
        expect(stage, "draining", [5.0, 2.0, 58.0], 1);
        stage.below.lock().written += 1;
        stage.leave(0);
        stage.turn();
        stage.wait(3 * SECOND);
        expect(stage, "flushing", [7.0, 3.0, 55.0], 0);
        assert!(stage.end_flush(true));
        stage.turn();
        stage.wait(4 * SECOND);
        expect(stage, "paused", [10.0, 4.0, 51.0], 0);
        say(stage, 0, b"r");
        stage.wait(SECOND);
        expect(stage, "running", [14.0, 1.0, 0.0], 0);
    });
}

#[test]
fn who_paused_is_told_whether_or_not_it_is_still_connected() {
    with_timeout(|stage, _| {
        assert_eq!(status(stage)["paused_by"], Value::Null);
        say(stage, 1, b"p");
        stage.wait(SECOND);
        // It has asked first.
        say(stage, 0, b"p");
        stage.hang_up(1);
        stage.wait(SECOND);
        assert_asked(&status(stage)["paused_by"], 1, 2.0);
        say(stage, 0, b"r");
        assert_eq!(status(stage)["paused_by"], Value::Null);
    });
}

#[test]
fn each_hold_is_told_with_its_holder_and_its_age() {
    with_timeout(|stage, _| {
        assert_eq!(status(stage)["holds"], json!([]));
        for who in [2, 0] {
            say(stage, who, b"+");
            stage.wait(SECOND);
        }
        // That one has it already.
        say(stage, 2, b"+");
        let told = status(stage);
        assert_eq!(told["paused_by"], Value::Null);
        let holds = told["holds"].as_array().unwrap();
        assert_eq!(holds.len(), 2);
        assert_asked(&holds[0], 0, 1.0);
        assert_asked(&holds[1], 2, 2.0);
        say(stage, 0, b"-");
        let told = status(stage);
        assert_eq!(told["holds"].as_array().unwrap().len(), 1);
        assert_asked(&told["holds"][0], 2, 2.0);
    });
}

#[test]
fn the_last_eight_pauses_are_told_with_how_they_ended() {
    with_timeout(|stage, ground| {
        let mut expected = Vec::new();
        let mut ended =
            |stage: &mut Stage, length: f64, reached: &str, by: &str, who: Option<usize>| {
                let told = status(stage)["ended"][0].clone();
                assert_near(&told["length"], length);
                assert_near(&told["ago"], 0.0);
                let peer = who.map_or(json!({ "pid": null, "uid": null }), person);
                let named = [("pid", &peer["pid"]), ("uid", &peer["uid"])];
                for (name, value) in named.into_iter().chain([("by", &json!(by))]) {
                    assert_eq!(told[name], *value, "{told}");
                }
                assert_eq!(told["reached"], reached);
                expected.push(by.to_owned());
            };
        // Two of them are too many.
        for _ in 0..5 {
            say(stage, 0, b"p");
            stage.wait(SECOND);
            say(stage, 1, b"r");
            ended(stage, 1.0, "paused", "r", Some(1));
        }
        // Nothing ends.
        say(stage, 1, b"r-");
        say(stage, 0, b"+");
        say(stage, 1, b"+");
        stage.wait(SECOND);
        say(stage, 0, b"-");
        stage.wait(SECOND);
        say(stage, 1, b"-");
        ended(stage, 2.0, "paused", "-", Some(1));
        assert!(stage.enter(0));
        say(stage, 1, b"+");
        stage.hang_up(1);
        stage.turn();
        ended(stage, 0.0, "draining", "hang-up", Some(1));
        stage.below.lock().written += 1;
        stage.leave(0);
        say(stage, 0, b"p");
        stage.wait(60 * SECOND);
        ended(stage, 60.0, "flushing", "pause-timeout", None);
        stage.end_flush(true);
        say(stage, 0, b"p");
        stage.end_flush(false);
        stage.turn();
        ended(stage, 0.0, "flushing", "pause-flush", None);
        // That was told to nobody but those who waited.
        say(stage, 0, b"p");
        stage.end_flush(true);
        stage.turn();
        stage.wait(SECOND);
        thread::scope(|scope| {
            let slot = ground.gate.take_slot();
            scope.spawn(move || ground.gate.wait(&slot, Worth::All, || true).is_ok());
            // Once it waits, it must not be dropped.
            while stage.core.is_closed() {
                stage.core.shut_down(stage.clock());
                thread::yield_now();
            }
            stage.core.wake();
        });
        ended(stage, 1.0, "paused", "shutdown", None);
        stage.wait(SECOND);
        let told = status(stage);
        let told = told["ended"].as_array().unwrap();
        expected.reverse();
        expected.truncate(8);
        assert_eq!(told.iter().map(|it| it["by"].as_str().unwrap()).collect::<Vec<_>>(), expected);
        assert_near(&told[0]["ago"], 1.0);
    });
}

#[test]
fn held_requests_are_counted_and_the_age_of_the_oldest_is_told() {
    with_timeout(|stage, ground| {
        let told = status(stage);
        assert_eq!((&told["held"], &told["oldest_held"]), (&json!(0), &Value::Null));
        say(stage, 0, b"p");
        let gate = &ground.gate;
        // Judged when they have ended: who is held still would keep this test from failing.
        let told = thread::scope(|scope| {
            for _ in 0..2 {
                let slot = gate.take_slot();
                scope.spawn(move || gate.wait(&slot, Worth::All, || false).is_ok());
            }
            while gate.held() < 2 {
                thread::yield_now();
            }
            // The gate has the real time, which has gone on for less than that.
            stage.wait(50 * SECOND);
            let told = status(stage);
            say(stage, 0, b"r");
            stage.core.wake();
            told
        });
        assert_eq!((&told["state"], &told["held"]), (&json!("paused"), &json!(2)));
        assert!(told["oldest_held"].as_f64().is_some_and(|age| age > 0.0 && age < 50.1), "{told}");
        let told = status(stage);
        assert_eq!((&told["held"], &told["oldest_held"]), (&json!(0), &Value::Null));
        assert_eq!(told["ended"][0]["held"], 2);
    });
}

#[test]
fn the_rest_is_told_and_there_is_nothing_else() {
    with_timeout(|stage, _| {
        let told = status(stage);
        assert_eq!(told["you"], person(3));
        assert_eq!(told["filter"], env!("CARGO_PKG_VERSION"));
        assert!(told["nbdkit"].as_str().unwrap().starts_with("1."), "{told}");
        assert_eq!(told.as_object().unwrap().len(), 13);
    });
}

#[test]
fn who_reads_no_lines_is_refused_more_of_them_and_heard_all_the_same() {
    with_timeout(|stage, _| {
        stage.actors[3].reads = false;
        let mut commands = vec![b's'; 500];
        commands.extend(b"prp");
        say(stage, 3, &commands);
        assert!(!stage.enter(0), "the last p is carried out");
        stage.actors[3].reads = true;
        stage.turn();
        let Some(lines) = stage.actors[3].received.iter().position(|&reply| reply == b'X') else {
            panic!("none is refused");
        };
        let bytes: usize = stage.actors[3].lines.iter().map(String::len).sum();
        let last = stage.actors[3].lines.last().unwrap().len();
        assert!((MOST_UNSENT..MOST_UNSENT + last).contains(&bytes), "{bytes}");
        let expected = [&b"{".repeat(lines)[..], &b"X".repeat(500 - lines), b"PRP"].concat();
        assert_eq!(stage.actors[3].received, expected);
        assert_eq!(status(stage)["state"], "paused");
    });
}

#[test]
fn each_one_is_told_once_in_a_turn() {
    with_timeout(|stage, _| {
        (0..3).for_each(|who| assert!(stage.send(who, &[b's'; 100])));
        stage.send(3, b"pr");
        stage.one_turn();
        assert!((0..3).all(|who| stage.actors[who].received == b"{"));
        assert_eq!(stage.actors[3].received, b"PR");
        stage.turn();
        assert!((0..3).all(|who| stage.actors[who].received == [b'{'; 100]));
    });
}
