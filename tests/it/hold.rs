//! `pause-hold`: a pause that belongs to a connection and ends with it, so that nobody
//! resumes under another, and nobody who dies leaves a server paused.

use super::*;

/// So many holds are granted at once.
const MOST_HOLDS: usize = 32;

/// More than what can be connected at once.
const MANY: usize = 70;

fn holding() -> Setup {
    Setup::in_memory().holds()
}

/// Its drain takes as long as a read is in the plugin.
fn slow() -> Setup {
    Setup::obedient().holds()
}

// What + and - do.

dialogues! {
    holding() => {
        a_hold_pauses_until_it_is_given_back:
            "A:+=+ held A:-=- flow A:+=+ held A:-=- flow A:+=+ held A:-=- flow";
        commands_can_be_pipelined:
            r"A:+-\n+_p_-_r\t+-?=+-+P-R+-H flow";
        a_hold_that_was_never_taken_is_answered_x_and_ends_nothing:
            "A:-=X A:p=P A:-=X held A:r=R flow";
        another_s_hold_is_not_one_s_own:
            "B:+=+ A:-=X held B:-=- flow";
        a_second_minus_is_answered_x:
            "A:+=+ A:--=-X A:+-=+- flow";
        a_second_plus_is_the_same_hold:
            "A:+=+ A:+=+ held A:-=- flow A:-=X";
    }
    slow() => {
        a_hold_is_answered_when_all_is_drained_and_not_before:
            "reading A:+= held returns A:=+ held A:-=- flow";
        pipelined_commands_wait_for_the_drain_in_their_order:
            "reading A:+-+= returns A:=+-+ held A:-=- flow";
    }
}

// Several at once.

dialogues! {
    holding() => {
        two_holders_cannot_resume_under_each_other:
            "AB:+=+ A:-=- held B:-=- flow AB:+=+ B:-=- held A:-=- flow";
        a_hold_that_ends_leaves_the_pause_whichever_came_first:
            "A:p=P B:+=+ B:-=- held A:r=R flow B:+=+ A:p=P B:-=- held A:r=R flow";
        a_pause_outlasts_the_hold_of_one_connection_that_closes:
            "A:+p=+P A.closes held B:r=R flow";
    }
    slow() => {
        all_who_wait_for_one_drain_are_answered_by_it:
            "reading A:+ B:p C:+ D:p ABCD:= returns AC:=+ BD:=P";
    }
}

/// Each holder of many has its own account.
#[test]
fn random_commands_of_many_connections_get_what_a_simple_model_says() {
    let mut random = Random::new();
    let server = holding().start();
    let mut client = Client::connect(&server);
    let mut controllers = server.controllers(8);
    let (mut holds, mut paused) = ([false; 8], false);
    for step in 0..2000 {
        let who = random.below(0..8) as usize;
        let command = random.one_of(&["+", "+", "+", "+", "-", "-", "-", "-", "p", "p", "r"]);
        let reply = match command {
            "-" if !holds[who] => "X",
            "p" => "P",
            "r" => "R",
            granted => granted,
        };
        match command {
            "+" | "-" => holds[who] = command == "+",
            "p" => paused = true,
            _ => (holds, paused) = ([false; 8], false),
        }
        controllers[who].ask(command, reply);
        if step % 50 == 0 {
            let ticket = client.send(WRITE);
            if paused || holds.contains(&true) {
                client.expect_held(&[ticket], Duration::from_millis(20));
                server.controller().resume();
                (holds, paused) = ([false; 8], false);
            }
            client.goes_on(ticket);
        }
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

// The end of a holder.

dialogues! {
    holding() => {
        a_holder_that_closes_lets_go:
            "A:+=+ held A.closes flow";
        a_holder_that_half_closes_lets_go:
            "A:+=+ held A.half-closes flow A.is-closed";
        a_holder_that_closes_leaves_another_s_hold_alone:
            "AB:+=+ A.closes held B:-=- flow";
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
    let path = stage.server.control_path();
    let script = "import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.send(b'+')
print(s.recv(1), flush=True)
time.sleep(600)";
    let process = clients::start(clients::PYTHON, &["-c", script, path.to_str().unwrap()]);
    eventually("it has a hold", GENEROUS, || process.stdout() == "b'+'\n");
    stage.play("held");
    process.kill();
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

// The operator's last word.

dialogues! {
    holding() => {
        /// The log says that somebody's snapshot is torn.
        r_ends_the_pause_and_every_hold:
            "ABCDE:+=+ F:p=P held G:r=R flow ABCDE:-=X told:1:5_holds errors:1";
        a_hold_with_a_break_is_answered_x_even_if_the_server_is_paused_again:
            "A:+=+ B:r=R C:p=P D:+=+ A:-=X D:-=-";
        a_hold_that_is_taken_anew_after_a_break_is_whole:
            "A:+=+ B:r=R A:+=+ A:-=-";
        a_holder_s_own_r_ends_its_hold_and_all_others:
            "AB:+=+ A:r-=RX B:-=X flow";
    }
    slow() => {
        r_ends_a_drain_that_holds_wait_for:
            "reading A:+ B:p C:+ heard held D:r=R ABC:=X flow A:-=X";
    }
}

// Who makes room for whom.

/// Connects one too many; all but the first ones have been heard of since.
fn crowd(server: &Server) -> Vec<Controller> {
    let mut crowd = server.controllers(MANY);
    for other in &mut crowd[10..] {
        other.ask("?", "H");
    }
    crowd[0].expect_closed();
    crowd
}

#[test]
fn a_holder_is_never_closed_to_make_room() {
    let mut stage = Stage::on(holding());
    // It is the idlest of all from the beginning.
    stage.play("A:+=+");
    let _crowd = crowd(&stage.server);
    stage.play("held A:-=- flow");
}

#[test]
fn one_that_waits_for_its_hold_is_never_closed_to_make_room() {
    let mut stage = Stage::on(slow());
    stage.play("reading A:+");
    let _crowd = crowd(&stage.server);
    stage.play("returns A:=+ A:-=-");
}

#[test]
fn a_holder_is_never_closed_when_descriptors_run_out() {
    let server = holding().most_descriptors(40).start();
    let mut holder = server.controller();
    holder.hold();
    // The last ones are served.
    let mut last = server.controllers(MANY).pop().unwrap();
    last.ask("?", "H");
    holder.ask("-", "-");
}

#[test]
fn at_most_32_holds_are_in_force_and_the_operator_still_gets_in() {
    let mut stage = Stage::on(holding().verbose());
    let mut holders = stage.server.controllers(MOST_HOLDS);
    holders.iter_mut().for_each(Controller::hold);
    stage.play("A:+=X A:-=X told:1:32_connections_have_one");
    // One that has a hold may ask again, and a pause is none.
    holders[0].ask("+", "+");
    stage.play("A:p=P");
    // One that ends makes room for one.
    holders[0].ask("-", "-");
    stage.play("A:+=+");
    holders[0].ask("+", "X");
    // Nobody is locked out.
    for _ in 0..MANY {
        stage.server.controller().ask("?", "H");
    }
    stage.play("held B:r=R flow A:-=X");
    for holder in &mut holders {
        holder.ask("-", "X");
    }
}

// Off.

#[test]
fn without_pause_hold_plus_and_minus_are_answered_x_and_do_nothing() {
    for setup in [Setup::in_memory(), Setup::in_memory().with("pause-hold=false")] {
        play(setup, "A:+-=XX write A:p-+=PXX held A:-=X still A:r=R flow");
    }
}

#[test]
fn with_pause_hold_all_other_bytes_are_answered_as_without() {
    let replies = |setup: Setup| {
        let bytes: Vec<u8> = (0..=255).filter(|byte| !b"+-?".contains(byte)).collect();
        let server = setup.start();
        let mut controller = server.controller();
        controller.send(&bytes);
        controller.finish()
    };
    let with = replies(holding());
    assert_eq!(with, replies(Setup::in_memory()));
    assert_eq!(with, replies(Setup::in_memory().stock()));
}
