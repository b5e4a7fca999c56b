//! What packagers and people at a prompt meet: completions, help, and what is said of
//! a command line that makes no sense. Sockets that make none are in `trouble.rs`.

use super::*;

fn output(words: &str) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(words.split(' '));
    run(command).succeeded().stdout
}

#[test]
fn there_are_completions_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = output(&format!("completions {shell}"));
        for word in ["nbdkit-pause", "run", "begin", "end", "pause", "resume", "timeout", "max"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn bash_completes_actions_and_options() {
    let mut script = output("completions bash");
    script.push_str(
        r#"
        read -r _ _ function _ < <(complete -p nbdkit-pause | sed 's/.* -F/complete -F/')
        for words in 'nbdkit-pause re' 'nbdkit-pause run --t' 'nbdkit-pause begin --i'; do
            COMP_WORDS=($words) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            $function nbdkit-pause "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[@]}"
        done
        "#,
    );
    let completed = run_with_input(Command::new("bash"), script.as_bytes()).succeeded();
    assert_eq!(completed.stdout, "resume\n--timeout\n--id\n", "{}", completed.stderr);
}

#[test]
fn help_and_version_succeed_and_name_every_action() {
    let help = output("--help");
    for action in ["run", "begin", "end", "pause", "resume", "status"] {
        assert!(help.contains(&format!("\n  {action} ")), "{help}");
        output(&format!("{action} --help"));
    }
    assert!(output("--version").starts_with("nbdkit-pause "));
}

#[test]
fn the_command_line_is_checked_before_anything_is_paused() {
    let server = Plain.start();
    for wrong in [
        "run",
        "run control",
        "run control --",
        "run -- touch ran",
        "run --timeout 1h control -- touch ran",
        "run --timeout -1 control -- touch ran",
        "run --no-such-option control -- touch ran",
        "pause",
        "resume",
        "freeze control",
        "",
    ] {
        let said = call(&server, wrong).ends(125, &[]).stderr;
        assert!(!said.is_empty(), "{wrong:?}");
    }
    not_run(&[&server]);
}
