//! The server is told to go during a pause: held requests are dropped at once, and
//! the server goes as soon as its clients have.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::common::control::Controller;
use crate::common::nbd::{Client, Request, Ticket};
use crate::common::process::{expect_line, send_signal};
use crate::common::server::{Setup, ThreadModel};
use crate::common::{A_WHILE, GENEROUS, PROMPT, clients, eventually, nbdkit};

const WRITE: Request = Request::Write(0, 0xee);

/// `count` clients have each `first` requests held; then they send `more`,
/// which the server has not read yet where it serves one at a time.
fn sigterm(model: ThreadModel, count: usize, first: usize, more: usize) {
    let server = Setup::with_disk(1).thread_model(model).start();
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(&server)).collect();
    // One that connects and says nothing.
    let silent = UnixStream::connect(server.socket()).unwrap();
    let mut controller = server.controller();
    controller.pause();
    let kinds = [WRITE, Request::Flush, Request::Read(0)];
    let held: Vec<Vec<Ticket>> = clients
        .iter_mut()
        .map(|client| {
            let requests = kinds.iter().cycle().take(first);
            let tickets = requests.map(|&request| client.send(request)).collect();
            client.all_read_by_server();
            tickets
        })
        .collect();
    let unread: Vec<Vec<Ticket>> =
        clients.iter_mut().map(|client| (0..more).map(|_| client.send(WRITE)).collect()).collect();
    clients[0].expect_held(&held[0], A_WHILE);

    let start = Instant::now();
    server.terminate();
    for (client, tickets) in clients.iter_mut().zip(&held) {
        for &ticket in tickets {
            client.expect_dropped(ticket, PROMPT.saturating_sub(start.elapsed()));
        }
    }
    for (client, tickets) in clients.iter_mut().zip(&unread) {
        for &ticket in tickets {
            let reply = client.reply_within(ticket, GENEROUS);
            assert!(matches!(reply, Some(Err(_))), "a request behind it: {reply:?}");
        }
    }
    drop(clients);
    drop(silent);
    let ended = server.ended(PROMPT).well();
    assert!(clients::is_zero(&ended.path("disk.img"), 0, 1 << 20));
    // Nobody is left to answer.
    controller.expect_closed();
}

#[test]
fn sigterm_drops_held_requests_and_the_server_goes_parallel() {
    sigterm(ThreadModel::Parallel, 4, 12, 0);
}

#[test]
fn sigterm_drops_held_requests_and_the_server_goes_with_all_threads_busy() {
    sigterm(ThreadModel::Parallel, 3, 16, 16);
}

// One after the other would take 100 ms each, and together too long.
#[test]
fn sigterm_drops_held_requests_and_the_server_goes_serialize_requests() {
    sigterm(ThreadModel::SerializeRequests, 60, 1, 3);
}

/// One is held, and has nbdkit's only lock. When it is dropped the others come, one
/// by one, to a server that ends and a gate that is closed. They could be the last
/// writes of a file system above us, and so they end the pause.
#[test]
fn at_sigterm_what_waits_in_nbdkit_for_a_held_request_is_carried_out() {
    let setup = Setup::with_disk(1).thread_model(ThreadModel::SerializeAllRequests);
    let server = setup.parameters(&["pause-hold=true"]).logged_above().start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&server)).collect();
    let mut controller = server.controller();
    controller.hold();
    let send = |client: &mut Client, block: u64| {
        let ticket = client.send(Request::Write(512 * block, 0xee));
        client.all_read_by_server();
        ticket
    };
    let held = send(&mut clients[0], 0);
    server.wait_for_writes(1);
    let waiting: Vec<Ticket> =
        (1..20).map(|block| send(&mut clients[block as usize], block)).collect();
    clients[0].expect_held(&[held], A_WHILE);
    server.terminate();
    clients[0].expect_dropped(held, PROMPT);
    for (client, ticket) in clients[1..].iter_mut().zip(waiting) {
        assert!(matches!(client.reply_within(ticket, PROMPT), Some(Ok(_))));
    }
    drop(clients);
    let ended = server.ended(PROMPT).well();
    // Whoever relied on the pause hears of it.
    expect_line(&ended.process.stderr, &["error", "told to end", "the pause is ended"]);
    let disk = std::fs::read(ended.path("disk.img")).unwrap();
    assert_eq!(disk[..512], [0; 512]);
    assert_eq!(disk[512..20 * 512], [0xee; 19 * 512]);
}

#[test]
fn sigterm_drops_held_requests_and_the_server_goes_serialize_connections() {
    sigterm(ThreadModel::SerializeConnections, 1, 1, 3);
}

#[test]
fn sigterm_ends_a_stuck_drain() {
    let server = Setup::in_memory().logged().below("delay", &["rdelay=30"]).start();
    let mut client = Client::connect(&server);
    let stuck = client.send(Request::Read(0));
    eventually("the read is below us", GENEROUS, || server.logged().contains(" Read id=1"));
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(A_WHILE);
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    server.terminate();
    for ticket in [stuck, held] {
        let reply = client.reply_within(ticket, PROMPT);
        assert!(matches!(reply, Some(Err(_))), "{reply:?}");
    }
    drop(client);
    let ended = server.ended(PROMPT).well();
    assert!(!std::fs::read_to_string(ended.path("log")).unwrap().contains(" Write "));
}

#[test]
fn sigterm_during_a_pause_without_clients_ends_the_server() {
    let server = Setup::in_memory().start();
    let mut controller = server.controller();
    controller.pause();
    server.stop();
    controller.expect_closed();
}

#[test]
fn a_client_that_stays_after_sigterm_gets_errors_until_it_leaves() {
    let server = Setup::with_disk(1).start();
    let mut client = Client::connect(&server);
    server.controller().pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    server.terminate();
    client.expect_dropped(held, PROMPT);
    if !nbdkit::cuts_connections() {
        // nbdkit still waits for its next request, and need not answer it well.
        let late = client.send(WRITE);
        assert!(matches!(client.reply_within(late, PROMPT), Some(Err(_))));
    }
    drop(client);
    let ended = server.ended(PROMPT).well();
    assert!(clients::is_zero(&ended.path("disk.img"), 0, 512));
}

/// A client at two pipes is told that its negotiation has failed: a connection that is
/// cut could not tell it, and nbdkit would die of that.
#[test]
fn sigterm_while_a_client_on_pipes_negotiates_ends_the_server_well() {
    let setup = Setup::with_disk(1).above("partition", &["partition=1"]);
    let control = setup.path("control");
    let setup = setup.control(control.to_str());
    // The filter above reads this when the client has told which export it wants.
    let mut partitions = [0; 512];
    partitions[446 + 4] = 0x83;
    partitions[446 + 8] = 1;
    partitions[446 + 12] = 100;
    partitions[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = std::fs::OpenOptions::new().write(true).open(setup.path("disk.img")).unwrap();
    disk.write_all_at(&partitions, 0).unwrap();

    let words = setup.on_stdin();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(nbdkit::environment()).current_dir(setup.path(""));
    let log = std::fs::File::create(setup.path("stderr")).unwrap();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let mut server = command.spawn().unwrap();
    let (mut input, mut output) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
    output.read_exact(&mut [0; 18]).unwrap();
    Controller::connect(&control).pause();
    // NBD's fixed newstyle; NBD_OPT_GO for the export without a name.
    let go = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7], &[0, 0, 0, 6], &[0; 6]].concat();
    input.write_all(&go).unwrap();
    std::thread::sleep(A_WHILE);
    send_signal(server.id(), libc::SIGTERM);
    std::thread::sleep(A_WHILE);
    drop((input, output));
    let start = Instant::now();
    while server.try_wait().unwrap().is_none() && start.elapsed() < PROMPT {
        std::thread::sleep(A_WHILE / 10);
    }
    // It may not be left behind.
    let _ = server.kill();
    let status = server.wait().unwrap();
    let said = std::fs::read_to_string(setup.path("stderr")).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!control.exists());
}
