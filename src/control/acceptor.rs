//! Accepts controllers, and copes when the process runs out of file descriptors.
//! `core` decides which controller makes room.

use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use log::{error, warn};

use super::StartError;
use super::controllers::Controllers;
use crate::os::advice::Advised;
use crate::os::{self, EventFd};
use crate::socket::ControlSocket;

/// This many are accepted in one turn at most.
const BATCH: usize = 32;

/// After accept(2) failed, the listener is left alone for this long. It stays
/// readable meanwhile, and would keep the loop busy.
const PATIENCE: Duration = Duration::from_millis(100);

/// Accepting has to work for this long before a shortage counts as over. Near
/// the limit it comes and goes, and each time would be a line in the log.
const CALM: Duration = Duration::from_secs(10);

/// See the file's text.
pub struct Acceptor {
    socket: ControlSocket,
    /// Listeners from before the socket was put back, while controllers may still
    /// wait there.
    former: Vec<UnixListener>,
    /// Closed when no other descriptor is left, so that one controller can always
    /// be served.
    spare: Option<EventFd>,
    /// When accepting last failed; this has been logged, once.
    trouble: Option<Instant>,
    not_before: Option<Instant>,
}

impl Acceptor {
    /// Reserves a descriptor.
    ///
    /// # Errors
    /// The process has no descriptor left: it would serve, and nobody could ever
    /// pause it.
    pub fn new(socket: ControlSocket) -> Result<Self, StartError> {
        let spare = Some(spare().map_err(StartError::NoSpare)?);
        Ok(Acceptor { socket, former: Vec::new(), spare, trouble: None, not_before: None })
    }

    /// The socket, for `watch`.
    pub fn socket(&mut self) -> &mut ControlSocket {
        &mut self.socket
    }

    /// Accepts the controllers that wait at this listener before all others. Nobody
    /// else can connect there any more.
    pub fn empty_first(&mut self, former: UnixListener) {
        self.former.push(former);
    }

    /// What to poll, if anything.
    pub fn polled(&self) -> Option<&UnixListener> {
        // One that does not listen any more is readable until it is closed.
        self.not_before.is_none().then(|| self.listener())
    }

    fn listener(&self) -> &UnixListener {
        self.former.first().unwrap_or(self.socket.listener())
    }

    /// When to ask `polled` again even if nobody connects.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// Call once in each turn of the loop, after controllers may have left.
    pub fn recover(&mut self) {
        if self.not_before.is_some_and(|then| then <= Instant::now()) {
            self.not_before = None;
        }
        if self.spare.is_none() {
            self.spare = spare().ok();
        }
    }

    /// Accepts waiting controllers, if need be in exchange for idle ones. Call it only
    /// while one waits: when descriptors are short, accept(2) says so even if none
    /// does, and a controller would be closed for nothing.
    pub fn admit(&mut self, controllers: &mut Controllers) {
        for _ in 0..BATCH {
            match self.accept(controllers) {
                Ok(stream) => controllers.admit(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.not_before = Instant::now().checked_add(PATIENCE);
                    return;
                }
            }
            // Those connected get their turns before they have to make room.
            let core = &controllers.core;
            if core.is_full() && !core.to_close().is_some_and(|id| core.has_hung_up(id)) {
                return;
            }
            // This one may have used the last descriptor.
            if self.spare.is_none() || !os::is_readable(self.listener()) {
                return;
            }
        }
    }

    /// accept(2), making room for it where need be.
    fn accept(&mut self, controllers: &mut Controllers) -> io::Result<UnixStream> {
        let mut made_room = false;
        loop {
            let e = match os::accept(self.listener()) {
                Ok(stream) => {
                    if self.spare.is_some() && self.trouble.is_some_and(|t| t.elapsed() > CALM) {
                        self.trouble = None;
                        warn!("pause-control: accepting controllers normally again");
                    }
                    return Ok(stream);
                }
                Err(e) => e,
            };
            let out_of_descriptors = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
            // It passes when others free what they have (accept(2)).
            let is_shortage = out_of_descriptors
                || matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
            match e.kind() {
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                // All that waited there are accepted, or none can be any more.
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
                     new ones may displace idle ones until this is over",
                    Advised(&e),
                );
            }
            // One for one: if others take what is freed, closing more is no use.
            if !out_of_descriptors || made_room {
                return Err(e);
            }
            made_room =
                self.spare.take().is_some() || controllers.close_idlest("out of file descriptors");
            if !made_room {
                return Err(e);
            }
        }
    }
}

/// An eventfd needs nothing of the file system, of which a chroot may have little.
fn spare() -> io::Result<EventFd> {
    EventFd::new()
}
