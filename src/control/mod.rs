//! The operator's side: one thread that listens on the control socket, serves
//! all controllers, moves the pause on and watches the socket's path. It never waits
//! for any of them, nor for the plugin, and for the log at most a tenth of a second
//! in each round (`logger`), so that nothing delays an operator's `r`.
//!
//! This file is the loop: it polls, and turns what each descriptor reports into calls
//! to `core`, which makes all decisions.
//!
//! | file | what lives there |
//! |---|---|
//! | `core` | when to carry out which command, what to reply, which controller makes room |
//! | `protocol` | bytes to commands, replies to bytes |
//! | `controller` | one controller, as `core` knows it |
//! | `pause`, `stage` | who wants the pause, how far it is, when it ends; closes and opens the gate |
//! | `history` | how the last pauses ended |
//! | `status` | all that as one line of JSON |
//! | `flush` | when to start a flush, and what its result is worth |
//! | `flusher` | the thread that flushes |
//! | `controllers` | the connections: reads and writes for `core` |
//! | `acceptor` | accepts controllers, even when file descriptors run out |
//! | `watch` | notices that the socket's file is lost, and puts it back |

mod acceptor;
mod controller;
mod controllers;
mod core;
mod flush;
mod flusher;
mod history;
mod pause;
mod protocol;
mod stage;
mod status;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;
mod watch;

use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use log::error;
use parking_lot::{Condvar, Mutex};

use crate::connections::Connections;
use crate::gate::Gate;
use crate::logger;
use crate::nbdkit;
use crate::os::advice::Advised;
use crate::os::{self, EventFd, PollFd, PollFlags};
use crate::socket::ControlSocket;
use acceptor::Acceptor;
use controller::Id;
use controllers::Controllers;
use core::Core;
use flush::Flusher;
use flusher::FlushThread;
use pause::Pause;
use protocol::Offered;
use watch::Watch;

/// More than the loop needs; the default would count against limits on memory.
const STACK: usize = 128 * 1024;

/// When poll(2) fails, or the log is blocked, the loop retries after this time.
const RETRY: Duration = Duration::from_millis(100);

/// While the server is paused, the loop checks this often whether it is shutting down.
const LOOK_FOR_THE_END: Duration = Duration::from_millis(20);

/// What the parameters say about pauses.
pub struct Rules {
    /// What to flush before a pause is in force.
    pub flush: Option<Arc<Connections>>,
    /// How long a pause lasts at most.
    pub timeout: Option<Duration>,
    /// Whether `+` and `-` are commands.
    pub holds: bool,
    /// Whether `s` is one.
    pub status: bool,
}

/// Why there is no control thread.
#[derive(Debug)]
pub enum StartError {
    /// No file descriptor is left to set aside.
    NoSpare(io::Error),
    /// No thread can be started.
    NoThread(io::Error),
}

/// The control thread, which owns the control socket. Dropping this ends both, and
/// waits until they have ended.
pub struct Control {
    event: Arc<EventFd>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// What `Control` wants from its thread. It signals the event then.
#[derive(Default)]
struct Orders {
    /// To end.
    stop: AtomicBool,
    /// To vouch for nothing any more ...
    server_ends: AtomicBool,
    /// ... and to confirm that.
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Control {
    /// Starts the control thread; the gate signals `event`. Call it in the process
    /// that serves (nbdkit-filter(3): from `after_fork`).
    ///
    /// # Errors
    /// Which resource is short, and what to do; the socket is gone.
    pub fn start(
        socket: ControlSocket,
        gate: Arc<Gate>,
        event: Arc<EventFd>,
        rules: Rules,
    ) -> Result<Self, StartError> {
        let flusher = |connections| -> Box<dyn Flusher> {
            Box::new(FlushThread::new(connections, event.clone()))
        };
        let pause = Pause::new(gate, rules.flush.map(flusher), rules.timeout, Instant::now());
        let offered = Offered { holds: rules.holds, status: rules.status };
        let orders = Arc::new(Orders::default());
        let control = Loop {
            watch: Watch::new(),
            event: event.clone(),
            orders: orders.clone(),
            controllers: Controllers::new(Core::new(pause, offered)),
            has_backlog: false,
            was_shut_down: false,
            looked: None,
            acceptor: Acceptor::new(socket)?,
        };
        let thread = os::without_signals(|| {
            thread::Builder::new()
                .name("pause-control".into())
                .stack_size(STACK)
                .spawn(move || control.run())
        })
        .map_err(StartError::NoThread)?;
        Ok(Control { event, orders, thread: Some(thread) })
    }

    /// The server ends, and layers below may write from here on: any pause ends, and
    /// none begins any more. Returns when that is so, after a turn of the loop at most.
    pub fn server_ends(&self) {
        self.orders.server_ends.store(true, Ordering::Release);
        self.event.signal();
        let mut is_over = self.orders.is_over.lock();
        while !*is_over {
            self.orders.over.wait(&mut is_over);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Release);
        self.event.signal();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            error!("the control thread panicked: this is a bug in the filter; please report it");
        }
    }
}

/// What the control thread works on. Dropped in this order, on that thread: what
/// this logs must not wait for the log.
struct Loop {
    watch: Watch,
    event: Arc<EventFd>,
    orders: Arc<Orders>,
    /// With the core.
    controllers: Controllers,
    /// There is something left to log.
    has_backlog: bool,
    /// The server is shutting down, and the core knows.
    was_shut_down: bool,
    /// When that was last checked, or the server was paused.
    looked: Option<Instant>,
    /// Owns the socket, which goes when nothing is left for it to control.
    acceptor: Acceptor,
}

/// What a descriptor stands for.
#[derive(Clone, Copy)]
enum Source {
    /// The gate, the flusher or `Control` has signalled.
    Event,
    /// A controller wants to connect.
    Listener,
    Controller(Id),
}

impl Loop {
    /// Serves until `stop` is set.
    fn run(mut self) {
        logger::never_wait();
        let mut is_blind = false;
        while !self.orders.stop.load(Ordering::Acquire) {
            // Fails out of memory, say. Nobody else could resume the server.
            let found = self.poll();
            if let Err(e) = &found {
                if !mem::replace(&mut is_blind, true) {
                    error!("pause-control: cannot wait for controllers: poll: {e}; retrying");
                }
                thread::sleep(RETRY);
            } else {
                is_blind = false;
            }
            self.turn(&found.unwrap_or_default());
        }
    }

    /// Waits until there is something to do, and returns what has arrived.
    fn poll(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let most = self.controllers.polled().count().saturating_add(2);
        let (mut sources, mut fds) = (Vec::with_capacity(most), Vec::with_capacity(most));
        sources.push(Source::Event);
        fds.push(PollFd::new(&self.event, PollFlags::IN));
        if let Some(listener) = self.acceptor.polled() {
            sources.push(Source::Listener);
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        for (id, stream, wanted) in self.controllers.polled() {
            sources.push(Source::Controller(id));
            fds.push(PollFd::new(stream, wanted));
        }
        os::poll(&mut fds, self.limit())?;
        let found = sources.into_iter().zip(fds.iter().map(PollFd::revents));
        Ok(found.filter(|(_, found)| !found.is_empty()).collect())
    }

    /// How long there is nothing to do unless something arrives.
    fn limit(&self) -> Option<Duration> {
        let core = &self.controllers.core;
        let deadlines = [self.acceptor.not_before(), core.deadline(), self.watch.next_look()];
        let deadline = deadlines.into_iter().flatten().min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let again = self.has_backlog.then_some(RETRY);
        let look = self.looks_for_the_end().then_some(LOOK_FOR_THE_END);
        let at_once = core.has_more().then_some(Duration::ZERO);
        [left, again, look, at_once].into_iter().flatten().min()
    }

    /// Does all that can be done now.
    fn turn(&mut self, found: &[(Source, PollFlags)]) {
        let mut has_newcomer = false;
        for &(source, found) in found {
            match source {
                Source::Event => self.event.clear(),
                Source::Listener => has_newcomer = true,
                Source::Controller(id) => self.controllers.read(id, found),
            }
        }
        let ends = self.orders.server_ends.load(Ordering::Acquire);
        if ends {
            self.controllers.core.server_ends();
        }
        self.controllers.core.turn(Instant::now(), SystemTime::now());
        self.controllers.write();
        if ends {
            *self.orders.is_over.lock() = true;
            self.orders.over.notify_all();
        }
        // After some may have left.
        if has_newcomer {
            self.acceptor.admit(&mut self.controllers);
        }
        self.acceptor.recover();
        if let Some(former) = self.watch.look(self.acceptor.socket()) {
            self.acceptor.empty_first(former);
        }
        self.has_backlog = logger::catch_up();
        self.look_for_the_end();
    }

    fn looks_for_the_end(&self) -> bool {
        self.controllers.core.is_closed() && !self.was_shut_down
    }

    /// nbdkit does not announce a shutdown, so ask. This thread serves no connection
    /// whose end could be mistaken for it.
    fn look_for_the_end(&mut self) {
        if !self.looks_for_the_end() {
            self.looked = None;
            return;
        }
        // Not in each turn, so that it doesn't slow down a short pause.
        let now = Instant::now();
        let looked = *self.looked.get_or_insert(now);
        if now.saturating_duration_since(looked) < LOOK_FOR_THE_END {
            return;
        }
        self.looked = Some(now);
        // nbdkit logs what it has found, and would wait for a blocked log.
        let may_ask = !self.orders.stop.load(Ordering::Acquire) && logger::takes_more();
        if may_ask && nbdkit::no_use_going_on() {
            self.was_shut_down = true;
            self.controllers.core.shut_down(Instant::now());
            self.controllers.write();
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NoSpare(e) => {
                write!(f, "cannot reserve a file descriptor for controllers: {}", Advised(e))
            }
            StartError::NoThread(e) => {
                write!(f, "cannot start the control thread: {}", Advised(e))
            }
        }
    }
}

impl std::error::Error for StartError {}
