//! What an episode is to be: which server, who drives it, for how long, and how
//! it ends. All of it follows from the episode's seed.

use std::time::Duration;

use crate::common::nbdkit;
use crate::common::random::Random;
use crate::common::server::{Setup, ThreadModel};
use pause_model::Rules;

/// In MiB: clients in the lower half, fio in the upper one.
pub const DISK: u64 = 32;

/// What controllers send, besides noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commands {
    /// Pauses; there are no holds.
    Pauses,
    /// Holds alone, so that nobody's `r` ends one that lasts too long.
    Holds,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM at a moment that nobody knows.
    Terminated,
    /// Controllers leave, then clients, then it is told to end.
    Deserted,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub model: ThreadModel,
    pub tcp: bool,
    pub commands: Commands,
    pub timeout: Option<Duration>,
    pub flush: bool,
    /// Flushes reach the disk.
    sync: bool,
    /// Requests take so long, in ms.
    delay: u64,
    pub controllers: usize,
    /// Between two things that a controller does it waits up to so long, in ms.
    pub gap: u64,
    pub clients: usize,
    /// fio's --iodepth.
    pub fio: Option<u32>,
    pub length: Duration,
    pub end: End,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let random = &mut Random::with_seed(seed);
        let model = random.one_of(&[
            ThreadModel::Parallel,
            ThreadModel::Parallel,
            ThreadModel::Parallel,
            ThreadModel::SerializeRequests,
            ThreadModel::SerializeAllRequests,
            ThreadModel::SerializeConnections,
        ]);
        let parallel = model == ThreadModel::Parallel;
        let end = random.one_of(&[End::Terminated, End::Deserted]);
        // fio goes round and round where a connection ends with more in flight.
        let depth = match end {
            End::Terminated => 1,
            End::Deserted => random.one_of(&[1, 4, 16]),
        };
        let mut plan = Plan {
            seed,
            model,
            tcp: random.once_in(3),
            commands: random.one_of(&[Commands::Pauses, Commands::Holds, Commands::Both]),
            timeout: random.once_in(3).then(|| Duration::from_millis(random.below(30..500))),
            flush: parallel && !random.once_in(3),
            sync: random.once_in(2),
            delay: match parallel {
                true => random.one_of(&[0, 0, 2, 20, 20, 300]),
                false => random.one_of(&[0, 0, 2, 10]),
            },
            controllers: random.below(1..7) as usize,
            gap: random.one_of(&[3, 30, 30, 200]),
            clients: random.below(0..6) as usize,
            fio: random.once_in(2).then_some(depth),
            length: random.millis(300..4000),
            end,
        };
        if let Some(timeout) = plan.timeout.filter(|_| random.once_in(2)) {
            // So that it does come.
            plan.gap = timeout.as_millis() as u64;
        }
        if model == ThreadModel::SerializeConnections {
            // There is room for one.
            plan.clients = usize::from(plan.fio.is_none());
        }
        plan
    }

    pub fn setup(&self) -> Setup {
        let mut setup = Setup::with_disk(DISK).thread_model(self.model).logged();
        if self.tcp {
            setup = setup.tcp();
        }
        if self.commands != Commands::Pauses {
            setup = setup.parameters(&["pause-hold=true"]);
        }
        if let Some(timeout) = self.timeout {
            setup = setup.parameters(&[&format!("pause-timeout={}ms", timeout.as_millis())]);
        }
        if self.flush {
            setup = setup.parameters(&["pause-flush=true"]);
        }
        if self.delay > 0 {
            let delays = ["rdelay", "wdelay"].map(|name| format!("{name}={}ms", self.delay));
            setup = setup.below("delay", &[&delays[0], &delays[1]]);
        }
        if !self.sync {
            setup = setup.below("fua", &["fuamode=discard"]);
        }
        setup.kept()
    }

    pub fn rules(&self) -> Rules {
        let holds = self.commands != Commands::Pauses;
        Rules { holds, status: false, timeout: self.timeout }
    }

    /// Whether a held request keeps those of all other connections waiting in
    /// nbdkit, for its one lock, where the filter does not see them.
    pub fn has_one_lock(&self) -> bool {
        self.model == ThreadModel::SerializeAllRequests
    }

    /// Whether somebody may have sent `p`, which nobody's end ends.
    pub fn has_pauses(&self) -> bool {
        self.commands != Commands::Holds
    }
}

/// Whether a client that dies must not have several requests in flight below
/// the filter. An old nbdkit ends with `raw_send_socket: Assertion sock >= 0`
/// when two threads answer a dead client at once, with this filter and without
/// (measured with nbdkit-delay-filter alone: 1.32 does, 1.42 does not).
pub fn dead_clients_are_dangerous() -> bool {
    nbdkit::minor_version() < 42
}
