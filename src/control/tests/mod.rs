//! A controller's promises, over a stream in memory. `script` plays scripts and
//! judges what comes of them; here are scripts written by hand, and the replay of
//! those that the fuzz target has found.

#![allow(clippy::arithmetic_side_effects)]

mod script;

use std::fs;
use std::path::Path;

use script::{LISTENED, play};

#[test]
fn each_command_gets_its_reply_in_its_turn() {
    for (script, replies) in [
        ("", ""),
        ("Ap \t\nrT", "PR"),
        ("A+-p-rT", "+-P-R"),
        ("FpT+-r", "XXXR"),
        ("xQPQTQ+T\r", "XXX+X"),
        // What is behind a command that waits has to wait too.
        ("prTxTpT", "PRXP"),
        ("prTNTx", "XRX"),
        ("+-TYT", "+-"),
        // However little is read and written at a time.
        ("A0Oprp-T1TT2T0TI-TWT", "PRP--"),
        // Who sends no more gets what is owed. Who takes nothing or is gone does not.
        ("rpETxHT", "R"),
        ("rpHT", ""),
        ("rZT", ""),
    ] {
        let ending = play(script.as_bytes());
        assert_eq!(String::from_utf8(ending.replies).unwrap(), replies, "{script:?}");
    }
}

#[test]
fn a_flood_is_heard_out_only_as_its_replies_are_read() {
    let ending = play(b"0GxTTTTTTTTTTTTTTTT");
    assert_eq!(ending.replies, [b'X'; 6_000]);
    // `play` sees to it that they are not all of them.
    assert!(ending.most_unsent >= LISTENED);
}

#[test]
fn what_the_fuzzer_has_found_gets_the_replies_of_the_model() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/session");
    let mut endings = Vec::new();
    for file in fs::read_dir(&corpus).unwrap() {
        let path = file.unwrap().path();
        // Shown where `play` panics.
        println!("{}", path.display());
        endings.push(play(&fs::read(&path).unwrap()));
    }
    // So that nothing is replayed that has lost its meaning.
    assert!(endings.iter().any(|ending| ending.failed));
    assert!(endings.iter().any(|ending| ending.most_unsent >= LISTENED));
    for reply in *b"PR+-X" {
        assert!(endings.iter().any(|ending| ending.replies.contains(&reply)), "{reply}");
    }
}
