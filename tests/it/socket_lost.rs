//! The control socket's file, or its directory, is removed, renamed or replaced while
//! the server runs: that is noticed, told once, and set right as soon as it can be;
//! nobody who is connected, and no pause, is touched by it. What is there before the
//! server starts, or after it has ended, is in `socket.rs`.

use super::*;

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

/// What these tests ask of a server whose socket is lost.
trait Lost {
    fn is_back(&self);
    fn new_controller(&self) -> Controller;
    fn trouble(&self, words: &[&str]);
    fn has_said(&self, lines: usize);
    fn is_not_busy(&self);
    fn remove_socket(&self);
    fn put_in_place(&self, name: &str);
}

impl Lost for Server {
    fn is_back(&self) {
        let path = self.control_path();
        eventually("the socket is back", GENEROUS, || UnixStream::connect(&path).is_ok());
    }

    /// A controller that connects as soon as there is a socket again. Who has a reply
    /// knows that its return was told: `is_back` alone can be earlier.
    fn new_controller(&self) -> Controller {
        self.is_back();
        self.controller()
    }

    /// Waits until the server has said for the first time that the socket can't be put
    /// back, in a line with these words.
    fn trouble(&self, words: &[&str]) {
        self.says(LOST);
        let parameter = format!("error: pause: pause-control={}: ", self.control_path().display());
        expect_line(&self.messages(), &[&[LOST, &parameter], words].concat());
    }

    /// So many lines are all that it has said.
    fn has_said(&self, lines: usize) {
        let messages = self.messages();
        assert_eq!(messages.lines().count(), lines, "{messages}");
    }

    /// From look to look.
    fn is_not_busy(&self) {
        self.expect_no_busy_loop(|| thread::sleep(A_LOOK));
    }

    fn remove_socket(&self) {
        fs::remove_file(self.control_path()).unwrap();
    }

    /// The file with this name takes the place of the socket.
    fn put_in_place(&self, name: &str) {
        fs::rename(self.path(name), self.control_path()).unwrap();
    }
}

// Removed.

#[test]
fn a_removed_socket_is_put_back_and_that_is_told_once() {
    let server = Setup::in_memory().start();
    server.control_thread();
    let at_first = descriptors(server.pid());
    for loss in 1..=2 {
        server.remove_socket();
        server.new_controller().ask("pr", "PR");
        server.has_said(loss);
        let parameter = format!("pause-control={}: ", server.control_path().display());
        expect_line(server.messages().lines().last().unwrap(), &[&parameter, "removed", BACK]);
    }
    server.is_not_busy();
    server.has_said(2);
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
    let held = client.held(READ);
    server.remove_socket();
    let mut operator = server.new_controller();
    client.expect_held(&[held], A_WHILE);
    operator.resume();
    client.goes_on(held);
    drop((client, operator));
    server.stop();
}

#[test]
fn a_controller_that_was_connected_goes_on_with_its_hold_in_force() {
    let server = Setup::in_memory().holds().start();
    let mut client = Client::connect(&server);
    let mut holder = server.controller();
    holder.hold();
    let held = client.held(READ);
    server.remove_socket();
    server.new_controller().ask("+-", "+-");
    client.expect_held(&[held], A_WHILE);
    holder.ask("-", "-");
    client.goes_on(held);
}

/// It is never put back with more permissions than were asked for; the rest may be
/// added a moment later.
fn has_exactly(mode: u32, umask: u32) {
    let parameter = format!("pause-mode={mode:o}");
    let server = Setup::in_memory().umask(umask).with(&parameter).start();
    let control = server.control_path();
    let first = look(&control);
    server.remove_socket();
    eventually("it is put back", GENEROUS, || {
        let back = socket_mode(&control);
        assert_eq!(back.unwrap_or(0) & !mode, 0, "umask {umask:o}, {parameter}");
        back == Some(mode)
    });
    assert!(look(&control) != first);
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

/// As strace shows it: the permissions are there before the name is, and the
/// umask, which belongs to all threads, is left alone.
#[test]
fn a_socket_is_private_before_it_has_a_name_and_the_umask_is_nobody_elses() {
    let calls = "trace=fchmod,bind,chmod,fchmodat,listen,umask,unshare";
    let setup = Setup::in_memory().umask(0o027).with("pause-mode=0664");
    let server = setup.under(&["strace", "-f", "-e", calls, "-o", "trace"]).start();
    let ours = format!("{} ", server.control_thread());
    server.remove_socket();
    server.is_back();
    let trace = fs::read_to_string(server.stop().path("trace")).unwrap();
    let called = trace.lines().filter_map(|line| line.strip_prefix(&ours).map(str::trim));
    let called: Vec<&str> = called.filter(|call| !call.starts_with("+++")).collect();
    let expected = ["fchmod(", "bind(", "chmod(\"/proc/self/fd/", "listen("];
    assert_eq!(called.len(), expected.len(), "{called:#?}");
    assert!(
        called.iter().zip(expected).all(|(call, start)| call.starts_with(start)),
        "{called:#?}"
    );
    assert!(called[0].contains(", 0664)") && called[2].contains(", 0664)"), "{called:#?}");
}

/// What looks like more can be an ACL's mask.
#[test]
fn it_is_never_put_back_with_more_permissions_than_were_asked_for() {
    let server = Setup::in_memory().with("pause-mode=0640").start();
    set_mode(&server.control_path(), 0o662);
    server.remove_socket();
    server.new_controller().resume();
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
    let server = Setup::in_memory().with("pause-mode=0660").start();
    let control = server.control_path();
    chown(&control, Some(NOBODY), Some(OTHERS)).unwrap();
    set_mode(&control, 0o640);
    for _ in 0..2 {
        server.remove_socket();
        server.new_controller().resume();
        let found = fs::symlink_metadata(&control).unwrap();
        assert_eq!((found.uid(), found.gid()), (NOBODY, OTHERS));
        assert_eq!(socket_mode(&control), Some(0o640));
    }
    let messages = server.messages();
    assert!(messages.lines().all(|line| line.ends_with(BACK)), "{messages}");
    server.stop();
}

// Its directory is gone, or can't be used.

#[test]
fn a_removed_directory_is_told_once_and_the_socket_is_put_back_when_it_is_there_again() {
    let server = setup_in_run().start();
    let mut client = Client::connect(&server);
    let mut before = server.controller();
    before.pause();
    let held = client.send(READ);
    fs::remove_dir_all(server.path("run")).unwrap();
    let directory = format!("directory {}", server.path("run").display());
    server.trouble(&[&directory, "No such file or directory"]);
    server.is_not_busy();
    // Who is connected is served all the time.
    before.pause();
    client.expect_held(&[held], A_WHILE);

    fs::create_dir(server.path("run")).unwrap();
    server.new_controller().resume();
    client.goes_on(held);
    thread::sleep(A_LOOK);
    server.has_said(2);
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
    server.trouble(&[]);
    // Where it is now, it is served.
    Controller::connect(&away.join("control")).pause();
    fs::rename(&away, &run).unwrap();
    server.new_controller().resume();
    server.says("the control socket is at its path again");
    assert!(look(&server.control_path()) == before, "it was touched");
    server.has_said(2);
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
        let mut waiting = server.controllers(20);
        waiting.iter_mut().for_each(|controller| controller.send(b"x"));
        fs::rename(&run, &away).unwrap();
        fs::create_dir(&run).unwrap();
        thread::sleep(A_LOOK);
        waiting
    });
    waiting.iter_mut().for_each(|controller| controller.expect("X"));
    server.new_controller().pause();
    // The former socket is dead, and not only ignored.
    let refused = UnixStream::connect(away.join("control")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    waiting.iter_mut().for_each(Controller::resume);
    drop(waiting);
    // The former one is left where it was taken.
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
    server.trouble(&["Not a directory"]);
    thread::sleep(A_LOOK);
    operator.resume();
    exchange(&server.path("run"), &server.path("fifo"));
    server.says("at its path again");
    server.has_said(2);
    drop(operator);
    server.stop();
}

/// To whom the server is given that does not run as root.
fn give_to_nobody(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

#[test]
fn in_a_directory_that_is_not_writable_that_is_told_once_until_it_is() {
    let setup = setup_in_run().under_a_mere_user();
    give_to_nobody(&setup.path("run"));
    let server = setup.start();
    let (run, other) = (server.path("run"), server.path("other"));
    let mut before = server.controller();
    fs::create_dir(&other).unwrap();
    give_to_nobody(&other);
    set_mode(&other, 0o555);
    exchange(&run, &other);
    server.trouble(&["Permission denied", "permit the user"]);
    server.is_not_busy();
    server.has_said(1);
    before.pause();
    set_mode(&run, 0o755);
    server.new_controller().resume();
    server.has_said(2);
    drop(before);
    server.stop();
}

/// Who may write there need not be permitted to read there.
#[test]
fn in_a_directory_that_cannot_be_read_it_is_put_back_all_the_same() {
    let setup = setup_in_run().under_a_mere_user();
    let run = setup.path("run");
    give_to_nobody(&run);
    set_mode(&run, 0o300);
    let server = setup.start();
    server.remove_socket();
    server.new_controller().pause();
    server.has_said(1);

    // To replace a dead socket it has to be locked, and for that to be read.
    drop(UnixListener::bind(server.path("dead")).unwrap());
    // Whether it is dead, every user may see.
    set_mode(&server.path("dead"), 0o777);
    server.put_in_place("dead");
    server.trouble(&["cannot open the directory", "read there"]);
    set_mode(&run, 0o700);
    server.new_controller().resume();
    server.stop();
}

// A directory that somebody keeps locked must not keep the control thread.

#[test]
fn a_dead_socket_in_a_locked_directory_is_replaced_when_the_lock_is_gone() {
    let server = setup_in_run().start();
    let mut operator = server.controller();
    let lock = lock(&server.path("run"));
    drop(UnixListener::bind(server.path("dead")).unwrap());
    let dead = look(&server.path("dead"));
    server.put_in_place("dead");
    server.trouble(&["locked"]);
    server.is_not_busy();
    assert!(look(&server.control_path()) == dead, "it was touched");
    operator.ask("pr", "PR");
    drop(lock);
    server.new_controller().pause();
    server.has_said(2);
    drop(operator);
    server.stop();
}

#[test]
fn a_locked_directory_is_no_obstacle_where_the_path_is_free() {
    let server = setup_in_run().start();
    let lock = lock(&server.path("run"));
    server.remove_socket();
    server.new_controller().pause();
    server.has_said(1);
    drop(lock);
    server.stop();
}

// Something else takes its place.

/// It is said what it is, by `name`, and left alone, and the socket is put back after it.
fn is_told_and_untouched(name: &str, occupant: impl FnOnce(&Path)) {
    let server = Setup::in_memory().start();
    let (control, other) = (server.control_path(), server.path("other"));
    let mut before = server.controller();
    occupant(&other);
    let theirs = look(&other);
    exchange(&control, &other);
    server.trouble(&[&format!("{name} is there")]);
    thread::sleep(A_LOOK);
    server.has_said(1);
    assert!(look(&control) == theirs, "it was touched");
    before.pause();

    fs::rename(&control, server.path("away")).unwrap();
    server.new_controller().resume();
    assert_eq!(server.messages_count(BACK), 1, "{}", server.messages());
    server.has_said(2);
    assert_eq!(socket_mode(&control), Some(0o600));
    drop(before);
    server.stop();
}

#[test]
fn whatever_takes_its_place_is_told_once_and_untouched() {
    type Make = fn(&Path);
    let occupants: [(&str, Make); 4] = [
        ("a regular file", |path| fs::write(path, "precious").unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a FIFO", make_fifo),
        // To the socket itself, which has that name then.
        ("a symbolic link", |path| symlink("other", path).unwrap()),
    ];
    thread::scope(|scope| {
        for (name, make) in occupants {
            scope.spawn(move || is_told_and_untouched(name, make));
        }
    });
}

#[test]
fn the_live_socket_of_another_process_in_its_place_is_told_once_and_not_even_disturbed() {
    let server = Setup::in_memory().start();
    let listener = UnixListener::bind(server.path("other")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let theirs = look(&server.path("other"));
    server.put_in_place("other");
    server.trouble(&["a process has the socket open"]);
    thread::sleep(A_LOOK);
    server.has_said(1);
    assert!(look(&server.control_path()) == theirs, "it was touched");
    // Nobody has knocked.
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // Its owner dies, and leaves a dead one.
    drop(listener);
    server.new_controller().pause();
    server.has_said(2);
    server.stop();
}

#[test]
fn a_server_that_took_the_path_keeps_it_until_it_ends() {
    let first = Setup::in_memory().start();
    let path = first.control_path();
    let second = Setup::in_memory().control(path.to_str());
    // So that it is not put back before the other one starts.
    let second = while_stopped(&first, || {
        first.remove_socket();
        second.start()
    });
    first.trouble(&[]);
    second.controller().pause();
    second.stop();
    first.new_controller().pause();
    first.stop();
}

#[test]
fn a_file_in_place_of_a_socket_that_was_put_back_survives_our_exit() {
    let server = Setup::in_memory().start();
    let control = server.control_path();
    server.remove_socket();
    server.is_back();
    fs::write(server.path("theirs"), "precious").unwrap();
    let theirs = look(&server.path("theirs"));
    server.put_in_place("theirs");
    server.terminate();
    let ended = server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
    assert!(look(&control) == theirs, "it was touched");
}

// The server has become another user.

/// nbdkit -u nobody, over a control socket in root's own directory.
fn changing_user(mode_of_directory: u32) -> Option<Server> {
    if !is_root() {
        println!("SKIPPED: only root can use nbdkit -u");
        return None;
    }
    let setup = setup_in_run().changing_user();
    set_mode(&setup.path("run"), mode_of_directory);
    Some(setup.umask(0o022).with("pause-mode=0660").start())
}

fn is_told_after_a_change_of_user(mode_of_directory: u32) {
    let Some(server) = changing_user(mode_of_directory) else { return };
    let mut before = server.controller();
    before.pause();
    thread::sleep(A_LOOK);
    server.has_said(0);
    server.remove_socket();
    server.trouble(&["Permission denied", "permit the user"]);
    thread::sleep(A_LOOK);
    server.has_said(1);
    before.resume();
    drop(before);
    server.terminate();
    let ended = server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
}

#[test]
fn after_a_change_of_user_a_removed_socket_that_cannot_be_put_back_is_told_once() {
    // Nobody may not even look into the last one.
    thread::scope(|scope| {
        for mode in [0o755, 0o711, 0o700] {
            scope.spawn(move || is_told_after_a_change_of_user(mode));
        }
    });
}

#[test]
fn after_a_change_of_user_a_removed_socket_is_put_back_where_that_user_may_write() {
    let Some(server) = changing_user(0o777) else { return };
    server.remove_socket();
    server.new_controller().pause();
    eventually("it has its mode", GENEROUS, || socket_mode(&server.control_path()) == Some(0o660));
    assert_ne!(fs::symlink_metadata(server.control_path()).unwrap().uid(), 0);
    server.stop();
}

#[test]
fn where_it_cannot_have_its_group_again_no_other_group_may_connect() {
    let Some(server) = changing_user(0o777) else { return };
    let control = server.control_path();
    chown(&control, None, Some(OTHERS)).unwrap();
    for loss in 1..=2 {
        server.remove_socket();
        server.new_controller().resume();
        let found = fs::symlink_metadata(&control).unwrap();
        assert_eq!((found.uid(), socket_mode(&control)), (NOBODY, Some(0o600)));
        assert_ne!(found.gid(), OTHERS);
        server.has_said(loss);
        // The next one is as this one was.
        let is_told = server.messages().lines().last().unwrap().contains("no more than everybody");
        assert_eq!(is_told, loss == 1, "{}", server.messages());
    }
    server.stop();
}

// No descriptors.

#[test]
fn out_of_descriptors_it_is_put_back_later_and_there_is_no_busy_loop() {
    let server = Setup::in_memory().start();
    let mut before = server.controller();
    before.pause();
    let usual = limit_descriptors(server.pid(), next_descriptor(server.pid()));
    server.remove_socket();
    server.trouble(&["Too many open files", "ulimit -n"]);
    server.is_not_busy();
    server.has_said(1);
    before.resume();
    limit_descriptors(server.pid(), usual);
    server.new_controller().pause();
    server.has_said(2);
    drop(before);
    server.stop();
}

/// The directory, the socket and its file are opened, one after the other.
#[test]
fn whatever_step_runs_out_of_descriptors_nothing_is_left_in_the_way() {
    let with_spare = |spare: u64| {
        let server = Setup::in_memory().start();
        server.control_thread();
        let usual = limit_descriptors(server.pid(), next_descriptor(server.pid()) + spare);
        server.remove_socket();
        server.trouble(&[]);
        assert_eq!(socket_mode(&server.control_path()), None, "with {spare} to spare");
        limit_descriptors(server.pid(), usual);
        server.new_controller().pause();
        server.stop();
    };
    thread::scope(|scope| {
        for spare in 0..3 {
            scope.spawn(move || with_spare(spare));
        }
    });
}

/// To remove what is there would cut off the server whose socket it is.
#[test]
fn where_it_cannot_be_told_whether_a_socket_is_dead_nobody_is_told_to_remove_it() {
    let server = Setup::in_memory().start();
    server.control_thread();
    // For the directory and the file, none to look whether anybody has it open.
    let usual = limit_descriptors(server.pid(), next_descriptor(server.pid()) + 2);
    let alive = UnixListener::bind(server.path("theirs")).unwrap();
    server.put_in_place("theirs");
    server.trouble(&["cannot tell", "ulimit -n"]);
    assert!(!server.messages().contains("remove"), "{}", server.messages());
    limit_descriptors(server.pid(), usual);
    server.remove_socket();
    drop(alive);
    server.new_controller().pause();
    server.stop();

    let Some(server) = changing_user(0o777) else { return };
    let alive = UnixListener::bind(server.path("theirs")).unwrap();
    set_mode(&server.path("theirs"), 0o600);
    server.put_in_place("theirs");
    server.trouble(&["Permission denied", "if nobody does"]);
    drop(alive);
    server.remove_socket();
    server.new_controller().pause();
    server.stop();
}
