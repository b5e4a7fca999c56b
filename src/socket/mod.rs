//! The control socket in the file system: replaces nothing but a dead socket, is
//! never too permissive, is put back if its file is lost, and removed only while it
//! is ours. `control` decides when to check on it.
//!
//! The socket is put back while plugins create files on other threads, and has to
//! have the requested permissions. The umask could ensure that, but all threads
//! share it, and a thread can't have its own if a container forbids unshare(2). So
//! we set the permissions on the socket before bind(2), which gives the file as many
//! of them as the umask leaves (`os::bind`), and add the rest to the file found at
//! the path, and to no other: we open it without following a link, and it has to be
//! a socket. Anyone who could deceive us there could just as well put their own
//! socket at the path. We do the same at the start, so that there is only one way
//! to create it.
//!
//! A socket that is put back gets the owner and the permissions of the lost one.
//! Nobody new can connect, except the user that nbdkit has changed to, if that user
//! may not give the socket to its former owner. If it may not give it the former
//! group either, any group gets what all groups had. Permissions never exceed those
//! requested at the start: with an ACL, those of the group are not what they seem.

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

/// Two servers that start at once hold this lock for a moment each. Don't wait for a
/// process that holds it longer: it is something else.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A listening control socket. Its file is removed when this is dropped.
pub struct ControlSocket {
    path: PathBuf,
    /// The requested permissions.
    mode: u32,
    bound: Bound,
}

/// A listener, and its file.
struct Bound {
    listener: UnixListener,
    file: FileId,
    /// To look at the file even if its path is closed to us.
    handle: File,
}

/// Which file it is, whatever its name. The inode can't be reused while the
/// socket is open, since a bound socket keeps it.
#[derive(PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// The result of putting a socket back.
pub struct PutBack {
    /// Its former listener: nobody can connect there any more, but connections from
    /// before can still be accepted.
    pub former: UnixListener,
    /// It belongs to the user that nbdkit runs as, and did not before.
    pub has_other_user: bool,
    /// It could not get its group back; the new one may do no more than others.
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
    /// Creates the socket at `path`, which is absolute and short enough for a
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

    /// The listener for controllers. It does not block.
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

    /// Creates the socket again, by the same rules as at the start, but waits for
    /// nobody.
    ///
    /// # Errors
    /// That can't be done now; the socket is still lost.
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
        // If its directory was only renamed, controllers still find it there.
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
    // Locked until it is closed, at the end of this function. Write permission does
    // not imply read permission, and a path that is free needs no lock.
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

/// Gives the new socket at `path`, which is `file`, its owner and its missing
/// permissions, and listens.
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
        // One may be permitted even if both are not.
        let given = os::set_owner(&handle, Some(user), Some(group))
            .or_else(|_| os::set_owner(&handle, None, Some(group)));
        if given.is_err() && found.gid() != group {
            set_mode(access.for_any_group())?;
        }
    }
    os::listen(listener).map_err(|e| Reason::Failed(Step::Listen, e))?;
    Ok(handle)
}

/// Locks out other servers between finding a dead socket and replacing it. Returns
/// whether a dead one may be replaced now. For a free path bind(2) itself ensures that
/// only one server gets it.
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
/// as the file is open no other file can have its inode.
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
