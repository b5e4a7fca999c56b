//! The control protocol as a controller sees it, compared with the filter that
//! nbdkit ships, and the commands that the README gives, as typed.

use std::fs;
use std::time::Duration;

use crate::common::control::Controller;
use crate::common::nbd::{Client, Request};
use crate::common::process::send_signal;
use crate::common::random::Random;
use crate::common::server::{Daemon, Server, Setup};
use crate::common::{A_WHILE, GENEROUS, PROMPT, clients, eventually, filter, nbdkit};

const READ: Request = Request::Read(0);

fn start() -> Server {
    Setup::in_memory().start()
}

/// What is replied to each of `commands`, each on a connection of its own.
fn replies_to_each(server: &Server, commands: &[Vec<u8>]) -> Vec<Vec<u8>> {
    commands
        .iter()
        .map(|commands| {
            let mut controller = server.controller();
            // Not in one piece always, so that the server has to put it together.
            for part in commands.chunks(97) {
                controller.send(part);
            }
            controller.finish()
        })
        .collect()
}

#[test]
fn each_of_the_256_bytes_gets_the_reply_of_the_stock_filter() {
    let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let ours = replies_to_each(&start(), &bytes);
    let stock = replies_to_each(&Setup::in_memory().stock().start(), &bytes);
    assert_eq!(ours, stock);
    // So that nobody is compared with something that does not answer.
    assert_eq!(stock[b'p' as usize], b"P");
    assert_eq!(stock[b'r' as usize], b"R");
    assert_eq!(stock.iter().filter(|&replies| replies == b"X").count(), 251);
    assert_eq!(stock.iter().filter(|replies| replies.is_empty()).count(), 3);
}

#[test]
fn random_pipelined_commands_get_the_replies_of_the_stock_filter() {
    let mut random = Random::new();
    let sequences: Vec<Vec<u8>> = (0..300)
        .map(|_| {
            (0..random.below(1..400))
                .map(|_| match random.below(0..10) {
                    0..3 => b'p',
                    3..6 => b'r',
                    6..8 => random.one_of(b" \t\n\rPR\0"),
                    _ => random.below(0..256) as u8,
                })
                .collect()
        })
        .collect();
    let ours = replies_to_each(&start(), &sequences);
    let stock = replies_to_each(&Setup::in_memory().stock().start(), &sequences);
    for ((commands, ours), stock) in sequences.iter().zip(&ours).zip(&stock) {
        assert_eq!(ours, stock, "{commands:?}");
    }
}

#[test]
fn p_while_paused_answers_p() {
    let server = start();
    let mut controller = server.controller();
    for _ in 0..3 {
        controller.pause();
    }
    server.controller().pause();
}

#[test]
fn r_while_running_answers_r() {
    let server = start();
    let mut controller = server.controller();
    for _ in 0..3 {
        controller.resume();
    }
    Client::connect(&server).ask(READ);
}

#[test]
fn pr_is_a_barrier_that_drains_and_lets_requests_go_on() {
    let server = Setup::in_memory().logged().below("delay", &["rdelay=3"]).start();
    let mut client = Client::connect(&server);
    let read = client.send(READ);
    eventually("the read is below us", GENEROUS, || server.logged().contains("Read id=1"));
    let mut controller = server.controller();
    controller.send(b"pr");
    assert!(!server.logged().contains("...Read id=1"), "the plugin is too fast");
    controller.expect("P");
    assert!(server.logged().contains("...Read id=1"));
    controller.expect("R");
    client.reply(read).unwrap();
    client.ask(READ);
}

#[test]
fn a_pause_outlives_the_connection_that_asked_for_it() {
    let server = start();
    let mut client = Client::connect(&server);
    server.controller().pause();
    let read = client.send(READ);
    client.expect_held(&[read], A_WHILE);
    server.controller().resume();
    client.reply(read).unwrap();
}

#[test]
fn a_pause_outlives_an_nc_that_half_closes() {
    let server = start();
    let mut client = Client::connect(&server);
    let nc = |input| clients::nc(&["-N"], &server.control_path(), input).stdout;
    assert_eq!(nc(b"p\n"), "P");
    let read = client.send(READ);
    client.expect_held(&[read], A_WHILE);
    assert_eq!(nc(b"r\n"), "R");
    client.reply(read).unwrap();
}

#[test]
fn r_of_another_controller_ends_a_pause() {
    let server = start();
    let mut client = Client::connect(&server);
    let (mut one, mut two) = (server.controller(), server.controller());
    one.pause();
    let read = client.send(READ);
    client.expect_held(&[read], A_WHILE);
    two.resume();
    client.reply(read).unwrap();
    one.resume();
}

#[test]
fn the_two_commands_of_the_readme_work_as_typed() {
    let setup = Setup::with_disk(1);
    // It goes into the background, where its directory is another one.
    let filter = setup.path("target/release/libpause.so");
    fs::create_dir_all(filter.parent().unwrap()).unwrap();
    fs::copy(filter::ours(), &filter).unwrap();
    let folder = setup.path("");
    let in_folder = |command: &str| {
        clients::start("sh", &["-c", &format!("cd {} && {command}", folder.display())])
    };
    let daemon = Daemon { pidfile: setup.path("pid") };
    let (nbdkit, file) = (nbdkit::words().join(" "), nbdkit::plugin("file"));
    in_folder(&format!(
        "{nbdkit} -U nbd -P pid \
         --filter=./target/release/libpause.so {file} disk.img pause-control=sock",
    ))
    .finish(GENEROUS)
    .succeeded();
    let pid = daemon.wait();

    // Without -N, nc stays connected. The next one must be served all the same.
    let said = |nc: &crate::common::process::Process, what: &str| {
        eventually(&format!("the reply {what}"), GENEROUS, || nc.stdout() == what);
    };
    let p = in_folder("echo p | nc -U sock");
    said(&p, "P");
    let r = in_folder("echo r | nc -U sock");
    said(&r, "R");
    Controller::connect(&setup.path("sock")).resume();

    send_signal(pid, libc::SIGTERM);
    daemon.ended(PROMPT);
    assert!(!setup.path("sock").exists());
    // They see that the server has gone, and go as well.
    p.finish(GENEROUS);
    r.finish(GENEROUS);
}

#[test]
fn a_command_that_comes_in_pieces_with_white_space_is_one_command() {
    let server = start();
    let mut controller = server.controller();
    controller.send(b" \t\n");
    controller.expect_silence(Duration::from_millis(50));
    controller.send(b"\n p");
    controller.expect("P");
    controller.send(b"\n\n\t");
    controller.expect_silence(Duration::from_millis(50));
    controller.send(b"r\n");
    controller.expect("R");
}
