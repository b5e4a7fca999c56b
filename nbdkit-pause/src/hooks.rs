//! What `begin` and `end` do: for backup programs that call one hook before a snapshot
//! and another one after it.
//!
//! **Start.** `begin` pauses the servers just as `run` does, and only then forks. The
//! child, the keeper, has the connections and so the holds; see `keeper`. Its one byte on
//! a socket pair says that it is on its own. Until then `begin` still has the connections,
//! too, and can undo everything, if the keeper is killed or a signal comes; and a keeper
//! that can't send the byte, as `begin` is gone, undoes it. `begin` starts by closing what
//! it has inherited, so that nothing of it gets to the keeper.
//!
//! **Names.** The state of a name is a file, locked by `begin` before it pauses, and then
//! by the keeper, which has inherited the lock. Of two `begin`s one gets it; the other one
//! is refused. `state` has the details.
//!
//! **End.** `end` connects to a socket, and that is all it says. Whether that made the
//! keeper end, or `--max`, a signal or a server did just before: it resumes the servers,
//! writes to the file how that went, and exits, which unlocks the file. `end` waits for
//! the lock, reads the file and removes it: so one `end` is told, and told the same
//! whoever was first. A keeper that does not end in time, as it was stopped, is killed.
//!
//! **Killed.** A keeper that was killed, whenever that was, has left a file that is not
//! locked and has no last record. Its holds ended with its connections. Pauses of servers
//! without holds did not: `end` resumes those. A `begin` refuses the name until then, since
//! a script may still count on that pause.
//!
//! **Power loss.** The file has the id of that start of the machine. The state of another
//! one is no obstacle to `begin`, and `end` says what happened.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use crate::actions::{RESUME, prepare, say_why};
use crate::args::Options;
use crate::error::{Error, PauseError};
use crate::fork::fork;
use crate::keeper;
use crate::limit::Limit;
use crate::name::Name;
use crate::peer;
use crate::report::Report;
use crate::session::Session;
use crate::signals::{ENDING, Signals};
use crate::state::{Attempt, Content, Folder, State, boot_id};
use crate::target::{How, Target};
use crate::tear::Tear;

/// The keeper has this long to end: it takes `RESUME` at most, unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(15);

/// So often `end` tries to get the lock. There is nothing to poll for.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Pauses the servers, and leaves a process that keeps them paused.
pub fn begin(report: &Report, options: Options, name: &Name, max: Duration) -> Result<(), Error> {
    // While nothing is paused.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(Error::NoKeeper)?;
    let folder = Folder::make()?;
    let mut state = reserve(report, &folder, name, &options.sockets)?;
    let begun = pause(report, options, max, &null, &folder, &mut state);
    if begun.is_err() {
        folder.remove(&state);
    }
    begun
}

/// Takes the name.
fn reserve(
    report: &Report,
    folder: &Folder,
    name: &Name,
    sockets: &[PathBuf],
) -> Result<State, Error> {
    let boot = boot_id()?;
    let mut state = match folder.lock(name, true)? {
        Attempt::Locked(state) => state,
        Attempt::Busy | Attempt::Missing => return Err(Error::InUse(name.clone())),
    };
    let content = state.read()?;
    if content.boot == boot {
        return Err(Error::Untold(name.clone()));
    }
    if !content.boot.is_empty() {
        report.say(format_args!("{name}: found a pause from before the machine started again"));
    }
    if let Err(e) = state.begin(&boot, sockets) {
        folder.remove(&state);
        return Err(e.into());
    }
    Ok(state)
}

fn pause(
    report: &Report,
    options: Options,
    max: Duration,
    null: &File,
    folder: &Folder,
    state: &mut State,
) -> Result<(), Error> {
    let listener = folder.bind(state)?;
    let Options { timeout, sockets } = options;
    let is_absolute = sockets.iter().all(|socket| socket.is_absolute());
    let mut session = prepare(report, sockets, ENDING, Target::new)?;
    let paused = session.pause(How::Hold, timeout, max).map_err(|e| {
        say_why(report, &e);
        Error::from(e)
    });
    let begun = paused.and_then(|limit| {
        hand_over(&mut session, limit, |session, word| {
            if keeper::settle(report, null, &listener).is_err() {
                return;
            }
            if is_absolute {
                // Others may want to unmount it.
                let _ = env::set_current_dir("/");
            }
            if !tell(word) {
                session.resume(RESUME);
                return folder.remove(state);
            }
            let (caller, tear) = keeper::keep(session, &listener, limit);
            if let Some(tear) = &tear {
                report.say(tear);
            }
            // If this fails, the file has no last record, which is bad news, too.
            let _ = state.end(&report.remembered(), tear.is_none());
            drop(caller);
        })
    });
    if begun.is_err() && session.resume(RESUME) {
        report.say("no server stays paused");
    }
    begun
}

/// Goes on in two processes: one does `keep`, and the other one returns when that one
/// sends its word.
///
/// # Errors
/// The other process is gone, and the pauses are this one's again.
fn hand_over(
    session: &mut Session,
    limit: Limit,
    keep: impl FnOnce(&mut Session, UnixStream),
) -> Result<(), Error> {
    let (ours, its) = UnixStream::pair().map_err(Error::NoKeeper)?;
    ours.set_nonblocking(true).map_err(Error::NoKeeper)?;
    let Some(pid) = fork().map_err(Error::NoKeeper)? else {
        drop(ours);
        keep(session, its);
        process::exit(0)
    };
    drop(its);
    let failed = loop {
        match (&ours).read(&mut [0]) {
            Ok(1..) => return Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => break Error::NotHandedOver,
        }
        if let Some(signal) = session.signals.next() {
            let e = PauseError::Signal(signal);
            say_why(session.report, &e);
            break e.into();
        }
        if !session.watch() || limit.is_over() {
            break Error::NotHandedOver;
        }
        session.wait(limit.left(), Some(ours.as_fd()));
    };
    // It must not do anything any more. It is our child, so the id is its own.
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
    Err(failed)
}

/// Says that the keeper is on its own. Returns false if nobody is there to hear it.
fn tell(mut word: UnixStream) -> bool {
    word.write_all(b"!").is_ok()
}

/// Has the keeper resume the servers, if it has not yet. Succeeds if every pause lasted
/// until now.
pub fn end(report: &Report, name: &Name) -> Result<(), Error> {
    let missing = || Error::NotBegun(name.clone(), Folder::place());
    // Signals may end the program: the keeper goes on, and another `end` is told.
    let signals = Signals::new(&[]).map_err(Error::Signals)?;
    // First of all: without /proc the rest would fail in other ways.
    let now = boot_id()?;
    let folder = Folder::find()?.ok_or_else(missing)?;
    let mut state = wait_for_keeper(report, &folder, name)?.ok_or_else(missing)?;
    let Content { boot, sockets, messages, unbroken } = state.read()?;
    let ended = match unbroken {
        _ if boot.is_empty() => Err(missing()),
        _ if boot != now => Err(Error::Torn(Tear::Restarted)),
        Some(true) => Ok(()),
        Some(false) => Err(Error::TornAsTold),
        None => {
            let mut session = Session::new(report, signals, sockets, Target::left_behind)?;
            session.resume_left_behind(RESUME);
            Err(Error::Torn(Tear::Killed))
        }
    };
    messages.iter().for_each(|message| report.pass_on(message));
    folder.remove(&state);
    ended
}

/// Tells the keeper to end, and waits until it has. Returns what it has left.
fn wait_for_keeper(report: &Report, folder: &Folder, name: &Name) -> Result<Option<State>, Error> {
    let mut limit = Limit::new(PATIENCE);
    let mut keeper = None;
    loop {
        match folder.lock(name, false)? {
            Attempt::Missing => return Ok(None),
            Attempt::Locked(state) => return Ok(Some(state)),
            Attempt::Busy => {}
        }
        if keeper.is_none() {
            keeper = folder.connect(name);
        }
        if limit.is_over() {
            let Some(connection) = &keeper else {
                return Err(Error::StillBegins(name.clone()));
            };
            // The id is its own: its end of the connection is open.
            let Some(pid) = peer::of(connection) else {
                return Err(Error::KeeperStuck(name.clone()));
            };
            report.say("the process that keeps the pause does not end: killing it");
            let _ = kill_process(pid, Signal::KILL);
            limit = Limit::new(PATIENCE);
        }
        // It says nothing: that it is readable means that it is over.
        let mut fds: Vec<_> =
            keeper.iter().map(|connection| PollFd::new(connection, PollFlags::IN)).collect();
        if poll(&mut fds, Some(&RETRY)) == Ok(1) {
            keeper = None;
        }
    }
}
