//! What is refused, and what must not happen: the control socket's place in
//! the file system, and the parameters.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::common::control::Controller;
use crate::common::files::{bound_socket, look, make_fifo, set_mode, socket_mode};
use crate::common::nbd::{Client, Request};
use crate::common::process::run;
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, PROMPT, filter, nbdkit};

/// nbdkit refuses to start since something is at `control`, says so, and
/// leaves it alone.
fn is_refused_and_untouched(setup: &Setup) {
    let control = setup.path("control");
    let before = look(&control);
    let refusal = setup.refusal();
    let path = control.to_str().unwrap();
    assert!(refusal.stderr.contains("pause-control"), "{refusal:#?}");
    assert!(refusal.stderr.contains(path), "{refusal:#?}");
    assert!(look(&control) == before, "it was touched");
}

#[test]
fn a_regular_file_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    fs::write(setup.path("control"), "a disk image").unwrap();
    is_refused_and_untouched(&setup);
}

#[test]
fn the_disk_itself_is_refused_and_untouched() {
    let setup = Setup::with_disk(1).control(Some("disk.img"));
    let before = look(&setup.path("disk.img"));
    let refusal = setup.refusal();
    assert!(refusal.stderr.contains("disk.img"), "{refusal:#?}");
    assert!(look(&setup.path("disk.img")) == before);
}

#[test]
fn an_empty_file_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    fs::write(setup.path("control"), "").unwrap();
    is_refused_and_untouched(&setup);
}

#[test]
fn a_directory_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    fs::create_dir(setup.path("control")).unwrap();
    is_refused_and_untouched(&setup);
}

#[test]
fn a_symlink_to_a_file_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    fs::write(setup.path("elsewhere"), "precious").unwrap();
    symlink("elsewhere", setup.path("control")).unwrap();
    is_refused_and_untouched(&setup);
    assert_eq!(fs::read(setup.path("elsewhere")).unwrap(), b"precious");
}

#[test]
fn a_dangling_symlink_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    symlink("nowhere", setup.path("control")).unwrap();
    is_refused_and_untouched(&setup);
    assert!(!setup.path("nowhere").exists());
}

#[test]
fn a_symlink_to_a_dead_socket_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    drop(UnixListener::bind(setup.path("dead")).unwrap());
    symlink("dead", setup.path("control")).unwrap();
    is_refused_and_untouched(&setup);
    assert!(setup.path("dead").exists());
}

#[test]
fn a_fifo_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    make_fifo(&setup.path("control"));
    is_refused_and_untouched(&setup);
}

#[test]
fn a_live_socket_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    let listener = UnixListener::bind(setup.path("control")).unwrap();
    is_refused_and_untouched(&setup);
    // Its owner has not even been disturbed, and is still there.
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    UnixStream::connect(setup.path("control")).unwrap();
    listener.accept().unwrap();
}

/// As the socket of a server that is just starting.
#[test]
fn a_socket_whose_owner_does_not_listen_yet_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    let owner = bound_socket(&setup.path("control"));
    is_refused_and_untouched(&setup);
    drop(owner);
    setup.start().stop();
}

#[test]
fn the_control_socket_of_another_server_is_refused_and_goes_on_working() {
    let first = Setup::in_memory().start();
    let second = Setup::in_memory().control(Some(first.control_path().to_str().unwrap()));
    let refusal = second.refusal();
    let path = first.control_path();
    assert!(refusal.stderr.contains(path.to_str().unwrap()), "{refusal:#?}");
    first.controller().pause();
    first.controller().resume();
    first.stop();
}

#[test]
fn a_dead_socket_is_replaced() {
    let setup = Setup::in_memory();
    drop(UnixListener::bind(setup.path("control")).unwrap());
    assert!(setup.path("control").exists());
    let server = setup.start();
    server.controller().pause();
    server.stop();
}

#[test]
fn the_socket_of_a_server_that_was_killed_is_replaced() {
    let folder = Setup::in_memory();
    let control = folder.path("control");
    let start = || Setup::in_memory().control(control.to_str()).start();
    let first = start();
    first.controller().pause();
    // Dropping it kills it.
    drop(first);
    assert!(control.exists());
    let second = start();
    second.controller().pause();
    second.stop();
}

#[test]
fn of_servers_that_start_at_once_on_a_dead_socket_one_gets_it() {
    let folder = Setup::in_memory();
    let control = folder.path("control");
    for _ in 0..5 {
        drop(UnixListener::bind(&control).unwrap());
        let starting: Vec<_> =
            (0..6).map(|_| Setup::in_memory().control(control.to_str()).launch()).collect();
        let mut running: Vec<Server> =
            starting.into_iter().filter_map(|starting| starting.ready().ok()).collect();
        assert_eq!(running.len(), 1);
        let server = running.remove(0);
        let mut client = Client::connect(&server);
        let mut controller = Controller::connect(&control);
        controller.pause();
        let held = client.send(Request::Read(0));
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        client.reply(held).unwrap();
        drop((client, controller));
        server.stop();
    }
}

#[test]
fn a_socket_put_in_our_place_survives_our_exit() {
    let server = Setup::in_memory().start();
    let control = server.control_path();
    let theirs = UnixListener::bind(server.path("theirs")).unwrap();
    // In one step, or the server might put its own back in between.
    fs::rename(server.path("theirs"), &control).unwrap();
    let before = look(&control);
    server.terminate();
    let ended = server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
    assert!(look(&control) == before, "it was touched");
    drop(theirs);
}

#[test]
fn a_file_put_in_our_place_survives_our_exit() {
    let server = Setup::in_memory().start();
    let control = server.control_path();
    fs::write(server.path("theirs"), "precious").unwrap();
    fs::rename(server.path("theirs"), &control).unwrap();
    server.terminate();
    let ended = server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
    assert_eq!(fs::read(&control).unwrap(), b"precious");
}

#[test]
fn a_socket_that_somebody_has_removed_is_no_trouble_at_exit() {
    let server = Setup::in_memory().start();
    fs::remove_file(server.control_path()).unwrap();
    // It may be put back before the end, which is told, but is no trouble.
    let ended = server.stop();
    assert!(!ended.process.stderr.contains("cannot"), "{:#?}", ended.process);
}

#[test]
fn no_socket_is_left_when_nbdkit_cannot_have_its_own_socket() {
    let setup = Setup::in_memory();
    let listener = UnixListener::bind(setup.path("nbd")).unwrap();
    let refusal = setup.refusal();
    assert!(!setup.path("control").exists(), "{refusal:#?}");
    drop(listener);
}

#[test]
fn no_socket_is_left_when_the_plugin_fails_to_get_ready() {
    let setup = Setup::new(&[
        "eval",
        "get_size=echo 1M",
        "pread=exit 1",
        "get_ready=echo EIO not today >&2; exit 1",
    ]);
    let refusal = setup.refusal();
    assert!(refusal.stderr.contains("not today"), "{refusal:#?}");
    assert!(!setup.path("control").exists(), "{refusal:#?}");
}

#[test]
fn no_socket_is_left_when_the_plugin_fails_after_the_fork() {
    let setup = Setup::new(&[
        "eval",
        "get_size=echo 1M",
        "pread=exit 1",
        "after_fork=echo EIO not today >&2; exit 1",
    ]);
    let refusal = setup.failure();
    assert!(refusal.stderr.contains("not today"), "{refusal:#?}");
    assert!(!setup.path("control").exists(), "{refusal:#?}");
}

#[test]
fn the_socket_is_private_unless_told_otherwise_whatever_the_umask() {
    for umask in [0, 0o022, 0o077, 0o377] {
        let server = Setup::in_memory().umask(umask).start();
        assert_eq!(socket_mode(&server.control_path()), Some(0o600), "umask {umask:o}");
        server.stop();
    }
}

#[test]
fn pause_mode_is_the_mode_of_the_socket_whatever_the_umask() {
    for umask in [0, 0o022, 0o377] {
        for (given, expected) in
            [("0660", 0o660), ("666", 0o666), ("0777", 0o777), ("0", 0), ("07", 0o7)]
        {
            let server = Setup::in_memory()
                .umask(umask)
                .parameters(&[&format!("pause-mode={given}")])
                .start();
            assert_eq!(socket_mode(&server.control_path()), Some(expected), "umask {umask:o}");
            server.stop();
        }
    }
}

#[test]
fn the_umask_of_the_server_is_what_it_would_be_without_us() {
    let umask = |setup: Setup| {
        let server = setup.umask(0o027).start();
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("Umask:"));
        line.expect("a umask").to_owned()
    };
    assert_eq!(umask(Setup::in_memory()), umask(Setup::in_memory().no_filter()));
}

#[test]
fn a_pause_mode_that_is_not_up_to_four_octal_digits_is_refused() {
    for mode in ["", "8", "0800", "1000", "7777", "00600", "0o600", "-1", "+600", "rw", "600 "] {
        let parameter = format!("pause-mode={mode}");
        let refusal = Setup::in_memory().parameters(&[&parameter]).refusal();
        assert!(refusal.stderr.contains(&parameter), "{refusal:#?}");
        assert!(refusal.stderr.contains("octal"), "{refusal:#?}");
    }
}

#[test]
fn a_missing_pause_control_is_refused() {
    let refusal = Setup::in_memory().control(None).refusal();
    assert!(refusal.stderr.contains("pause-control"), "{refusal:#?}");
    assert!(refusal.stderr.contains("missing"), "{refusal:#?}");
}

#[test]
fn an_empty_pause_control_is_refused() {
    let refusal = Setup::in_memory().control(Some("")).refusal();
    assert!(refusal.stderr.contains("pause-control"), "{refusal:#?}");
    assert!(refusal.stderr.contains("empty"), "{refusal:#?}");
}

/// A path that, made absolute, has this many bytes.
fn path_of_length(setup: &Setup, length: usize) -> String {
    let folder = setup.path("");
    let mut path = folder.to_str().unwrap().to_owned();
    while path.len() < length {
        path.push('x');
    }
    assert_eq!(path.len(), length, "the temporary folder's path is too long");
    path
}

#[test]
fn a_path_of_107_bytes_is_served() {
    let setup = Setup::in_memory();
    let path = path_of_length(&setup, 107);
    let server = setup.control(Some(&path)).start();
    server.controller().pause();
    server.stop();
}

#[test]
fn a_path_over_107_bytes_is_refused() {
    let mut setup = Setup::in_memory();
    let long = path_of_length(&setup, 108);
    // Given as a relative path, it is the absolute one that counts.
    let name = long.rsplit('/').next().unwrap().to_owned();
    for given in [&long, &name] {
        setup = setup.control(Some(given));
        let refusal = setup.refusal();
        assert!(refusal.stderr.contains("pause-control="), "{refusal:#?}");
        assert!(refusal.stderr.contains(&long), "{refusal:#?}");
        assert!(refusal.stderr.contains("107"), "{refusal:#?}");
    }
}

#[test]
fn a_missing_parent_is_refused() {
    let setup = Setup::in_memory().control(Some("no/such/control"));
    let refusal = setup.refusal();
    let parent = setup.path("no/such");
    assert!(refusal.stderr.contains("pause-control="), "{refusal:#?}");
    assert!(refusal.stderr.contains(parent.to_str().unwrap()), "{refusal:#?}");
    assert!(!setup.path("no").exists());
}

#[test]
fn a_parent_that_is_a_file_is_refused() {
    let setup = Setup::in_memory().control(Some("file/control"));
    fs::write(setup.path("file"), "precious").unwrap();
    let refusal = setup.refusal();
    let path = setup.path("file/control");
    assert!(refusal.stderr.contains("pause-control="), "{refusal:#?}");
    assert!(refusal.stderr.contains(path.to_str().unwrap()), "{refusal:#?}");
    assert_eq!(fs::read(setup.path("file")).unwrap(), b"precious");
}

#[test]
fn an_unreadable_parent_is_refused() {
    let setup = Setup::in_memory().control(Some("parent/control")).under_a_mere_user();
    let parent = setup.path("parent");
    fs::create_dir(&parent).unwrap();
    set_mode(&parent, 0o000);
    let refusal = setup.refusal();
    assert!(refusal.stderr.contains("pause-control="), "{refusal:#?}");
    assert!(refusal.stderr.contains(parent.to_str().unwrap()), "{refusal:#?}");
    assert!(refusal.stderr.contains("ermission denied"), "{refusal:#?}");
    // So that it can be cleaned up.
    set_mode(&parent, 0o700);
}

#[test]
fn a_parent_that_is_not_writable_is_refused() {
    let setup = Setup::in_memory().control(Some("parent/control")).under_a_mere_user();
    let parent = setup.path("parent");
    fs::create_dir(&parent).unwrap();
    set_mode(&parent, 0o555);
    let refusal = setup.refusal();
    let path = setup.path("parent/control");
    assert!(refusal.stderr.contains("pause-control="), "{refusal:#?}");
    assert!(refusal.stderr.contains(path.to_str().unwrap()), "{refusal:#?}");
    assert!(refusal.stderr.contains("ermission denied"), "{refusal:#?}");
}

#[test]
fn a_mere_user_can_run_it() {
    let server = Setup::in_memory().under_a_mere_user().start();
    server.controller().pause();
    server.stop();
}

#[test]
fn the_last_pause_control_wins() {
    let setup = Setup::in_memory().parameters(&["pause-control=first"]);
    let first = setup.path("first");
    let server = setup.start();
    server.controller().pause();
    assert!(!first.exists());
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
    ]);
    let keys = server.path("keys");
    let server = server.start();
    assert_eq!(fs::read_to_string(keys).unwrap(), "pause-foo=1\npause=2\nfile=3\n");
    server.stop();

    // And one that does not.
    let refusal = Setup::in_memory().parameters(&["pause-foo=1"]).refusal();
    assert!(refusal.stderr.contains("pause-foo"), "{refusal:#?}");
    assert!(!refusal.stderr.contains("pause-control"), "{refusal:#?}");
}

#[test]
fn the_filter_given_twice_is_refused() {
    let ours = filter::ours().to_str().unwrap();
    let setup = Setup::in_memory().below(ours, &[]);
    let refusal = setup.refusal();
    assert!(refusal.stderr.contains("more than once"), "{refusal:#?}");
    assert!(!setup.path("control").exists());
}

#[test]
fn help_shows_all_parameters() {
    let mut nbdkit = nbdkit::command();
    nbdkit
        .arg(format!("--filter={}", filter::ours().display()))
        .args([&nbdkit::plugin("null"), "--help"]);
    let help = run(nbdkit).succeeded();
    for parameter in [
        "pause-control=SOCKET",
        "pause-mode=MODE",
        "pause-flush=BOOL",
        "pause-timeout=DURATION",
        "pause-hold=BOOL",
    ] {
        assert!(help.stdout.contains(parameter), "{parameter}: {help:#?}");
    }
}

#[test]
fn dumping_the_plugin_makes_no_socket() {
    let setup = Setup::in_memory();
    let mut nbdkit = nbdkit::command();
    nbdkit
        .current_dir(setup.path(""))
        .arg(format!("--filter={}", filter::ours().display()))
        .args([&nbdkit::plugin("memory"), "--dump-plugin"]);
    run(nbdkit).succeeded();
    assert!(!setup.path("control").exists());
}
