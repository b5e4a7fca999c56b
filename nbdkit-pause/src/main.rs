//! `nbdkit-pause` pauses nbdkit servers while a command takes a snapshot, and
//! resumes them whatever happens. It talks to the control socket of the pause
//! filter, and knows nothing else of nbdkit.
//!
//! One thread waits for everything at once (poll(2)): servers, signals, the
//! command. So nothing it waits for can keep it from resuming. What can take forever,
//! loading the command's program and writing to standard error, happens in processes
//! of their own.
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the command line |
//! | [`run`] | what `run` does, and in which order |
//! | [`hooks`] | what `begin` and `end` do, and in which order |
//! | [`keeper`] | the process that has the pauses between these |
//! | [`state`], [`name`], [`peer`] | what these three know of each other |
//! | [`actions`] | what `pause` and `resume` do |
//! | [`show`] | what `status` does |
//! | [`session`] | all servers of a run: asks all, waits for all, resumes all |
//! | [`target`] | one of these servers: what is in force there, and what undoes it |
//! | [`ending`] | how a pause can end, and what to say about it |
//! | [`command`] | the command's process |
//! | [`link`] | a connection to a control socket |
//! | [`limit`] | how long to wait |
//! | [`trouble`] | what can be wrong with one server |
//! | [`tear`] | why a snapshot is no good |
//! | [`error`], [`status`] | what stops the program, and the exit status of each |
//! | [`signals`] | the signals that come in |
//! | [`progress`] | when to say how long it takes |
//! | [`report`], [`writer`] | the lines that go to standard error |
//! | [`date`] | the time of day of a line |
//! | [`fork`], [`inherited`] | how the processes start |

mod actions;
mod args;
mod command;
mod date;
mod ending;
mod error;
mod fork;
mod hooks;
mod inherited;
mod keeper;
mod limit;
mod link;
mod name;
mod peer;
mod progress;
mod report;
mod run;
mod session;
mod show;
mod signals;
mod state;
mod status;
mod target;
mod tear;
mod trouble;
mod writer;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;

use args::{Action, Cli};
use error::Error;
use report::Report;

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
    let closed = match cli.action {
        Action::Begin { .. } => inherited::close(),
        _ => Ok(()),
    };
    let report =
        match closed.map_err(Error::from).and_then(|()| Report::new().map_err(Error::NoProcess)) {
            Ok(report) => report,
            Err(e) => {
                let _ = writeln!(io::stderr(), "nbdkit-pause: {e}");
                return ExitCode::from(status::of_error(&e));
            }
        };
    let result = match cli.action {
        Action::Run { options, rules, command } => {
            run::run(&report, options, &rules, &command).map(status::of_command)
        }
        Action::Begin { id, max, options } => {
            hooks::begin(&report, options, &id, max).map(|()| status::SUCCESS)
        }
        Action::End { id } => hooks::end(&report, &id).map(|()| status::SUCCESS),
        Action::Pause { options } => actions::pause(&report, options).map(|()| status::SUCCESS),
        Action::Resume { options } => actions::resume(&report, options).map(|()| status::SUCCESS),
        Action::Status { options } => show::status(options),
        Action::Completions { shell } => completions(shell).map(|()| status::SUCCESS),
    };
    let status = result.unwrap_or_else(|e| {
        if !e.is_silent() {
            report.make_room();
            report.say(&e);
        }
        status::of_error(&e)
    });
    report.finish();
    ExitCode::from(status)
}

fn completions(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nbdkit-pause", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash {
        // clap_complete 4.6 spells a name with a hyphen in two ways, and then
        // bash completes nothing after the action.
        script = script.replace("nbdkit__subcmd__pause__subcmd__", "nbdkit__pause__subcmd__");
    }
    io::stdout().write_all(script.as_bytes()).map_err(Error::Completions)
}
