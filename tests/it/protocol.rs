//! The control protocol as a controller sees it, compared with the filter that nbdkit
//! ships, and the commands that the README gives, as typed. Holds, time limits and
//! flushes have files of their own.

use super::*;

dialogues! {
    Setup::in_memory() => {
        a_pause_ends_with_the_first_r_whoever_sends_it:
            "A:p=P A:p=P B:p=P held A:r=R flow A:r=R B:r=R flow"
            "A:p=P B:r=R flow A:p=P A.closes held B:r=R flow";
        a_command_that_comes_in_pieces_with_white_space_is_one_command:
            r"A:_\t\n= A:\n_p=P A:\n\n\t= A:r\n=R flow";
    }
    Setup::obedient() => {
        pr_is_a_barrier_that_drains_and_lets_requests_go_on:
            "reading A:pr= returns A:=PR flow";
    }
}

/// What is replied to each of `commands`, each on a connection of its own.
fn replies_to_each(setup: Setup, commands: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let server = setup.start();
    let replies = |commands: &Vec<u8>| {
        let mut controller = server.controller();
        // Not in one piece always, so that the server has to put it together.
        commands.chunks(97).for_each(|part| controller.send(part));
        controller.finish()
    };
    commands.iter().map(replies).collect()
}

#[test]
fn each_of_the_256_bytes_gets_the_reply_of_the_stock_filter() {
    let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut stock = replies_to_each(Setup::in_memory().stock(), &bytes);
    // So that nobody is compared with something that does not answer.
    assert_eq!(stock[b'p' as usize], b"P");
    assert_eq!(stock[b'r' as usize], b"R");
    assert_eq!(stock.iter().filter(|&replies| replies == b"X").count(), 251);
    assert_eq!(stock.iter().filter(|replies| replies.is_empty()).count(), 3);
    assert_eq!(replies_to_each(Setup::in_memory(), &bytes), stock);
    // Where + and - are commands, nothing else changes.
    for (byte, reply) in [(b'+', b"+"), (b'-', b"X"), (b'?', b"H")] {
        stock[byte as usize] = reply.to_vec();
    }
    assert_eq!(replies_to_each(Setup::in_memory().holds(), &bytes), stock);
    // And where s is one.
    let mut tells = replies_to_each(Setup::in_memory().holds().tells(), &bytes);
    let line = std::mem::replace(&mut tells[b's' as usize], b"X".to_vec());
    assert!(line.starts_with(b"{") && line.ends_with(b"}\n"), "{}", line.escape_ascii());
    assert_eq!(tells, stock);
}

#[test]
fn random_pipelined_commands_get_the_replies_of_the_stock_filter() {
    fn byte(random: &mut Random) -> u8 {
        match random.below(0..10) {
            0..3 => b'p',
            3..6 => b'r',
            6..8 => random.one_of(b" \t\n\rPR\0"),
            _ => random.below(0..256) as u8,
        }
    }
    let mut random = Random::new();
    let mut sequence = || (0..random.below(1..400)).map(|_| byte(&mut random)).collect();
    let sequences: Vec<Vec<u8>> = (0..300).map(|_| sequence()).collect();
    let ours = replies_to_each(Setup::in_memory(), &sequences);
    let stock = replies_to_each(Setup::in_memory().stock(), &sequences);
    for ((commands, ours), stock) in sequences.iter().zip(&ours).zip(&stock) {
        assert_eq!(ours, stock, "{commands:?}");
    }
}

#[test]
fn a_pause_outlives_an_nc_that_half_closes() {
    let server = Setup::in_memory().start();
    let mut client = Client::connect(&server);
    let nc = |input| clients::nc(&["-N"], &server.control_path(), input).stdout;
    assert_eq!(nc(b"p\n"), "P");
    let held = client.held(READ);
    assert_eq!(nc(b"r\n"), "R");
    client.goes_on(held);
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
    let nc = [("p", "P"), ("r", "R")].map(|(command, reply)| {
        let nc = in_folder(&format!("echo {command} | nc -U sock"));
        eventually(reply, GENEROUS, || nc.stdout() == reply);
        nc
    });
    Controller::connect(&setup.path("sock")).resume();

    send_signal(pid, libc::SIGTERM);
    daemon.ended(PROMPT);
    assert!(!setup.path("sock").exists());
    // They see that the server has gone, and go as well.
    for nc in nc {
        nc.finish(GENEROUS);
    }
}
