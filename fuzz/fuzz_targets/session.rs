//! The control protocol's session under libFuzzer. Any bytes are a script; what is
//! right is decided where scripts are played, in src/control/tests/script/.

#![no_main]
// Each file is here as a whole, and scripts don't need all of it.
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

// Nothing of the filter is public, and as a library it is for nbdkit alone to load.
// So its files are part of this crate, under the names they know each other by.
#[path = "../../src/os.rs"]
mod os;

#[path = "../../src/control"]
mod control {
    mod controller;
    #[path = "tests/script/mod.rs"]
    pub mod script;
    mod session;
}

fuzz_target!(|script: &[u8]| {
    control::script::play(script);
});
