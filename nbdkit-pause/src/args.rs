//! The command line: what the program accepts, and the text of `--help`. What
//! the program does then is in `actions`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use pause_protocol::parse_duration;

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

        /// The command that takes the snapshot; it runs only if all servers are paused
        #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandName)]
        command: Vec<OsString>,
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

/// What `run`, `pause` and `resume` have in common.
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }
}
