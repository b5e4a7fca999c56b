//! The parameters: their names, what they accept, and what the filter says about a
//! value that it can't accept. `lifecycle` passes them to the modules that act on
//! them.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use pause_protocol::{LONGEST_SOCKET_PATH, parse_duration};

use crate::nbdkit;

/// What `nbdkit --filter=... --help` prints about the parameters.
pub const HELP: &CStr =
    c"pause-control=SOCKET (required) Control socket to create: send p to pause, r to resume.
pause-mode=MODE                 Permissions of the socket, in octal (default 0600).
pause-flush=BOOL                Flush written data before a pause takes effect (default false).
pause-timeout=DURATION          End any pause after this long: 60, 500ms (default: no limit).
pause-hold=BOOL                 Enable holds (+ and -), which end with their connection (default false).
pause-status=BOOL               Enable s, which tells the state as JSON (default false).";

const DEFAULT_MODE: u32 = 0o600;
const LARGEST_MODE: u32 = 0o777;

/// The parameters as given on nbdkit's command line so far.
pub struct Config {
    control: Option<PathBuf>,
    mode: u32,
    flush: bool,
    timeout: Option<Duration>,
    hold: bool,
    status: bool,
}

/// Why a parameter was not accepted.
#[derive(Debug)]
pub enum ConfigError {
    /// `pause-control` is needed.
    ControlMissing,
    /// `pause-control=` with nothing behind it.
    ControlEmpty,
    /// The path, as made absolute, does not fit into a socket address.
    ControlTooLong(PathBuf),
    /// nbdkit could not make the path absolute, and has said why.
    ControlNotAbsolute(String),
    /// Not an octal number of 1 to 4 digits up to 0777.
    Mode(String),
    /// Not a BOOL: which parameter, and its value.
    Bool(&'static str, String),
    /// Not a DURATION.
    Timeout(String),
    /// `pause-flush` and a thread model that doesn't allow it.
    FlushSerialized,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            control: None,
            mode: DEFAULT_MODE,
            flush: false,
            timeout: None,
            hold: false,
            status: false,
        }
    }
}

impl Config {
    /// Takes `key=value` if it is ours; `Ok(false)` if it is for a layer below.
    pub fn set(&mut self, key: &CStr, value: &CStr) -> Result<bool, ConfigError> {
        match key.to_bytes() {
            b"pause-control" => self.control = Some(control_path(value)?),
            b"pause-mode" => self.mode = parse_mode(value)?,
            b"pause-flush" => self.flush = parse_bool("pause-flush", value)?,
            b"pause-timeout" => self.timeout = parse_timeout(value)?,
            b"pause-hold" => self.hold = parse_bool("pause-hold", value)?,
            b"pause-status" => self.status = parse_bool("pause-status", value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The absolute path of the control socket. Called when all parameters are in.
    pub fn control(&self) -> Result<&PathBuf, ConfigError> {
        self.control.as_ref().ok_or(ConfigError::ControlMissing)
    }

    /// Checks the parameters against the thread model that nbdkit has chosen
    /// for all layers.
    ///
    /// A pause flushes from a thread of ours, while other connections may be
    /// opened and closed. A parallel plugin is ready for that. So is one with
    /// serialize_requests, which promises it one call at a time on a connection: that
    /// is flushed when no request is inside and its negotiation is over, as it is once
    /// it has written. The stricter models promise one call at a time for the whole
    /// plugin, or all calls from one thread (nbdkit-plugin(3), "THREADS").
    pub fn check_thread_model(&self, thread_model: c_int) -> Result<(), ConfigError> {
        let serialize_requests = nbdkit::sys::NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
        let may_flush =
            is_parallel(thread_model) || u32::try_from(thread_model) == Ok(serialize_requests);
        match self.flush && !may_flush {
            true => Err(ConfigError::FlushSerialized),
            false => Ok(()),
        }
    }

    /// Whether a pause flushes.
    pub fn flush(&self) -> bool {
        self.flush
    }

    /// How long a pause lasts at most.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Whether `+` and `-` are commands.
    pub fn hold(&self) -> bool {
        self.hold
    }

    /// Whether `s` is a command.
    pub fn status(&self) -> bool {
        self.status
    }

    /// The permissions of the control socket.
    pub fn mode(&self) -> u32 {
        self.mode
    }
}

/// Whether nbdkit may make several calls on one connection at once.
pub fn is_parallel(thread_model: c_int) -> bool {
    u32::try_from(thread_model) == Ok(nbdkit::sys::NBDKIT_THREAD_MODEL_PARALLEL)
}

fn control_path(value: &CStr) -> Result<PathBuf, ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::ControlEmpty);
    }
    // Now, since nbdkit changes to / when it goes into the background.
    let path = nbdkit::absolute_path(value)
        .ok_or_else(|| ConfigError::ControlNotAbsolute(value.to_string_lossy().into_owned()))?;
    if path.as_os_str().len() > LONGEST_SOCKET_PATH {
        return Err(ConfigError::ControlTooLong(path));
    }
    Ok(path)
}

fn parse_mode(value: &CStr) -> Result<u32, ConfigError> {
    let refused = || ConfigError::Mode(value.to_string_lossy().into_owned());
    let digits = value.to_str().map_err(|_| refused())?;
    // from_str_radix alone would take a sign, too.
    if !(1..=4).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refused());
    }
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= LARGEST_MODE => Ok(mode),
        _ => Err(refused()),
    }
}

fn parse_bool(key: &'static str, value: &CStr) -> Result<bool, ConfigError> {
    nbdkit::parse_bool(value)
        .ok_or_else(|| ConfigError::Bool(key, value.to_string_lossy().into_owned()))
}

/// A limit, or `None` for 0.
fn parse_timeout(value: &CStr) -> Result<Option<Duration>, ConfigError> {
    let refused = || ConfigError::Timeout(value.to_string_lossy().into_owned());
    let text = value.to_str().map_err(|_| refused())?;
    // Which of the rules a value breaks shows in the value, which the error names.
    let limit = parse_duration(text).map_err(|_| refused())?;
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::ControlMissing => write!(
                f,
                "pause-control=SOCKET is missing: give a path at which to create the control socket"
            ),
            ConfigError::ControlEmpty => {
                write!(
                    f,
                    "pause-control is empty: give a path at which to create the control socket"
                )
            }
            ConfigError::ControlTooLong(path) => write!(
                f,
                "pause-control={}: this path is {} bytes long, but a Unix socket path can have \
                 at most {LONGEST_SOCKET_PATH}: choose a shorter one",
                path.display(),
                path.as_os_str().len(),
            ),
            ConfigError::ControlNotAbsolute(value) => {
                write!(
                    f,
                    "pause-control={value}: cannot make this path absolute: give an absolute path"
                )
            }
            ConfigError::Mode(value) => write!(
                f,
                "pause-mode={value}: not a file mode: give 1 to 4 octal digits, up to 0777, \
                 such as 0660"
            ),
            ConfigError::Bool(key, value) => {
                write!(f, "{key}={value}: not a boolean: give true or false")
            }
            ConfigError::Timeout(value) => write!(
                f,
                "pause-timeout={value}: not a duration: give seconds, such as 30 or 1.5, \
                 or milliseconds, such as 500ms; 0 means no limit"
            ),
            ConfigError::FlushSerialized => write!(
                f,
                "pause-flush=true: the thread model of this server serializes the requests of all \
                 connections, so a flush by the filter could disturb the plugin: leave out \
                 pause-flush, or use a plugin and filters with the thread model parallel or \
                 serialize_requests"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(value: &CStr) -> Option<u32> {
        parse_mode(value).ok()
    }

    #[test]
    fn a_mode_is_one_to_four_octal_digits_up_to_0777() {
        assert_eq!(mode_of(c"0600"), Some(0o600));
        assert_eq!(mode_of(c"660"), Some(0o660));
        assert_eq!(mode_of(c"0"), Some(0));
        assert_eq!(mode_of(c"777"), Some(0o777));
        assert_eq!(mode_of(c"0777"), Some(0o777));
        for refused in [
            c"", c"1000", c"00600", c"8", c"0o600", c"0x1f", c"+600", c"-1", c" 600", c"600 ",
            c"u=rw", c"\xff",
        ] {
            assert_eq!(mode_of(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn a_duration_is_seconds_or_milliseconds_and_0_is_none() {
        let of = |value| parse_timeout(value).ok();
        assert_eq!(of(c"30"), Some(Some(Duration::from_secs(30))));
        assert_eq!(of(c"1.5"), Some(Some(Duration::from_millis(1500))));
        assert_eq!(of(c"500ms"), Some(Some(Duration::from_millis(500))));
        assert_eq!(of(c"1.5ms"), Some(Some(Duration::from_micros(1500))));
        for none in [c"0", c"0.0", c"0ms"] {
            assert_eq!(of(none), Some(None), "{none:?}");
        }
        for refused in [
            c"",
            c"-1",
            c"+1",
            c"1e3",
            c"inf",
            c"nan",
            c"1.",
            c".5",
            c"1.2.3",
            c"ms",
            c"30s",
            c" 1",
            c"1 ",
            c"1 ms",
            c"-1ms",
            c"99999999999999999999",
            c"99999999999999999999ms",
            c"0.0000000000001",
            c"1\xff",
        ] {
            assert_eq!(of(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn another_key_is_left_to_the_layers_below() {
        let mut config = Config::default();
        assert!(matches!(config.set(c"pause-whatever", c"1"), Ok(false)));
        assert!(matches!(config.set(c"file", c"disk.img"), Ok(false)));
        assert!(matches!(config.set(c"pause-mode", c"0640"), Ok(true)));
        assert_eq!(config.mode(), 0o640);
    }
}
