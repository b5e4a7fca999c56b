//! What `begin`, its keeper and `end` have in common: in a directory that only this user
//! may enter, a file and a socket for each name. Who uses them, and how, is in `hooks`.
//!
//! The file is locked (flock(2)) from before `begin` asks for a pause to the end of the
//! keeper. The lock goes with the process, however that ends. The file's records end in
//! NUL, which neither a path nor a message has in it.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{self, Path, PathBuf};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, mkdir, open, openat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::process::geteuid;

use crate::error::StateError;
use crate::name::Name;

/// Linux makes another one each time it starts.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The directory of the state, open.
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// What came of an attempt to lock the state of a name.
pub enum Attempt {
    /// There is no such state.
    Missing,
    /// `begin` or its keeper has it.
    Busy,
    /// It is ours now.
    Locked(State),
}

impl Folder {
    /// Where it is: in `$XDG_RUNTIME_DIR`, or else in `/run`.
    pub fn place() -> PathBuf {
        let parent = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        // The specification says to ignore a relative one.
        let parent = parent.filter(|path| path.is_absolute());
        parent.unwrap_or_else(|| "/run".into()).join("nbdkit-pause")
    }

    /// Opens it, and makes it first if it is missing.
    ///
    /// # Errors
    /// It can't be made, or other users may enter it.
    pub fn make() -> Result<Self, StateError> {
        let path = Folder::place();
        match mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(StateError::System(path, e.into())),
        }
        Folder::open(path)
    }

    /// Opens it; `None` if it is missing.
    ///
    /// # Errors
    /// It can't be opened, or other users may enter it.
    pub fn find() -> Result<Option<Self>, StateError> {
        match Folder::open(Folder::place()) {
            Ok(folder) => Ok(Some(folder)),
            Err(StateError::System(_, e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn open(path: PathBuf) -> Result<Self, StateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match open(&path, flags, Mode::empty()) {
            Ok(fd) => fd,
            // It is a link, or none of ours.
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(StateError::NotPrivate(path)),
            Err(e) => return Err(StateError::System(path, e.into())),
        };
        match fstat(&fd) {
            Ok(stat) if stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0 => {
                Ok(Folder { fd, path })
            }
            Ok(_) => Err(StateError::NotPrivate(path)),
            Err(e) => Err(StateError::System(path, e.into())),
        }
    }

    /// Locks the state of this name, if nobody else has it; makes it first if asked to.
    ///
    /// # Errors
    /// The file can't be opened, made or locked.
    pub fn lock(&self, name: &Name, make: bool) -> Result<Attempt, StateError> {
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags.set(OFlags::CREATE, make);
        loop {
            let file = match openat(&self.fd, name.file(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) if !make => return Ok(Attempt::Missing),
                Err(e) => return Err(self.error(name, e.into())),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Attempt::Busy),
                Err(e) => return Err(self.error(name, e.into())),
            }
            // Somebody may have removed it before it was locked.
            let there = statat(&self.fd, name.file(), AtFlags::SYMLINK_NOFOLLOW);
            let ours = fstat(&file).map_err(|e| self.error(name, e.into()))?;
            if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
                let path = self.path.join(name.file());
                return Ok(Attempt::Locked(State { file, name: name.clone(), path }));
            }
        }
    }

    /// Removes the file and the socket of a name whose lock we have.
    pub fn remove(&self, state: &State) {
        for name in [state.name.socket(), state.name.file()] {
            // If this fails, the next who come say what is wrong.
            let _ = unlinkat(&self.fd, name, AtFlags::empty());
        }
    }

    /// The socket of a name whose lock we have. Nobody can connect before listen(2).
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn bind(&self, state: &State) -> Result<OwnedFd, StateError> {
        let _ = unlinkat(&self.fd, state.name.socket(), AtFlags::empty());
        let socket = new_socket().and_then(|socket| {
            bind(&socket, &self.address(&state.name)?)?;
            Ok(socket)
        });
        socket.map_err(|e| self.error(&state.name, e.into()))
    }

    /// A connection to the keeper of this name, if it listens.
    pub fn connect(&self, name: &Name) -> Option<OwnedFd> {
        let socket = new_socket().ok()?;
        let address = self.address(name).ok()?;
        rustix::net::connect(&socket, &address).ok().map(|()| socket)
    }

    /// By way of the open directory: its own path may be too long for a socket.
    fn address(&self, name: &Name) -> Result<SocketAddrUnix, Errno> {
        let folder = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        SocketAddrUnix::new(Path::new(&folder).join(name.socket()))
    }

    fn error(&self, name: &Name, e: io::Error) -> StateError {
        StateError::System(self.path.join(name.file()), e)
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The state of a name, locked as long as this or a copy in another process exists.
pub struct State {
    file: File,
    name: Name,
    path: PathBuf,
}

/// What the state says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Which start of the machine it is from; empty if `begin` has not got that far.
    pub boot: Vec<u8>,
    /// The servers, by their control sockets.
    pub sockets: Vec<PathBuf>,
    /// What the keeper has to say.
    pub messages: Vec<Vec<u8>>,
    /// How it ended, if the keeper has come to say so: whether every pause lasted.
    pub unbroken: Option<bool>,
}

impl State {
    /// What it says.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(&mut self) -> Result<Content, StateError> {
        let mut bytes = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut bytes));
        read.map(|_| Content::parse(&bytes)).map_err(|e| self.error(e))
    }

    /// Begins it, with the servers that are to be paused.
    ///
    /// # Errors
    /// It can't be written.
    pub fn begin(&mut self, boot: &[u8], sockets: &[PathBuf]) -> Result<(), StateError> {
        let mut records = vec![[b"boot=", boot].concat()];
        for socket in sockets {
            let socket = path::absolute(socket).unwrap_or_else(|_| socket.clone());
            records.push([b"socket=", socket.as_os_str().as_bytes()].concat());
        }
        let emptied = ftruncate(&self.file, 0).map_err(io::Error::from);
        emptied.and_then(|()| self.file.rewind()).map_err(|e| self.error(e))?;
        self.add(&records)
    }

    /// Ends it, with what `end` is to be told.
    ///
    /// # Errors
    /// It can't be written.
    pub fn end(&mut self, messages: &[Vec<u8>], unbroken: bool) -> Result<(), StateError> {
        let mut records: Vec<_> =
            messages.iter().map(|message| [b"message=", &message[..]].concat()).collect();
        records.push(format!("unbroken={unbroken}").into_bytes());
        self.add(&records)
    }

    fn add(&mut self, records: &[Vec<u8>]) -> Result<(), StateError> {
        let mut bytes = records.join(&0);
        bytes.push(0);
        self.file.write_all(&bytes).map_err(|e| self.error(e))
    }

    fn error(&self, e: io::Error) -> StateError {
        StateError::System(self.path.clone(), e)
    }
}

impl Content {
    /// A record that was not written to its end does not count.
    fn parse(bytes: &[u8]) -> Self {
        let mut content = Content::default();
        let mut records: Vec<_> = bytes.split(|&byte| byte == 0).collect();
        records.pop();
        for record in records {
            if let Some(boot) = record.strip_prefix(b"boot=") {
                content.boot = boot.to_owned();
            } else if let Some(socket) = record.strip_prefix(b"socket=") {
                content.sockets.push(OsString::from_vec(socket.to_owned()).into());
            } else if let Some(message) = record.strip_prefix(b"message=") {
                content.messages.push(message.to_owned());
            } else if let Some(unbroken) = record.strip_prefix(b"unbroken=") {
                content.unbroken = Some(unbroken == b"true");
            }
        }
        content
    }
}

/// Which start of the machine this is.
///
/// # Errors
/// `/proc` is missing.
pub fn boot_id() -> Result<Vec<u8>, StateError> {
    let id = fs::read(BOOT_ID).map_err(|e| StateError::System(BOOT_ID.into(), e))?;
    Ok(id.trim_ascii().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_to_its_end_counts() {
        let whole = b"boot=1-2\0socket=/a b\nc\0message=L[1] x\ty\n\0unbroken=true\0";
        let content = Content::parse(whole);
        assert_eq!(content.boot, b"1-2");
        assert_eq!(content.sockets, [Path::new("/a b\nc")]);
        assert_eq!(content.messages, [b"L[1] x\ty\n"]);
        assert_eq!(content.unbroken, Some(true));
        for cut in 0..whole.len() {
            assert_eq!(Content::parse(&whole[..cut]).unbroken, None, "{cut}");
        }
    }
}
