//! What packagers and people at a prompt meet: completions and help.

use std::process::Command;

use crate::common::process::{Finished, run, run_with_input};
use crate::helper::PROGRAM;

fn helper(arguments: &[&str]) -> Finished {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    run(command)
}

#[test]
fn there_are_completions_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = helper(&["completions", shell]).succeeded().stdout;
        for word in ["nbdkit-pause", "run", "pause", "resume", "timeout"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn bash_completes_actions_and_options() {
    let mut script = helper(&["completions", "bash"]).succeeded().stdout;
    script.push_str(
        r#"
        read -r _ _ function _ < <(complete -p nbdkit-pause | sed 's/.* -F/complete -F/')
        for words in 'nbdkit-pause re' 'nbdkit-pause run --t'; do
            COMP_WORDS=($words) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            $function nbdkit-pause "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[@]}"
        done
        "#,
    );
    let completed = run_with_input(Command::new("bash"), script.as_bytes()).succeeded();
    assert_eq!(completed.stdout, "resume\n--timeout\n", "{}", completed.stderr);
}

#[test]
fn help_and_version_succeed_and_name_every_action() {
    let help = helper(&["--help"]).succeeded().stdout;
    for action in ["run", "pause", "resume"] {
        assert!(help.contains(&format!("\n  {action} ")), "{help}");
        helper(&[action, "--help"]).succeeded();
    }
    assert!(helper(&["--version"]).succeeded().stdout.starts_with("nbdkit-pause "));
}
