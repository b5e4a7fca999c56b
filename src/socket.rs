//! The control socket in the file system: made over nothing but a dead socket,
//! private from its first moment, removed only while it is ours. What is said
//! on it lives in `control`.

use std::fmt;
use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use log::{error, info};

use crate::os;

/// Two servers that start at once hold this lock for a moment each; whoever
/// holds it longer is somebody else, and not waited for.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A listening control socket. Its file is removed when this is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    file: FileId,
}

/// Which file it is, whatever its name. The inode can't be used again while
/// the socket is open, since a bound socket holds on to it.
#[derive(PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// Why there is no control socket at `path`.
pub struct SocketError {
    path: PathBuf,
    reason: Reason,
}

enum Reason {
    /// Something else than a socket is there; what, in words.
    Occupied(&'static str),
    /// A process answers on the socket that is there.
    Alive,
    /// It can't be told whether a process answers.
    Unclear(io::Error),
    /// The directory can't be opened.
    Directory(PathBuf, io::Error),
    /// A step that should have worked failed; which, in words.
    Failed(&'static str, io::Error),
}

impl ControlSocket {
    /// Makes the socket at `path`, which is absolute and short enough for a
    /// socket address, with permissions `mode`. Call it while the process has
    /// a single thread.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        make(path, mode).map_err(|reason| SocketError { path: path.to_path_buf(), reason })
    }

    /// Where controllers connect. It does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

fn make(path: &Path, mode: u32) -> Result<ControlSocket, Reason> {
    // Between finding a dead socket and replacing it another server must not
    // do the same. The lock ends with this function.
    let _lock = lock_directory(path)?;
    remove_dead_socket(path)?;
    let listener = os::with_mode(mode, || UnixListener::bind(path))
        .map_err(|e| Reason::Failed("make the socket", e))?;
    let metadata = fs::symlink_metadata(path)
        .map_err(|e| Reason::Failed("look at the socket just made", e))?;
    // The file must go if the next step fails.
    let socket = ControlSocket { listener, path: path.to_path_buf(), file: FileId::of(&metadata) };
    socket
        .listener
        .set_nonblocking(true)
        .map_err(|e| Reason::Failed("make the socket non-blocking", e))?;
    Ok(socket)
}

fn lock_directory(path: &Path) -> Result<File, Reason> {
    // Only "/" has no parent, and that is occupied anyway.
    let directory = path.parent().unwrap_or(path);
    let file = File::open(directory).map_err(|e| Reason::Directory(directory.to_path_buf(), e))?;
    for _ in 0..LOCK_TRIES {
        match os::try_lock(&file) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(LOCK_PAUSE),
            // Some file systems have no locks; better unlocked than not at all.
            _ => break,
        }
    }
    Ok(file)
}

/// Leaves nothing at `path`, or an error and whatever is there.
fn remove_dead_socket(path: &Path) -> Result<(), Reason> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Reason::Failed("look at this path", e)),
    };
    if !found.file_type().is_socket() {
        return Err(Reason::Occupied(kind_in_words(found.file_type())));
    }
    match os::try_connect(path) {
        Ok(()) => return Err(Reason::Alive),
        Err(e) => match e.raw_os_error() {
            Some(libc::ECONNREFUSED) => {}
            // Its backlog is full, or it is of another type: somebody's, either way.
            Some(libc::EAGAIN | libc::EPROTOTYPE) => return Err(Reason::Alive),
            _ => return Err(Reason::Unclear(e)),
        },
    }
    match remove_if(path, &FileId::of(&found)) {
        Ok(true) => {
            info!("{}: replacing the socket of a process that is gone", path.display());
            Ok(())
        }
        // Somebody has just put another file there: bind(2) will refuse it.
        Ok(false) => Ok(()),
        Err(e) => Err(Reason::Failed("remove the dead socket that is there", e)),
    }
}

fn remove_if(path: &Path, file: &FileId) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if FileId::of(&found) == *file => fs::remove_file(path).map(|()| true),
        Ok(_) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
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
        match remove_if(&self.path, &self.file) {
            Ok(true) => {}
            Ok(false) => {
                info!("{}: not ours any more, left alone", self.path.display());
            }
            Err(e) => error!("{}: cannot remove the control socket: {e}", self.path.display()),
        }
    }
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pause-control={}: ", self.path.display())?;
        match &self.reason {
            Reason::Occupied(what) => write!(
                f,
                "{what} is there, and only a dead socket is ever replaced: choose another path"
            ),
            Reason::Alive => write!(
                f,
                "a process answers on this socket: choose another path, or stop that process"
            ),
            Reason::Unclear(e) => write!(
                f,
                "cannot tell whether a process answers on this socket ({e}): \
                 choose another path, or remove it"
            ),
            Reason::Directory(directory, e) => {
                write!(f, "cannot open the directory {}: {e}", directory.display())
            }
            Reason::Failed(step, e) => write!(f, "cannot {step}: {e}"),
        }
    }
}
