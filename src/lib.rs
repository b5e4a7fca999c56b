//! `libpause.so`, an nbdkit filter that pauses a running NBD server so that
//! the storage under it can be snapshotted, and resumes it.
//!
//! Requests flow down, commands flow in from the side, and they meet at the gate.
//! Nothing calls back up, except that the gate wakes the closing side, through a
//! function that it was given:
//!
//! ```text
//!   nbdkit -> filter -> connection -> gate        (requests, nbdkit's threads)
//!   controller -> control -> gate                 (commands, one thread of ours)
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`filter`] | the callbacks nbdkit calls, and `filter_init`: translation from C, no logic |
//! | [`lifecycle`] | what happens when the server starts, connects a client, and ends |
//! | [`connection`] | an NBD client's connection: how its requests are admitted, whether it needs a flush |
//! | [`connections`] | all of them, and how a pause flushes them |
//! | [`dead_replies`] | serializes replies to clients that may be gone, where nbdkit can't cut a connection |
//! | [`latecomers`] | keeps clients that connect as the server ends from crashing it |
//! | [`gate`] | lets requests pass or wait; knows nothing of the other rooms |
//! | [`control`] | the operator's side: `core` takes every decision; a new command begins in `protocol` |
//! | [`socket`] | the control socket in the file system |
//! | [`config`] | the parameters |
//! | [`logger`] | `log` records to nbdkit's own log, and what each level is for |
//! | [`nbdkit`] | the safe face of nbdkit's functions |
//! | [`os`] | the same for a few system calls, and what to do about their errors |

mod config;
mod connection;
mod connections;
#[cfg(not(feature = "fuzzing"))]
mod control;
#[cfg(feature = "fuzzing")]
pub mod control;
mod dead_replies;
mod filter;
mod gate;
mod latecomers;
mod lifecycle;
mod logger;
mod nbdkit;
mod os;
mod socket;
