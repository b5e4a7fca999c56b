//! The parameters: their names, what they accept, and what is said of one
//! that can't be accepted. What they do is decided elsewhere.

use std::ffi::CStr;
use std::fmt;
use std::path::PathBuf;

use crate::nbdkit;

/// What `nbdkit --filter=... --help` prints of the parameters.
pub const HELP: &CStr =
    c"pause-control=SOCKET (required) The control socket: send p to pause, r to resume.
pause-mode=MODE                 Its permissions in octal (default 0600).";

/// The longest path that fits into `sun_path` of sockaddr_un with its NUL
/// (unix(7)), in bytes.
const LONGEST_SOCKET_PATH: usize = 107;

const DEFAULT_MODE: u32 = 0o600;
const LARGEST_MODE: u32 = 0o777;

/// The parameters as given on nbdkit's command line so far.
pub struct Config {
    control: Option<PathBuf>,
    mode: u32,
}

/// Why a parameter was not accepted.
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
}

impl Default for Config {
    fn default() -> Self {
        Config { control: None, mode: DEFAULT_MODE }
    }
}

impl Config {
    /// Takes `key=value` if it is ours; `Ok(false)` if it is for a layer below.
    pub fn set(&mut self, key: &CStr, value: &CStr) -> Result<bool, ConfigError> {
        match key.to_bytes() {
            b"pause-control" => self.control = Some(control_path(value)?),
            b"pause-mode" => self.mode = parse_mode(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The absolute path of the control socket. Called when all parameters are in.
    pub fn control(&self) -> Result<&PathBuf, ConfigError> {
        self.control.as_ref().ok_or(ConfigError::ControlMissing)
    }

    /// The permissions of the control socket.
    pub fn mode(&self) -> u32 {
        self.mode
    }
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

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::ControlMissing => write!(
                f,
                "pause-control=SOCKET is missing: give the path of the control socket to make"
            ),
            ConfigError::ControlEmpty => {
                write!(f, "pause-control is empty: give the path of the control socket to make")
            }
            ConfigError::ControlTooLong(path) => write!(
                f,
                "pause-control={}: this path has {} bytes, but the path of a Unix socket can have \
                 {LONGEST_SOCKET_PATH} at most: choose a shorter one",
                path.display(),
                path.as_os_str().len(),
            ),
            ConfigError::ControlNotAbsolute(value) => {
                write!(f, "pause-control={value}: cannot make this path absolute")
            }
            ConfigError::Mode(value) => write!(
                f,
                "pause-mode={value}: not a file mode: give 1 to 4 octal digits up to 0777, \
                 for example 0660"
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
    fn another_key_is_left_to_the_layers_below() {
        let mut config = Config::default();
        assert!(matches!(config.set(c"pause-whatever", c"1"), Ok(false)));
        assert!(matches!(config.set(c"file", c"disk.img"), Ok(false)));
        assert!(matches!(config.set(c"pause-mode", c"0640"), Ok(true)));
        assert_eq!(config.mode(), 0o640);
    }
}
