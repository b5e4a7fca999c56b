//! The command line: what the program accepts, and the text of `--help`. What
//! the program does then is in `run`, `hooks`, `actions` and `show`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use pause_protocol::parse_duration;

use crate::name::Name;

/// Pause nbdkit servers while a command takes a snapshot, then resume them
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
    /// Pause all servers, run COMMAND, then resume them whatever happens
    Run {
        #[command(flatten)]
        options: Options,

        #[command(flatten)]
        rules: Rules,

        /// The command that takes the snapshot; it runs only if all servers are paused
        #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandName)]
        command: Vec<OsString>,
    },
    /// Pause all servers, and return; a process in the background keeps them paused
    Begin {
        /// What to call this pause: `end` needs it
        #[arg(long, value_name = "NAME", value_parser = Name::parse)]
        id: Name,

        /// Resume the servers after this long, `end` or not; 0 sets no limit
        #[arg(long, value_name = "DURATION", default_value = "60", value_parser = parse_duration)]
        max: Duration,

        #[command(flatten)]
        options: Options,
    },
    /// Resume the servers of `begin`, and tell whether they were paused all the time
    End {
        /// The name that `begin` was given
        #[arg(long, value_name = "NAME", value_parser = Name::parse)]
        id: Name,
    },
    /// Pause all servers until someone resumes them
    Pause {
        #[command(flatten)]
        options: Options,
    },
    /// Resume all servers, no matter who paused them
    Resume {
        #[command(flatten)]
        options: Options,
    },
    /// Show the state of all servers; exit with 0 if requests flow at all of them
    Status {
        #[command(flatten)]
        options: StatusOptions,
    },
    /// Print shell completions
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What `run`, `begin`, `pause` and `resume` have in common.
#[derive(Args)]
pub struct Options {
    /// How long to wait for the servers: 30, 1.5 or 500ms; 0 waits forever
    #[arg(long, value_name = "DURATION", default_value = "30", value_parser = parse_duration)]
    pub timeout: Duration,

    /// Control socket of each server: the path given to nbdkit as pause-control
    #[arg(required = true, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub sockets: Vec<PathBuf>,
}

/// The options of `status`.
#[derive(Args)]
pub struct StatusOptions {
    /// How long to wait for the servers: 5, 1.5 or 500ms; 0 waits forever
    #[arg(long, value_name = "DURATION", default_value = "5", value_parser = parse_duration)]
    pub timeout: Duration,

    /// Print a line of JSON for each server
    #[arg(long)]
    pub json: bool,

    /// Draw the table again each second, until you press Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,

    /// Control socket of each server: the path given to nbdkit as pause-control
    #[arg(required = true, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub sockets: Vec<PathBuf>,
}

/// What `run` does about a command that takes long.
#[derive(Args)]
pub struct Rules {
    /// Resume the servers after this long, and send COMMAND SIGTERM; 0 sets no limit
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = parse_duration)]
    pub max: Duration,

    /// Exit with COMMAND's own status even if it is 0 after a signal
    #[arg(long)]
    pub keep_status: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }
}
