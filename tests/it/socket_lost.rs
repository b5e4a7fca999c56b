//! The control socket's file, or its directory, is removed, renamed or replaced
//! while the server runs: that is noticed, told once, and set right as soon as it
//! can be; nobody who is connected, and no pause, is touched by it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::common::clients::nc;
use crate::common::control::Controller;
use crate::common::files::{exchange, lock, look, make_fifo, set_mode, socket_mode};
use crate::common::nbd::{Client, Request};
use crate::common::process::{descriptors, go_on, limit_descriptors, next_descriptor, stop};
use crate::common::server::{NOBODY, Server, Setup, is_root};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};

const READ: Request = Request::Read(0);

/// The server looks at the path every two seconds: at least once in this time.
const A_LOOK: Duration = Duration::from_millis(2500);

/// What is said of a socket that can't be put back, and of its return.
const LOST: &str = "not at its path any more";
const BACK: &str = "has been put back";

/// With the control socket in a directory of its own, `run`.
fn setup_in_run() -> Setup {
    let setup = Setup::in_memory().control(Some("run/control"));
    fs::create_dir(setup.path("run")).unwrap();
    setup
}

/// A controller that connects as soon as there is a socket again. Who has a reply
/// knows that its return was told: `is_back` alone can be earlier.
fn new_controller(server: &Server) -> Controller {
    is_back(server);
    server.controller()
}

fn is_back(server: &Server) {
    let path = server.control_path();
    eventually("the socket is back", GENEROUS, || UnixStream::connect(&path).is_ok());
}

/// Waits until the server has said for the first time that the socket can't be
/// put back, and returns what it said of it.
fn trouble(server: &Server) -> String {
    eventually("the loss is told", GENEROUS, || server.messages_count(LOST) > 0);
    let messages = server.messages();
    let line = messages.lines().find(|line| line.contains(LOST)).unwrap().to_owned();
    let parameter = format!("error: pause: pause-control={}: ", server.control_path().display());
    assert!(line.contains(&parameter), "{line}");
    line
}

/// So many lines are all that the server has said.
fn expect_messages(server: &Server, count: usize) {
    let messages = server.messages();
    assert_eq!(messages.lines().count(), count, "{messages}");
}

/// From look to look, the server is not busy.
fn expect_no_busy_loop(server: &Server) {
    server.expect_no_busy_loop(|| thread::sleep(A_LOOK));
}

#[test]
fn a_removed_socket_is_put_back_and_that_is_told_once() {
    let server = Setup::in_memory().start();
    server.control_thread();
    let at_first = descriptors(server.pid());
    for loss in 1..=2 {
        fs::remove_file(server.control_path()).unwrap();
        let mut operator = new_controller(&server);
        operator.pause();
        operator.resume();
        expect_messages(&server, loss);
        let said = server.messages().lines().last().unwrap().to_owned();
        let path = server.control_path();
        assert!(said.contains(&format!("pause-control={}: ", path.display())), "{said}");
        assert!(said.contains("removed") && said.contains(BACK), "{said}");
    }
    expect_no_busy_loop(&server);
    expect_messages(&server, 2);
    eventually("no descriptor is kept", GENEROUS, || descriptors(server.pid()) == at_first);
    // It is removed at the end as the first one would have been.
    server.stop();
}

#[test]
fn a_paused_server_whose_socket_was_removed_is_resumed_over_a_new_connection() {
    let server = Setup::in_memory().start();
    let mut client = Client::connect(&server);
    // Nobody who could resume stays connected.
    assert_eq!(nc(&["-N"], &server.control_path(), b"p").stdout, "P");
    let held = client.send(READ);
    client.all_read_by_server();
    fs::remove_file(server.control_path()).unwrap();
    let mut operator = new_controller(&server);
    client.expect_held(&[held], A_WHILE);
    operator.resume();
    client.reply(held).unwrap();
    drop((client, operator));
    server.stop();
}

#[test]
fn a_controller_that_was_connected_goes_on_with_its_hold_in_force() {
    let server = Setup::in_memory().parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    let mut holder = server.controller();
    holder.hold();
    let held = client.send(READ);
    client.all_read_by_server();
    fs::remove_file(server.control_path()).unwrap();
    let mut late = new_controller(&server);
    late.hold();
    late.send(b"-");
    late.expect("-");
    client.expect_held(&[held], A_WHILE);
    holder.send(b"-");
    holder.expect("-");
    client.reply(held).unwrap();
}

#[test]
fn a_removed_directory_is_told_once_and_the_socket_is_put_back_when_it_is_there_again() {
    let server = setup_in_run().start();
    let mut client = Client::connect(&server);
    let mut before = server.controller();
    before.pause();
    let held = client.send(READ);
    fs::remove_dir_all(server.path("run")).unwrap();
    let said = trouble(&server);
    assert!(said.contains(&format!("directory {}", server.path("run").display())), "{said}");
    assert!(said.contains("No such file or directory"), "{said}");
    expect_no_busy_loop(&server);
    // Who is connected is served all the time.
    before.pause();
    client.expect_held(&[held], A_WHILE);

    fs::create_dir(server.path("run")).unwrap();
    new_controller(&server).resume();
    client.reply(held).unwrap();
    thread::sleep(A_LOOK);
    expect_messages(&server, 2);
    assert_eq!(server.messages_count(BACK), 1, "{}", server.messages());
    drop((client, before));
    server.stop();
}

#[test]
fn a_directory_that_was_renamed_and_is_named_back_still_has_the_same_socket() {
    let server = setup_in_run().start();
    let (run, away) = (server.path("run"), server.path("away"));
    let before = look(&server.control_path());
    fs::rename(&run, &away).unwrap();
    trouble(&server);
    // Where it is now, it is served.
    Controller::connect(&away.join("control")).pause();
    fs::rename(&away, &run).unwrap();
    new_controller(&server).resume();
    eventually("the end is told", GENEROUS, || {
        server.messages_count("the control socket is at its path again") == 1
    });
    assert!(look(&server.control_path()) == before, "it was touched");
    expect_messages(&server, 2);
    server.stop();
}

/// Stops the server as `kill -STOP` does, and lets it go on after `act`.
fn while_stopped<R>(server: &Server, act: impl FnOnce() -> R) -> R {
    stop(server.pid());
    let done = act();
    go_on(server.pid());
    done
}

#[test]
fn who_had_connected_before_the_socket_was_put_back_is_served() {
    let server = setup_in_run().start();
    let (run, away) = (server.path("run"), server.path("away"));
    // More than the server lets in before it looks.
    let mut waiting = while_stopped(&server, || {
        let mut waiting: Vec<Controller> = (0..20).map(|_| server.controller()).collect();
        for controller in &mut waiting {
            controller.send(b"x");
        }
        fs::rename(&run, &away).unwrap();
        fs::create_dir(&run).unwrap();
        thread::sleep(A_LOOK);
        waiting
    });
    for controller in &mut waiting {
        controller.expect("X");
    }
    new_controller(&server).pause();
    // The former socket is dead, and not only ignored.
    let refused = UnixStream::connect(away.join("control")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for controller in &mut waiting {
        controller.resume();
    }
    drop(waiting);
    server.stop();
    // The former one is left where it was taken.
}

/// Something else takes the path at once; `occupant` makes it. It is said what
/// it is, by `name`, and left alone, and the socket is put back after it.
fn is_told_and_untouched(name: &str, occupant: impl FnOnce(&Path)) {
    let server = Setup::in_memory().start();
    let (control, other) = (server.control_path(), server.path("other"));
    let mut before = server.controller();
    occupant(&other);
    let theirs = look(&other);
    exchange(&control, &other);
    let said = trouble(&server);
    assert!(said.contains(&format!("{name} is there")), "{said}");
    thread::sleep(A_LOOK);
    expect_messages(&server, 1);
    assert!(look(&control) == theirs, "it was touched");
    before.pause();

    fs::rename(&control, server.path("away")).unwrap();
    new_controller(&server).resume();
    assert_eq!(server.messages_count(BACK), 1, "{}", server.messages());
    expect_messages(&server, 2);
    assert_eq!(socket_mode(&control), Some(0o600));
    drop(before);
    server.stop();
}

#[test]
fn whatever_takes_its_place_is_told_once_and_untouched() {
    thread::scope(|scope| {
        scope.spawn(|| {
            is_told_and_untouched("a regular file", |path| fs::write(path, "precious").unwrap())
        });
        scope.spawn(|| is_told_and_untouched("a directory", |path| fs::create_dir(path).unwrap()));
        scope.spawn(|| is_told_and_untouched("a FIFO", make_fifo));
        // To the socket itself, which has that name then.
        let link = |path: &Path| symlink("other", path).unwrap();
        scope.spawn(move || is_told_and_untouched("a symbolic link", link));
    });
}

#[test]
fn the_live_socket_of_another_process_in_its_place_is_told_once_and_not_even_disturbed() {
    let server = Setup::in_memory().start();
    let (control, other) = (server.control_path(), server.path("other"));
    let listener = UnixListener::bind(&other).unwrap();
    listener.set_nonblocking(true).unwrap();
    let theirs = look(&other);
    fs::rename(&other, &control).unwrap();
    let said = trouble(&server);
    assert!(said.contains("a process has the socket open"), "{said}");
    thread::sleep(A_LOOK);
    expect_messages(&server, 1);
    assert!(look(&control) == theirs, "it was touched");
    // Nobody has knocked.
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // Its owner dies, and leaves a dead one.
    drop(listener);
    let mut operator = new_controller(&server);
    operator.pause();
    expect_messages(&server, 2);
    drop(operator);
    server.stop();
}

#[test]
fn a_server_that_took_the_path_keeps_it_until_it_ends() {
    let first = Setup::in_memory().start();
    let path = first.control_path();
    let second = Setup::in_memory().control(path.to_str());
    // So that it is not put back before the other one starts.
    let second = while_stopped(&first, || {
        fs::remove_file(&path).unwrap();
        second.start()
    });
    trouble(&first);
    Controller::connect(&path).pause();
    second.stop();
    new_controller(&first).pause();
    first.stop();
}

/// A directory that somebody keeps locked must not keep the control thread.
#[test]
fn a_dead_socket_in_a_locked_directory_is_replaced_when_the_lock_is_gone() {
    let server = setup_in_run().start();
    let mut operator = server.controller();
    let lock = lock(&server.path("run"));
    drop(UnixListener::bind(server.path("dead")).unwrap());
    let dead = look(&server.path("dead"));
    fs::rename(server.path("dead"), server.control_path()).unwrap();
    let said = trouble(&server);
    assert!(said.contains("locked"), "{said}");
    expect_no_busy_loop(&server);
    assert!(look(&server.control_path()) == dead, "it was touched");
    operator.pause();
    operator.resume();
    drop(lock);
    new_controller(&server).pause();
    expect_messages(&server, 2);
    drop(operator);
    server.stop();
}

#[test]
fn a_locked_directory_is_no_obstacle_where_the_path_is_free() {
    let server = setup_in_run().start();
    let lock = lock(&server.path("run"));
    fs::remove_file(server.control_path()).unwrap();
    new_controller(&server).pause();
    expect_messages(&server, 1);
    drop(lock);
    server.stop();
}

/// To open a FIFO is to wait for its other end.
#[test]
fn a_fifo_in_place_of_the_directory_does_not_keep_the_operator_from_being_heard() {
    let server = setup_in_run().start();
    let mut operator = server.controller();
    operator.pause();
    make_fifo(&server.path("fifo"));
    exchange(&server.path("run"), &server.path("fifo"));
    let said = trouble(&server);
    assert!(said.contains("Not a directory"), "{said}");
    thread::sleep(A_LOOK);
    operator.resume();
    exchange(&server.path("run"), &server.path("fifo"));
    eventually("the end is told", GENEROUS, || server.messages_count("at its path again") == 1);
    expect_messages(&server, 2);
    drop(operator);
    server.stop();
}

#[test]
fn a_socket_that_was_put_back_has_exactly_pause_mode_whatever_the_umask_and_never_more() {
    thread::scope(|scope| {
        for umask in [0, 0o022, 0o077, 0o377] {
            for mode in [0o600, 0o660, 0o777, 0] {
                scope.spawn(move || has_exactly(mode, umask));
            }
        }
    });
}

fn has_exactly(mode: u32, umask: u32) {
    let parameter = format!("pause-mode={mode:o}");
    let server = Setup::in_memory().umask(umask).parameters(&[&parameter]).start();
    let control = server.control_path();
    let first = look(&control);
    fs::remove_file(&control).unwrap();
    eventually("it is put back", GENEROUS, || {
        let back = socket_mode(&control);
        assert_eq!(back.unwrap_or(0) & !mode, 0, "umask {umask:o}, {parameter}");
        // The rest may be added a moment later.
        back == Some(mode)
    });
    assert!(look(&control) != first);
    server.stop();
}

/// As strace shows it: the permissions are there before the name is, and the
/// umask, which belongs to all threads, is left alone.
#[test]
fn a_socket_is_private_before_it_has_a_name_and_the_umask_is_nobody_elses() {
    let calls = "trace=fchmod,bind,chmod,fchmodat,listen,umask,unshare";
    let server = Setup::in_memory()
        .umask(0o027)
        .parameters(&["pause-mode=0664"])
        .under(&["strace", "-f", "-e", calls, "-o", "trace"])
        .start();
    let ours = server.control_thread();
    fs::remove_file(server.control_path()).unwrap();
    is_back(&server);
    let ended = server.stop();
    let trace = fs::read_to_string(ended.path("trace")).unwrap();
    let called: Vec<&str> = trace
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{ours} ")))
        .map(|call| call.trim())
        .filter(|call| !call.starts_with("+++"))
        .collect();
    let expected = ["fchmod(", "bind(", "chmod(\"/proc/self/fd/", "listen("];
    assert_eq!(called.len(), expected.len(), "{called:#?}");
    for (call, expected) in called.iter().zip(expected) {
        assert!(call.starts_with(expected), "{called:#?}");
    }
    assert!(called[0].contains(", 0664)") && called[2].contains(", 0664)"), "{called:#?}");
}

#[test]
fn in_a_directory_that_is_not_writable_that_is_told_once_until_it_is() {
    let setup = setup_in_run();
    let setup = setup.under_a_mere_user();
    if is_root() {
        chown(setup.path("run"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let server = setup.start();
    let (run, other) = (server.path("run"), server.path("other"));
    let mut before = server.controller();
    fs::create_dir(&other).unwrap();
    if is_root() {
        chown(&other, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    set_mode(&other, 0o555);
    exchange(&run, &other);
    let said = trouble(&server);
    assert!(said.contains("Permission denied") && said.contains("permit the user"), "{said}");
    expect_no_busy_loop(&server);
    expect_messages(&server, 1);
    before.pause();
    set_mode(&run, 0o755);
    new_controller(&server).resume();
    expect_messages(&server, 2);
    drop(before);
    server.stop();
}

/// nbdkit -u nobody, over a control socket in root's own directory.
fn changing_user(mode_of_directory: u32) -> Option<Server> {
    if !is_root() {
        println!("SKIPPED: only root can use nbdkit -u");
        return None;
    }
    let setup = setup_in_run().changing_user();
    set_mode(&setup.path("run"), mode_of_directory);
    Some(setup.umask(0o022).parameters(&["pause-mode=0660"]).start())
}

#[test]
fn after_a_change_of_user_a_removed_socket_that_cannot_be_put_back_is_told_once() {
    // Nobody may not even look into the last one.
    thread::scope(|scope| {
        for mode in [0o755, 0o711, 0o700] {
            scope.spawn(move || after_a_change_of_user(mode));
        }
    });
}

fn after_a_change_of_user(mode_of_directory: u32) {
    let Some(server) = changing_user(mode_of_directory) else { return };
    let mut before = server.controller();
    before.pause();
    thread::sleep(A_LOOK);
    expect_messages(&server, 0);
    fs::remove_file(server.control_path()).unwrap();
    let said = trouble(&server);
    assert!(said.contains("Permission denied") && said.contains("permit the user"), "{said}");
    thread::sleep(A_LOOK);
    expect_messages(&server, 1);
    before.resume();
    drop(before);
    server.terminate();
    let ended = server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
}

#[test]
fn after_a_change_of_user_a_removed_socket_is_put_back_where_that_user_may_write() {
    let Some(server) = changing_user(0o777) else { return };
    fs::remove_file(server.control_path()).unwrap();
    new_controller(&server).pause();
    eventually("it has its mode", GENEROUS, || socket_mode(&server.control_path()) == Some(0o660));
    assert_ne!(fs::symlink_metadata(server.control_path()).unwrap().uid(), 0);
    server.stop();
}

/// What looks like more can be an ACL's mask.
#[test]
fn it_is_never_put_back_with_more_permissions_than_were_asked_for() {
    let server = Setup::in_memory().parameters(&["pause-mode=0640"]).start();
    set_mode(&server.control_path(), 0o662);
    fs::remove_file(server.control_path()).unwrap();
    new_controller(&server).resume();
    assert_eq!(socket_mode(&server.control_path()), Some(0o640));
    server.stop();
}

/// A group that no user of these tests is in.
const OTHERS: u32 = 54321;

#[test]
fn it_is_put_back_with_the_owner_and_the_permissions_that_it_had() {
    if !is_root() {
        println!("SKIPPED: only root can give a file away");
        return;
    }
    let server = Setup::in_memory().parameters(&["pause-mode=0660"]).start();
    let control = server.control_path();
    chown(&control, Some(NOBODY), Some(OTHERS)).unwrap();
    set_mode(&control, 0o640);
    for _ in 0..2 {
        fs::remove_file(&control).unwrap();
        new_controller(&server).resume();
        let found = fs::symlink_metadata(&control).unwrap();
        assert_eq!((found.uid(), found.gid()), (NOBODY, OTHERS));
        assert_eq!(socket_mode(&control), Some(0o640));
    }
    let messages = server.messages();
    assert!(messages.lines().all(|line| line.ends_with(BACK)), "{messages}");
    server.stop();
}

#[test]
fn where_it_cannot_have_its_group_again_no_other_group_may_connect() {
    let Some(server) = changing_user(0o777) else { return };
    let control = server.control_path();
    chown(&control, None, Some(OTHERS)).unwrap();
    for loss in 1..=2 {
        fs::remove_file(&control).unwrap();
        new_controller(&server).resume();
        let found = fs::symlink_metadata(&control).unwrap();
        assert_eq!((found.uid(), socket_mode(&control)), (NOBODY, Some(0o600)));
        assert_ne!(found.gid(), OTHERS);
        expect_messages(&server, loss);
        // The next one is as this one was.
        let is_told = server.messages().lines().last().unwrap().contains("no more than everybody");
        assert_eq!(is_told, loss == 1, "{}", server.messages());
    }
    server.stop();
}

#[test]
fn out_of_descriptors_it_is_put_back_later_and_there_is_no_busy_loop() {
    let server = Setup::in_memory().start();
    let mut before = server.controller();
    before.pause();
    let usual = limit_descriptors(server.pid(), next_descriptor(server.pid()));
    fs::remove_file(server.control_path()).unwrap();
    let said = trouble(&server);
    assert!(said.contains("Too many open files") && said.contains("ulimit -n"), "{said}");
    expect_no_busy_loop(&server);
    expect_messages(&server, 1);
    before.resume();
    limit_descriptors(server.pid(), usual);
    new_controller(&server).pause();
    expect_messages(&server, 2);
    drop(before);
    server.stop();
}

/// To remove what is there would cut off the server whose socket it is.
#[test]
fn where_it_cannot_be_told_whether_a_socket_is_dead_nobody_is_told_to_remove_it() {
    let server = Setup::in_memory().start();
    server.control_thread();
    // For the directory and the file, none to look whether anybody has it open.
    let usual = limit_descriptors(server.pid(), next_descriptor(server.pid()) + 2);
    let control = server.control_path();
    let theirs = server.path("theirs");
    let alive = UnixListener::bind(&theirs).unwrap();
    fs::rename(&theirs, &control).unwrap();
    let said = trouble(&server);
    assert!(said.contains("cannot tell") && said.contains("ulimit -n"), "{said}");
    assert!(!said.contains("remove"), "{said}");
    limit_descriptors(server.pid(), usual);
    fs::remove_file(&control).unwrap();
    drop(alive);
    new_controller(&server).pause();
    server.stop();

    let Some(server) = changing_user(0o777) else { return };
    let control = server.control_path();
    let theirs = server.path("theirs");
    let alive = UnixListener::bind(&theirs).unwrap();
    set_mode(&theirs, 0o600);
    fs::rename(&theirs, &control).unwrap();
    let said = trouble(&server);
    assert!(said.contains("Permission denied") && said.contains("if nobody does"), "{said}");
    drop(alive);
    fs::remove_file(&control).unwrap();
    new_controller(&server).pause();
    server.stop();
}

/// Who may write there need not be permitted to read there.
#[test]
fn in_a_directory_that_cannot_be_read_it_is_put_back_all_the_same() {
    let setup = setup_in_run().under_a_mere_user();
    let run = setup.path("run");
    if is_root() {
        chown(&run, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    set_mode(&run, 0o300);
    let server = setup.start();
    fs::remove_file(server.control_path()).unwrap();
    new_controller(&server).pause();
    expect_messages(&server, 1);

    // To replace a dead socket it has to be locked, and for that to be read.
    let dead = server.path("dead");
    drop(UnixListener::bind(&dead).unwrap());
    // Whether it is dead, every user may see.
    set_mode(&dead, 0o777);
    fs::rename(&dead, server.control_path()).unwrap();
    let said = trouble(&server);
    assert!(said.contains("cannot open the directory") && said.contains("read there"), "{said}");
    set_mode(&run, 0o700);
    new_controller(&server).resume();
    server.stop();
}

/// The directory, the socket and its file are opened, one after the other.
#[test]
fn whatever_step_runs_out_of_descriptors_nothing_is_left_in_the_way() {
    thread::scope(|scope| {
        for spare in 0..3 {
            scope.spawn(move || {
                let server = Setup::in_memory().start();
                server.control_thread();
                let next = next_descriptor(server.pid());
                let usual = limit_descriptors(server.pid(), next + spare);
                fs::remove_file(server.control_path()).unwrap();
                trouble(&server);
                assert_eq!(socket_mode(&server.control_path()), None, "with {spare} to spare");
                limit_descriptors(server.pid(), usual);
                new_controller(&server).pause();
                server.stop();
            });
        }
    });
}

#[test]
fn a_file_in_place_of_a_socket_that_was_put_back_survives_our_exit() {
    let server = Setup::in_memory().start();
    let control = server.control_path();
    fs::remove_file(&control).unwrap();
    is_back(&server);
    fs::write(server.path("theirs"), "precious").unwrap();
    let theirs = look(&server.path("theirs"));
    fs::rename(server.path("theirs"), &control).unwrap();
    server.terminate();
    let ended = server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
    assert!(look(&control) == theirs, "it was touched");
}
