//! The server is told to go during a pause: held requests are answered with an
//! error at once, and the server goes as soon as its clients have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

mod common;

use std::os::unix::net::UnixStream;
use std::time::Instant;

use common::nbd::{Client, Request, Ticket};
use common::server::{Setup, ThreadModel};
use common::{A_WHILE, GENEROUS, PROMPT, clients, eventually};

const WRITE: Request = Request::Write { offset: 0, byte: 0xee };

/// `count` clients have each `first` requests held; then they send `more`,
/// which the server has not read yet where it serves one at a time.
fn sigterm(model: ThreadModel, count: usize, first: usize, more: usize) {
    let server = Setup::with_disk(1).thread_model(model).start();
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(&server)).collect();
    // One that connects and says nothing. With serialize=all-requests nbdkit
    // lets nobody else ask for anything meanwhile, with or without us.
    let silent = (model != ThreadModel::SerializeAllRequests)
        .then(|| UnixStream::connect(server.socket()).unwrap());
    let mut controller = server.controller();
    controller.pause();
    let kinds = [WRITE, Request::Flush, Request::Read { offset: 0 }];
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
            let left = PROMPT.saturating_sub(start.elapsed());
            let reply = client.reply_within(ticket, left);
            assert_eq!(reply, Some(Err(libc::ESHUTDOWN)), "a held request");
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
fn sigterm_answers_held_requests_and_the_server_goes_parallel() {
    sigterm(ThreadModel::Parallel, 4, 12, 0);
}

#[test]
fn sigterm_answers_held_requests_and_the_server_goes_with_all_threads_busy() {
    sigterm(ThreadModel::Parallel, 3, 16, 16);
}

// One after the other would take 100 ms each, and together too long.
#[test]
fn sigterm_answers_held_requests_and_the_server_goes_serialize_requests() {
    sigterm(ThreadModel::SerializeRequests, 60, 1, 3);
}

#[test]
fn sigterm_answers_held_requests_and_the_server_goes_serialize_all_requests() {
    sigterm(ThreadModel::SerializeAllRequests, 60, 1, 3);
}

#[test]
fn sigterm_answers_held_requests_and_the_server_goes_serialize_connections() {
    sigterm(ThreadModel::SerializeConnections, 1, 1, 3);
}

#[test]
fn sigterm_ends_a_stuck_drain() {
    let server = Setup::in_memory().logged().below("delay", &["rdelay=30"]).start();
    let mut client = Client::connect(&server);
    let stuck = client.send(Request::Read { offset: 0 });
    eventually("the read is below us", GENEROUS, || server.logged().contains(" Read id=1"));
    let mut controller = server.controller();
    controller.send(b"p");
    controller.expect_silence(A_WHILE);
    let held = client.send(WRITE);
    client.all_read_by_server();
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
    client.all_read_by_server();
    server.terminate();
    assert_eq!(client.reply_within(held, PROMPT), Some(Err(libc::ESHUTDOWN)));
    // nbdkit still waits for its next request, and need not answer it well.
    let late = client.send(WRITE);
    assert!(matches!(client.reply_within(late, PROMPT), Some(Err(_))));
    drop(client);
    let ended = server.ended(PROMPT).well();
    assert!(clients::is_zero(&ended.path("disk.img"), 0, 512));
}
