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
mod around;
mod controllers;
mod dead_clients;
mod ends;
mod filters;
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
mod status;
mod stuck_log;
mod timeout;
mod unload;

// What the modules are written with: they begin with `use super::*`.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};
use std::{env, thread};

use tempfile::TempDir;

use around::{Around, shell};
use common::clients::{PYTHON, Writer, fio};
use common::debian::{BuildFolder, Release, System};
use common::files::{
    Look, bound_socket, exchange, leave_dead, lock, look, make_fifo, set_mode, socket_mode,
};
use common::filter::PACKAGE;
use common::log;
use common::nbd::{Flush, Read, Trim, Write, Zero};
use common::process::{descriptors, limit_descriptors, next_descriptor, resident_kib};
use common::process::{go_on, is_alive, send_signal, stop, threads};
use common::server::{Daemon, Ended, NOBODY, is_root};
use common::*;
use stage::{Stage, play};
