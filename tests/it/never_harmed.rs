//! The filter may make a request wait, and nothing more: whatever works without it
//! works with it. A request is dropped only if it was held, and its client went away
//! or the server was told to end while it waited (`dead_clients.rs`, `shutdown.rs`).

use super::*;

// Clients that send a write and leave.

const CLIENTS: u64 = 40;

/// Each client writes one block, and is gone before it can have been told. The operator
/// has sent `commands` shortly before.
fn write_and_leave(setup: Setup, (commands, replies): (&str, &str)) -> Server {
    let server = setup.logged_above().start();
    let mut controller = server.controller();
    for block in 0..CLIENTS {
        let mut client = Client::connect(&server);
        controller.ask(commands, replies);
        client.send(Write(512 * block, 0xab));
        client.leave();
    }
    server.threads_at_rest();
    server
}

fn each_is_carried_out(after: (&str, &str)) {
    // Where nbdkit takes one request after the other, it loses none by itself.
    let setup = Setup::with_disk(1).thread_model(ThreadModel::SerializeRequests);
    let disk = write_and_leave(setup, after).stop().disk();
    assert!(disk[..512 * CLIENTS as usize].iter().all(|&byte| byte == 0xab), "some are lost");

    // With several threads nbdkit itself may see the end of the client first. What it
    // hands to the filter is carried out.
    let server = write_and_leave(Setup::with_disk(1), after);
    let log = server.content("above");
    let begun = server.writes_come();
    let ended: Vec<&str> = log.lines().filter(|line| line.contains(" ...Write ")).collect();
    assert!(begun > 0 && begun == ended.len(), "{log}");
    assert!(ended.iter().all(|line| line.contains(" return=0")), "some have failed: {log}");
}

#[test]
fn a_write_of_a_client_that_leaves_at_once_is_carried_out_if_there_was_never_a_pause() {
    each_is_carried_out(("", ""));
}

#[test]
fn a_write_of_a_client_that_leaves_at_once_is_carried_out_after_a_pause() {
    each_is_carried_out(("pr", "PR"));
}

#[test]
fn a_write_of_a_client_that_leaves_at_once_is_carried_out_after_a_resume_of_a_running_server() {
    each_is_carried_out(("r", "R"));
}

#[test]
fn a_write_whose_client_had_gone_when_it_came_waits_for_the_end_of_the_pause() {
    let server = Setup::with_disk(1).logged_above().start();
    let mut controller = server.controller();
    controller.pause();
    clients::write_of_one_who_has_gone(&server);
    assert!(is_zero(&server.path("disk.img"), 0, 512));
    controller.resume();
    server.threads_at_rest();
    assert_eq!(server.stop().disk()[..512], [0xab; 512]);
}

/// Whoever relied on the pause hears of it.
fn expect_pause_ended(messages: &str) {
    expect_line(messages, &["error", "pause", "shutting down", "ended the pause", "discard"]);
}

/// Its write can neither wait for an operator nor be dropped.
#[test]
fn a_write_whose_client_had_gone_when_it_came_ends_the_pause_of_a_server_that_ends() {
    let server = Setup::with_disk(1).logged_above().holds().start();
    let mut holder = server.controller();
    holder.hold();
    clients::write_of_one_who_has_gone(&server);
    server.terminate();
    let ended = server.ended(PROMPT).well();
    expect_pause_ended(&ended.process.stderr);
    assert_eq!(ended.disk()[..512], [0xab; 512]);
}

// A file system above us.

/// nbdkit-ext2-filter above ours: its client sees a file, and we see what becomes
/// of it in the file system, in part only as the connection is closed.
fn file_system() -> Setup {
    let setup = Setup::new(&["file", "disk.img"]).above("ext2", &["ext2file=/file"]);
    in_a_file_system(setup).logged_above()
}

/// With a file system in `disk.img`, and in that a file of 1 MiB.
pub fn in_a_file_system(setup: Setup) -> Setup {
    let content = setup.path("content");
    fs::create_dir(&content).unwrap();
    // A hole, so that each write takes a block of the file system.
    fs::File::create(content.join("file")).and_then(|file| file.set_len(1 << 20)).unwrap();
    let mut command = clients::system_program("mke2fs");
    command.args(["-q", "-t", "ext2", "-d"]).arg(&content).arg(setup.path("disk.img")).arg("8M");
    run(command).succeeded();
    setup
}

/// The file system is.
pub fn expect_whole(ended: &Ended) {
    let mut command = clients::system_program("e2fsck");
    command.arg("-fn").arg(ended.path("disk.img"));
    run(command).succeeded();
}

/// A client that has written and flushed, and written again.
fn with_data(server: &Server) -> Client {
    let mut client = Client::connect(server);
    for block in 0..20 {
        client.ask(Write(50_000 * block, 7));
        if block == 15 {
            client.ask(Flush);
        }
    }
    client
}

/// Its last writes come as its connection is closed.
fn leave_in_the_pause(server: &Server, client: Client) {
    let come = server.writes_come();
    client.leave();
    server.wait_for_writes(come + 1);
}

#[test]
fn a_file_system_above_us_is_whole_when_its_client_leaves_after_a_pause_or_a_mere_r() {
    for (commands, replies) in [("pr", "PR"), ("r", "R")] {
        let server = file_system().start();
        let client = with_data(&server);
        server.controller().ask(commands, replies);
        client.leave();
        server.threads_at_rest();
        expect_whole(&server.stop());
    }
}

fn left_in_the_pause(meanwhile: impl FnOnce(&Path)) {
    let server = file_system().start();
    let client = with_data(&server);
    let mut controller = server.controller();
    controller.pause();
    leave_in_the_pause(&server, client);
    meanwhile(&server.socket());
    controller.resume();
    server.threads_at_rest();
    expect_whole(&server.stop());
}

#[test]
fn a_file_system_above_us_is_whole_when_its_client_leaves_in_the_pause() {
    left_in_the_pause(|_| {});
}

/// nbdkit has closed the client's socket by then, and the number of its descriptor
/// is that of the next client.
#[test]
fn nor_does_it_matter_who_comes_and_goes_meanwhile() {
    left_in_the_pause(|socket| {
        for _ in 0..3 {
            let other = UnixStream::connect(socket).unwrap();
            thread::sleep(A_WHILE);
            drop(other);
            thread::sleep(A_WHILE);
        }
    });
}

#[test]
fn a_file_system_above_us_is_whole_when_the_server_ends_while_its_last_writes_are_held() {
    let server = file_system().holds().start();
    let client = with_data(&server);
    let mut holder = server.controller();
    holder.hold();
    leave_in_the_pause(&server, client);
    server.terminate();
    let ended = server.ended(PROMPT).well();
    expect_pause_ended(&ended.process.stderr);
    expect_whole(&ended);
}

/// Older ones leave out what a file system does as its connection is closed.
#[test]
fn a_file_system_above_us_is_whole_when_the_server_ends_after_a_pause() {
    if nbdkit::minor_version() < 48 {
        println!("SKIPPED: nbdkit 1.48 is the first that closes connections as it ends");
        return;
    }
    let server = file_system().start();
    let client = with_data(&server);
    server.controller().ask("pr", "PR");
    server.terminate();
    drop(client);
    expect_whole(&server.ended(PROMPT).well());
}

// Filters above us that join what several clients ask for.

/// One client's flush is held when it dies. It was made on the other's connection, too.
#[test]
fn a_client_that_dies_while_its_flush_is_held_harms_no_other_under_multi_conn() {
    for resume_at_once in [true, false] {
        let setup = Setup::in_memory().above("multi-conn", &["multi-conn-mode=emulate"]);
        let server = setup.logged_above().start();
        let (mut other, mut dying) = (Client::connect(&server), Client::connect(&server));
        other.ask(Write(0, 1));
        dying.ask(Write(512, 1));
        let mut controller = server.controller();
        controller.pause();
        dying.held(Flush);
        dying.die();
        if !resume_at_once {
            thread::sleep(A_WHILE);
        }
        controller.resume();
        for request in [Write(0, 2), Flush, READ] {
            other.ask(request);
        }
    }
}

fn open_once() -> Option<Server> {
    if !nbdkit::filter_file("openonce").exists() {
        println!("SKIPPED: this nbdkit has no openonce filter");
        return None;
    }
    Some(Setup::with_disk(1).above("openonce", &[]).logged_above().start())
}

#[test]
fn a_client_that_dies_in_a_pause_harms_no_other_under_openonce() {
    let Some(server) = open_once() else { return };
    let (mut other, mut dying) = (Client::connect(&server), Client::connect(&server));
    let mut controller = server.controller();
    controller.pause();
    dying.held(Write(0, 0xdd));
    dying.die();
    thread::sleep(A_WHILE);
    controller.resume();
    assert_eq!(other.ask(READ), [0; 512]);
    other.ask(Write(0, 1));
    assert_eq!(Client::connect(&server).ask(READ), [1; 512]);
}

#[test]
fn a_client_that_writes_and_leaves_harms_no_other_under_openonce() {
    let Some(server) = open_once() else { return };
    for byte in 1..10 {
        let mut client = Client::connect(&server);
        client.send(Write(0, byte));
        client.leave();
    }
    let mut other = Client::connect(&server);
    other.ask(Write(0, 99));
    assert_eq!(other.ask(READ), [99; 512]);
}

// What is held gets through.

/// `rp`: nobody could wake up between the two.
#[test]
fn what_is_held_gets_through_at_the_next_resume_even_if_a_pause_follows_at_once() {
    let server = Setup::with_disk(1).logged_above().start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    for round in 1..=10 {
        let held: Vec<Ticket> =
            (0..16).map(|block| client.send(Write(512 * block, round))).collect();
        client.all_read_by_server();
        server.wait_for_writes(held.len() * usize::from(round));
        controller.ask("rp", "RP");
        // The server is paused, and all of them are done.
        assert!(server.disk()[..512 * held.len()].iter().all(|&byte| byte == round));
        held.into_iter().for_each(|ticket| _ = client.goes_on(ticket));
    }
}
