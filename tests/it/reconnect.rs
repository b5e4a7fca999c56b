//! A server that ends, or dies, in a pause, and starts again: qemu's client takes
//! what was held to the next server, so that a guest never hears of it.

use std::fs;

use crate::common::process::{Process, send_signal};
use crate::common::server::{Server, Setup};
use crate::common::{GENEROUS, PROMPT, clients, nbdkit};

fn start() -> Server {
    Setup::with_disk(1).logged_above().start()
}

/// qemu-io, which writes the first block. It tries for a minute to come back.
fn write_by_qemu(server: &Server) -> Process {
    let socket = server.socket();
    let options = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},\
         file.reconnect-delay=60",
        socket.display()
    );
    clients::start("qemu-io", &["--image-opts", "-c", "write -P 0xee 0 512", &options])
}

/// It is held when the server is told to end, or dies.
fn a_held_write_is_taken_to_the_next_server(end: impl FnOnce(Server) -> Setup) {
    let server = start();
    server.controller().pause();
    let mut qemu = write_by_qemu(&server);
    server.wait_for_writes(1);
    assert!(qemu.is_running());
    let server = end(server).start();
    let finished = qemu.finish(GENEROUS).succeeded();
    assert!(finished.stdout.contains("wrote 512/512 bytes at offset 0"), "{finished:#?}");
    let disk = fs::read(server.stop().path("disk.img")).unwrap();
    assert_eq!(disk[..512], [0xee; 512]);
}

#[test]
fn a_write_that_is_held_when_the_server_is_told_to_end_is_taken_to_the_next_one() {
    if !nbdkit::cuts_connections() {
        println!("SKIPPED: before 1.34 nbdkit can't cut a connection, and the write fails");
        return;
    }
    a_held_write_is_taken_to_the_next_server(|server| {
        server.terminate();
        server.ended(PROMPT).well().again()
    });
}

#[test]
fn a_write_that_is_held_when_the_server_is_killed_is_taken_to_the_next_one() {
    a_held_write_is_taken_to_the_next_server(|server| {
        send_signal(server.pid(), libc::SIGKILL);
        server.ended(PROMPT).again()
    });
}

/// So it is where nobody waits for a server to come back.
#[test]
fn without_reconnecting_a_held_write_fails_when_the_server_is_told_to_end() {
    let server = start();
    server.controller().pause();
    let uri = server.uri();
    let mut qemu = clients::start("qemu-io", &["-f", "raw", "-c", "write -P 0xee 0 512", &uri]);
    server.wait_for_writes(1);
    assert!(qemu.is_running());
    server.terminate();
    let ended = server.ended(PROMPT).well();
    let finished = qemu.finish(GENEROUS);
    assert!(finished.stdout.contains("write failed"), "{finished:#?}");
    assert!(clients::is_zero(&ended.path("disk.img"), 0, 512));
}
