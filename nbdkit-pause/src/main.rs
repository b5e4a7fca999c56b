//! `nbdkit-pause` pauses nbdkit servers while a command takes a snapshot, and
//! resumes them whatever happens. It talks to the control socket of the pause
//! filter, and knows nothing else of nbdkit.
//!
//! One thread waits for everything at once (poll(2)): servers, signals, the
//! command. So nothing it waits for can keep it from resuming.
//!
//! | room | what lives there |
//! |---|---|
//! | [`args`] | the command line |
//! | [`actions`] | what `run`, `pause` and `resume` do, in which order |
//! | [`session`] | all servers: ask all, await all, let all go |
//! | [`server`] | one server: what is in force there, and what undoes it |
//! | [`control`] | a connection to a control socket, and its troubles |
//! | [`signals`], [`report`], [`status`] | what comes in, what is said, how it exits |

mod actions;
mod args;
mod control;
mod report;
mod server;
mod session;
mod signals;
mod status;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;

use args::{Action, Cli};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            // Not clap's 2, which could be the command's.
            return match e.use_stderr() {
                true => ExitCode::from(status::FAILED),
                false => ExitCode::SUCCESS,
            };
        }
    };
    ExitCode::from(match cli.action {
        Action::Run { servers, command } => actions::run(servers, &command),
        Action::Pause { servers } => actions::pause(servers),
        Action::Resume { servers } => actions::resume(servers),
        Action::Completions { shell } => completions(shell),
    })
}

fn completions(shell: Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nbdkit-pause", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash {
        // clap_complete 4.6 spells a name with a hyphen in two ways, and then
        // bash completes nothing after the action.
        script = script.replace("nbdkit__subcmd__pause__subcmd__", "nbdkit__pause__subcmd__");
    }
    match io::stdout().write_all(script.as_bytes()) {
        Ok(()) => 0,
        Err(_) => status::FAILED,
    }
}
