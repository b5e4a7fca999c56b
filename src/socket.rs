//! The control socket in the file system: made over nothing but a dead socket,
//! never laxer than it is to be, put back where its file has been lost, removed
//! only while it is ours. When it is looked after, and what is said on it, is
//! decided in `control`.
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

use std::fmt;
use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::mem;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use log::{error, info};

use crate::advice::Advised;
use crate::os;

/// Two servers that start at once hold this lock for a moment each; whoever
/// holds it longer is somebody else, and not waited for.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A listening control socket. Its file is removed when this is dropped.
pub struct ControlSocket {
    path: PathBuf,
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

/// Where the socket's path leads to.
pub enum Place {
    /// To the socket.
    There,
    /// To nothing, or to something else.
    Lost,
    /// We can't see.
    Unclear(io::Error),
}

/// Why there is no control socket at `path`.
pub struct SocketError {
    path: PathBuf,
    moment: Moment,
    reason: Reason,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// nbdkit can still be told to stop, and can wait.
    Start,
    /// There may be clients, controllers and a pause, none of which can wait.
    Serving,
}

enum Reason {
    /// Something else than a socket is there; what, in words.
    Occupied(&'static str),
    /// A process has the socket open that is there.
    Alive,
    /// It can't be told whether a process has it open.
    Unclear(io::Error),
    /// The directory can't be opened.
    Directory(PathBuf, io::Error),
    /// A dead socket is there, and another process has its directory locked.
    Locked,
    /// A step that should have worked failed; which, in words.
    Failed(&'static str, io::Error),
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
        match make(&path, mode, Moment::Start) {
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
    /// nobody. Returns the listener it had: nobody can connect there any more,
    /// and who has connected before can still be accepted.
    ///
    /// # Errors
    /// It can't be had now; the socket is lost still.
    pub fn put_back(&mut self) -> Result<UnixListener, SocketError> {
        let moment = Moment::Serving;
        let bound = make(&self.path, self.mode, moment).map_err(|reason| SocketError {
            path: self.path.clone(),
            moment,
            reason,
        })?;
        let former = mem::replace(&mut self.bound, bound).listener;
        // Where its directory was only renamed, it is still found there.
        if let Err(e) = os::stop_listening(&former) {
            error!("{}: cannot stop listening on the lost socket: {e}", self.path.display());
        }
        Ok(former)
    }
}

fn make(path: &Path, mode: u32, moment: Moment) -> Result<Bound, Reason> {
    // Only "/" has no parent, and that is occupied anyway.
    let parent = path.parent().unwrap_or(path);
    // Locked until it is closed, at the end of this function.
    let directory =
        os::open_directory(parent).map_err(|e| Reason::Directory(parent.to_path_buf(), e))?;
    let may_replace = lock(&directory, moment);
    if let Some(dead) = find_dead_socket(path)? {
        if !may_replace {
            return Err(Reason::Locked);
        }
        match remove_if(path, &dead) {
            Ok(true) => info!("{}: replacing the socket of a process that is gone", path.display()),
            // Somebody has just put another file there: bind(2) will refuse it.
            Ok(false) => {}
            Err(e) => return Err(Reason::Failed("remove the dead socket that is there", e)),
        }
    }
    let listener = os::bind(path, mode).map_err(|e| Reason::Failed("make the socket", e))?;
    let found = fs::symlink_metadata(path)
        .map_err(|e| Reason::Failed("look at the socket just made", e))?;
    // Somebody may have moved another file there just now.
    if !found.file_type().is_socket() {
        return Err(Reason::Occupied(kind_in_words(found.file_type())));
    }
    let file = FileId::of(&found);
    match open_to_controllers(path, mode, &listener, &file) {
        Ok(handle) => Ok(Bound { listener, file, handle }),
        Err(reason) => {
            let _ = remove_if(path, &file);
            Err(reason)
        }
    }
}

/// Gives the socket just made at `path`, which is `file`, what it lacks of its
/// permissions, and listens.
fn open_to_controllers(
    path: &Path,
    mode: u32,
    listener: &UnixListener,
    file: &FileId,
) -> Result<File, Reason> {
    let failed = |e| Reason::Failed("look at the socket just made", e);
    let handle = os::open_path(path).map_err(failed)?;
    let found = handle.metadata().map_err(failed)?;
    if !found.file_type().is_socket() || FileId::of(&found) != *file {
        return Err(Reason::Occupied("another file"));
    }
    if found.mode() & 0o777 != mode {
        os::set_mode(&handle, mode)
            .map_err(|e| Reason::Failed("set the permissions of the socket, through /proc", e))?;
    }
    os::listen(listener).map_err(|e| Reason::Failed("listen on the socket just made", e))?;
    Ok(handle)
}

/// Between finding a dead socket and replacing it another server must not do
/// the same. Whether a dead one may be replaced now. A path that is free needs no
/// lock: bind(2) itself refuses what is there.
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

/// None if there is nothing at `path`; an error if it is not a dead socket.
fn find_dead_socket(path: &Path) -> Result<Option<FileId>, Reason> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Reason::Failed("look at this path", e)),
    };
    if !found.file_type().is_socket() {
        return Err(Reason::Occupied(kind_in_words(found.file_type())));
    }
    match os::try_connect(path) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(Some(FileId::of(&found))),
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

fn kind_in_words(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "a file"
    }
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
                info!("{}: not ours any more, left alone", self.path.display());
                Ok(())
            }
            Place::Unclear(e) => Err(e),
        };
        if let Err(e) = removed {
            error!("{}: cannot remove the control socket: {e}", self.path.display());
        }
    }
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SocketError { path, moment, reason } = self;
        write!(f, "pause-control={}: ", path.display())?;
        match moment {
            Moment::Start => write!(f, "{reason}{}", reason.remedy_at_start()),
            Moment::Serving => write!(
                f,
                "the control socket is not at its path any more, and cannot be put back yet: \
                 {reason}{}; this is tried again every few seconds",
                reason.remedy_while_serving(),
            ),
        }
    }
}

impl Reason {
    fn remedy_at_start(&self) -> &'static str {
        match self {
            Reason::Occupied(_) => ": choose another path",
            Reason::Alive => ": choose another path, or stop that process",
            Reason::Unclear(_) => ": choose another path, or remove it",
            Reason::Locked | Reason::Directory(..) | Reason::Failed(..) => "",
        }
    }

    /// Another path can't be chosen any more.
    fn remedy_while_serving(&self) -> &'static str {
        match self {
            Reason::Occupied(_) => ": move it away",
            Reason::Unclear(_) => ": remove it",
            Reason::Alive => ": stop that process",
            Reason::Locked => ": end that lock",
            Reason::Directory(_, e) if is_absent(e) => ": make it again",
            Reason::Directory(_, e) | Reason::Failed(_, e)
                if e.kind() == io::ErrorKind::PermissionDenied =>
            {
                ": permit the user that this server runs as to write there"
            }
            Reason::Directory(..) | Reason::Failed(..) => "",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Occupied(what) => {
                write!(f, "{what} is there, and only a dead socket is ever replaced")
            }
            Reason::Alive => write!(f, "a process has the socket open that is there"),
            Reason::Unclear(e) => {
                write!(f, "cannot tell whether a process has the socket open that is there ({e})")
            }
            Reason::Directory(directory, e) => {
                write!(f, "cannot open the directory {}: {}", directory.display(), Advised(e))
            }
            Reason::Locked => write!(
                f,
                "a dead socket is there, and another process has its directory locked (flock)"
            ),
            Reason::Failed(step, e) => write!(f, "cannot {step}: {}", Advised(e)),
        }
    }
}
