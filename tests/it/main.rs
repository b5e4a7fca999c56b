//! The integration tests: the filter in a real nbdkit, under real clients. One crate,
//! a module a theme. What a test says all that with is in `common`; the soak is a
//! crate of its own.

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
#[macro_use]
mod stage;
mod controllers;
mod dead_clients;
mod flush;
mod hold;
mod install;
mod never_harmed;
mod parameters;
mod plugins;
mod protocol;
mod quiesce;
mod requests;
mod serving;
mod shortages;
mod shutdown;
mod signals;
mod snapshots;
mod socket;
mod socket_lost;
mod stuck_log;
mod timeout;
mod unload;
