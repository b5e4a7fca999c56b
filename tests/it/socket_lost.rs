//! The control socket's file, or its directory, is removed, renamed or replaced while
//! the server runs: that is noticed, told once, and set right as soon as it can be;
//! nobody who is connected, and no pause, is touched by it. What is there before the
//! server starts, or after it has ended, is in `socket.rs`.

use super::*;

/// With the control socket in a directory of its own, `run`.
fn in_run() -> Setup {
    let setup = Setup::in_memory().control(Some("run/control"));
    fs::create_dir(setup.path("run")).unwrap();
    setup
}

fn remove_socket(server: &Server) {
    fs::remove_file(server.control_path()).unwrap();
}

/// The file `theirs` takes the place of the socket.
fn put_in_place(server: &Server) {
    fs::rename(server.path("theirs"), server.control_path()).unwrap();
}

/// A new `theirs`, whose owner is alive, or has died if this is dropped.
fn their_socket(server: &Server) -> UnixListener {
    UnixListener::bind(server.path("theirs")).unwrap()
}

/// To whom a file is given if the server is not to run as root.
fn give_to_nobody(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

// Removed.

dialogues! {
    Setup::in_memory() => {
        /// Nobody who could resume stays connected.
        a_paused_server_whose_socket_was_removed_is_resumed_over_a_new_connection:
            "A:p=P A.closes held remove:control back still B:r=R flow";
    }
    Setup::in_memory().holds() => {
        a_controller_that_was_connected_goes_on_with_its_hold_in_force:
            "A:+=+ held remove:control back B:+-=+- still A:-=- flow";
    }
}

#[test]
fn a_removed_socket_is_put_back_and_that_is_told_once() {
    let mut stage = Stage::on(Setup::in_memory());
    stage.server.control_thread();
    let at_first = descriptors(stage.server.pid());
    for (line, loss) in [("A:pr=PR A.closes", 1), ("B:pr=PR B.closes", 2)] {
        stage.play("remove:control back").play(line).play(&format!("lines:{loss}"));
        let parameter = format!("pause-control={}: ", stage.server.control_path().display());
        let said = stage.server.messages();
        expect_line(said.lines().last().unwrap(), &[&parameter, "removed", "has been put back"]);
    }
    stage.play("idle lines:2");
    eventually("no descriptor is kept", GENEROUS, || descriptors(stage.server.pid()) == at_first);
    // It is removed at the end as the first one would have been.
    stage.end();
}

/// It is never put back with more permissions than were asked for; the rest may be
/// added a moment later.
fn has_exactly(mode: u32, umask: u32) {
    let parameter = format!("pause-mode={mode:o}");
    let server = Setup::in_memory().umask(umask).with(&parameter).start();
    let control = server.control_path();
    let first = look(&control);
    remove_socket(&server);
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
    let modes = [0o600, 0o660, 0o777, 0];
    let all = [0, 0o022, 0o077, 0o377].map(|umask| modes.map(|mode| (mode, umask)));
    together(all.concat(), |(mode, umask)| has_exactly(mode, umask));
}

/// As strace shows it: the permissions are there before the name is, and the
/// umask, which belongs to all threads, is left alone.
#[test]
fn a_socket_is_private_before_it_has_a_name_and_the_umask_is_nobody_elses() {
    let calls = "trace=fchmod,bind,chmod,fchmodat,listen,umask,unshare";
    let setup = Setup::in_memory().umask(0o027).with("pause-mode=0664");
    let mut stage = Stage::on(setup.under(&["strace", "-f", "-e", calls, "-o", "trace"]));
    let ours = format!("{} ", stage.server.control_thread());
    stage.play("remove:control back");
    let trace = fs::read_to_string(stage.end().path("trace")).unwrap();
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
    let mut stage = Stage::on(Setup::in_memory().with("pause-mode=0640"));
    set_mode(&stage.server.control_path(), 0o662);
    stage.play("remove:control back A:r=R");
    assert_eq!(socket_mode(&stage.server.control_path()), Some(0o640));
    stage.end();
}

/// A group that no user of these tests is in.
const OTHERS: u32 = 54321;

#[test]
fn it_is_put_back_with_the_owner_and_the_permissions_that_it_had() {
    if !is_root() {
        println!("SKIPPED: only root can give a file away");
        return;
    }
    let mut stage = Stage::on(Setup::in_memory().with("pause-mode=0660"));
    let control = stage.server.control_path();
    chown(&control, Some(NOBODY), Some(OTHERS)).unwrap();
    set_mode(&control, 0o640);
    for _ in 0..2 {
        stage.play("remove:control back A:r=R A.closes");
        let found = fs::symlink_metadata(&control).unwrap();
        assert_eq!((found.uid(), found.gid()), (NOBODY, OTHERS));
        assert_eq!(socket_mode(&control), Some(0o640));
    }
    let said = stage.server.messages();
    assert!(said.lines().all(|line| line.ends_with("has been put back")), "{said}");
    stage.end();
}

// Its directory is gone, or can't be used.

#[test]
fn a_removed_directory_is_told_once_and_the_socket_is_put_back_when_it_is_there_again() {
    let mut stage = Stage::on(in_run());
    let run = stage.server.path("run");
    stage.play("A:p=P held");
    fs::remove_dir_all(&run).unwrap();
    // Who is connected is served all the time.
    stage.play("lost:directory_./run|No_such_file_or_directory idle A:p=P still");
    fs::create_dir(run).unwrap();
    stage.play("back B:r=R flow looks lines:2 told:1:has_been_put_back");
    stage.end();
}

#[test]
fn a_directory_that_was_renamed_and_is_named_back_still_has_the_same_socket() {
    let mut stage = Stage::on(in_run());
    let (run, away) = (stage.server.path("run"), stage.server.path("away"));
    let before = look(&stage.server.control_path());
    fs::rename(&run, &away).unwrap();
    stage.play("lost:");
    // Where it is now, it is served.
    Controller::connect(&away.join("control")).pause();
    fs::rename(&away, &run).unwrap();
    stage.play("back A:r=R says:the_control_socket_is_back_at_its_path lines:2");
    assert!(look(&stage.server.control_path()) == before, "it was touched");
    stage.end();
}

#[test]
fn who_had_connected_before_the_socket_was_put_back_is_served() {
    let mut stage = Stage::on(in_run());
    let (run, away) = (stage.server.path("run"), stage.server.path("away"));
    // More than the server lets in before it looks.
    stage.play("stop ABCDEFGHIJKLMNOPQRST:x");
    fs::rename(&run, &away).unwrap();
    fs::create_dir(&run).unwrap();
    stage.play("looks go-on ABCDEFGHIJKLMNOPQRST:=X back U:p=P");
    // The former socket is dead, and not only ignored.
    let refused = UnixStream::connect(away.join("control")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    stage.play("ABCDEFGHIJKLMNOPQRST:r=R");
    // The former one is left where it was taken.
    stage.end();
}

/// To open a FIFO is to wait for its other end.
#[test]
fn a_fifo_in_place_of_the_directory_does_not_keep_the_operator_from_being_heard() {
    let mut stage = Stage::on(in_run());
    let (run, fifo) = (stage.server.path("run"), stage.server.path("fifo"));
    make_fifo(&fifo);
    stage.play("A:p=P");
    exchange(&run, &fifo);
    stage.play("lost:Not_a_directory looks A:r=R");
    exchange(&run, &fifo);
    stage.play("says:back_at_its_path lines:2");
    stage.end();
}

#[test]
fn in_a_directory_that_is_not_writable_that_is_told_once_until_it_is() {
    let setup = in_run().under_a_mere_user();
    let (run, other) = (setup.path("run"), setup.path("other"));
    fs::create_dir(&other).unwrap();
    give_to_nobody(&run);
    give_to_nobody(&other);
    set_mode(&other, 0o555);
    let mut stage = Stage::on(setup);
    stage.play("A:r=R");
    exchange(&run, &other);
    stage.play("lost:Permission_denied|give_the_user idle lines:1 A:p=P");
    set_mode(&run, 0o755);
    stage.play("back B:r=R lines:2");
    stage.end();
}

/// Who may write there need not be permitted to read there.
#[test]
fn in_a_directory_that_cannot_be_read_it_is_put_back_all_the_same() {
    let setup = in_run().under_a_mere_user();
    let run = setup.path("run");
    give_to_nobody(&run);
    set_mode(&run, 0o300);
    let mut stage = Stage::on(setup);
    remove_socket(&stage.server);
    stage.play("back A:p=P lines:1");

    // To replace a dead socket it has to be locked, and for that to be read.
    drop(their_socket(&stage.server));
    // Whether it is dead, every user may see.
    set_mode(&stage.server.path("theirs"), 0o777);
    put_in_place(&stage.server);
    stage.play("lost:cannot_open_the_directory|read_permission");
    set_mode(&run, 0o700);
    stage.play("back B:r=R");
    stage.end();
}

// A directory that somebody keeps locked must not keep the control thread.

#[test]
fn a_dead_socket_in_a_locked_directory_is_replaced_when_the_lock_is_gone() {
    let mut stage = Stage::on(in_run());
    stage.play("A:r=R");
    let lock = lock(&stage.server.path("run"));
    drop(their_socket(&stage.server));
    let dead = look(&stage.server.path("theirs"));
    put_in_place(&stage.server);
    stage.play("lost:locked idle");
    assert!(look(&stage.server.control_path()) == dead, "it was touched");
    stage.play("A:pr=PR");
    drop(lock);
    stage.play("back B:p=P lines:2");
    stage.end();
}

#[test]
fn a_locked_directory_is_no_obstacle_where_the_path_is_free() {
    let mut stage = Stage::on(in_run());
    let _lock = lock(&stage.server.path("run"));
    remove_socket(&stage.server);
    stage.play("back A:p=P lines:1");
    stage.end();
}

// Something else takes its place.

/// It is said what it is, by `name`, and left alone, and the socket is put back after it.
fn is_told_and_untouched(name: &str, occupant: impl FnOnce(&Path)) {
    let mut stage = Stage::on(Setup::in_memory());
    let (control, other) = (stage.server.control_path(), stage.server.path("other"));
    stage.play("A:r=R");
    occupant(&other);
    let theirs = look(&other);
    exchange(&control, &other);
    stage.play(&format!("lost:{}_is_there looks lines:1", name.replace(' ', "_")));
    assert!(look(&control) == theirs, "it was touched");
    stage.play("A:p=P");
    fs::rename(&control, stage.server.path("away")).unwrap();
    stage.play("back B:r=R told:1:has_been_put_back lines:2");
    assert_eq!(socket_mode(&control), Some(0o600));
    stage.end();
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
    together(occupants, |(name, make)| is_told_and_untouched(name, make));
}

#[test]
fn the_live_socket_of_another_process_in_its_place_is_told_once_and_not_even_disturbed() {
    let mut stage = Stage::on(Setup::in_memory());
    let listener = their_socket(&stage.server);
    listener.set_nonblocking(true).unwrap();
    let theirs = look(&stage.server.path("theirs"));
    put_in_place(&stage.server);
    stage.play("lost:a_process_has_this_socket_open looks lines:1");
    assert!(look(&stage.server.control_path()) == theirs, "it was touched");
    // Nobody has knocked.
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // Its owner dies, and leaves a dead one.
    drop(listener);
    stage.play("back A:p=P lines:2");
    stage.end();
}

#[test]
fn a_server_that_took_the_path_keeps_it_until_it_ends() {
    let mut first = Stage::on(Setup::in_memory());
    let second = Setup::in_memory().control(first.server.control_path().to_str());
    // So that it is not put back before the other one starts.
    first.play("stop remove:control");
    let second = second.start();
    first.play("go-on lost:");
    second.controller().pause();
    second.stop();
    first.play("back A:p=P");
    first.end();
}

#[test]
fn a_file_in_place_of_a_socket_that_was_put_back_survives_our_exit() {
    let mut stage = Stage::on(Setup::in_memory());
    let (control, theirs) = (stage.server.control_path(), stage.server.path("theirs"));
    stage.play("remove:control back");
    fs::write(&theirs, "precious").unwrap();
    let before = look(&theirs);
    put_in_place(&stage.server);
    stage.play("goes term");
    let ended = stage.server.ended(PROMPT);
    assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
    assert!(look(&control) == before, "it was touched");
}

// The server has become another user.

/// nbdkit -u nobody, over a control socket in root's own directory.
fn changing_user(mode_of_directory: u32) -> Option<Stage> {
    if !is_root() {
        println!("SKIPPED: only root can use nbdkit -u");
        return None;
    }
    let setup = in_run().changing_user();
    set_mode(&setup.path("run"), mode_of_directory);
    Some(Stage::on(setup.umask(0o022).with("pause-mode=0660")))
}

#[test]
fn after_a_change_of_user_a_removed_socket_that_cannot_be_put_back_is_told_once() {
    let is_told = |mode_of_directory| {
        let Some(mut stage) = changing_user(mode_of_directory) else { return };
        stage.play("A:p=P looks lines:0");
        remove_socket(&stage.server);
        stage.play("lost:Permission_denied|give_the_user looks lines:1 A:r=R");
        stage.end();
    };
    // Nobody may not even look into the last one.
    together([0o755, 0o711, 0o700], is_told);
}

#[test]
fn after_a_change_of_user_a_removed_socket_is_put_back_where_that_user_may_write() {
    let Some(mut stage) = changing_user(0o777) else { return };
    let control = stage.server.control_path();
    remove_socket(&stage.server);
    stage.play("back A:p=P");
    eventually("it has its mode", GENEROUS, || socket_mode(&control) == Some(0o660));
    assert_ne!(fs::symlink_metadata(control).unwrap().uid(), 0);
    stage.end();
}

#[test]
fn where_it_cannot_have_its_group_again_no_other_group_may_connect() {
    let Some(mut stage) = changing_user(0o777) else { return };
    let control = stage.server.control_path();
    chown(&control, None, Some(OTHERS)).unwrap();
    for loss in 1..=2 {
        remove_socket(&stage.server);
        stage.play("back A:r=R A.closes").play(&format!("lines:{loss}"));
        let found = fs::symlink_metadata(&control).unwrap();
        assert_eq!((found.uid(), socket_mode(&control)), (NOBODY, Some(0o600)));
        assert_ne!(found.gid(), OTHERS);
        // The next one is as this one was.
        let said = stage.server.messages();
        let is_told = said.lines().last().unwrap().contains("no more access than everyone");
        assert_eq!(is_told, loss == 1, "{said}");
    }
    stage.end();
}

// No descriptors.

#[test]
fn out_of_descriptors_it_is_put_back_later_and_there_is_no_busy_loop() {
    let mut stage = Stage::on(Setup::in_memory());
    stage.play("A:p=P");
    let pid = stage.server.pid();
    let usual = limit_descriptors(pid, next_descriptor(pid));
    stage.play("remove:control lost:Too_many_open_files|ulimit_-n idle lines:1 A:r=R");
    limit_descriptors(pid, usual);
    stage.play("back B:p=P lines:2");
    stage.end();
}

/// The directory, the socket and its file are opened, one after the other.
#[test]
fn whatever_step_runs_out_of_descriptors_nothing_is_left_in_the_way() {
    let with_spare = |spare: u64| {
        let mut stage = Stage::on(Setup::in_memory());
        stage.server.control_thread();
        let pid = stage.server.pid();
        let usual = limit_descriptors(pid, next_descriptor(pid) + spare);
        stage.play("remove:control lost:");
        assert_eq!(socket_mode(&stage.server.control_path()), None, "with {spare} to spare");
        limit_descriptors(pid, usual);
        stage.play("back A:p=P");
        stage.end();
    };
    together(0..3, with_spare);
}

/// To remove what is there would cut off the server whose socket it is.
#[test]
fn where_it_cannot_be_told_whether_a_socket_is_dead_nobody_is_told_to_remove_it() {
    let mut stage = Stage::on(Setup::in_memory());
    stage.server.control_thread();
    let pid = stage.server.pid();
    // For the directory and the file, none to look whether anybody has it open.
    let usual = limit_descriptors(pid, next_descriptor(pid) + 2);
    let alive = their_socket(&stage.server);
    put_in_place(&stage.server);
    stage.play("lost:cannot_tell|ulimit_-n told:0:remove");
    limit_descriptors(pid, usual);
    drop(alive);
    stage.play("remove:control back A:p=P");
    stage.end();

    let Some(mut stage) = changing_user(0o777) else { return };
    let alive = their_socket(&stage.server);
    set_mode(&stage.server.path("theirs"), 0o600);
    put_in_place(&stage.server);
    stage.play("lost:Permission_denied|if_nobody_does");
    drop(alive);
    remove_socket(&stage.server);
    stage.play("back A:p=P");
    stage.end();
}
