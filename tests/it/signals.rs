//! Signals that reach the server: SIGPIPE harms nobody, those that end a program
//! end it, and after SIGSTOP and SIGCONT it is as if it had only been slow. What
//! SIGTERM does to a server that runs is in `shutdown.rs`.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::clients::{Writer, is_zero};
use crate::common::control::Controller;
use crate::common::nbd::{Client, Request};
use crate::common::process::{go_on, send_signal, stop};
use crate::common::server::Setup;
use crate::common::{A_WHILE, GENEROUS, PROMPT, eventually};

const READ: Request = Request::Read(0);
const WRITE: Request = Request::Write(0, 0xaa);

/// A pause-timeout that is waited for.
const LIMIT: Duration = Duration::from_millis(600);

#[test]
fn sigpipe_harms_nobody_however_the_server_was_started() {
    for start_with in [&["env", "--default-signal=PIPE"], &["env", "--ignore-signal=PIPE"]] {
        let server = Setup::with_disk(1).under(start_with).start();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        let control = server.control_thread();
        for _ in 0..20 {
            send_signal(server.pid(), libc::SIGPIPE);
            send_signal_to_thread(server.pid(), control, libc::SIGPIPE);
            // Nobody is there for the replies.
            server.controller().send(b"ppppxxxx");
        }
        server.all_is_heard();
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        client.reply(held).expect("success");
        client.leave();
        server.stop();
    }
}

/// tgkill(2), of a thread that is known to be there still.
fn send_signal_to_thread(pid: u32, thread: u32, signal: i32) {
    // SAFETY: tgkill(2) takes three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) };
    assert_eq!(sent, 0, "tgkill {pid} {thread}: {}", io::Error::last_os_error());
}

#[test]
fn sighup_sigint_and_sigquit_end_a_paused_server_as_sigterm_does() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        let server = Setup::with_disk(1).start();
        let mut client = Client::connect(&server);
        let mut controller = server.controller();
        controller.pause();
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE);
        send_signal(server.pid(), signal);
        client.expect_dropped(held, PROMPT);
        drop(client);
        controller.expect_closed();
        let ended = server.ended(PROMPT).well();
        assert!(is_zero(&ended.path("disk.img"), 0, 512));
    }
}

#[test]
fn what_was_sent_to_a_stopped_server_is_answered_in_order_when_it_goes_on() {
    let server = Setup::with_disk(1).parameters(&["pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    let mut before = server.controller();
    before.pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    for _ in 0..3 {
        stop(server.pid());
        before.send(b"rp?p");
        let mut new: Vec<Controller> = (0..5).map(|_| server.controller()).collect();
        for controller in &mut new {
            controller.send(b"x+p-\n?p");
        }
        before.expect_silence(A_WHILE);
        go_on(server.pid());
        before.expect("RPXP");
        for controller in &mut new {
            controller.expect("X+P-XP");
        }
    }
    // Between two of those the write may have gone on, or not.
    before.resume();
    client.reply(held).expect("success");
    // Also one that is gone is heard. Nobody else asks for this pause.
    stop(server.pid());
    server.controller().send(b"p");
    go_on(server.pid());
    server.all_is_heard();
    let held = client.send(Request::Write(512, 1));
    client.expect_held(&[held], A_WHILE);
    before.resume();
    client.reply(held).expect("success");
    client.leave();
    let disk = fs::read(server.stop().path("disk.img")).unwrap();
    assert_eq!((disk[0], disk[512]), (0xaa, 1));
}

#[test]
fn a_pause_whose_time_runs_out_while_the_server_is_stopped_is_over_when_it_goes_on() {
    let server =
        Setup::with_disk(1).parameters(&["pause-timeout=600ms", "pause-hold=true"]).start();
    let mut client = Client::connect(&server);
    for _ in 0..3 {
        let mut holder = server.controller();
        holder.hold();
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE);
        stop(server.pid());
        thread::sleep(LIMIT);
        // Sent before anything tells the server that it is too late.
        holder.send(b"-");
        go_on(server.pid());
        holder.expect("X");
        assert!(matches!(client.reply_within(held, PROMPT), Some(Ok(_))));
    }
    assert_eq!(server.messages_count("pause-timeout: "), 3, "{}", server.messages());
    // One that has time left has it, and no more.
    let mut controller = server.controller();
    let since = Instant::now();
    controller.pause();
    stop(server.pid());
    thread::sleep(LIMIT / 2);
    go_on(server.pid());
    let held = client.send(WRITE);
    assert!(matches!(client.reply_within(held, LIMIT + PROMPT), Some(Ok(_))));
    assert!(since.elapsed() >= LIMIT, "after {:?}", since.elapsed());
}

#[test]
fn a_drain_goes_on_when_a_stopped_server_does() {
    let server = Setup::with_disk(1).logged().below("delay", &["rdelay=500ms"]).start();
    let mut client = Client::connect(&server);
    for round in 1..=3 {
        let read = client.send(READ);
        let is_below = format!(" Read id={}", 2 * round - 1);
        eventually("the read is below us", GENEROUS, || server.logged().contains(&is_below));
        let mut controller = server.controller();
        controller.send(b"p");
        server.all_is_heard();
        stop(server.pid());
        thread::sleep(A_WHILE);
        go_on(server.pid());
        controller.expect("P");
        assert!(client.reply(read).is_ok());
        let held = client.send(WRITE);
        client.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        client.reply(held).unwrap();
    }
}

#[test]
fn who_dies_while_the_server_is_stopped_is_noticed_when_it_goes_on() {
    const FAR: u64 = 512 * 1024;
    let server = Setup::with_disk(1).parameters(&["pause-hold=true"]).start();
    let at_rest = server.threads_at_rest();
    let mut holders = [server.controller(), server.controller()];
    for holder in &mut holders {
        holder.hold();
    }
    let [dying, mut holder] = holders;
    let writer = Writer::start(&server, 8, FAR);
    thread::sleep(A_WHILE);
    stop(server.pid());
    writer.kill();
    drop(dying);
    go_on(server.pid());
    eventually("the client's threads are freed", PROMPT, || server.threads() == at_rest);
    holder.send(b"-");
    holder.expect("-");
    // The other hold went with its connection, or this would be held.
    let mut client = Client::connect(&server);
    let read = client.send(READ);
    assert!(matches!(client.reply_within(read, PROMPT), Some(Ok(_))));
    client.leave();
    assert!(is_zero(&server.stop().path("disk.img"), FAR, 8 * 512));
}

#[test]
fn a_stopped_server_that_is_told_to_end_does_so_when_it_goes_on() {
    let server = Setup::with_disk(1).start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(WRITE);
    client.expect_held(&[held], A_WHILE);
    stop(server.pid());
    server.terminate();
    client.expect_held(&[held], A_WHILE);
    go_on(server.pid());
    client.expect_dropped(held, PROMPT);
    drop(client);
    let ended = server.ended(PROMPT).well();
    assert!(is_zero(&ended.path("disk.img"), 0, 512));
}
