//! Where `log` records go. For a thread that must never wait, it can keep records
//! back while the log is blocked.
//!
//! nbdkit has two levels: errors, which it always prints, and debug messages, which it
//! prints only with `nbdkit -v`. There is nothing in between, so a warning has to go
//! out as an error to be seen, and says itself that it is only a warning.
//!
//! | level | for | printed |
//! |---|---|---|
//! | error | a promise that can't be kept, a parameter that is refused | always |
//! | warn | what an operator has to know: a hold was ended, a problem is over | unless `RUST_LOG` leaves it out |
//! | info | what an operator would ask about afterwards | with `-v`, unless `RUST_LOG` leaves it out |
//! | debug | each command | with `-v`, where `RUST_LOG` asks for it |

use std::cell::RefCell;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use env_logger::{Builder, Env, Logger};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use crate::nbdkit;
use crate::os;

/// Without `RUST_LOG`: everything an operator would ask about afterwards.
const DEFAULT_FILTER: &str = "info";

/// A pipe that is read may still be full for a moment. How long to wait at most from
/// one call of `catch_up` to the next, however many records there are.
const PATIENCE: Duration = Duration::from_millis(100);

/// How many errors and warnings to keep for a blocked log.
const LONGEST_BACKLOG: usize = 64;

/// What a thread that never waits has not said yet.
#[derive(Default)]
struct Backlog {
    /// The log was blocked at the last look.
    stuck: bool,
    /// How much longer to wait for it until the next call of `catch_up`.
    patience: Duration,
    /// Errors and warnings, in order. The rest is of no use to anyone later.
    errors: Vec<String>,
    /// How many there was no room for.
    dropped: u64,
}

thread_local! {
    static BACKLOG: RefCell<Option<Backlog>> = const { RefCell::new(None) };
}

struct NbdkitLog {
    filter: RwLock<Option<Logger>>,
}

static LOGGER: NbdkitLog = NbdkitLog { filter: RwLock::new(None) };

/// Reads `RUST_LOG` and connects `log` to nbdkit. Called from `load`.
pub fn start() {
    let filter = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER)).build();
    // What nbdkit would drop need not be composed, nor the log be asked to take it.
    let most = match may_be_verbose(env::args_os()) {
        true => LevelFilter::Trace,
        false => LevelFilter::Warn,
    };
    log::set_max_level(filter.filter().clamp(LevelFilter::Error, most));
    *LOGGER.filter.write() = Some(filter);
    // Fails only where it is set already: the filter was loaded twice.
    let _ = log::set_logger(&LOGGER);
}

/// Whether these, from the program's name on, can mean `nbdkit -v`. An option's value
/// can look like it; then we ask nbdkit each time, which knows.
fn may_be_verbose(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut arguments = arguments.peekable();
    arguments.peek().is_none()
        || arguments.any(|argument| match argument.as_bytes() {
            [b'-', b'-', rest @ ..] => rest.starts_with(b"v"),
            [b'-', letters @ ..] => letters.contains(&b'v'),
            _ => false,
        })
}

/// Drops records from here on, and frees the filter's memory. Called from `unload`,
/// when no other thread of ours is left.
pub fn stop() {
    log::set_max_level(LevelFilter::Off);
    *LOGGER.filter.write() = None;
}

/// From now on the calling thread does not wait for the log. Standard error can
/// be a pipe that nobody reads, a terminal that is stopped, or the socket of a
/// log daemon that hangs, and a write would block until that is over. (A thread
/// that fills it between our look and our write can still make us wait. So can
/// syslog(3), whose socket we can't check.) What is not written when the thread
/// ends is lost: nbdkit, as it ends, must not wait for the log either.
pub fn never_wait() {
    let _ = BACKLOG.try_with(|backlog| backlog.replace(Some(Backlog::default())));
    catch_up();
}

/// Writes what was kept back if the log takes it now. True if something is left:
/// then call it again. Call it now and then in any case, since each call renews the
/// time that the thread may wait for the log.
pub fn catch_up() -> bool {
    let again = |backlog: &mut Backlog| {
        backlog.patience = PATIENCE;
        !backlog.catch_up()
    };
    with_backlog(again).unwrap_or(false)
}

/// Whether a message now would not block.
pub fn takes_more() -> bool {
    os::stderr_takes_more(Duration::ZERO)
}

/// Writes it, or keeps it back if the calling thread must not wait.
fn say(is_error: bool, text: fmt::Arguments<'_>) {
    let is_kept_back = with_backlog(|backlog| {
        let now = backlog.catch_up() && backlog.log_takes_more();
        if !now && is_error {
            backlog.keep(text.to_string());
        }
        !now
    });
    if is_kept_back != Some(true) {
        tell(is_error, text);
    }
}

/// To nbdkit, whose log has other messages, too.
fn tell(is_error: bool, text: impl fmt::Display) {
    match is_error {
        true => nbdkit::error(format_args!("pause: {text}")),
        false => nbdkit::debug(format_args!("pause: {text}")),
    }
}

/// `None` if the calling thread may wait, as most may.
fn with_backlog<R>(act: impl FnOnce(&mut Backlog) -> R) -> Option<R> {
    let act =
        |backlog: &RefCell<Option<Backlog>>| Some(act(backlog.try_borrow_mut().ok()?.as_mut()?));
    BACKLOG.try_with(act).ok().flatten()
}

impl Backlog {
    /// Whether the log takes a record now.
    fn log_takes_more(&mut self) -> bool {
        let patience = if self.stuck { Duration::ZERO } else { self.patience };
        let mut takes_more = takes_more();
        if !takes_more && !patience.is_zero() {
            let since = Instant::now();
            takes_more = os::stderr_takes_more(patience);
            self.patience = patience.saturating_sub(since.elapsed());
        }
        self.stuck = !takes_more;
        takes_more
    }

    /// True if nothing is left.
    fn catch_up(&mut self) -> bool {
        while !self.errors.is_empty() && self.log_takes_more() {
            tell(true, self.errors.remove(0));
        }
        if self.errors.is_empty() && self.dropped > 0 && self.log_takes_more() {
            let lost =
                format!("errors dropped here: {} (the log was blocked for too long)", self.dropped);
            tell(true, lost);
            self.dropped = 0;
        }
        self.errors.is_empty() && self.dropped == 0
    }

    fn keep(&mut self, message: String) {
        if self.errors.len() < LONGEST_BACKLOG && self.dropped == 0 {
            self.errors.push(message);
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

impl Log for NbdkitLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() == Level::Error
            || self.filter.read().as_ref().is_some_and(|filter| filter.enabled(metadata))
    }

    fn log(&self, record: &Record) {
        // An error is always seen: a RUST_LOG that is meant for another program
        // must not hide why nbdkit does not start.
        let level = record.level();
        let passes = || self.filter.read().as_ref().is_some_and(|filter| filter.matches(record));
        if level != Level::Error && !passes() {
            return;
        }
        match level {
            Level::Warn => say(true, format_args!("warning: {}", record.args())),
            _ => say(level == Level::Error, *record.args()),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::may_be_verbose;

    #[test]
    fn nbdkit_can_be_verbose_only_if_an_argument_says_so() {
        for (arguments, may_be) in [
            ("nbdkit -f -U sock vvv", false),
            ("nbdkit --foreground --filter=pause memory size=1v", false),
            ("nbdkit -v memory", true),
            ("nbdkit memory -fv", true),
            ("nbdkit --verb memory", true),
            ("nbdkit -e vol -Uv memory", true),
            ("", true),
        ] {
            let words = arguments.split_whitespace().map(Into::into);
            assert_eq!(may_be_verbose(words), may_be, "{arguments}");
        }
    }

    /// What a log macro is given is not evaluated where its level is off.
    #[test]
    fn no_argument_of_a_log_macro_has_an_effect() {
        const MACROS: [&str; 5] = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
        const EFFECTS: [&str; 20] = [
            "&mut",
            ".clear(",
            ".close(",
            ".drain(",
            ".end(",
            ".fetch_",
            ".insert(",
            ".join(",
            ".next(",
            ".open(",
            ".pop",
            ".push",
            ".read(",
            ".remove",
            ".replace(",
            ".send(",
            ".store(",
            ".swap",
            ".take(",
            ".write(",
        ];
        let mut seen = Vec::new();
        for file in sources() {
            let text = fs::read_to_string(&file).unwrap();
            let begins = MACROS.iter().flat_map(|name| text.match_indices(name));
            for (begin, name) in begins {
                let arguments = in_parentheses(&text[begin + name.len()..]);
                let found = EFFECTS.iter().find(|effect| arguments.contains(*effect));
                assert_eq!(found, None, "{}: {arguments}", file.display());
                seen.push(arguments.to_owned());
            }
        }
        assert!(seen.len() > 20, "only these were found: {seen:?}");
    }

    fn in_parentheses(text: &str) -> &str {
        let mut open = vec![()];
        let end = text.find(|c: char| {
            match c {
                '(' => open.push(()),
                ')' => drop(open.pop()),
                _ => {}
            }
            open.is_empty()
        });
        &text[..end.unwrap()]
    }

    fn sources() -> Vec<PathBuf> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        let mut folders = vec![project.join("src"), project.join("nbdkit-pause/src")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    // Here the macros are named.
                    false if path.ends_with("src/logger.rs") => {}
                    false => files.push(path),
                }
            }
        }
        files
    }
}
