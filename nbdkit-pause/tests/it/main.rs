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

mod always_heard;
mod breaks;
mod command_line;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod helper;
mod hooks;
mod keeper;
mod limits;
mod pause_and_resume;
mod run;
mod signals;
mod status;
mod told_once;
mod trouble;
mod vouches;

// What the modules are written with: they begin with `use super::*`.
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::files::{leave_dead, set_mode};
use common::nbd::Write;
use common::process::{go_on, is_alive, run_with_input, send_signal, stop};
use common::server::{NOBODY, is_root};
use common::*;
use helper::*;
