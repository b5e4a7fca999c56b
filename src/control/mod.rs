//! The operator's side: one thread that listens on the control socket, serves
//! all controllers and moves the pause on. It never waits for any of them, nor
//! for the plugin, so that nothing keeps an operator's `r` from being heard.

mod controller;
mod doorman;
mod pause;
mod session;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use log::{error, info};

use crate::gate::Gate;
use crate::os::{self, Bell, POLLIN, PollFd};
use crate::socket::ControlSocket;
use controller::Controller;
use doorman::Doorman;
use pause::{Asked, Pause};
use session::{Command, Reply};

/// More than the loop needs; the default would count against limits on memory.
const STACK: usize = 128 * 1024;

/// The control thread. It is stopped and joined when this is dropped.
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
    /// No thread could be had.
    pub fn start(socket: Arc<ControlSocket>, gate: Arc<Gate>, bell: Arc<Bell>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let control = Loop {
            doorman: Doorman::new(socket),
            bell: bell.clone(),
            stop: stop.clone(),
            pause: Pause::new(gate),
            controllers: Vec::new(),
        };
        let thread = os::without_signals(|| {
            thread::Builder::new()
                .name("pause-control".into())
                .stack_size(STACK)
                .spawn(move || control.run())
        })?;
        Ok(Control { bell, stop, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the control thread had ended before its time");
        }
    }
}

/// What the control thread works on.
struct Loop {
    doorman: Doorman,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    pause: Pause,
    controllers: Vec<Controller>,
}

impl Loop {
    fn run(mut self) {
        let mut fds = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            fds.clear();
            fds.push(PollFd { fd: self.bell.as_fd().as_raw_fd(), events: POLLIN, revents: 0 });
            fds.push(self.doorman.poll());
            fds.extend(self.controllers.iter().map(Controller::poll));
            if let Err(e) = os::poll(&mut fds, self.doorman.limit()) {
                error!("the control socket is not served any more: poll: {e}");
                return;
            }
            self.turn(&fds);
        }
    }

    /// Does all that can be done now. `fds` is in the order `run` made it.
    fn turn(&mut self, fds: &[PollFd]) {
        let mut fds = fds.iter();
        if fds.next().is_some_and(|bell| bell.revents != 0) {
            self.bell.silence();
            self.move_on();
        }
        let knock = fds.next().is_some_and(|listener| listener.revents != 0);
        for (controller, fd) in self.controllers.iter_mut().zip(fds) {
            if fd.revents != 0 && fd.events & POLLIN != 0 {
                controller.read();
            }
        }
        self.carry_out();
        self.controllers.retain_mut(|controller| {
            controller.write();
            let finished = controller.is_finished();
            if finished {
                info!("{} has left", controller.name());
            }
            !finished
        });
        // Last: the indices of `fds` hold no longer.
        if knock {
            self.doorman.admit(&mut self.controllers);
        }
        self.doorman.rest();
    }

    /// Looks whether the drain is over, and answers whom it concerns.
    fn move_on(&mut self) {
        if self.pause.progress() {
            self.answer_waiting(Reply::Paused);
        }
    }

    fn answer_waiting(&mut self, reply: Reply) {
        for controller in self.controllers.iter_mut().filter(|c| c.session.is_waiting()) {
            controller.session.answer(reply);
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
            let Some(name) = self.controllers.get(index).map(Controller::name) else {
                return;
            };
            let reply = match command {
                Command::Pause => match self.pause.pause(&name) {
                    Asked::Paused => Some(Reply::Paused),
                    Asked::Draining => None,
                    Asked::Failed => Some(Reply::No),
                },
                Command::Resume => {
                    self.pause.resume(&name);
                    // A pause that was still draining never took effect.
                    self.answer_waiting(Reply::No);
                    Some(Reply::Resumed)
                }
                Command::Unknown => Some(Reply::No),
            };
            if let Some(controller) = self.controllers.get_mut(index) {
                match reply {
                    Some(reply) => controller.session.answer(reply),
                    None => controller.session.wait(),
                }
            }
        }
    }
}
