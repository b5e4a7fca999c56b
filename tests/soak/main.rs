//! The soak test: random servers under random load, paused by random controllers
//! and told to end at random moments, for as long as `scripts/soak` is told to.
//! The model (`pause-model`) says what each reply can have been, the log (`log`) what
//! the plugin saw, the clients (`load`) what has to be on the disk.
//!
//! A run is a sequence of episodes, each with a server of its own and a seed of
//! its own. With that seed an episode has the same plan again: the same set-up
//! and the same actors, who do the same things after the same times. What the
//! scheduler makes of it differs from run to run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

#[path = "../common/mod.rs"]
mod common;
mod controllers;
mod episode;
mod load;
mod log;
mod plan;
mod world;

use std::env;
use std::time::{Duration, Instant};

use common::random::Random;
use episode::Tally;
use plan::Plan;

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value}: not a number")))
}

#[test]
#[ignore = "scripts/soak runs it"]
fn nothing_that_random_clients_and_controllers_do_breaks_a_promise() {
    let minutes: f64 = number("PAUSE_SOAK_MINUTES").unwrap_or(1.0);
    let limit = Duration::from_secs_f64(minutes * 60.0);
    let again: Option<u64> = number("PAUSE_EPISODE");
    let mut seeds = Random::new();
    let start = Instant::now();
    let mut total = Tally::default();
    for episode in 1.. {
        let plan = Plan::new(again.unwrap_or_else(|| seeds.seed()));
        let seed = plan.seed;
        println!("episode {episode}: {plan:?}");
        match episode::run(plan) {
            Ok(tally) => {
                println!("    {tally}");
                total += tally;
            }
            Err(wrong) => {
                println!("{wrong}");
                panic!(
                    "episode {episode} has failed; PAUSE_EPISODE={seed} scripts/soak plays it again"
                );
            }
        }
        if again.is_some() || start.elapsed() > limit {
            break;
        }
    }
    println!("in all: {total}");
    let is_long = again.is_none() && minutes >= 1.0;
    assert!(!is_long || total.is_worth_something(), "this proves nothing");
}
