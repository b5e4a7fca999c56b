//! Where `log` records go: errors to nbdkit's error log, the rest to its debug
//! log (`nbdkit -v`), where `RUST_LOG` says which records pass, via env_logger.

use env_logger::{Builder, Env, Logger};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use crate::nbdkit;

/// Without `RUST_LOG`: everything an operator would ask about afterwards.
const DEFAULT_FILTER: &str = "info";

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

impl Log for NbdkitLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() == Level::Error
            || self.filter.read().as_ref().is_some_and(|filter| filter.enabled(metadata))
    }

    fn log(&self, record: &Record) {
        // An error is always seen: a RUST_LOG that is meant for another program
        // must not hide why nbdkit does not start.
        if record.level() == Level::Error {
            nbdkit::error(format_args!("pause: {}", record.args()));
        } else if self.filter.read().as_ref().is_some_and(|filter| filter.matches(record)) {
            nbdkit::debug(format_args!("pause: {}", record.args()));
        }
    }

    fn flush(&self) {}
}
