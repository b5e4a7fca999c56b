//! Many controllers at once: how many holds there can be, who makes room, and who is
//! not listened to.

use pause_model::Rules;

use super::stage::{Ground, Stage};

/// On a stage of its own, with this many controllers.
fn with_crowd(count: usize, test: impl FnOnce(&mut Stage)) {
    let ground = Ground::new(1);
    let mut stage = Stage::new(&ground, Rules { holds: true, status: true, timeout: None }, false);
    (0..count).for_each(|_| stage.connect());
    test(&mut stage);
}

fn say(stage: &mut Stage, who: usize, bytes: &[u8]) -> Vec<u8> {
    let before = stage.actors[who].received.len();
    stage.send(who, bytes);
    stage.turn();
    stage.actors[who].received[before..].to_vec()
}

#[test]
fn there_are_32_holds_at_most() {
    with_crowd(34, |stage| {
        for who in 0..32 {
            assert_eq!(say(stage, who, b"+"), b"+", "{who}");
        }
        assert_eq!(say(stage, 32, b"+"), b"X");
        // Who has one may ask again, and a pause is none.
        assert_eq!(say(stage, 5, b"+"), b"+");
        assert_eq!(say(stage, 33, b"p"), b"P");
        // One that is given back leaves its place.
        assert_eq!(say(stage, 5, b"-"), b"-");
        assert_eq!(say(stage, 32, b"+"), b"+");
        assert_eq!(say(stage, 5, b"+"), b"X");
        stage.hang_up(7);
        stage.turn();
        assert_eq!(say(stage, 5, b"+"), b"+");
    });
}

#[test]
fn holds_that_drain_still_count() {
    with_crowd(33, |stage| {
        assert!(stage.enter(0));
        for who in 0..32 {
            assert_eq!(say(stage, who, b"+"), b"");
        }
        assert_eq!(say(stage, 32, b"+"), b"X");
        stage.leave(0);
        stage.turn();
        assert!((0..32).all(|who| stage.actors[who].received == b"+"));
    });
}

#[test]
fn the_idlest_of_64_makes_room_and_one_with_a_hold_never() {
    with_crowd(64, |stage| {
        for who in (0..64).rev().filter(|who| who % 2 == 0) {
            assert_eq!(say(stage, who, b"+"), b"+");
        }
        // Silent since they came, in that order.
        for gone in [1, 3, 5] {
            stage.connect();
            assert_eq!(stage.closed.last().unwrap().1, gone);
        }
        assert_eq!(say(stage, 7, b"x"), b"X");
        stage.connect();
        assert_eq!(stage.closed.last().unwrap().1, 9);
        assert!(!stage.enter(0), "all holds are in force");
        assert_eq!(say(stage, 0, b"-"), b"-");
        assert_eq!(say(stage, 62, b"-"), b"-");
    });
}

#[test]
fn who_waits_for_a_pause_makes_room_last() {
    with_crowd(64, |stage| {
        assert!(stage.enter(0));
        assert_eq!(say(stage, 0, b"p"), b"");
        for who in 1..64 {
            assert_eq!(say(stage, who, b"x"), b"X");
        }
        stage.connect();
        assert_eq!(stage.closed.last().unwrap().1, 1);
        stage.leave(0);
        stage.turn();
        assert_eq!(stage.actors[0].received, b"P");
    });
}

#[test]
fn who_reads_no_replies_is_not_listened_to_for_ever() {
    with_crowd(2, |stage| {
        stage.actors[0].reads = false;
        assert_eq!(say(stage, 0, &[b'x'; 6_000]), b"");
        // It keeps nobody from being served.
        assert_eq!(say(stage, 1, b"pr"), b"PR");
        assert!(stage.unread(0) > 1_000, "it has sent no more than {}", 6_000 - stage.unread(0));
        stage.actors[0].reads = true;
        stage.turn();
        assert_eq!(stage.actors[0].received, [b'X'; 6_000]);
    });
}

#[test]
fn who_says_no_more_and_reads_no_replies_has_no_hold() {
    with_crowd(1, |stage| {
        stage.actors[0].reads = false;
        stage.send(0, b"x+");
        stage.turn();
        assert!(!stage.enter(0));
        stage.send_no_more(0);
        stage.turn();
        assert!(stage.enter(0));
        stage.actors[0].reads = true;
        stage.turn();
        assert_eq!(stage.actors[0].received, b"X+");
    });
}

#[test]
fn a_flood_keeps_nobody_from_being_served() {
    with_crowd(64, |stage| {
        for who in 0..63 {
            stage.send(who, &b"pr".repeat(256));
        }
        stage.send(63, b"r");
        stage.one_turn();
        assert_eq!(stage.actors[63].received, b"R");
        let most = stage.actors.iter().map(|actor| actor.received.len()).max().unwrap();
        assert!(most < 20, "one has had {most} commands carried out in one turn");
        stage.turn();
        assert!((0..63).all(|who| stage.actors[who].received == b"PR".repeat(256)));
    });
}

#[test]
fn each_one_has_the_last_word_in_its_turn() {
    with_crowd(2, |stage| {
        (0..2).for_each(|who| drop(say(stage, who, b"?")));
        stage.send(0, &[b'p'; 400]);
        stage.send(1, &[b'r'; 400]);
        let flows: Vec<bool> = (0..4)
            .map(|_| {
                stage.one_turn();
                let flows = stage.enter(0);
                stage.leave(0);
                flows
            })
            .collect();
        assert!(flows == [true, false, true, false] || flows == [false, true, false, true]);
    });
}

#[test]
fn who_comes_later_is_heard_later() {
    // Whoever has the first go in this turn, and whether the first is still there.
    for turns in 0..6 {
        for (first, second, flows) in [(b"r", b"p", false), (b"p", b"r", true)] {
            for (is_known, is_gone) in [(false, false), (false, true), (true, false), (true, true)]
            {
                with_crowd(2, |stage| {
                    (0..turns).for_each(|_| _ = stage.one_turn());
                    if is_known {
                        (0..2).for_each(|who| drop(say(stage, who, b"?")));
                    }
                    stage.send(1, first);
                    if is_gone {
                        stage.hang_up(1);
                    }
                    stage.connect();
                    stage.send(2, second);
                    stage.one_turn();
                    assert_eq!(stage.enter(0), flows, "{turns} {is_known} {is_gone}");
                });
            }
        }
    }
}

#[test]
fn what_is_behind_a_command_that_the_end_of_the_server_settles_is_not_left_lying() {
    with_crowd(1, |stage| {
        assert!(stage.enter(0));
        assert_eq!(say(stage, 0, b"pr"), b"");
        assert!(!stage.has_more());
        stage.end();
        assert!(stage.has_more());
        stage.turn();
        assert_eq!(stage.actors[0].received, b"XR");
    });
}

#[test]
fn one_that_has_hung_up_makes_room_first() {
    with_crowd(64, |stage| {
        assert!(stage.enter(0));
        assert_eq!(say(stage, 40, b"p"), b"");
        stage.hang_up(40);
        stage.turn();
        stage.connect();
        assert_eq!(stage.closed.last().unwrap().1, 40);
    });
}
