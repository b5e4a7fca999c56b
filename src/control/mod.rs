//! The operator's side: one thread that listens on the control socket, serves
//! all controllers, moves the pause on and looks after the socket. It never waits
//! for any of them, nor for the plugin, and for the log a tenth of a second at
//! most from one look at all of them to the next (`logger`), so that nothing keeps
//! an operator's `r` from being heard.
//!
//! A lost socket is noticed by the `caretaker`, made anew by `socket`, and those
//! who still wait at the old one are let in by the `doorman`.

mod caretaker;
mod controller;
mod doorman;
mod flusher;
mod pause;
mod session;
#[cfg(test)]
mod tests;

use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{error, info};

use crate::advice::Advised;
use crate::gate::Gate;
use crate::logger;
use crate::nbdkit;
use crate::os::{self, Bell, POLLIN, PollFd};
use crate::socket::ControlSocket;
use caretaker::Caretaker;
use controller::Controller;
use doorman::Doorman;
use flusher::Flusher;
pub use flusher::Storage;
use pause::{Outcome, Pause, Progress};
use session::{Command, Reply};

/// More than the loop needs; the default would count against limits on memory.
const STACK: usize = 128 * 1024;

/// When poll(2) fails, or the log takes nothing, it is tried again after so long.
const RETRY: Duration = Duration::from_millis(100);

/// While the server is paused, it is noticed so soon that it was told to end.
const LOOK_FOR_THE_END: Duration = Duration::from_millis(20);

/// What the parameters say of pauses.
pub struct Rules {
    /// What is to be made stable before a pause is in force.
    pub flush: Option<Arc<dyn Storage>>,
    /// How long a pause lasts at most.
    pub timeout: Option<Duration>,
    /// Whether `+` and `-` are commands.
    pub holds: bool,
}

/// The control thread, which has the control socket. When this is dropped both
/// end, and have ended when that is done.
pub struct Control {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the control thread; `bell` is what the gate rings. Call it in
    /// the process that serves (nbdkit-filter(3): from `after_fork`).
    ///
    /// # Errors
    /// What could not be had, and what to do; the socket is gone.
    pub fn start(
        socket: ControlSocket,
        gate: Arc<Gate>,
        bell: Arc<Bell>,
        rules: Rules,
    ) -> Result<Self, String> {
        let doorman = Doorman::new(socket)?;
        let flusher = rules.flush.map(|storage| Flusher::new(storage, bell.clone()));
        let stop = Arc::new(AtomicBool::new(false));
        let control = Loop {
            caretaker: Caretaker::new(),
            bell: bell.clone(),
            stop: stop.clone(),
            pause: Pause::new(gate, flusher, rules.timeout),
            holds: rules.holds,
            controllers: Vec::new(),
            unsaid: false,
            server_ends: false,
            looked: None,
            doorman,
        };
        let thread = os::without_signals(|| {
            thread::Builder::new()
                .name("pause-control".into())
                .stack_size(STACK)
                .spawn(move || control.run())
        })
        .map_err(|e| format!("cannot start the control thread: {}", Advised(&e)))?;
        Ok(Control { bell, stop, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            error!("the control thread had ended before its time");
        }
    }
}

/// What the control thread works on. Dropped in this order, on that thread: what
/// is said in the course of it must not wait for the log.
struct Loop {
    caretaker: Caretaker,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    pause: Pause,
    holds: bool,
    controllers: Vec<Controller>,
    /// The log has still to be told something.
    unsaid: bool,
    /// The server was told to end.
    server_ends: bool,
    /// When that was asked last, or the server was paused.
    looked: Option<Instant>,
    /// Has the socket, which goes when nothing is left that it could control.
    doorman: Doorman,
}

impl Loop {
    /// Serves until it is told to stop.
    fn run(mut self) {
        logger::never_wait();
        let mut fds = Vec::new();
        let mut blind = false;
        while !self.stop.load(Ordering::Acquire) {
            fds.clear();
            fds.push(PollFd { fd: self.bell.as_fd().as_raw_fd(), events: POLLIN, revents: 0 });
            fds.push(self.doorman.poll());
            fds.extend(self.controllers.iter().map(Controller::poll));
            // Out of memory, say. There is nobody else who could resume.
            if let Err(e) = os::poll(&mut fds, self.limit()) {
                if !mem::replace(&mut blind, true) {
                    error!(
                        "pause-control: cannot wait for controllers: poll: {e}; \
                         trying again and again"
                    );
                }
                thread::sleep(RETRY);
            } else {
                blind = false;
            }
            self.turn(&fds);
        }
    }

    /// How long there is nothing to do if nobody comes.
    fn limit(&self) -> Option<Duration> {
        let deadlines =
            [self.doorman.not_before(), self.pause.deadline(), self.caretaker.next_look()];
        let deadline = deadlines.into_iter().flatten().min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let again = self.unsaid.then_some(RETRY);
        let look = self.looks_for_the_end().then_some(LOOK_FOR_THE_END);
        left.into_iter().chain(again).chain(look).min()
    }

    /// Does all that can be done now. `fds` is in the order `run` made it. What it
    /// does for each controller, `tests::script` does too, without a socket.
    fn turn(&mut self, fds: &[PollFd]) {
        let mut fds = fds.iter();
        if fds.next().is_some_and(|bell| bell.revents != 0) {
            self.bell.silence();
        }
        let knock = fds.next().is_some_and(|listener| listener.revents != 0);
        for (controller, fd) in self.controllers.iter_mut().zip(fds) {
            controller.polled(fd);
        }
        // Before any command is heard: one that comes after the deadline must
        // not find the pause still in force.
        self.move_on();
        self.carry_out();
        self.let_leave();
        // Last: the indices of `fds` hold no longer.
        if knock {
            let pause = &self.pause;
            self.doorman.admit(&mut self.controllers, |number| pause.is_holder(number));
        }
        self.doorman.rest();
        if let Some(former) = self.caretaker.look(self.doorman.socket()) {
            self.doorman.empty_first(former);
        }
        self.unsaid = logger::catch_up();
        self.look_for_the_end();
    }

    fn looks_for_the_end(&self) -> bool {
        self.pause.is_closed() && !self.server_ends
    }

    /// Nobody tells us that the server was told to end, and this thread serves no
    /// connection whose end could be taken for it.
    fn look_for_the_end(&mut self) {
        if !self.looks_for_the_end() {
            self.looked = None;
            return;
        }
        // Not in each turn: a pause that is short is not slowed down by it.
        let now = Instant::now();
        let looked = *self.looked.get_or_insert(now);
        if now.saturating_duration_since(looked) < LOOK_FOR_THE_END {
            return;
        }
        self.looked = Some(now);
        // nbdkit says what it has found, and would wait for a log that is stuck.
        let may_ask = !self.stop.load(Ordering::Acquire) && logger::takes_more();
        if may_ask && nbdkit::no_use_going_on() {
            self.server_ends = true;
            self.pause.shut_down();
            self.move_on();
        }
    }

    /// Looks how far the pause is, and answers whom it concerns.
    fn move_on(&mut self) {
        match self.pause.progress() {
            Progress::None => {}
            Progress::Paused => self.settle_waiting(true),
            Progress::Ended => self.settle_waiting(false),
        }
    }

    fn settle_waiting(&mut self, well: bool) {
        for controller in &mut self.controllers {
            controller.session.settle(well);
        }
    }

    /// Sends replies, and parts with those who are done. A hold ends with its
    /// connection.
    fn let_leave(&mut self) {
        let pause = &mut self.pause;
        self.controllers.retain_mut(|controller| {
            controller.write();
            if controller.hung_up() || controller.is_finished() {
                pause.let_go(controller.number(), &controller.name());
            }
            if controller.is_finished() {
                info!("{} has left", controller.name());
            }
            !controller.is_finished()
        });
        if !self.pause.is_wanted() {
            // Its last holder has vanished while it waited.
            self.settle_waiting(false);
        }
    }

    /// Carries out all commands that were received, until each controller has
    /// none left or waits. An answer to one may set another going.
    fn carry_out(&mut self) {
        loop {
            let next = self.controllers.iter_mut().enumerate().find_map(|(index, controller)| {
                controller.session.next_command().map(|command| (index, command))
            });
            let Some((index, command)) = next else { return };
            self.obey(index, command);
        }
    }

    fn obey(&mut self, index: usize, command: Command) {
        let Some(controller) = self.controllers.get(index) else { return };
        let (number, name) = (controller.number(), controller.name());
        let (outcome, hope) = match command {
            Command::Pause => (self.pause.pause(&name), Reply::Paused),
            Command::Hold if self.holds => (self.pause.hold(number, &name), Reply::Held),
            Command::LetGo if self.holds => match self.pause.let_go(number, &name) {
                true => (Outcome::Done, Reply::LetGo),
                false => (Outcome::Failed, Reply::No),
            },
            Command::Resume => {
                // A pause that is not in force yet never takes effect.
                self.pause.resume(&name);
                (Outcome::Done, Reply::Resumed)
            }
            Command::Unknown | Command::Hold | Command::LetGo => (Outcome::Failed, Reply::No),
        };
        // Others may have waited for what this one has found or brought about:
        // that the pause is in force, or that it has ended.
        if !self.pause.is_wanted() {
            self.settle_waiting(false);
        } else if self.pause.is_in_force() {
            self.settle_waiting(true);
        }
        let Some(controller) = self.controllers.get_mut(index) else { return };
        match outcome {
            Outcome::Done => controller.session.answer(hope),
            Outcome::Pending => controller.session.wait_for(hope),
            Outcome::Failed => controller.session.answer(Reply::No),
        }
    }
}
