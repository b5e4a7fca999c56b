//! `pause-hold`: a pause that belongs to a connection and ends with it, so that nobody
//! resumes under another, and nobody who dies leaves a server paused. The rules are
//! tested one by one in the core's own tests; here they hold on a real server.

use super::*;

fn holding() -> Setup {
    Setup::in_memory().holds()
}

/// Its drain takes as long as a read is in the plugin.
fn slow() -> Setup {
    Setup::obedient().holds()
}

dialogues! {
    // What + and - do.
    holding() => {
        a_hold_pauses_until_it_is_given_back_however_often_it_was_asked_for:
            "A:+=+ held A:-=- flow A:+=+ A:+=+ held A:-=- flow A:-=X A:+-=+- flow";
        a_hold_that_one_does_not_have_is_answered_x_and_ends_nothing:
            "A:-=X A:p=P A:-=X held A:r=R flow B:+=+ A:-=X held B:-=- flow";
        commands_can_be_pipelined:
            r"A:+-\n+_p_-_r\t+-?=+-+P-R+-H flow";
    }
    slow() => {
        a_hold_is_answered_when_all_is_drained_and_not_before:
            "reading A:+-+= B:+= held returns A:=+-+ B:=+ B:-=- held A:-=- flow";
    }

    // Several at once.
    holding() => {
        two_holders_cannot_resume_under_each_other:
            "AB:+=+ A:-=- held B:-=- flow AB:+=+ B:-=- held A:-=- flow";
        a_hold_that_ends_leaves_the_pause_whichever_came_first:
            "A:p=P B:+=+ B:-=- held A:r=R flow B:+=+ A:p=P B:-=- held A:r=R flow"
            "A:+p=+P A.closes held B:r=R flow";
    }
    slow() => {
        all_who_wait_for_one_drain_are_answered_by_it:
            "reading A:+ B:p C:+ D:p ABCD:= returns AC:=+ BD:=P";
    }

    // The end of a holder.
    holding() => {
        a_holder_that_closes_or_half_closes_lets_go_of_its_own_hold_alone:
            "A:+=+ held A.half-closes flow A.is-closed BC:+=+ B.closes held C:-=- flow"
            "D:+=+ held D.closes flow";
    }
    slow() => {
        a_holder_that_closes_while_it_waits_ends_the_drain:
            "reading A:+ heard held A.closes flow";
        a_holder_that_half_closes_while_it_waits_never_leaves_the_server_paused:
            "reading A:+ A.half-closes heard sends returns flow A:=+ A.is-closed";
        a_holder_that_closes_while_it_waits_leaves_those_alone_who_wait_too:
            "reading A:+ B:p heard A.closes B:= held returns B:=P held B:r=R flow"
            "reading A:+ B:+ heard A.closes B:= held returns B:=+ held B:-=- flow";
    }

    // The operator's last word.
    holding() => {
        /// The log says that somebody's snapshot is torn.
        r_ends_the_pause_and_every_hold:
            "ABCDE:+=+ F:p=P held G:r=R flow ABCDE:-=X told:1:5_holds errors:1";
        a_hold_with_a_break_is_answered_x_unless_it_was_taken_anew:
            "ABE:+=+ B:r-=RX C:p=P DE:+=+ A:-=X DE:-=- C:r=R flow";
    }
    slow() => {
        r_ends_a_drain_that_holds_wait_for:
            "reading A:+ B:p C:+ heard held D:r=R ABC:=X flow A:-=X";
    }

    // Who makes room for whom.
    holding() => {
        a_holder_is_never_closed_to_make_room: "A:+=+ crowd held A:-=- flow";
    }
    slow() => {
        one_that_waits_for_its_hold_is_never_closed_to_make_room:
            "reading A:+ crowd returns A:=+ A:-=-";
    }
    holding().most_descriptors(40) => {
        a_holder_is_never_closed_when_descriptors_run_out: "A:+=+ crowd B:?=H held A:-=- flow";
    }

    // Off.
    Setup::in_memory() => {
        without_pause_hold_plus_and_minus_are_answered_x_and_do_nothing:
            "A:+-=XX write A:p-+=PXX held A:-=X still A:r=R flow";
    }
    Setup::in_memory().with("pause-hold=false") => {
        with_pause_hold_false_they_are_so_too: "A:+-=XX write A:p-+=PXX held A:r=R flow";
    }
}

#[test]
fn two_tools_at_once_each_learn_whether_their_snapshot_is_covered() {
    let server = Setup::with_disk(1).holds().logged().start();
    let mut client = Client::connect(&server);
    let use_holds = || {
        let mut random = Random::new();
        let mut controller = server.controller();
        for _ in 0..15 {
            let pause = random.millis(1..40);
            controller.hold();
            let before = server.logged_bytes();
            thread::sleep(pause);
            assert_eq!(server.logged_bytes(), before, "the plugin was touched under a hold");
            controller.ask("-", "-");
            thread::sleep(pause / 2);
        }
    };
    thread::scope(|scope| {
        let tools = [scope.spawn(use_holds), scope.spawn(use_holds)];
        while !tools.iter().all(|tool| tool.is_finished()) {
            client.ask(WRITE);
        }
    });
}

/// A shell user's `echo + | nc -N -U sock`.
#[test]
fn a_hold_by_nc_that_half_closes_is_granted_and_over() {
    let server = holding().start();
    assert_eq!(clients::nc(&["-N"], &server.control_path(), b"+\n").stdout, "+");
    Client::connect(&server).ask(READ);
}

#[test]
fn a_holder_that_is_killed_lets_go() {
    let mut stage = Stage::on(holding());
    let control = stage.server.control_path();
    let hold = format!("(printf +; sleep 600) | nc -U {}", control.display());
    let holder = clients::start("sh", &["-c", &hold]);
    eventually("it has a hold", GENEROUS, || holder.stdout() == "+");
    stage.play("held");
    holder.kill();
    stage.play("flow");
}

#[test]
fn a_hold_asked_for_by_who_is_gone_at_once_does_not_last() {
    let mut stage = Stage::on(holding());
    for _ in 0..200 {
        stage.server.controller().send(b"+");
    }
    stage.play("sends flow heard flow");
}

#[test]
fn at_most_32_holds_are_in_force_and_the_operator_still_gets_in() {
    let mut stage = Stage::on(holding().verbose());
    let mut holders = stage.server.controllers(32);
    holders.iter_mut().for_each(Controller::hold);
    stage.play("A:+=X A:-=X told:1:32_connections_have_one");
    // One that has a hold may ask again, and makes room for one when it ends.
    holders[0].ask("+-", "+-");
    stage.play("A:+=+");
    holders[0].ask("+", "X");
    // Nobody is locked out, and nobody who has a hold makes room.
    stage.play("crowd held B:r=R flow A:-=X");
    holders[1..].iter_mut().for_each(|holder| holder.ask("-", "X"));
}
