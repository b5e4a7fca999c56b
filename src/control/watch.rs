//! Watches the control socket's path: notices that something has removed the
//! socket, puts it back, and logs each problem once. `socket` knows how to create
//! one.
//!
//! A cleanup job may remove the socket's file, or its whole directory, while the
//! server runs. Then nobody could connect, or resume a paused server. So the control
//! thread checks the path every few seconds, with one lstat(2) when all is well. The
//! kernel could report it at once (inotify(7)), but a user has only 128 watches, which
//! many servers share, and without a watch the check would be needed anyway.
//!
//! If the file system hangs, so does the control thread in its check: the socket
//! belongs on a local one.

use std::fmt;
use std::mem;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use crate::socket::{ControlSocket, Place, PutBack};

/// Between two looks. An operator who can't connect tries again after a while.
const LOOK: Duration = Duration::from_secs(2);

/// See the file's text.
pub struct Watch {
    looked: Instant,
    /// Everything logged since the socket was lost. Empty while it is there.
    told: Vec<String>,
    /// We can't see whether the socket is there. This has been logged.
    blind: bool,
}

impl Watch {
    /// The socket has just been made.
    pub fn new() -> Self {
        Watch { looked: Instant::now(), told: Vec::new(), blind: false }
    }

    /// When to call `look`.
    pub fn next_look(&self) -> Option<Instant> {
        self.looked.checked_add(LOOK)
    }

    /// Call it in each turn of the loop. If it puts `socket` back, it returns the
    /// former listener, with controllers that were not accepted yet.
    pub fn look(&mut self, socket: &mut ControlSocket) -> Option<UnixListener> {
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        let place = socket.place();
        let blind = mem::replace(&mut self.blind, matches!(place, Place::Unclear(_)));
        match place {
            Place::There => {
                if !self.told.is_empty() {
                    self.trouble_is_over(socket, "the control socket is back at its path");
                }
                None
            }
            Place::Unclear(e) => {
                if !blind {
                    let path = socket.path().display();
                    info!(
                        "pause-control={path}: cannot check that the control socket is there: {e}"
                    );
                }
                None
            }
            Place::Lost => self.put_back(socket),
        }
    }

    fn put_back(&mut self, socket: &mut ControlSocket) -> Option<UnixListener> {
        match socket.put_back() {
            Ok(PutBack { former, has_other_user, has_other_group }) => {
                let what = match self.told.is_empty() {
                    true => "the control socket was removed or renamed; it has been put back",
                    false => "the control socket has been put back",
                };
                let but = match (has_other_user, has_other_group) {
                    (_, true) => {
                        ", but now belongs to this server's user and group, and gives the group no \
                         more access than everyone: fix it with chown and chmod"
                    }
                    (true, false) => ", but now belongs to this server's user",
                    (false, false) => "",
                };
                self.trouble_is_over(socket, format_args!("{what}{but}"));
                Some(former)
            }
            Err(e) => {
                // An operator who has removed one obstacle has to learn of the next.
                let what = e.to_string();
                if !self.told.contains(&what) {
                    error!("{what}");
                    self.told.push(what);
                }
                None
            }
        }
    }

    fn trouble_is_over(&mut self, socket: &ControlSocket, what: impl fmt::Display) {
        self.told.clear();
        // On the same level as the trouble: whoever reads only errors sees its end.
        warn!("pause-control={}: {what}", socket.path().display());
    }
}
