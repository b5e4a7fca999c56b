//! The command line: what the program accepts, and the text of `--help`. What
//! the program does then is in `actions`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use pause_protocol::parse_duration;

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
        options: Options,

        /// What takes the snapshot; it runs only if all servers are paused
        #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandName)]
        command: Vec<OsString>,
    },
    /// Pause all the servers, until they are resumed
    Pause {
        #[command(flatten)]
        options: Options,
    },
    /// Resume all the servers, whoever paused them
    Resume {
        #[command(flatten)]
        options: Options,
    },
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which one
        shell: Shell,
    },
}

/// What `run`, `pause` and `resume` have in common.
#[derive(Args)]
pub struct Options {
    /// How long to wait for the servers: 30, 1.5, 500ms; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "30", value_parser = parse_duration)]
    pub timeout: Duration,

    /// The servers' control sockets: nbdkit's pause-control=SOCKET
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
