//! Who is let in: accepts controllers, keeps their number bounded, and gets by
//! when the process runs out of file descriptors.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use log::{error, info};

use crate::advice::Advised;
use crate::control::controller::Controller;
use crate::os::{Bell, POLLIN, PollFd};
use crate::socket::ControlSocket;

/// So many controllers are connected at once. A heap of forgotten `nc`
/// processes must not lock the operator out, so one more displaces one.
const MOST_CONTROLLERS: usize = 64;

/// After accept(2) failed, the listener is left alone for so long. It stays
/// readable meanwhile, and would keep the loop busy.
const PATIENCE: Duration = Duration::from_millis(100);

/// Accepting has to work for so long before a shortage counts as over. Near
/// the limit it comes and goes, and each time would be a line in the log.
const CALM: Duration = Duration::from_secs(10);

/// See the file's text.
pub struct Doorman {
    socket: ControlSocket,
    /// Where it listened before it was put back, while somebody may still wait
    /// there.
    former: Vec<UnixListener>,
    /// Given up when there is no other descriptor left, so that one controller
    /// can always be served.
    spare: Option<Bell>,
    /// When accepting failed last; this has been logged, once.
    trouble: Option<Instant>,
    not_before: Option<Instant>,
    number: u64,
}

impl Doorman {
    /// Nobody has come yet.
    ///
    /// # Errors
    /// The process has no descriptor left. It would serve, and nobody could
    /// ever pause it.
    pub fn new(socket: ControlSocket) -> Result<Self, String> {
        let spare = spare().map_err(|e| {
            format!("cannot set a file descriptor aside for controllers: {}", Advised(&e))
        })?;
        Ok(Doorman {
            socket,
            former: Vec::new(),
            spare: Some(spare),
            trouble: None,
            not_before: None,
            number: 0,
        })
    }

    /// The socket, for who looks after it.
    pub fn socket(&mut self) -> &mut ControlSocket {
        &mut self.socket
    }

    /// Lets in who waits at this listener, where nobody else can connect any
    /// more, before all others.
    pub fn empty_first(&mut self, former: UnixListener) {
        self.former.push(former);
    }

    /// What to wait for.
    pub fn poll(&self) -> PollFd {
        let fd = match self.not_before {
            Some(_) => -1,
            // One that does not listen any more is readable until it is closed.
            None => self.listener().as_raw_fd(),
        };
        PollFd { fd, events: POLLIN, revents: 0 }
    }

    fn listener(&self) -> &UnixListener {
        self.former.first().unwrap_or(self.socket.listener())
    }

    /// When `poll` has to be asked again even if nobody comes.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// Call once in each turn of the loop, after controllers may have left.
    pub fn rest(&mut self) {
        if self.not_before.is_some_and(|then| then <= Instant::now()) {
            self.not_before = None;
        }
        if self.spare.is_none() {
            self.spare = spare().ok();
        }
    }

    /// Lets in one who has knocked, if need be in exchange for who is idle; never
    /// for one that `is_holder`, by its number. Whoever else waits knocks again:
    /// to try for more would find the process out of descriptors, by whatever
    /// was used for this one, and close a controller for nobody.
    pub fn admit(&mut self, controllers: &mut Vec<Controller>, is_holder: impl Fn(u64) -> bool) {
        match self.accept(controllers, &is_holder) {
            Ok(stream) => {
                if controllers.len() >= MOST_CONTROLLERS {
                    close_idlest(controllers, &is_holder, "no more can be connected at once");
                }
                self.number = self.number.wrapping_add(1);
                match Controller::new(stream, self.number) {
                    Ok(controller) => {
                        info!("{} has connected", controller.name());
                        controllers.push(controller);
                    }
                    Err(e) => error!("a controller could not be served: {e}"),
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.not_before = Instant::now().checked_add(PATIENCE),
        }
    }

    /// accept(2), making room for it where need be.
    fn accept(
        &mut self,
        controllers: &mut Vec<Controller>,
        is_holder: &impl Fn(u64) -> bool,
    ) -> io::Result<UnixStream> {
        let mut made_room = false;
        loop {
            let e = match self.listener().accept() {
                Ok((stream, _)) => {
                    if self.spare.is_some() && self.trouble.is_some_and(|t| t.elapsed() > CALM) {
                        self.trouble = None;
                        info!("controllers are accepted as usual again");
                    }
                    return Ok(stream);
                }
                Err(e) => e,
            };
            let out_of_descriptors = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
            // It passes when others give back what they have (accept(2)).
            let is_shortage = out_of_descriptors
                || matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
            match e.kind() {
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                // All have been let in who waited there, or nobody can be any more.
                _ if !self.former.is_empty() && !is_shortage => {
                    self.former.remove(0);
                    continue;
                }
                ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
            if self.trouble.replace(Instant::now()).is_none() {
                error!(
                    "pause-control: cannot accept a controller: {}; \
                     idle ones make room until that is over",
                    Advised(&e),
                );
            }
            // One for one: where others take what is freed, closing more is no use.
            if !out_of_descriptors || made_room {
                return Err(e);
            }
            made_room = self.spare.take().is_some()
                || close_idlest(controllers, is_holder, "file descriptors have run out");
            if !made_room {
                return Err(e);
            }
        }
    }
}

/// Closes the controller that has been silent for the longest time; one that
/// waits for its pause only if there is no other. False if there is none.
fn close_idlest(
    controllers: &mut Vec<Controller>,
    is_holder: &impl Fn(u64) -> bool,
    why: &str,
) -> bool {
    let idlest = controllers
        .iter()
        .enumerate()
        .filter(|(_, controller)| !is_holder(controller.number()))
        .min_by_key(|(_, controller)| (controller.session.is_waiting(), controller.active()))
        .map(|(index, _)| index);
    match idlest {
        Some(index) => {
            let closed = controllers.remove(index);
            info!("{} is closed to admit another: {why}", closed.name());
            true
        }
        None => false,
    }
}

/// An eventfd needs nothing of the file system, of which a chroot may have little.
fn spare() -> io::Result<Bell> {
    Bell::new()
}
