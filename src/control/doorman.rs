//! Who is let in: accepts controllers, keeps their number bounded, and gets by
//! when the process runs out of file descriptors.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info};

use crate::control::controller::Controller;
use crate::os::{POLLIN, PollFd};
use crate::socket::ControlSocket;

/// So many controllers are connected at once. A heap of forgotten `nc`
/// processes must not lock the operator out, so one more displaces one.
const MOST_CONTROLLERS: usize = 64;

/// So many are accepted before the others have their turn.
const MOST_AT_ONCE: usize = 16;

/// After accept(2) failed, the listener is left alone for so long. It stays
/// readable meanwhile, and would keep the loop busy.
const PATIENCE: Duration = Duration::from_millis(100);

/// See the file's text.
pub struct Doorman {
    socket: Arc<ControlSocket>,
    /// Given up when there is no other descriptor left, so that one controller
    /// can always be served.
    spare: Option<File>,
    /// Accepting fails at present; this has been logged.
    in_trouble: bool,
    not_before: Option<Instant>,
    number: u64,
}

impl Doorman {
    /// Nobody has come yet.
    pub fn new(socket: Arc<ControlSocket>) -> Self {
        Doorman { socket, spare: spare(), in_trouble: false, not_before: None, number: 0 }
    }

    /// What to wait for.
    pub fn poll(&self) -> PollFd {
        let fd = match self.not_before {
            Some(_) => -1,
            None => self.socket.listener().as_raw_fd(),
        };
        PollFd { fd, events: POLLIN, revents: 0 }
    }

    /// How long to wait at most.
    pub fn limit(&self) -> Option<Duration> {
        self.not_before.map(|then| then.saturating_duration_since(Instant::now()))
    }

    /// Call once in each turn of the loop, after controllers may have left.
    pub fn rest(&mut self) {
        if self.not_before.is_some_and(|then| then <= Instant::now()) {
            self.not_before = None;
        }
        if self.spare.is_none() {
            self.spare = spare();
        }
    }

    /// Lets in who has knocked, if need be in exchange for who is idle.
    pub fn admit(&mut self, controllers: &mut Vec<Controller>) {
        for _ in 0..MOST_AT_ONCE {
            match self.accept(controllers) {
                Ok(stream) => {
                    if controllers.len() >= MOST_CONTROLLERS {
                        close_idlest(controllers, "64 are connected already");
                    }
                    self.number = self.number.wrapping_add(1);
                    match Controller::new(stream, self.number) {
                        Ok(controller) => {
                            info!("{} has connected", controller.name());
                            controllers.push(controller);
                        }
                        Err(e) => error!("a controller could not be served: {e}"),
                    }
                    if self.in_trouble && self.spare.is_some() {
                        self.in_trouble = false;
                        info!("controllers are accepted as usual again");
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.not_before = Instant::now().checked_add(PATIENCE);
                    return;
                }
            }
        }
    }

    /// accept(2), making room for it where need be.
    fn accept(&mut self, controllers: &mut Vec<Controller>) -> io::Result<UnixStream> {
        loop {
            let e = match self.socket.listener().accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(e) => e,
            };
            match e.kind() {
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
            if !self.in_trouble {
                self.in_trouble = true;
                error!("cannot accept a controller: {e}; idle controllers make room for new ones");
            }
            let out_of_descriptors = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
            if !out_of_descriptors
                || (self.spare.take().is_none() && !close_idlest(controllers, "of the shortage"))
            {
                return Err(e);
            }
        }
    }
}

/// Closes the controller that has been silent for the longest time; one that
/// waits for its pause only if there is no other. False if there is none.
fn close_idlest(controllers: &mut Vec<Controller>, why: &str) -> bool {
    let idlest = controllers
        .iter()
        .enumerate()
        .min_by_key(|(_, controller)| (controller.session.is_waiting(), controller.active()))
        .map(|(index, _)| index);
    match idlest {
        Some(index) => {
            info!("{} is closed to admit another: {why}", controllers.remove(index).name());
            true
        }
        None => false,
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
