//! However nbdkit is run, and whatever is above and below the filter: a pause
//! works there as it does everywhere. The shape of the replies and the end of
//! a server during a pause have files of their own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::common::control::Controller;
use crate::common::nbd::{Client, Request};
use crate::common::process::{Process, is_alive};
use crate::common::server::{NOBODY, Server, Setup, is_root};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually, filter, nbdkit};

const READ: Request = Request::Read(0);
const WRITE: Request = Request::Write(512, 0xee);

/// A read goes through, another one is held by a pause, and goes on after it.
fn a_pause_holds_requests(client: &mut Client, mut controller: Controller) {
    client.ask(READ);
    controller.pause();
    let held = client.send(READ);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
}

fn a_pause_works(server: &Server) {
    a_pause_holds_requests(&mut Client::connect(server), server.controller());
}

// Plugins, by thread model and by language.

/// A plugin in shell, which runs a process for each request.
const SHELL_PLUGIN: &str = r#"#!/bin/sh
case "$1" in
    get_size) stat -L -c %s disk.img ;;
    pread) dd if=disk.img skip="$4" count="$3" iflag=skip_bytes,count_bytes status=none ;;
    pwrite) dd of=disk.img seek="$4" oflag=seek_bytes conv=notrunc status=none ;;
    can_write) exit 0 ;;
    thread_model) echo THREAD_MODEL ;;
    *) exit 2 ;;
esac
"#;

fn shell_plugin(thread_model: &str) -> Setup {
    let setup = Setup::new(&["sh", "./disk.sh"]);
    fs::write(setup.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let script = SHELL_PLUGIN.replace("THREAD_MODEL", thread_model);
    fs::write(setup.path("disk.sh"), script).unwrap();
    crate::common::files::set_mode(&setup.path("disk.sh"), 0o755);
    setup
}

/// What the plugin serves is served, and not while the server is paused.
fn a_pause_works_over(setup: Setup) {
    let server = setup.start();
    let mut client = Client::connect(&server);
    client.ask(WRITE);
    a_pause_holds_requests(&mut client, server.controller());
    assert_eq!(client.ask(Request::Read(512)), [0xee; 512]);
    drop(client);
    server.stop();
}

#[test]
fn a_pause_works_over_a_plugin_that_serializes_connections() {
    a_pause_works_over(shell_plugin("serialize_connections"));
}

#[test]
fn a_pause_works_over_a_plugin_that_serializes_all_requests() {
    a_pause_works_over(shell_plugin("serialize_all_requests"));
}

#[test]
fn a_pause_works_over_a_plugin_that_serializes_requests() {
    a_pause_works_over(shell_plugin("serialize_requests"));
}

#[test]
fn a_pause_works_over_a_parallel_plugin_in_shell() {
    a_pause_works_over(shell_plugin("parallel"));
}

#[test]
fn a_pause_works_over_a_plugin_in_python() {
    let setup = Setup::new(&["python", "./disk.py"]);
    let script = r#"
import nbdkit

API_VERSION = 2
disk = bytearray(1 << 20)

def open(readonly):
    return 1

def get_size(handle):
    return len(disk)

def pread(handle, buffer, offset, flags):
    buffer[:] = disk[offset:offset + len(buffer)]

def pwrite(handle, buffer, offset, flags):
    disk[offset:offset + len(buffer)] = buffer
"#;
    fs::write(setup.path("disk.py"), script).unwrap();
    a_pause_works_over(setup);
}

// Other filters.

#[test]
fn a_pause_works_between_two_filters_above_and_two_below() {
    // The disk begins at 1024 of what is below, where the log is.
    let server = Setup::in_memory()
        .above("nozero", &["zeromode=emulate"])
        .above("offset", &["offset=1024"])
        .logged()
        .below("delay", &["rdelay=10ms"])
        .start();
    a_pause_works(&server);
    let log = server.logged();
    assert_eq!(log.matches(" Read id=").count(), 2, "{log}");
    assert_eq!(log.matches("offset=0x400 ").count(), 2, "{log}");
}

#[test]
fn a_pause_works_below_a_filter_that_makes_requests_in_a_thread_of_its_own() {
    let server = Setup::with_disk(16).above("readahead", &[]).logged().start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    let mut offset = 0;
    let mut read_on = |client: &mut Client| {
        offset += 4096;
        client.send(Request::Read(offset))
    };
    eventually("the filter above reads ahead", GENEROUS, || {
        let read = read_on(&mut client);
        client.reply(read).unwrap();
        server.logged().contains(" Cache id=")
    });
    for _ in 0..20 {
        let read = read_on(&mut client);
        controller.pause();
        let before = server.logged_bytes();
        // It may have been read ahead.
        let early = client.reply_within(read, A_WHILE / 10);
        assert_eq!(server.logged_bytes(), before);
        controller.resume();
        early.unwrap_or_else(|| client.reply(read)).expect("success");
    }
    drop(client);
    server.stop();
}

#[test]
fn a_request_that_a_filter_above_makes_for_itself_outlives_its_client_and_not_the_server() {
    let server = Setup::with_disk(16).above("readahead", &[]).logged().start();
    let at_rest = server.threads_at_rest();
    let rounds = 5;
    for round in 1..=rounds {
        let mut client = Client::connect(&server);
        let mut reads = (0..).map(|number| Request::Read(number * 4096));
        let mut read_on = |client: &mut Client| client.send(reads.next().unwrap());
        let before = server.logged().matches(" Cache id=").count();
        eventually("the filter above reads ahead", GENEROUS, || {
            let read = read_on(&mut client);
            client.reply(read).unwrap();
            server.logged().matches(" Cache id=").count() > before
        });
        let mut controller = server.controller();
        controller.pause();
        // With each comes one of the filter above, which is held.
        for _ in 0..3 {
            let read = read_on(&mut client);
            client.expect_held(&[read], A_WHILE / 3);
        }
        if round == rounds {
            // Those that are held are dropped, and so are those that come then: nobody
            // ends a pause for them.
            server.terminate();
            drop(client);
            break;
        }
        drop(client);
        // The filter above waits for its own to end: they serve nobody's connection.
        thread::sleep(A_WHILE / 3);
        controller.resume();
        eventually("the connection is gone", PROMPT, || server.threads() <= at_rest);
    }
    let said = server.ended(PROMPT).well().process.stderr;
    assert!(!said.contains("the pause is ended"), "{said}");
}

// Listening.

#[test]
fn a_pause_works_with_tls_over_tcp() {
    let server = Setup::in_memory().tls().start();
    let mut client = Client::connect(&server);
    assert!(client.speaks_tls());
    a_pause_holds_requests(&mut client, server.controller());
    drop(client);
    server.stop();
}

#[test]
fn a_client_can_begin_tls_while_the_server_is_paused() {
    let server = Setup::in_memory().tls().start();
    let mut controller = server.controller();
    controller.pause();
    let mut client = Client::connect(&server);
    let held = client.send(READ);
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
}

#[test]
fn a_pause_works_where_the_one_client_is_on_standard_input() {
    let setup = Setup::in_memory();
    let control = setup.path("control");
    let setup = setup.control(control.to_str());
    let mut client = Client::of_command(&setup.on_stdin());
    a_pause_holds_requests(&mut client, Controller::connect(&control));

    // It ends with its client, and is paused when that happens.
    Controller::connect(&control).pause();
    drop(client);
    eventually("the server has ended", PROMPT, || !control.exists());
}

#[test]
fn a_pause_works_with_socket_activation() {
    let setup = slow_disk().logged();
    let [control, disk, copy, log] =
        ["control", "disk.img", "copy", "log"].map(|name| setup.path(name));
    let setup = setup.control(control.to_str());
    let mut nbdcopy = Command::new("nbdcopy");
    nbdcopy
        .args(["--connections=1", "--requests=1", "--", "["])
        .args(setup.activated())
        .arg("]")
        .arg(&copy);
    nbdcopy.current_dir(setup.path(""));
    let mut nbdcopy = Process::start(nbdcopy);
    eventually("the server listens", GENEROUS, || UnixStream::connect(&control).is_ok());
    a_copy_halts(&mut nbdcopy, &mut Controller::connect(&control), &log);
    nbdcopy.finish(GENEROUS).succeeded();
    assert!(fs::read(&copy).unwrap() == fs::read(&disk).unwrap());
}

/// A disk that takes four seconds to read.
fn slow_disk() -> Setup {
    let setup = Setup::new(&["file", "disk.img"]).below("rate", &["rate=16M", "burstiness=0.1"]);
    fs::write(setup.path("disk.img"), vec![0xaa; 8 << 20]).unwrap();
    setup
}

/// `copy` is read from the plugin, as the `log` of the requests shows, not in a
/// pause, and goes on after it.
fn a_copy_halts(copy: &mut Process, controller: &mut Controller, log: &Path) {
    let reads = || fs::read_to_string(log).unwrap_or_default().matches("Read id=").count();
    eventually("the copy is on its way", GENEROUS, || reads() > 1);
    controller.pause();
    let before = reads();
    std::thread::sleep(A_WHILE);
    assert!(copy.is_running(), "the copy was done before it could be paused");
    assert_eq!(reads(), before, "the copy went on in a pause");
    controller.resume();
}

// Starting and ending.

#[test]
fn a_pause_works_under_a_captive_nbdkit() {
    let mut server = slow_disk()
        .logged()
        .options(&["--run", r#"nbdcopy --connections=1 --requests=1 "$uri" copy"#])
        .start();
    let (log, mut controller) = (server.path("log"), server.controller());
    a_copy_halts(server.process(), &mut controller, &log);
    let ended = server.ended(GENEROUS).well();
    let [disk, copy] = ["disk.img", "copy"].map(|name| fs::read(ended.path(name)).unwrap());
    assert!(disk == copy);
}

#[test]
fn a_pause_works_in_the_foreground() {
    let server = Setup::in_memory().start();
    a_pause_works(&server);
    server.stop();
}

#[test]
fn a_pause_works_in_the_background() {
    let server = Setup::in_memory().background().start();
    a_pause_works(&server);
    server.stop();
}

#[test]
fn a_pause_works_on_a_read_only_server() {
    let server = Setup::with_disk(1).options(&["-r"]).start();
    a_pause_works(&server);
    server.stop();
}

#[test]
fn a_pause_works_after_nbdkit_has_become_nobody() {
    if !is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let as_nobody = || Setup::in_memory().changing_user().options(&["-g", "nogroup"]);
    let server = as_nobody().start();
    assert_eq!(fs::metadata(format!("/proc/{}", server.pid())).unwrap().uid(), NOBODY);
    a_pause_works(&server);
    server.stop();

    // Where it may not remove its socket.
    let setup = as_nobody().control(Some("ours/control"));
    fs::create_dir(setup.path("ours")).unwrap();
    let server = setup.start();
    a_pause_works(&server);
    server.terminate();
    let ended = server.ended(PROMPT);
    assert!(ended.process.status.success(), "{:#?}", ended.process);
    let control = ended.path("ours/control");
    let said = &ended.process.stderr;
    assert!(said.contains(control.to_str().unwrap()), "{said}");
    assert!(said.contains("cannot remove the control socket"), "{said}");
    assert!(said.contains("ermission denied"), "{said}");
    // What is left is in nobody's way.
    Setup::in_memory().control(control.to_str()).start().stop();
}

#[test]
fn the_end_of_its_parent_ends_a_paused_server() {
    let server = Setup::in_memory()
        .under(&["sh", "-c", r#""$@" & wait"#, "sh"])
        .options(&["--exit-with-parent"])
        .start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    a_pause_holds_requests(&mut client, server.controller());
    controller.pause();
    let held = client.send(READ);
    client.expect_held(&[held], A_WHILE);
    server.kill_parent();
    client.expect_dropped(held, PROMPT);
    drop(client);
    eventually("the server goes", PROMPT, || !is_alive(server.pid()));
    assert!(!server.control_path().exists());
}

// Versions.

#[test]
fn a_filter_that_was_built_for_another_nbdkit_is_refused_by_nbdkit_in_the_words_of_the_readme() {
    let Some(others) = std::env::var_os("PAUSE_OTHER_FILTERS").filter(|list| !list.is_empty())
    else {
        println!("SKIPPED: there is only one nbdkit; scripts/test-versions has several");
        return;
    };
    let refused = "filter is incompatible with this version of nbdkit";
    assert!(include_str!("../../README.md").contains(refused));
    for other in std::env::split_paths(&others) {
        let said = Setup::in_memory().filter(other).refusal().stderr;
        assert!(said.contains(refused), "{said}");
    }
    // Not for any other reason.
    assert_eq!(filter::ours().extension().unwrap(), "so");
    let mut nbdkit = nbdkit::command();
    nbdkit.arg(format!("--filter={}", filter::ours().display()));
    nbdkit.args([&nbdkit::plugin("null"), "--dump-plugin"]);
    crate::common::process::run(nbdkit).succeeded();
}
