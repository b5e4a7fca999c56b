//! The core of the control side under libFuzzer. What an input means, and what is
//! right, is in src/control/tests/play.rs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pause::control::tests::play::Play;

fuzz_target!(|play: Play| {
    play.play();
});
