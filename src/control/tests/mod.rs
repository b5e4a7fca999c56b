//! The core's promises, with several controllers and a clock that is moved by hand.
//!
//! A row is a dialogue: words, each of which happens and is checked.
//!
//! | word | what happens, what is checked |
//! |---|---|
//! | `A:pr=PR` | controller A (who connects with its first word) sends `pr`, and has exactly `PR` since its last `=` |
//! | `A:p` | A sends `p`; what it has is seen later |
//! | `A=P` | A has `P` by now, since its last `=` |
//! | `A.` | A sends no more, as `nc -N` does |
//! | `A!` | A has gone |
//! | `1+` `1-` | request 1 comes and is let in, leaves |
//! | `held`, `flow` | a request that comes now is held, is let in |
//! | `30ms` | time passes |
//! | `written` | a request writes |
//! | `flushed`, `unflushed` | the flush that runs ends well, badly |
//! | `lost` | a connection ends whose last flush had failed |
//! | `ends` | nbdkit says that the server ends |
//!
//! `timeout=30ms`, `hold`, `flush` and `status` before them are the parameters.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs
)]

mod actor;
mod below;
#[cfg(test)]
mod crowds;
#[cfg(test)]
mod dialogues;
pub mod play;
mod stage;
#[cfg(test)]
mod status;
