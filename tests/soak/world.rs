//! What the actors of an episode share: the server, its clock, how far the
//! episode is, and what each of them has done so far.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use parking_lot::{Mutex, RwLock};
use pause_model::{Mark, Transcript};

use crate::common::server::Server;
use crate::common::{GENEROUS, process};
use crate::load::Life;
use crate::plan::Plan;

/// What is promised within a second. The machine is busy.
pub const SOON: Duration = Duration::from_secs(16);

/// How far an episode is.
const ALL_WORK: u8 = 0;
const CONTROLLERS_LEAVE: u8 = 1;
const ALL_LEAVE: u8 = 2;

pub struct World {
    pub plan: Plan,
    pub server: Server,
    pub controllers: Mutex<Vec<Transcript>>,
    pub lives: Mutex<Vec<Life>>,
    /// Moments, one every millisecond.
    pub clock: Mutex<Vec<Mark>>,
    /// Whoever sends `r` has this until it is carried out; who needs a pause to
    /// last has it alone.
    pub resumes: RwLock<()>,
    /// A client has this while it connects; who sends SIGTERM has it alone. With
    /// one whose thread nbdkit is about to start, it ends with SIGSEGV now and then
    /// (measured with nbdkit's own pause filter: 1.32 in 17 of 200 times where
    /// clients connect all the time, 1.42 and 1.48 in 4 of 150).
    pub connects: RwLock<()>,
    log: PathBuf,
    begin: Instant,
    next_life: AtomicU64,
    stage: AtomicU8,
    /// From here on nothing keeps a request from being answered.
    nothing_holds: OnceLock<Instant>,
    /// When SIGTERM was sent at the earliest.
    pub terminated: OnceLock<Mark>,
    failed: AtomicBool,
}

impl World {
    pub fn new(plan: Plan, server: Server) -> Self {
        World {
            plan,
            controllers: Mutex::default(),
            lives: Mutex::default(),
            clock: Mutex::default(),
            resumes: RwLock::new(()),
            connects: RwLock::new(()),
            log: server.path("log"),
            server,
            begin: Instant::now(),
            next_life: AtomicU64::new(0),
            stage: AtomicU8::new(ALL_WORK),
            nothing_holds: OnceLock::new(),
            terminated: OnceLock::new(),
            failed: AtomicBool::new(false),
        }
    }

    pub fn mark(&self) -> Mark {
        let log = fs::metadata(&self.log).expect("the log").len();
        Mark { at: self.begin.elapsed(), log }
    }

    /// The number of a client that was not there before.
    pub fn next_life(&self) -> u64 {
        self.next_life.fetch_add(1, Ordering::Relaxed)
    }

    pub fn tell_controllers_to_leave(&self) {
        self.stage.store(CONTROLLERS_LEAVE, Ordering::SeqCst);
    }

    /// No pause is in force, or will be.
    pub fn tell_all_to_leave(&self) {
        let _ = self.nothing_holds.set(Instant::now());
        self.stage.store(ALL_LEAVE, Ordering::SeqCst);
    }

    pub fn terminate(&self) {
        let _nobody_connects = self.connects.write();
        let _ = self.terminated.set(self.mark());
        self.server.terminate();
        self.tell_all_to_leave();
    }

    /// Something was wrong. Nobody need wait for anything any more.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        process::send_signal(self.server.pid(), libc::SIGKILL);
        self.stage.store(ALL_LEAVE, Ordering::SeqCst);
    }

    pub fn controllers_leave(&self) -> bool {
        self.stage.load(Ordering::SeqCst) >= CONTROLLERS_LEAVE
    }

    pub fn all_leave(&self) -> bool {
        self.stage.load(Ordering::SeqCst) >= ALL_LEAVE
    }

    /// The server was told to end, so that connections may, too.
    pub fn server_goes(&self) -> bool {
        self.terminated.get().is_some() || self.failed()
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Panics if `what` has waited for too long.
    pub fn patience(&self, since: Instant, what: impl Fn() -> String) {
        if self.failed() {
            return;
        }
        if let Some(flow) = self.nothing_holds.get() {
            let waited = flow.elapsed();
            assert!(waited < SOON, "{waited:?} after the last pause or SIGTERM waits {}", what());
        }
        assert!(since.elapsed() < GENEROUS, "for {:?} waits {}", since.elapsed(), what());
    }

    /// Sleeps, but not when all are told to leave.
    pub fn sleep(&self, time: Duration) {
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()) {
            if self.all_leave() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(10)));
        }
    }
}
