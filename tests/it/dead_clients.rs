//! A client that dies during a pause: its threads are freed, the next client is
//! served, and what was held for it is never carried out. What may not be dropped,
//! though its client is gone, is in `never_harmed.rs`.

use super::*;

/// Where the dead client writes, apart from the others.
const FAR: u64 = 512 * 1024;

/// More than nbdkit has threads for a connection.
const MANY: usize = 64;

const UNIX: fn() -> Setup = || Setup::with_disk(1);
const TCP: fn() -> Setup = || Setup::with_disk(1).tcp();

/// How many of `writes` that are on their way are dropped when the client dies. An
/// nbdkit that can't cut a connection tells a TCP client once that its request was
/// dropped, and nobody objects. So it goes on with what is in its buffer: requests
/// whose client had gone when they came.
fn droppable(setup: &Setup, model: ThreadModel, writes: usize) -> usize {
    match setup.is_tcp() && !nbdkit::cuts_connections() {
        true => writes.min(model.at_once()),
        false => writes,
    }
}

fn held_writes_are_never_applied(setup: Setup, model: ThreadModel, writes: usize) {
    println!("{model:?}, {writes} writes");
    let writes = droppable(&setup, model, writes);
    let server = setup.thread_model(model).logged_above().start();
    let at_rest = server.threads_at_rest();
    let mut controller = server.controller();
    controller.pause();
    let writer = Writer::start(&server, writes, FAR);
    server.wait_for_writes(writes.min(model.at_once()));
    assert!(server.threads() > at_rest);
    writer.kill();

    // While it is still paused, its threads go and the next client comes.
    eventually("its threads are freed", PROMPT, || server.threads() == at_rest);
    let mut next = Client::connect_within(&server, PROMPT).expect("the next client is let in");
    let held = next.held(Write(0, 7));
    controller.resume();
    next.goes_on(held);
    assert_eq!(next.ask(Read(FAR)), [0; 512]);
    // Newer data is not written over, either.
    next.ask(Write(FAR, 9));
    thread::sleep(A_WHILE);
    assert_eq!(next.ask(Read(FAR)), [9; 512]);
    next.leave();
    let others = (MANY as u64 - 1) * 512;
    assert!(is_zero(&server.stop().path("disk.img"), FAR + 512, others), "a dead client's write");
}

#[test]
fn one_held_write_of_a_dead_client_and_many_are_never_applied() {
    for model in ThreadModel::ALL {
        held_writes_are_never_applied(UNIX(), model, 1);
        held_writes_are_never_applied(UNIX(), model, MANY);
    }
}

#[test]
fn held_writes_of_a_dead_tcp_client_are_never_applied() {
    held_writes_are_never_applied(TCP(), ThreadModel::Parallel, 1);
    held_writes_are_never_applied(TCP(), ThreadModel::Parallel, MANY);
    held_writes_are_never_applied(TCP(), ThreadModel::SerializeConnections, MANY);
}

/// The client dies so shortly before the resume that its requests have not noticed
/// yet, or while they notice.
fn killed_right_before_the_resume(setup: Setup, model: ThreadModel) {
    println!("{model:?}");
    let mut random = Random::new();
    let many = droppable(&setup, model, MANY);
    let server = setup.thread_model(model).logged_above().start();
    let at_rest = server.threads_at_rest();
    let mut controller = server.controller();
    let mut come = 0;
    for round in 0..8 {
        controller.pause();
        let writes = if round % 2 == 0 { 1 } else { many };
        let writer = Writer::start(&server, writes, FAR);
        come += writes.min(model.at_once());
        server.wait_for_writes(come);
        thread::sleep(random.millis(0..120));
        writer.kill();
        if round % 4 > 1 {
            thread::sleep(random.millis(0..120));
        }
        controller.resume();
        eventually("its threads are freed", PROMPT, || server.threads() == at_rest);
    }
    assert!(is_zero(&server.stop().path("disk.img"), 0, 1 << 20), "a dead client's write");
}

#[test]
fn held_writes_of_a_client_killed_right_before_the_resume_are_never_applied() {
    for model in ThreadModel::ALL {
        killed_right_before_the_resume(UNIX(), model);
    }
    killed_right_before_the_resume(TCP(), ThreadModel::Parallel);
}

/// All its threads have something to answer, at once, to somebody who is gone.
#[test]
fn a_client_that_dies_with_many_requests_held_never_takes_the_server_down() {
    let mut random = Random::new();
    let server = UNIX().logged_above().start();
    let at_rest = server.threads_at_rest();
    let mut controller = server.controller();
    for round in 1..=100 {
        let before = server.writes_come();
        controller.pause();
        let mut client = Client::connect(&server);
        for block in 0..MANY as u64 {
            client.send(Write(FAR + 512 * block, 0xdd));
        }
        let at_once = ThreadModel::Parallel.at_once();
        eventually("its threads are busy", GENEROUS, || server.writes_come() >= before + at_once);
        thread::sleep(random.millis(0..20));
        client.die();
        if round % 2 == 0 {
            thread::sleep(random.millis(0..150));
        }
        controller.resume();
        eventually("its threads are freed", PROMPT, || server.threads() == at_rest);
    }
    server.stop();
}

#[test]
fn held_requests_of_other_clients_are_carried_out() {
    // With SerializeConnections there is no other.
    for model in &ThreadModel::ALL[..3] {
        println!("{model:?}");
        let server = UNIX().thread_model(*model).logged_above().start();
        let mut other = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let writer = Writer::start(&server, 4, FAR);
        server.wait_for_writes(4.min(model.at_once()));
        let held = [1, 2, 3].map(|block| other.send(Write(512 * u64::from(block), block)));
        other.expect_held(&held, A_WHILE);
        writer.kill();
        other.expect_held(&held, A_WHILE);
        controller.resume();
        held.iter().for_each(|&ticket| _ = other.goes_on(ticket));
        assert_eq!(other.ask(Read(1536)), [3; 512]);
        other.leave();
        assert!(is_zero(&server.stop().path("disk.img"), FAR, 4 * 512), "a dead client's write");
    }
}

#[test]
fn a_client_that_shuts_down_its_sending_half_counts_as_gone() {
    for setup in [UNIX(), TCP()] {
        let server = setup.start();
        let at_rest = server.threads_at_rest();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let held = [0, 512, 1024].map(|offset| client.send(Write(offset, 1)));
        client.expect_held(&held, A_WHILE);
        client.shut_down_sending_half();
        // It can still hear.
        held.iter().for_each(|&ticket| client.expect_dropped(ticket, PROMPT));
        eventually("its threads are freed", PROMPT, || server.threads() == at_rest);
        controller.resume();
        let mut next = Client::connect(&server);
        assert_eq!(next.ask(READ), [0; 512]);
        drop((client, next));
        let ended = server.stop();
        assert!(is_zero(&ended.path("disk.img"), 0, 1536), "a write of one who is gone");
    }
}
