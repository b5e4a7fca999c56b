//! The integration tests of the helper program: what it does to real servers, and what
//! a person is told. What the filter does by itself is tested in its own package.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

mod breaks;
mod command_line;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod helper;
mod pause_and_resume;
mod run;
mod signals;
mod trouble;
