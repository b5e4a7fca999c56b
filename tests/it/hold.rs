//! `pause-hold`: a pause that belongs to a connection and ends with it, so
//! that nobody resumes under another, and nobody who dies leaves a server
//! paused.

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use crate::common::clients;
use crate::common::control::Controller;
use crate::common::nbd::{Client, Request, Ticket};
use crate::common::random::Random;
use crate::common::server::{Server, Setup};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};

const READ: Request = Request::Read { offset: 0 };
const WRITE: Request = Request::Write { offset: 0, byte: 0xaa };

/// So many holds are granted at once.
const MOST_HOLDS: usize = 32;

/// More than what can be connected at once.
const MANY: usize = 70;

fn holding(setup: Setup) -> Setup {
    setup.parameters(&["pause-hold=true"])
}

fn start() -> Server {
    holding(Setup::in_memory()).start()
}

/// `command` is answered with `reply`.
fn ask(controller: &mut Controller, command: &[u8], reply: &str) {
    controller.send(command);
    controller.expect(reply);
}

/// A controller with a hold.
fn holder(server: &Server) -> Controller {
    let mut controller = server.controller();
    ask(&mut controller, b"+", "+");
    controller
}

/// Requests are held.
fn expect_paused(client: &mut Client) -> Ticket {
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    held
}

fn expect_reply(client: &mut Client, held: Ticket) {
    let reply = client.reply_within(held, PROMPT).expect("the request goes on");
    reply.expect("success");
}

/// A server whose drain takes as long as the file `slow` is there.
struct Slow(Server);

impl Slow {
    fn start(parameters: &[&str]) -> (Self, Client) {
        let server = holding(Setup::new(&[
            "eval",
            "thread_model=echo parallel",
            "get_size=echo 1M",
            "pread=touch reading; while [ -e slow ]; do sleep 0.01; done; head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
        ]))
        .parameters(parameters)
        .start();
        std::fs::write(server.path("slow"), "").unwrap();
        let mut client = Client::connect(&server);
        client.send(READ);
        eventually("a read in the plugin", GENEROUS, || server.path("reading").exists());
        (Slow(server), client)
    }

    fn let_drain(&self) {
        std::fs::remove_file(self.0.path("slow")).unwrap();
    }
}

// What + and - do.

#[test]
fn a_hold_pauses_until_it_is_given_back() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    for _ in 0..3 {
        ask(&mut controller, b"+", "+");
        let held = expect_paused(&mut client);
        ask(&mut controller, b"-", "-");
        expect_reply(&mut client, held);
    }
}

#[test]
fn a_hold_is_answered_when_all_is_drained_and_not_before() {
    let (slow, mut client) = Slow::start(&[]);
    let mut controller = slow.0.controller();
    controller.send(b"+");
    controller.expect_silence(A_WHILE);
    let held = expect_paused(&mut client);
    slow.let_drain();
    controller.expect("+");
    expect_paused(&mut client);
    ask(&mut controller, b"-", "-");
    expect_reply(&mut client, held);
}

#[test]
fn commands_can_be_pipelined() {
    let server = start();
    let mut controller = server.controller();
    ask(&mut controller, b"+-\n+ p - r\t+-?", "+-+P-R+-X");
    Client::connect(&server).ask(READ);
}

#[test]
fn pipelined_commands_wait_for_the_drain_in_their_order() {
    let (slow, mut client) = Slow::start(&[]);
    let mut controller = slow.0.controller();
    controller.send(b"+-+");
    controller.expect_silence(A_WHILE);
    slow.let_drain();
    controller.expect("+-+");
    let held = expect_paused(&mut client);
    ask(&mut controller, b"-", "-");
    expect_reply(&mut client, held);
}

#[test]
fn a_hold_that_was_never_taken_is_answered_x() {
    let server = start();
    let mut controller = server.controller();
    ask(&mut controller, b"-", "X");
    // A pause is none, and is not ended.
    ask(&mut controller, b"p", "P");
    ask(&mut controller, b"-", "X");
    let mut client = Client::connect(&server);
    expect_paused(&mut client);
    // Another's is not one's own.
    ask(&mut controller, b"r", "R");
    let mut other = holder(&server);
    ask(&mut controller, b"-", "X");
    expect_paused(&mut client);
    ask(&mut other, b"-", "-");
}

#[test]
fn a_second_minus_is_answered_x() {
    let server = start();
    let mut controller = holder(&server);
    ask(&mut controller, b"--", "-X");
    ask(&mut controller, b"+-", "+-");
}

#[test]
fn a_second_plus_is_the_same_hold() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = holder(&server);
    ask(&mut controller, b"+", "+");
    let held = expect_paused(&mut client);
    ask(&mut controller, b"-", "-");
    expect_reply(&mut client, held);
    ask(&mut controller, b"-", "X");
}

// Several at once.

#[test]
fn two_holders_cannot_resume_under_each_other() {
    let server = start();
    let mut client = Client::connect(&server);
    for first_leaves_first in [true, false] {
        let (first, second) = (holder(&server), holder(&server));
        let (mut leaves, mut stays) =
            if first_leaves_first { (first, second) } else { (second, first) };
        ask(&mut leaves, b"-", "-");
        let held = expect_paused(&mut client);
        ask(&mut stays, b"-", "-");
        expect_reply(&mut client, held);
    }
}

#[test]
fn the_gate_is_closed_while_a_pause_is_in_force_or_any_hold_is() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut operator = server.controller();
    // A hold that ends leaves the pause, whichever came first.
    for pause_first in [true, false] {
        let mut controller = server.controller();
        if pause_first {
            operator.pause();
            ask(&mut controller, b"+", "+");
        } else {
            ask(&mut controller, b"+", "+");
            operator.pause();
        }
        ask(&mut controller, b"-", "-");
        let held = expect_paused(&mut client);
        operator.resume();
        expect_reply(&mut client, held);
    }
    // Also if both are of one connection, which closes.
    ask(&mut operator, b"+p", "+P");
    drop(operator);
    let held = expect_paused(&mut client);
    server.controller().resume();
    expect_reply(&mut client, held);
}

#[test]
fn all_who_wait_for_one_drain_are_answered_by_it() {
    let (slow, _client) = Slow::start(&[]);
    let commands = [b"+", b"p", b"+", b"p"];
    let mut waiting: Vec<_> = commands.iter().map(|_| slow.0.controller()).collect();
    for (controller, command) in waiting.iter_mut().zip(commands) {
        controller.send(command);
        controller.expect_silence(Duration::from_millis(20));
    }
    slow.let_drain();
    for (controller, reply) in waiting.iter_mut().zip(["+", "P", "+", "P"]) {
        controller.expect(reply);
    }
}

/// Each holder of many has its own account.
#[test]
fn random_commands_of_many_connections_get_what_a_simple_model_says() {
    let mut random = Random::new();
    let server = start();
    let mut client = Client::connect(&server);
    let mut controllers: Vec<_> = (0..8).map(|_| server.controller()).collect();
    let mut holds = [false; 8];
    let mut paused = false;
    for step in 0..2000 {
        let who = random.below(0..8) as usize;
        let command = random.one_of(b"++++----ppr");
        let reply = match command {
            b'+' => {
                holds[who] = true;
                "+"
            }
            b'-' if holds[who] => {
                holds[who] = false;
                "-"
            }
            b'-' => "X",
            b'p' => {
                paused = true;
                "P"
            }
            _ => {
                holds = [false; 8];
                paused = false;
                "R"
            }
        };
        ask(&mut controllers[who], &[command], reply);
        if step % 50 == 0 {
            let closed = paused || holds.contains(&true);
            let ticket = client.send(WRITE);
            if closed {
                client.expect_held(&[ticket], Duration::from_millis(20));
                server.controller().resume();
                (holds, paused) = ([false; 8], false);
            }
            expect_reply(&mut client, ticket);
        }
    }
}

// The end of a holder.

#[test]
fn a_holder_that_closes_lets_go() {
    let server = start();
    let mut client = Client::connect(&server);
    let controller = holder(&server);
    let held = expect_paused(&mut client);
    drop(controller);
    expect_reply(&mut client, held);
}

#[test]
fn a_holder_that_half_closes_lets_go() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = holder(&server);
    let held = expect_paused(&mut client);
    controller.stream().shutdown(Shutdown::Write).unwrap();
    expect_reply(&mut client, held);
    controller.expect_closed();
}

/// A shell user's `echo + | nc -N -U sock`.
#[test]
fn a_hold_by_nc_that_half_closes_is_granted_and_over() {
    let server = start();
    let nc = clients::nc(&["-N"], &server.control_path(), b"+\n");
    assert_eq!(nc.stdout, "+");
    Client::connect(&server).ask(READ);
}

#[test]
fn a_holder_that_is_killed_lets_go() {
    let server = start();
    let mut client = Client::connect(&server);
    let path = server.control_path();
    let script = "import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.send(b'+')
print(s.recv(1), flush=True)
time.sleep(600)";
    let process = clients::start("/usr/bin/python3", &["-c", script, path.to_str().unwrap()]);
    eventually("it has a hold", GENEROUS, || process.stdout() == "b'+'\n");
    let held = expect_paused(&mut client);
    process.kill();
    expect_reply(&mut client, held);
}

#[test]
fn a_holder_that_closes_leaves_another_s_hold_alone() {
    let server = start();
    let mut client = Client::connect(&server);
    let (leaves, mut stays) = (holder(&server), holder(&server));
    drop(leaves);
    let held = expect_paused(&mut client);
    ask(&mut stays, b"-", "-");
    expect_reply(&mut client, held);
}

#[test]
fn a_holder_that_closes_while_it_waits_ends_the_drain() {
    let (slow, mut client) = Slow::start(&[]);
    let mut controller = slow.0.controller();
    controller.send(b"+");
    slow.0.all_is_heard();
    let held = expect_paused(&mut client);
    drop(controller);
    // While the read is in the plugin still.
    expect_reply(&mut client, held);
}

#[test]
fn a_holder_that_half_closes_while_it_waits_never_leaves_the_server_paused() {
    let (slow, mut client) = Slow::start(&[]);
    let mut controller = slow.0.controller();
    controller.send(b"+");
    controller.stream().shutdown(Shutdown::Write).unwrap();
    slow.0.all_is_heard();
    let ticket = client.send(WRITE);
    slow.let_drain();
    expect_reply(&mut client, ticket);
    // It was in force for no time at all.
    controller.expect("+");
    controller.expect_closed();
}

#[test]
fn a_holder_that_closes_while_it_waits_leaves_those_alone_who_wait_too() {
    for command in [b"p", b"+"] {
        let (slow, mut client) = Slow::start(&[]);
        let mut leaves = slow.0.controller();
        leaves.send(b"+");
        let mut stays = slow.0.controller();
        stays.send(command);
        slow.0.all_is_heard();
        drop(leaves);
        stays.expect_silence(A_WHILE);
        let held = expect_paused(&mut client);
        slow.let_drain();
        stays.expect(if command == b"p" { "P" } else { "+" });
        client.expect_held(&[held], A_WHILE);
    }
}

#[test]
fn a_hold_asked_for_by_who_is_gone_at_once_does_not_last() {
    let server = start();
    let mut client = Client::connect(&server);
    for _ in 0..200 {
        server.controller().send(b"+");
    }
    eventually("requests flow", PROMPT, || {
        let ticket = client.send(WRITE);
        client.reply_within(ticket, GENEROUS).is_some()
    });
    server.all_is_heard();
    client.ask(WRITE);
}

// The operator's last word.

#[test]
fn r_ends_the_pause_and_every_hold() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut holders: Vec<_> = (0..5).map(|_| holder(&server)).collect();
    server.controller().pause();
    let held = expect_paused(&mut client);
    server.controller().resume();
    expect_reply(&mut client, held);
    for controller in &mut holders {
        ask(controller, b"-", "X");
    }
    // The log says that somebody's snapshot is torn.
    let messages = server.messages();
    assert!(messages.contains("5 holds"), "{messages}");
    assert_eq!(messages.matches("error:").count(), 1, "{messages}");
}

#[test]
fn a_hold_with_a_break_is_answered_x_even_if_the_server_is_paused_again() {
    let server = start();
    let mut controller = holder(&server);
    server.controller().resume();
    server.controller().pause();
    let mut other = holder(&server);
    ask(&mut controller, b"-", "X");
    ask(&mut other, b"-", "-");
}

#[test]
fn a_hold_that_is_taken_anew_after_a_break_is_whole() {
    let server = start();
    let mut controller = holder(&server);
    server.controller().resume();
    ask(&mut controller, b"+", "+");
    ask(&mut controller, b"-", "-");
}

#[test]
fn a_holder_s_own_r_ends_its_hold_and_all_others() {
    let server = start();
    let (mut controller, mut other) = (holder(&server), holder(&server));
    ask(&mut controller, b"r-", "RX");
    ask(&mut other, b"-", "X");
    Client::connect(&server).ask(READ);
}

#[test]
fn r_ends_a_drain_that_holds_wait_for() {
    let (slow, mut client) = Slow::start(&[]);
    let mut waiting = [slow.0.controller(), slow.0.controller(), slow.0.controller()];
    for (controller, command) in waiting.iter_mut().zip([b"+", b"p", b"+"]) {
        controller.send(command);
    }
    slow.0.all_is_heard();
    let held = expect_paused(&mut client);
    slow.0.controller().resume();
    for controller in &mut waiting {
        controller.expect("X");
    }
    expect_reply(&mut client, held);
    // Who was told X has nothing to give back.
    ask(&mut waiting[0], b"-", "X");
}

// Who makes room for whom.

#[test]
fn a_holder_is_never_closed_to_make_room() {
    let server = start();
    let mut client = Client::connect(&server);
    let mut controller = holder(&server);
    // It is the idlest of all from the beginning.
    let mut crowd: Vec<_> = (0..MANY).map(|_| server.controller()).collect();
    for other in &mut crowd[10..] {
        ask(other, b"?", "X");
    }
    let held = expect_paused(&mut client);
    ask(&mut controller, b"-", "-");
    expect_reply(&mut client, held);
    // The crowd was one too many, or this proves nothing.
    crowd[0].expect_closed();
}

#[test]
fn one_that_waits_for_its_hold_is_never_closed_to_make_room() {
    let (slow, _client) = Slow::start(&[]);
    let mut controller = slow.0.controller();
    controller.send(b"+");
    let mut crowd: Vec<_> = (0..MANY).map(|_| slow.0.controller()).collect();
    for other in &mut crowd[10..] {
        ask(other, b"?", "X");
    }
    crowd[0].expect_closed();
    slow.let_drain();
    controller.expect("+");
    ask(&mut controller, b"-", "-");
}

#[test]
fn a_holder_is_never_closed_when_descriptors_run_out() {
    let server = holding(Setup::in_memory()).most_descriptors(40).start();
    let mut controller = holder(&server);
    let crowd: Vec<_> = (0..MANY).map(|_| server.controller()).collect();
    // The last ones are served.
    let mut last = crowd.into_iter().next_back().unwrap();
    ask(&mut last, b"?", "X");
    ask(&mut controller, b"-", "-");
}

#[test]
fn at_most_32_holds_are_in_force_and_the_operator_still_gets_in() {
    let server = holding(Setup::in_memory()).verbose().start();
    let mut client = Client::connect(&server);
    let mut holders: Vec<_> = (0..MOST_HOLDS).map(|_| holder(&server)).collect();
    let mut beyond = server.controller();
    ask(&mut beyond, b"+", "X");
    ask(&mut beyond, b"-", "X");
    let messages = server.messages();
    assert!(messages.contains("32 are in force"), "{messages}");
    // One that has a hold may ask again, and a pause is none.
    ask(&mut holders[0], b"+", "+");
    ask(&mut beyond, b"p", "P");
    // One that ends makes room for one.
    ask(&mut holders[0], b"-", "-");
    ask(&mut beyond, b"+", "+");
    ask(&mut holders[0], b"+", "X");
    // Nobody is locked out.
    for _ in 0..MANY {
        ask(&mut server.controller(), b"?", "X");
    }
    let held = expect_paused(&mut client);
    server.controller().resume();
    expect_reply(&mut client, held);
    for controller in holders.iter_mut().chain([&mut beyond]) {
        ask(controller, b"-", "X");
    }
}

// Off, and misspelt.

#[test]
fn without_pause_hold_plus_and_minus_are_answered_x_and_do_nothing() {
    for parameters in [&[][..], &["pause-hold=false"]] {
        let server = Setup::in_memory().parameters(parameters).start();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        ask(&mut controller, b"+-", "XX");
        client.ask(WRITE);
        // Nor do they in a pause.
        ask(&mut controller, b"p-+", "PXX");
        let held = expect_paused(&mut client);
        ask(&mut controller, b"-", "X");
        client.expect_held(&[held], A_WHILE);
        controller.resume();
        expect_reply(&mut client, held);
    }
}

#[test]
fn with_pause_hold_all_other_bytes_are_answered_as_without() {
    let replies = |server: &Server| {
        let bytes: Vec<u8> = (0..=255).filter(|byte| !b"+-".contains(byte)).collect();
        let mut controller = server.controller();
        controller.send(&bytes);
        controller.finish()
    };
    let with = replies(&start());
    assert_eq!(with, replies(&Setup::in_memory().start()));
    assert_eq!(with, replies(&Setup::in_memory().stock().start()));
}

#[test]
fn what_is_no_truth_value_is_refused_by_name() {
    for value in ["", "maybe", "2", "+", "-"] {
        let parameter = format!("pause-hold={value}");
        let refusal = Setup::in_memory().parameters(&[&parameter]).refusal();
        assert!(refusal.stderr.contains(&parameter), "{value:?}: {refusal:#?}");
    }
}

#[test]
fn two_tools_at_once_each_learn_whether_their_snapshot_is_covered() {
    let server = holding(Setup::with_disk(1)).logged().start();
    let mut client = Client::connect(&server);
    let mut random = Random::new();
    let tools: Vec<_> = (0..2)
        .map(|_| {
            let path = server.control_path();
            let log = server.path("log");
            let pauses: Vec<_> = (0..15).map(|_| random.millis(1..40)).collect();
            thread::spawn(move || {
                let mut controller = Controller::connect(&path);
                for pause in pauses {
                    ask(&mut controller, b"+", "+");
                    let before = std::fs::metadata(&log).unwrap().len();
                    thread::sleep(pause);
                    let after = std::fs::metadata(&log).unwrap().len();
                    assert_eq!(before, after, "the plugin was touched under a hold");
                    ask(&mut controller, b"-", "-");
                    thread::sleep(pause / 2);
                }
            })
        })
        .collect();
    while !tools.iter().all(thread::JoinHandle::is_finished) {
        client.ask(WRITE);
    }
    for tool in tools {
        tool.join().expect("a tool");
    }
}
