//! The command line: what is accepted, and what is said of it. What is done
//! with it is decided elsewhere.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

/// Pauses nbdkit servers while a command takes a snapshot, and resumes them
/// whatever happens
#[derive(Parser)]
#[command(name = "nbdkit-pause", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Subcommand)]
pub enum Action {
    /// Pause all the servers, run COMMAND, resume all whatever happens
    Run {
        #[command(flatten)]
        servers: Servers,

        /// What takes the snapshot; it runs only if all servers are paused
        #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandName)]
        command: Vec<OsString>,
    },
    /// Pause all the servers, until they are resumed
    Pause {
        #[command(flatten)]
        servers: Servers,
    },
    /// Resume all the servers, whoever paused them
    Resume {
        #[command(flatten)]
        servers: Servers,
    },
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which one
        shell: Shell,
    },
}

/// Whom to ask, and how patiently.
#[derive(Args)]
pub struct Servers {
    /// How long to wait for the servers: 30, 1.5, 500ms; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "30", value_parser = duration)]
    pub timeout: Duration,

    /// The servers' control sockets: nbdkit's pause-control=SOCKET
    #[arg(required = true, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub sockets: Vec<PathBuf>,
}

/// Seconds, which may have a fraction, or milliseconds with `ms` behind.
fn duration(text: &str) -> Result<Duration, &'static str> {
    const REFUSED: &str = "give seconds (30, 1.5) or milliseconds (500ms)";
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text, 1.0),
    };
    // f64's own syntax has signs, exponents, infinities and more.
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(REFUSED);
    }
    let seconds: f64 = number.parse().map_err(|_| REFUSED)?;
    let duration = Duration::try_from_secs_f64(seconds * unit).map_err(|_| "this is too long")?;
    // It would mean the opposite.
    if duration.is_zero() && number.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        return Err("this is too short");
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_seconds_or_milliseconds() {
        for (text, millis) in
            [("30", 30_000), ("1.5", 1500), ("500ms", 500), ("0", 0), ("0ms", 0), ("0.25", 250)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "ms",
            "-1",
            "+1",
            "1s",
            "1 ms",
            " 1",
            "1e3",
            "inf",
            "nan",
            ".5",
            "1.",
            "1.5.5",
            "0x10",
            "1,5",
            "99999999999999999999999",
            "0.0000000000001",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
