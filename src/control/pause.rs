//! The pause itself: whether it is asked for, draining or in force, and what
//! the log says about it. Who asked, and over which socket, is not known here.

use std::sync::Arc;
use std::time::Instant;

use log::{error, info};

use crate::gate::Gate;

/// Owns the closing side of the gate. Used by the control thread alone.
pub struct Pause {
    gate: Arc<Gate>,
    state: State,
}

enum State {
    Running,
    /// Closed; requests are still in flight.
    Draining {
        since: Instant,
    },
    /// Closed; nothing is in flight.
    Paused {
        since: Instant,
    },
}

/// What became of a request to pause.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// The pause is in force.
    Paused,
    /// Requests are in flight; ask `progress` when the gate rings.
    Draining,
    /// The pause could not be had; requests flow.
    Failed,
}

impl Pause {
    /// Requests flow.
    pub fn new(gate: Arc<Gate>) -> Self {
        Pause { gate, state: State::Running }
    }

    /// Asks for the pause; `who` is for the log.
    pub fn pause(&mut self, who: &dyn std::fmt::Display) -> Asked {
        match self.state {
            State::Paused { .. } => return Asked::Paused,
            State::Draining { .. } => {}
            State::Running => {
                let since = Instant::now();
                if let Err(e) = self.gate.close() {
                    error!("cannot pause: {e}; requests flow on");
                    return Asked::Failed;
                }
                self.state = State::Draining { since };
                info!("pause requested by {who}: {} requests in flight", self.gate.in_flight());
            }
        }
        if self.progress() { Asked::Paused } else { Asked::Draining }
    }

    /// Looks whether the drain is over; true if the pause is in force.
    pub fn progress(&mut self) -> bool {
        if let State::Draining { since } = self.state {
            if self.gate.drained() {
                info!("paused: drained in {:?}", since.elapsed());
                self.state = State::Paused { since };
            }
        }
        matches!(self.state, State::Paused { .. })
    }

    /// Ends the pause, in force or not; `who` is for the log.
    pub fn resume(&mut self, who: &dyn std::fmt::Display) {
        match self.state {
            State::Running => return,
            State::Draining { since } => info!(
                "pause cancelled by {who} after {:?}: {} requests still in flight, {} held",
                since.elapsed(),
                self.gate.in_flight(),
                self.gate.held(),
            ),
            State::Paused { since } => info!(
                "resumed by {who} after {:?}: {} requests were held",
                since.elapsed(),
                self.gate.held(),
            ),
        }
        self.state = State::Running;
        self.gate.open();
    }
}
