//! Random numbers with a seed that can be given again: `PAUSE_SEED=number`.
//! The seed in use is printed, and the test runner shows it when a test fails.

use std::env;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// A new sequence in each run, unless PAUSE_SEED is set.
    pub fn new() -> Self {
        let seed = match env::var("PAUSE_SEED") {
            Ok(seed) => seed.parse().expect("PAUSE_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_nanos() as u64),
        };
        println!("PAUSE_SEED={seed}");
        Random(seed)
    }

    /// The sequence that this seed begins.
    pub fn with_seed(seed: u64) -> Self {
        Random(seed)
    }

    /// A seed for a sequence of its own.
    pub fn seed(&mut self) -> u64 {
        self.next()
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of `range`, which is not empty.
    pub fn below(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// One of `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(0..choices.len() as u64) as usize]
    }

    /// True one time in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(0..times) == 0
    }

    /// A time of `range` in milliseconds, which need not be a whole number.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.below(range.start * 1000..range.end * 1000))
    }
}
