//! The parameters themselves: which values are refused and in what words, which
//! parameter is whose, and what nbdkit shows of them. What each of them does is in a
//! file of its own.

use super::*;

/// Which values make sense is tested where they are read, but for truth values: those
/// nbdkit reads.
#[test]
fn a_value_that_makes_no_sense_is_refused_by_name_with_what_would() {
    let truth = ["", "maybe", "2", "-1", "tru", "true ", "ja", "+", "-"].as_slice();
    for (parameter, right, values) in [
        ("pause-mode", "octal", ["8"].as_slice()),
        ("pause-timeout", "500ms", &["1s"]),
        ("pause-hold", "", truth),
        ("pause-status", "", truth),
        ("pause-flush", "", truth),
    ] {
        for value in values {
            let parameter = format!("{parameter}={value}");
            Setup::in_memory().with(&parameter).refused(&[&parameter, right]);
        }
    }
}

#[test]
fn a_missing_or_an_empty_pause_control_is_refused() {
    Setup::in_memory().control(None).refused(&["pause-control", "missing"]);
    Setup::in_memory().control(Some("")).refused(&["pause-control", "empty"]);
}

#[test]
fn the_last_pause_control_wins() {
    let server = Setup::in_memory().with("pause-control=first").start();
    server.controller().pause();
    assert!(!server.path("first").exists());
    server.stop();
}

#[test]
fn an_unknown_pause_key_is_for_the_layers_below() {
    // One that takes every key.
    let server = Setup::new(&[
        "eval",
        r#"config=echo "$2=$3" >> keys"#,
        "config_complete=:",
        "get_size=echo 1M",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
        "pause-foo=1",
        "pause=2",
        "file=3",
    ])
    .start();
    assert_eq!(server.content("keys"), "pause-foo=1\npause=2\nfile=3\n");
    server.stop();

    // And one that does not.
    let refusal = Setup::in_memory().with("pause-foo=1").refusal();
    assert!(refusal.stderr.contains("pause-foo"), "{refusal:#?}");
    assert!(!refusal.stderr.contains("pause-control"), "{refusal:#?}");
}

#[test]
fn the_filter_given_twice_is_refused() {
    let setup = Setup::in_memory().below(filter::ours().to_str().unwrap(), &[]);
    setup.refused(&["more than once"]);
    assert!(!setup.path("control").exists());
}

/// nbdkit with the filter and these words, in a folder where it may leave something.
fn nbdkit_with(plugin: &str, option: &str) -> (Setup, Finished) {
    let setup = Setup::in_memory();
    let mut nbdkit = nbdkit::command();
    nbdkit
        .current_dir(setup.path(""))
        .arg(format!("--filter={}", filter::ours().display()))
        .args([&nbdkit::plugin(plugin), option]);
    (setup, run(nbdkit).succeeded())
}

#[test]
fn help_shows_all_parameters() {
    let (_, help) = nbdkit_with("null", "--help");
    for parameter in [
        "pause-control=SOCKET",
        "pause-mode=MODE",
        "pause-flush=BOOL",
        "pause-timeout=DURATION",
        "pause-hold=BOOL",
        "pause-status=BOOL",
    ] {
        assert!(help.stdout.contains(parameter), "{parameter}: {help:#?}");
    }
}

#[test]
fn dumping_the_plugin_makes_no_socket() {
    let (setup, _) = nbdkit_with("memory", "--dump-plugin");
    assert!(fs::read_dir(setup.path("")).unwrap().next().is_none());
}
