//! The filter may make a request wait, and nothing more: whatever works without it
//! works with it. A request is dropped only if it was held, and its client went away
//! or the server was told to end while it waited (`dead_clients.rs`, `shutdown.rs`).

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use crate::common::clients;
use crate::common::control::Controller;
use crate::common::nbd::{Client, Request, Ticket};
use crate::common::process::{expect_line, run};
use crate::common::server::{Server, Setup, ThreadModel};
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually, nbdkit};

// --- Clients that send a write and leave -----------------------------------

/// What the operator does shortly before.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    /// `pr`
    Barrier,
    /// `r`, to a server that runs.
    Resume,
}

const CLIENTS: u64 = 40;

/// Each client writes one block, and is gone before it can have been told.
fn write_and_leave(setup: Setup, before: Before) -> Server {
    let server = setup.logged_above().start();
    let mut controller = server.controller();
    for block in 0..CLIENTS {
        let mut client = Client::connect(&server);
        match before {
            Before::Nothing => {}
            Before::Barrier => {
                controller.send(b"pr");
                controller.expect("PR");
            }
            Before::Resume => controller.resume(),
        }
        client.send(Request::Write(512 * block, 0xab));
        client.leave();
    }
    server.threads_at_rest();
    server
}

/// Where nbdkit takes one request after the other, it loses none by itself.
fn each_is_carried_out(before: Before) {
    let setup = Setup::with_disk(1).thread_model(ThreadModel::SerializeRequests);
    let ended = write_and_leave(setup, before).stop();
    let disk = fs::read(ended.path("disk.img")).unwrap();
    let lost = disk.chunks(512).take(CLIENTS as usize).filter(|block| *block != [0xab; 512]);
    assert_eq!(lost.count(), 0, "lost, of {CLIENTS} writes");
}

/// With several threads nbdkit itself may see the end of the client first. What it
/// hands to the filter is carried out.
fn each_that_comes_is_carried_out(before: Before) {
    let server = write_and_leave(Setup::with_disk(1), before);
    let log = fs::read_to_string(server.path("above")).unwrap();
    let begun = server.writes_come();
    let ended: Vec<&str> = log.lines().filter(|line| line.contains(" ...Write ")).collect();
    assert!(begun > 0 && begun == ended.len(), "{log}");
    let failed = ended.iter().filter(|line| !line.contains(" return=0"));
    assert_eq!(failed.count(), 0, "failed, of {begun}: {log}");
}

#[test]
fn a_write_of_a_client_that_leaves_at_once_is_carried_out_if_there_was_never_a_pause() {
    each_is_carried_out(Before::Nothing);
    each_that_comes_is_carried_out(Before::Nothing);
}

#[test]
fn a_write_of_a_client_that_leaves_at_once_is_carried_out_after_a_pause() {
    each_is_carried_out(Before::Barrier);
    each_that_comes_is_carried_out(Before::Barrier);
}

#[test]
fn a_write_of_a_client_that_leaves_at_once_is_carried_out_after_a_resume_of_a_running_server() {
    each_is_carried_out(Before::Resume);
    each_that_comes_is_carried_out(Before::Resume);
}

#[test]
fn a_write_whose_client_had_gone_when_it_came_waits_for_the_end_of_the_pause() {
    let server = Setup::with_disk(1).logged_above().start();
    let mut controller = server.controller();
    controller.pause();
    clients::write_of_one_who_has_gone(&server);
    assert!(clients::is_zero(&server.path("disk.img"), 0, 512));
    controller.resume();
    server.threads_at_rest();
    let disk = fs::read(server.stop().path("disk.img")).unwrap();
    assert_eq!(disk[..512], [0xab; 512]);
}

/// Its write can neither wait for an operator nor be dropped.
#[test]
fn a_write_whose_client_had_gone_when_it_came_ends_the_pause_of_a_server_that_ends() {
    let server = Setup::with_disk(1).logged_above().parameters(&["pause-hold=true"]).start();
    let mut holder = server.controller();
    holder.hold();
    clients::write_of_one_who_has_gone(&server);
    server.terminate();
    eventually("the log has it", GENEROUS, || server.messages().contains("the pause is ended"));
    expect_line(&server.messages(), &["error", "pause", "told to end", "snapshot", "torn"]);
    let disk = fs::read(server.ended(PROMPT).well().path("disk.img")).unwrap();
    assert_eq!(disk[..512], [0xab; 512]);
}

// --- A file system above us ------------------------------------------------

/// nbdkit-ext2-filter above ours: its client sees a file, and we see what becomes
/// of it in the file system, in part only as the connection is closed.
fn file_system() -> Setup {
    let setup = Setup::new(&["file", "disk.img"]).above("ext2", &["ext2file=/file"]);
    let content = setup.path("content");
    fs::create_dir(&content).unwrap();
    // A hole, so that each write takes a block of the file system.
    fs::File::create(content.join("file")).and_then(|file| file.set_len(1 << 20)).unwrap();
    let mut command = clients::system_program("mke2fs");
    command.args(["-q", "-t", "ext2", "-d"]).arg(&content).arg(setup.path("disk.img")).arg("8M");
    run(command).succeeded();
    setup.logged_above()
}

fn expect_whole(disk: &Path) {
    let mut command = clients::system_program("e2fsck");
    command.arg("-fn").arg(disk);
    run(command).succeeded();
}

/// A client that has written and flushed, and written again.
fn with_data(server: &Server) -> Client {
    let mut client = Client::connect(server);
    for block in 0..20 {
        client.ask(Request::Write(50_000 * block, 7));
        if block == 15 {
            client.ask(Request::Flush);
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

fn left_after(commands: &[u8], replies: &str) {
    let server = file_system().start();
    let client = with_data(&server);
    let mut controller = server.controller();
    controller.send(commands);
    controller.expect(replies);
    client.leave();
    server.threads_at_rest();
    expect_whole(&server.stop().path("disk.img"));
}

#[test]
fn a_file_system_above_us_is_whole_when_its_client_leaves_after_a_pause() {
    left_after(b"pr", "PR");
}

#[test]
fn a_file_system_above_us_is_whole_when_its_client_leaves_after_a_mere_r() {
    left_after(b"r", "R");
}

fn left_in_the_pause(meanwhile: impl FnOnce(&Server)) {
    let server = file_system().start();
    let client = with_data(&server);
    let mut controller = server.controller();
    controller.pause();
    leave_in_the_pause(&server, client);
    meanwhile(&server);
    controller.resume();
    server.threads_at_rest();
    expect_whole(&server.stop().path("disk.img"));
}

#[test]
fn a_file_system_above_us_is_whole_when_its_client_leaves_in_the_pause() {
    left_in_the_pause(|_| {});
}

/// nbdkit has closed the client's socket by then, and the number of its descriptor
/// is that of the next client.
#[test]
fn nor_does_it_matter_who_comes_and_goes_meanwhile() {
    left_in_the_pause(|server| {
        for _ in 0..3 {
            let other = UnixStream::connect(server.socket()).unwrap();
            thread::sleep(A_WHILE);
            drop(other);
            thread::sleep(A_WHILE);
        }
    });
}

#[test]
fn a_file_system_above_us_is_whole_when_the_server_ends_while_its_last_writes_are_held() {
    let server = file_system().parameters(&["pause-hold=true"]).start();
    let client = with_data(&server);
    let mut holder = server.controller();
    holder.hold();
    leave_in_the_pause(&server, client);
    server.terminate();
    let ended = server.ended(PROMPT).well();
    expect_line(&ended.process.stderr, &["error", "pause", "told to end", "the pause is ended"]);
    expect_whole(&ended.path("disk.img"));
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
    let mut controller = server.controller();
    controller.send(b"pr");
    controller.expect("PR");
    server.terminate();
    drop(client);
    expect_whole(&server.ended(PROMPT).well().path("disk.img"));
}

// --- Filters above us that join what several clients ask for ---------------

/// One client's flush is held when it dies. It was made on the other's connection, too.
fn the_other_lives(resume_at_once: bool) {
    let setup = Setup::in_memory().above("multi-conn", &["multi-conn-mode=emulate"]);
    let server = setup.logged_above().start();
    let mut other = Client::connect(&server);
    let mut dying = Client::connect(&server);
    for (client, offset) in [(&mut other, 0), (&mut dying, 512)] {
        client.ask(Request::Write(offset, 1));
    }
    let mut controller = server.controller();
    controller.pause();
    let flush = dying.send(Request::Flush);
    dying.expect_held(&[flush], A_WHILE);
    dying.shut_down_sending_half();
    drop(dying);
    if !resume_at_once {
        thread::sleep(A_WHILE);
    }
    controller.resume();
    for request in [Request::Write(0, 2), Request::Flush, Request::Read(0)] {
        other.ask(request);
    }
}

#[test]
fn a_client_that_dies_while_its_flush_is_held_harms_no_other_under_multi_conn() {
    the_other_lives(true);
    the_other_lives(false);
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
    let mut other = Client::connect(&server);
    let mut dying = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    let held = dying.send(Request::Write(0, 0xdd));
    dying.expect_held(&[held], A_WHILE);
    dying.shut_down_sending_half();
    drop(dying);
    thread::sleep(A_WHILE);
    controller.resume();
    assert_eq!(other.ask(Request::Read(0)), [0; 512]);
    other.ask(Request::Write(0, 1));
    assert_eq!(Client::connect(&server).ask(Request::Read(0)), [1; 512]);
}

#[test]
fn a_client_that_writes_and_leaves_harms_no_other_under_openonce() {
    let Some(server) = open_once() else { return };
    for byte in 1..10 {
        let mut client = Client::connect(&server);
        client.send(Request::Write(0, byte));
        client.leave();
    }
    let mut other = Client::connect(&server);
    other.ask(Request::Write(0, 99));
    assert_eq!(other.ask(Request::Read(0)), [99; 512]);
}

// --- What is held gets through ---------------------------------------------

/// `rp`: nobody could wake up between the two.
fn barrier(controller: &mut Controller) {
    controller.send(b"rp");
    controller.expect("RP");
}

#[test]
fn what_is_held_gets_through_at_the_next_resume_even_if_a_pause_follows_at_once() {
    let server = Setup::with_disk(1).logged_above().start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    for round in 1..=10 {
        let held: Vec<Ticket> =
            (0..16).map(|block| client.send(Request::Write(512 * block, round))).collect();
        client.all_read_by_server();
        server.wait_for_writes(held.len() * usize::from(round));
        barrier(&mut controller);
        // The server is paused, and all of them are done.
        let disk = fs::read(server.path("disk.img")).unwrap();
        assert!(disk[..512 * held.len()].iter().all(|&byte| byte == round));
        for ticket in held {
            client.reply(ticket).expect("success");
        }
    }
}
