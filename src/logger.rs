//! Where `log` records go: errors to nbdkit's error log, the rest to its debug
//! log (`nbdkit -v`), where `RUST_LOG` says which records pass, via env_logger.
//! A thread that must never wait can have its records kept back while whoever
//! reads the log does not.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

use env_logger::{Builder, Env, Logger};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use crate::nbdkit;
use crate::os;

/// Without `RUST_LOG`: everything an operator would ask about afterwards.
const DEFAULT_FILTER: &str = "info";

/// A pipe may be full for a moment though it is read. So long at most from one
/// call of `catch_up` to the next, however many records there are.
const PATIENCE: Duration = Duration::from_millis(100);

/// So many errors are kept for a log that is stuck.
const MOST_UNSAID: usize = 64;

/// What a thread that never waits has not said yet.
#[derive(Default)]
struct Unsaid {
    /// The log took nothing when it was looked at last.
    stuck: bool,
    /// How long may still be waited for it, until `catch_up` is called.
    patience: Duration,
    /// In their order. The rest is of no use to anyone later.
    errors: Vec<String>,
    /// Errors that there was no room for.
    dropped: u64,
}

thread_local! {
    static UNSAID: RefCell<Option<Unsaid>> = const { RefCell::new(None) };
}

struct NbdkitLog {
    filter: RwLock<Option<Logger>>,
}

static LOGGER: NbdkitLog = NbdkitLog { filter: RwLock::new(None) };

/// Reads `RUST_LOG` and connects `log` to nbdkit. Called from `load`.
pub fn start() {
    let filter = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER)).build();
    log::set_max_level(filter.filter().max(LevelFilter::Error));
    *LOGGER.filter.write() = Some(filter);
    // Fails only where it is set already: the filter was loaded twice.
    let _ = log::set_logger(&LOGGER);
}

/// Records are dropped from here on, and the filter's memory is given back.
/// Called from `unload`, when no other thread of ours is left.
pub fn stop() {
    log::set_max_level(LevelFilter::Off);
    *LOGGER.filter.write() = None;
}

/// From now on the calling thread does not wait for the log. Standard error can
/// be a pipe that nobody reads, a terminal that is stopped, or the socket of a
/// log daemon that hangs, and a write would take until that is over. (A thread
/// that fills it between our look and our write can still make us wait. So can
/// syslog(3), whose socket is not ours to look at.) What is still unsaid when the
/// thread ends is lost: nbdkit, as it ends, must not wait for the log either.
pub fn never_wait() {
    let _ = UNSAID.try_with(|unsaid| unsaid.replace(Some(Unsaid::default())));
    catch_up();
}

/// Says what was kept back if the log takes it now. True if something is left,
/// so that it is to be called again. Call it now and then in any case: what may
/// be waited for the log is counted from call to call.
pub fn catch_up() -> bool {
    let again = |unsaid: &mut Unsaid| {
        unsaid.patience = PATIENCE;
        !unsaid.catch_up()
    };
    with_unsaid(again).unwrap_or(false)
}

/// Whether one who says something now would not wait.
pub fn takes_more() -> bool {
    os::stderr_takes_more(Duration::ZERO)
}

/// To nbdkit, whose log has more than ours in it.
fn tell(is_error: bool, text: impl fmt::Display) {
    match is_error {
        true => nbdkit::error(format_args!("pause: {text}")),
        false => nbdkit::debug(format_args!("pause: {text}")),
    }
}

/// `None` where the calling thread waits, as most do.
fn with_unsaid<R>(act: impl FnOnce(&mut Unsaid) -> R) -> Option<R> {
    let act =
        |unsaid: &RefCell<Option<Unsaid>>| Some(act(unsaid.try_borrow_mut().ok()?.as_mut()?));
    UNSAID.try_with(act).ok().flatten()
}

impl Unsaid {
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
            let lost = format!(
                "{} more errors are lost: the log had taken none for too long",
                self.dropped
            );
            tell(true, lost);
            self.dropped = 0;
        }
        self.errors.is_empty() && self.dropped == 0
    }

    fn keep(&mut self, message: String) {
        if self.errors.len() < MOST_UNSAID && self.dropped == 0 {
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
        let is_error = record.level() == Level::Error;
        if !is_error && !self.filter.read().as_ref().is_some_and(|filter| filter.matches(record)) {
            return;
        }
        let text = record.args();
        let is_kept_back = with_unsaid(|unsaid| {
            let now = unsaid.catch_up() && unsaid.log_takes_more();
            if !now && is_error {
                unsaid.keep(text.to_string());
            }
            !now
        });
        if is_kept_back != Some(true) {
            tell(is_error, text);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

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
