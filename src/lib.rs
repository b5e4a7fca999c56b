//! `libpause.so`, an nbdkit filter that pauses a running NBD server so that
//! the storage under it can be snapshotted, and resumes it.
//!
//! Requests flow down, commands flow in from the side, and the gate is where
//! they meet; nobody calls back up:
//!
//! ```text
//!   nbdkit -> filter -> connection -> gate        (requests, nbdkit's threads)
//!   controller -> control -> gate                 (commands, one thread of ours)
//! ```
//!
//! | room | what lives there |
//! |---|---|
//! | [`filter`] | the callbacks nbdkit calls, and `filter_init`: translation from C, no logic |
//! | [`lifecycle`] | what happens when the server starts, connects a client, and ends |
//! | [`connection`] | a client's connection: how its requests are admitted, whether it needs a flush |
//! | [`connections`] | all of them, and how a pause flushes them |
//! | [`exit`] | what is done where nbdkit gives up |
//! | [`turnstile`] | how threads answer a client that may be gone, where nbdkit can't cut a connection |
//! | [`seat`] | the calling thread's place in the gate |
//! | [`gate`] | who may pass and who waits; knows nothing of the other rooms |
//! | [`control`] | controllers, their protocol, and the state of the pause |
//! | [`socket`] | the control socket in the file system |
//! | [`config`] | the parameters |
//! | [`advice`] | what a person can do about an error of the system |
//! | [`logger`] | `log` records to nbdkit's own log |
//! | [`nbdkit`], [`os`] | the safe faces of nbdkit's functions and of a few system calls |

mod advice;
mod config;
mod connection;
mod connections;
#[cfg(not(feature = "fuzzing"))]
mod control;
#[cfg(feature = "fuzzing")]
pub mod control;
mod exit;
mod filter;
mod gate;
mod lifecycle;
mod logger;
mod nbdkit;
mod os;
mod seat;
mod socket;
mod turnstile;
