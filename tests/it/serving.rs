//! However nbdkit is run, and whatever filters are above and below: a pause works there
//! as it does everywhere. Plugins are in `plugins.rs`, and the end of a server during a
//! pause is in `shutdown.rs`.

use super::*;

/// A read goes through, another one is held by a pause, and goes on after it.
fn a_pause_holds_requests(client: &mut Client, mut controller: Controller) {
    client.ask(READ);
    controller.pause();
    let held = client.held(READ);
    controller.resume();
    client.goes_on(held);
}

fn a_pause_works(server: &Server) {
    a_pause_holds_requests(&mut Client::connect(server), server.controller());
}

dialogues! {
    Setup::in_memory() => { a_pause_works_in_the_foreground: "read A:p=P held A:r=R flow"; }
    Setup::in_memory().background() => {
        a_pause_works_in_the_background: "read A:p=P held A:r=R flow";
    }
}

#[test]
fn a_pause_works_on_a_read_only_server() {
    let server = Setup::with_disk(1).options(&["-r"]).start();
    a_pause_works(&server);
    server.stop();
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

/// A client that reads on and on, under a filter that makes requests in a thread of its
/// own. It has begun to.
struct ReadAhead(Client, u64);

impl ReadAhead {
    fn setup() -> Setup {
        Setup::with_disk(16).above("readahead", &[]).logged()
    }

    fn begin(server: &Server) -> Self {
        let mut reader = ReadAhead(Client::connect(server), 0);
        let count = || server.logged().matches(" Cache id=").count();
        let before = count();
        eventually("the filter above reads ahead", GENEROUS, || {
            let read = reader.next();
            reader.0.reply(read).unwrap();
            count() > before
        });
        reader
    }

    fn next(&mut self) -> Ticket {
        self.1 += 4096;
        self.0.send(Read(self.1))
    }
}

#[test]
fn a_pause_works_below_a_filter_that_makes_requests_in_a_thread_of_its_own() {
    let server = ReadAhead::setup().start();
    let mut reader = ReadAhead::begin(&server);
    let mut controller = server.controller();
    for _ in 0..20 {
        let read = reader.next();
        controller.pause();
        let before = server.logged_bytes();
        // It may have been read ahead.
        let early = reader.0.reply_within(read, A_WHILE / 10);
        assert_eq!(server.logged_bytes(), before);
        controller.resume();
        early.unwrap_or_else(|| reader.0.reply(read)).expect("success");
    }
    drop(reader);
    server.stop();
}

#[test]
fn a_request_that_a_filter_above_makes_for_itself_outlives_its_client_and_not_the_server() {
    let server = ReadAhead::setup().start();
    let at_rest = server.threads_at_rest();
    for is_last in [false, false, false, false, true] {
        let mut reader = ReadAhead::begin(&server);
        let mut controller = server.controller();
        controller.pause();
        // With each comes one of the filter above, which is held.
        for _ in 0..3 {
            let read = reader.next();
            reader.0.expect_held(&[read], A_WHILE / 3);
        }
        if is_last {
            // Those that are held are dropped, and so are those that come then: nobody
            // ends a pause for them.
            server.terminate();
            break;
        }
        drop(reader);
        // The filter above waits for its own to end: they serve nobody's connection.
        thread::sleep(A_WHILE / 3);
        controller.resume();
        eventually("the connection is gone", PROMPT, || server.threads() <= at_rest);
    }
    let said = server.ended(PROMPT).well().process.stderr;
    assert!(!said.contains("must not be dropped"), "{said}");
}

// Listening.

#[test]
fn a_client_can_begin_tls_over_tcp_before_a_pause_and_in_one() {
    let mut stage = Stage::on(Setup::in_memory().tls());
    stage.play("read A:p=P held A:r=R flow goes A:p=P held A:r=R flow");
    assert!(stage.client().speaks_tls());
    stage.end();
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

/// A disk that takes four seconds to read.
fn slow_disk() -> Setup {
    let setup = Setup::new(&["file", "disk.img"]).below("rate", &["rate=16M", "burstiness=0.1"]);
    fs::write(setup.path("disk.img"), vec![0xaa; 8 << 20]).unwrap();
    setup.logged()
}

/// `copy` is read from the plugin, as the `log` of the requests shows, not in a
/// pause, and goes on after it.
pub fn a_copy_halts(copy: &mut Process, controller: &mut Controller, log: &Path) {
    let reads = || fs::read_to_string(log).unwrap_or_default().matches("Read id=").count();
    eventually("the copy is on its way", GENEROUS, || reads() > 1);
    controller.pause();
    let before = reads();
    thread::sleep(A_WHILE);
    assert!(copy.is_running(), "the copy was done before it could be paused");
    assert_eq!(reads(), before, "the copy went on in a pause");
    controller.resume();
}

#[test]
fn a_pause_works_with_socket_activation() {
    let setup = slow_disk();
    let [control, disk, copy, log] =
        ["control", "disk.img", "copy", "log"].map(|name| setup.path(name));
    let setup = setup.control(control.to_str());
    let mut nbdcopy = Command::new("nbdcopy");
    nbdcopy.args(["--connections=1", "--requests=1", "--", "["]).args(setup.activated());
    nbdcopy.arg("]").arg(&copy).current_dir(setup.path(""));
    let mut nbdcopy = Process::start(nbdcopy);
    eventually("the server listens", GENEROUS, || UnixStream::connect(&control).is_ok());
    a_copy_halts(&mut nbdcopy, &mut Controller::connect(&control), &log);
    nbdcopy.finish(GENEROUS).succeeded();
    assert!(fs::read(&copy).unwrap() == fs::read(&disk).unwrap());
}

// Starting and ending.

#[test]
fn a_pause_works_under_a_captive_nbdkit() {
    let copy = r#"nbdcopy --connections=1 --requests=1 "$uri" copy"#;
    let mut server = slow_disk().options(&["--run", copy]).start();
    let (log, mut controller) = (server.path("log"), server.controller());
    a_copy_halts(server.process(), &mut controller, &log);
    let ended = server.ended(GENEROUS).well();
    assert!(ended.disk() == fs::read(ended.path("copy")).unwrap());
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
    let path = control.to_str().unwrap();
    expect_line(said, &[path, "cannot remove the control socket", "ermission denied"]);
    // What is left is in nobody's way.
    play(Setup::in_memory().control(Some(path)), "pause");
}

#[test]
fn the_end_of_its_parent_ends_a_paused_server() {
    let setup = Setup::in_memory().under(&["sh", "-c", r#""$@" & wait"#, "sh"]);
    let mut stage = Stage::on(setup.options(&["--exit-with-parent"]));
    stage.play("pause A:p=P held").server.kill_parent();
    stage.play("dropped goes");
    eventually("the server goes", PROMPT, || !is_alive(stage.server.pid()));
    assert!(!stage.server.control_path().exists());
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
        Setup::in_memory().filter(other).refused(&[refused]);
    }
    // Not for any other reason.
    assert_eq!(filter::ours().extension().unwrap(), "so");
    let mut nbdkit = nbdkit::command();
    nbdkit.arg(format!("--filter={}", filter::ours().display()));
    nbdkit.args([&nbdkit::plugin("null"), "--dump-plugin"]);
    run(nbdkit).succeeded();
}
