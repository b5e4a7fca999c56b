//! The control socket in the file system: made over nothing but a dead socket,
//! never laxer than it is to be, put back where its file has been lost, removed
//! only while it is ours. `control` decides when to look after it.
//!
//! A socket is put back while plugins make files on other threads, and it has
//! to have the permissions that were asked for. The umask would see to that but
//! belongs to all threads, and a thread can't have one of its own where a
//! container forbids unshare(2). So the permissions are set on the socket before
//! bind(2), which gives the file as many of them as the umask leaves (`os::bind`).
//! The rest is added to the file that was found at the path, and to no other:
//! it is opened without following a link, and has to be a socket. Who could
//! deceive us there could as well put a socket of his own at the path. The same
//! is done at the start, so that there is one way to make it.
//!
//! A socket that is put back gets the owner and the permissions that the lost one
//! had. Nobody may connect who could not before, but for the user that nbdkit has
//! changed to, where that one may not give the socket to its former owner. Where it
//! may not give it the former group either, any group gets what all groups had.
//! Permissions are never more than was asked for at the start: with an ACL, those
//! of the group are not what they seem.

mod access;
mod error;

use std::fs::{self, File, Metadata};
use std::io;
use std::mem;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use log::{error, info, warn};

use crate::os;
use access::Access;
pub use error::SocketError;
use error::{Moment, Reason, Step, kind_in_words};

/// Two servers that start at once hold this lock for a moment each; whoever
/// holds it longer is somebody else, and not waited for.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A listening control socket. Its file is removed when this is dropped.
pub struct ControlSocket {
    path: PathBuf,
    /// The permissions that were asked for.
    mode: u32,
    bound: Bound,
}

/// A listener, and its file.
struct Bound {
    listener: UnixListener,
    file: FileId,
    /// For a look at the file where its path is closed to us.
    handle: File,
}

/// Which file it is, whatever its name. The inode can't be used again while
/// the socket is open, since a bound socket holds on to it.
#[derive(PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// What came of putting a socket back.
pub struct PutBack {
    /// The listener it had: nobody can connect there any more, and who has
    /// connected before can still be accepted.
    pub former: UnixListener,
    /// It belongs to the user that nbdkit runs as, and did not before.
    pub has_other_user: bool,
    /// It could not be given its group; the other one may do no more than everybody.
    pub has_other_group: bool,
}

/// Where the socket's path leads to.
pub enum Place {
    /// To the socket.
    There,
    /// To nothing, or to something else.
    Lost,
    /// We can't see.
    Unclear(io::Error),
}

impl ControlSocket {
    /// Makes the socket at `path`, which is absolute and short enough for a
    /// socket address, with permissions `mode`. It may wait for another server
    /// that starts at the same time.
    ///
    /// # Errors
    /// What is in the way, or which step failed, and what to do.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let path = path.to_path_buf();
        match make(&path, Access { mode, owner: None }, Moment::Start) {
            Ok(bound) => Ok(ControlSocket { path, mode, bound }),
            Err(reason) => Err(SocketError { path, moment: Moment::Start, reason }),
        }
    }

    /// Where controllers connect. It does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.bound.listener
    }

    /// What `pause-control` is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its path leads to now.
    pub fn place(&self) -> Place {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if FileId::of(&found) == self.bound.file => Place::There,
            Ok(_) => Place::Lost,
            Err(e) if is_absent(&e) => Place::Lost,
            // The user that nbdkit has changed to may not be let into the
            // directory. A file that has no name any more is in none.
            Err(e) => match self.bound.handle.metadata() {
                Ok(file) if file.nlink() == 0 => Place::Lost,
                _ => Place::Unclear(e),
            },
        }
    }

    /// Makes the socket anew, by the same rules as at the start, but waits for
    /// nobody.
    ///
    /// # Errors
    /// It can't be had now; the socket is lost still.
    pub fn put_back(&mut self) -> Result<PutBack, SocketError> {
        let moment = Moment::Serving;
        let again = Access::of(&self.bound.handle)
            .map_err(|e| Reason::Failed(Step::LookAtLost, e))
            .and_then(|was| {
                let access = Access { mode: was.mode & self.mode, ..was };
                Ok((access, make(&self.path, access, moment)?))
            });
        let (access, bound) =
            again.map_err(|reason| SocketError { path: self.path.clone(), moment, reason })?;
        let now = Access::of(&bound.handle).unwrap_or(access);
        let former = mem::replace(&mut self.bound, bound).listener;
        // Where its directory was only renamed, it is still found there.
        if let Err(e) = os::stop_listening(&former) {
            warn!("{}: cannot stop listening on the lost socket: {e}", self.path.display());
        }
        Ok(PutBack {
            former,
            has_other_user: now.user() != access.user(),
            has_other_group: now.group() != access.group(),
        })
    }
}

fn make(path: &Path, access: Access, moment: Moment) -> Result<Bound, Reason> {
    // Only "/" has no parent, and that is occupied anyway.
    let parent = path.parent().unwrap_or(path);
    let cannot_open = |e| Reason::Directory(parent.to_path_buf(), e);
    // Locked until it is closed, at the end of this function. Who may write there
    // need not be permitted to read there, and a path that is free needs no lock.
    let directory = match os::open_directory(parent) {
        Err(e) if e.kind() != io::ErrorKind::PermissionDenied => return Err(cannot_open(e)),
        other => other,
    };
    let may_replace = directory.as_ref().is_ok_and(|directory| lock(directory, moment));
    if let Some((dead, _open)) = find_dead_socket(path)? {
        if let Err(e) = directory {
            return Err(cannot_open(e));
        }
        if !may_replace {
            return Err(Reason::Locked);
        }
        match remove_if(path, &dead) {
            Ok(true) => info!("{}: replacing a dead socket", path.display()),
            // Somebody has just put another file there: bind(2) will refuse it.
            Ok(false) => {}
            Err(e) => return Err(Reason::Failed(Step::RemoveDead, e)),
        }
    }
    let listener = os::bind(path, access.mode).map_err(|e| Reason::Failed(Step::Make, e))?;
    let found = fs::symlink_metadata(path).map_err(|e| Reason::Failed(Step::LookAtMade, e))?;
    // Somebody may have moved another file there just now.
    if !found.file_type().is_socket() {
        return Err(Reason::Occupied(kind_in_words(found.file_type())));
    }
    let file = FileId::of(&found);
    match open_to_controllers(path, access, &listener, &file) {
        Ok(handle) => Ok(Bound { listener, file, handle }),
        Err(reason) => {
            let _ = remove_if(path, &file);
            Err(reason)
        }
    }
}

/// Gives the socket just made at `path`, which is `file`, its owner and what it
/// lacks of its permissions, and listens.
fn open_to_controllers(
    path: &Path,
    access: Access,
    listener: &UnixListener,
    file: &FileId,
) -> Result<File, Reason> {
    let failed = |e| Reason::Failed(Step::LookAtMade, e);
    let handle = os::open_path(path).map_err(failed)?;
    let found = handle.metadata().map_err(failed)?;
    if !found.file_type().is_socket() || FileId::of(&found) != *file {
        return Err(Reason::Occupied("another file"));
    }
    let set_mode = |mode| os::set_mode(&handle, mode).map_err(|e| Reason::Failed(Step::SetMode, e));
    // While it is still ours, and nobody can connect yet.
    if found.mode() & 0o777 != access.mode {
        set_mode(access.mode)?;
    }
    if let Some((user, group)) = access.owner.filter(|owner| *owner != (found.uid(), found.gid())) {
        // The one may be permitted where both are not.
        let given = os::set_owner(&handle, Some(user), Some(group))
            .or_else(|_| os::set_owner(&handle, None, Some(group)));
        if given.is_err() && found.gid() != group {
            set_mode(access.for_any_group())?;
        }
    }
    os::listen(listener).map_err(|e| Reason::Failed(Step::Listen, e))?;
    Ok(handle)
}

/// Between finding a dead socket and replacing it another server must not do
/// the same. Whether a dead one may be replaced now. For a path that is free bind(2)
/// itself sees to that.
fn lock(directory: &File, moment: Moment) -> bool {
    let tries = match moment {
        Moment::Start => LOCK_TRIES,
        Moment::Serving => 1,
    };
    for number in 1..=tries {
        match os::try_lock(directory) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // Some file systems have no locks; better unlocked than not at all.
            _ => return true,
        }
        if number < tries {
            thread::sleep(LOCK_PAUSE);
        }
    }
    moment == Moment::Start
}

/// None if there is nothing at `path`; an error if it is not a dead socket. As long
/// as the file is open no other one can have its inode.
fn find_dead_socket(path: &Path) -> Result<Option<(FileId, File)>, Reason> {
    let failed = |e| Reason::Failed(Step::LookAtPath, e);
    let file = match os::open_path(path) {
        Ok(file) => file,
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let found = file.metadata().map_err(failed)?;
    if !found.file_type().is_socket() {
        return Err(Reason::Occupied(kind_in_words(found.file_type())));
    }
    match os::try_connect(path) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {
            Ok(Some((FileId::of(&found), file)))
        }
        // It takes connections of another type: somebody's, either way.
        Err(e) if e.raw_os_error() == Some(libc::EPROTOTYPE) => Err(Reason::Alive),
        Ok(()) => Err(Reason::Alive),
        Err(e) => Err(Reason::Unclear(e)),
    }
}

fn remove_if(path: &Path, file: &FileId) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if FileId::of(&found) == *file => fs::remove_file(path).map(|()| true),
        Ok(_) => Ok(false),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Nothing is there, and perhaps no directory either.
fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // While it still listens: a server that starts now finds it alive, or
        // finds nothing.
        let removed = match self.place() {
            Place::There => fs::remove_file(&self.path),
            Place::Lost => {
                info!("{}: no longer our socket, leaving it alone", self.path.display());
                Ok(())
            }
            Place::Unclear(e) => Err(e),
        };
        if let Err(e) = removed {
            error!("{}: cannot remove the control socket: {e}", self.path.display());
        }
    }
}
