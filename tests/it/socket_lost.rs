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

/// The same, where root may not do what others may not.
fn in_run_with(mode_of_directory: u32) -> Setup {
    let setup = in_run().under_a_mere_user();
    set_mode(&setup.path("run"), mode_of_directory);
    setup
}

dialogues! {
    // Removed.
    Setup::in_memory() => {
        /// Nobody who could resume stays connected.
        a_paused_server_whose_socket_was_removed_is_resumed_over_a_new_connection:
            "A:p=P A.closes held remove:control back still B:r=R flow";
    }
    Setup::in_memory().holds() => {
        a_controller_that_was_connected_goes_on_with_its_hold_in_force:
            "A:+=+ held remove:control back B:+-=+- still A:-=- flow";
    }
    // What looks like more can be an ACL's mask.
    Setup::in_memory().with("pause-mode=0640") => {
        it_is_never_put_back_with_more_permissions_than_were_asked_for:
            "sh:chmod_662_control remove:control back A:r=R stat:%a=640";
    }

    // Its directory is gone, or can't be used.
    in_run() => {
        /// Who is connected is served all the time.
        a_removed_directory_is_told_once_and_the_socket_is_put_back_when_it_is_there_again:
            "A:p=P held sh:rm_-r_run"
            "lost:directory_./run|No_such_file_or_directory idle A:p=P still"
            "sh:mkdir_run back B:r=R flow looks lines:2 told:1:has_been_put_back";
        /// Where it is now, it is served.
        a_directory_that_was_renamed_and_is_named_back_still_has_the_same_socket:
            "sees:run/control sh:mv_run_away lost: sh:[_$(echo_p_|nc_-N_-U_away/control)_=_P_]"
            "sh:mv_away_run back A:r=R says:the_control_socket_is_back_at_its_path lines:2"
            "same:run/control";
        /// To open a FIFO is to wait for its other end.
        a_fifo_in_place_of_the_directory_does_not_keep_the_operator_from_being_heard:
            "A:p=P sh:mkfifo_fifo exchange:run:fifo"
            "lost:Not_a_directory looks A:r=R exchange:run:fifo"
            "says:back_at_its_path lines:2";
        /// Whoever keeps it locked must not keep the control thread.
        a_dead_socket_in_a_locked_directory_is_replaced_when_the_lock_is_gone:
            "A:r=R binds:theirs lets-go: locks:run sees:theirs sh:mv_theirs_run/control"
            "lost:locked idle same:run/control"
            "A:pr=PR lets-go: back B:p=P lines:2";
        a_locked_directory_is_no_obstacle_where_the_path_is_free:
            "locks:run remove:run/control back A:p=P lines:1";
    }
    in_run_with(0o777) => {
        in_a_directory_that_is_not_writable_that_is_told_once_until_it_is:
            "A:r=R sh:mkdir_-m_555_other exchange:run:other"
            "lost:Permission_denied|give_the_user idle lines:1 A:p=P"
            "sh:chmod_777_run back B:r=R lines:2";
    }
    in_run_with(0o333) => {
        /// Who may write there need not be permitted to read there. But to replace a dead
        /// socket it has to be locked, and for that to be read. Whether it is dead, every
        /// user may see.
        in_a_directory_that_cannot_be_read_it_is_put_back_all_the_same:
            "remove:run/control back A:p=P lines:1"
            "binds:theirs lets-go: sh:chmod_777_theirs sh:mv_theirs_run/control"
            "lost:cannot_open_the_directory|read_permission"
            "sh:chmod_777_run back B:r=R";
    }

    // No descriptors.
    Setup::in_memory() => {
        out_of_descriptors_it_is_put_back_later_and_there_is_no_busy_loop:
            "A:p=P spare:0"
            "remove:control lost:Too_many_open_files|ulimit_-n idle lines:1 A:r=R"
            "spare:all back B:p=P lines:2";
        /// To remove what is there would cut off the server whose socket it is. For the
        /// directory and the file there are descriptors, none to look whether anybody has
        /// it open.
        where_it_cannot_be_told_whether_a_socket_is_dead_nobody_is_told_to_remove_it:
            "spare:2 binds:theirs sh:mv_theirs_control"
            "lost:cannot_tell|ulimit_-n told:0:remove"
            "spare:all lets-go: remove:control back A:p=P";
    }
}

/// The directory, the socket and its file are opened, one after the other.
#[test]
fn whatever_step_runs_out_of_descriptors_nothing_is_left_in_the_way() {
    together(0..3, |spare| {
        let line = "remove:control lost: sh:[_!_-e_control_] spare:all back A:p=P";
        play(Setup::in_memory(), &format!("spare:{spare} {line}"));
    });
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

#[test]
fn who_had_connected_before_the_socket_was_put_back_is_served() {
    let mut stage = Stage::on(in_run());
    stage.play("stop");
    // More than the server lets in before it looks.
    let mut early = stage.server.controllers(60);
    early.iter_mut().for_each(|controller| controller.send(b"x"));
    stage.play("sh:mv_run_away sh:mkdir_run looks go-on");
    early.iter_mut().for_each(|controller| controller.expect("X"));
    stage.play("back A:p=P");
    // The former socket is dead, and not only ignored.
    let refused = UnixStream::connect(stage.server.path("away/control")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    early.iter_mut().for_each(Controller::resume);
    // The former one is left where it was taken.
    stage.end();
}

// Permissions.

/// It never has more permissions than were asked for; when it is put back, the rest may
/// be added a moment later.
fn has_exactly(parameter: &str, mode: u32, umask: u32) {
    let parameters: Vec<&str> = parameter.split_whitespace().collect();
    let server = Setup::in_memory().umask(umask).parameters(&parameters).start();
    let control = server.control_path();
    assert_eq!(socket_mode(&control), Some(mode), "umask {umask:o}, {parameter}");
    let first = look(&control);
    server.remove("control");
    eventually("it is put back", GENEROUS, || {
        let back = socket_mode(&control);
        assert_eq!(back.unwrap_or(0) & !mode, 0, "umask {umask:o}, {parameter}");
        back == Some(mode)
    });
    assert!(look(&control) != first);
    server.stop();
}

#[test]
fn the_socket_has_exactly_pause_mode_whatever_the_umask_also_when_it_is_put_back() {
    let modes =
        [("", 0o600), ("pause-mode=0660", 0o660), ("pause-mode=777", 0o777), ("pause-mode=0", 0)];
    let all = [0, 0o022, 0o077, 0o377].map(|umask| modes.map(|mode| (mode, umask)));
    together(all.concat(), |((parameter, mode), umask)| has_exactly(parameter, mode, umask));
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

#[test]
fn it_is_put_back_with_the_owner_and_the_permissions_that_it_had() {
    if !is_root() {
        println!("SKIPPED: only root can give a file away");
        return;
    }
    let mut stage = Stage::on(Setup::in_memory().with("pause-mode=0660"));
    stage.play("sh:chown_65534:54321_control sh:chmod_640_control");
    for _ in 0..2 {
        stage.play("remove:control back A:r=R A.closes stat:%u:%g:%a=65534:54321:640");
    }
    let said = stage.server.messages();
    assert!(said.lines().all(|line| line.ends_with("has been put back")), "{said}");
    stage.end();
}

// Something else takes its place.

#[test]
fn whatever_takes_its_place_is_told_once_and_untouched() {
    let occupants = [
        ("a_regular_file", "sh:echo_precious_>other"),
        ("a_directory", "sh:mkdir_other"),
        ("a_FIFO", "sh:mkfifo_other"),
        // To the socket itself, which has that name then.
        ("a_symbolic_link", "sh:ln_-s_other_other"),
    ];
    together(occupants, |(name, make)| {
        let mut stage = Stage::on(Setup::in_memory());
        stage.play("A:r=R").play(make).play("sees:other exchange:control:other");
        stage.play(&format!("lost:{name}_is_there looks lines:1 same:control"));
        stage.play("A:p=P sh:mv_control_away back B:r=R told:1:has_been_put_back lines:2");
        stage.play("stat:%a=600");
        stage.end();
    });
}

#[test]
fn the_live_socket_of_another_process_in_its_place_is_told_once_and_not_even_disturbed() {
    let mut stage = Stage::on(Setup::in_memory());
    let listener = UnixListener::bind(stage.server.path("theirs")).unwrap();
    listener.set_nonblocking(true).unwrap();
    stage.play("sees:theirs sh:mv_theirs_control");
    stage.play("lost:a_process_has_this_socket_open looks lines:1");
    stage.play("same:control");
    // Nobody has knocked.
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // Its owner dies, and leaves a dead one.
    leave_dead(&stage.server.path("theirs"), listener);
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
fn a_socket_or_a_file_in_place_of_ours_survives_our_exit() {
    let make_it = "sh:echo_precious_>theirs";
    for line in ["binds:theirs", make_it, &format!("remove:control back {make_it}")] {
        let mut stage = Stage::on(Setup::in_memory());
        // In one step, or the server might put its own back in between.
        stage.play(line).play("sees:theirs sh:mv_theirs_control goes term");
        eventually("it ends", PROMPT, || !stage.server.is_running());
        stage.play("same:control");
        stage.server.ended(PROMPT).process.succeeded();
    }
}

// The server has become another user.

/// nbdkit -u nobody, over a control socket in root's own directory, with this dialogue.
fn after_a_change_of_user(mode_of_directory: u32, line: &str) {
    if !is_root() {
        println!("SKIPPED: only root can use nbdkit -u");
        return;
    }
    let setup = in_run().changing_user();
    set_mode(&setup.path("run"), mode_of_directory);
    play(setup.umask(0o022).with("pause-mode=0660"), line);
}

#[test]
fn after_a_change_of_user_a_removed_socket_that_cannot_be_put_back_is_told_once() {
    let line = "A:p=P looks lines:0 remove:run/control \
                lost:Permission_denied|give_the_user looks lines:1 A:r=R";
    // Nobody may not even look into the last one.
    together([0o755, 0o711, 0o700], |mode| after_a_change_of_user(mode, line));
}

#[test]
fn after_a_change_of_user_a_removed_socket_is_put_back_where_that_user_may_write() {
    after_a_change_of_user(0o777, "remove:run/control back A:p=P stat:%u:%a=65534:660");
}

#[test]
fn where_it_cannot_have_its_group_again_no_other_group_may_connect() {
    let lost = "remove:run/control back A:r=R A.closes stat:%u:%a=65534:600 \
                sh:[_$(stat_-c_%g_run/control)_!=_54321_] told:1:no_more_access_than_everyone";
    // The second one is as the first one was.
    let line = format!("sh:chgrp_54321_run/control {lost} lines:1 {lost} lines:2");
    after_a_change_of_user(0o777, &line);
}

#[test]
fn after_a_change_of_user_nobody_is_told_to_remove_a_socket_that_may_be_alive() {
    let line = "binds:theirs sh:chmod_600_theirs sh:mv_theirs_run/control \
                lost:Permission_denied|if_nobody_does \
                lets-go: remove:run/control back A:p=P";
    after_a_change_of_user(0o777, line);
}
