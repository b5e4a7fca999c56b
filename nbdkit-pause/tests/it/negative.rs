//! What can be wrong with a socket, and what a person is told of it: which
//! socket, what is wrong, what to do.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use crate::common::process::Finished;
use crate::common::server::Server;
use crate::helper::{
    Kind, PROGRAM, expect_flow, expect_said, expect_status, finished, helper, touch,
};

/// All three actions fail on `socket`, say why, and leave the good server
/// next to it running.
fn expect_trouble(server: &Server, socket: &str, why: &str, hint: &str) {
    for action in ["run", "pause", "resume"] {
        let mut command = helper(server, &[action, "--timeout", "2", "control", socket]);
        if action == "run" {
            command.args(["--", "touch", "ran"]);
        }
        expect_failure(&finished(command), socket, why, hint);
        assert!(!server.path("ran").exists());
        expect_flow(server);
    }
}

fn expect_failure(finished: &Finished, socket: &str, why: &str, hint: &str) {
    expect_status(finished, 125);
    expect_said(finished, &[why, hint]);
    let line = finished.stderr.lines().find(|line| line.contains(why)).expect("a line");
    assert!(line.contains(&format!(" s: {socket}: ")), "the socket is not named: {line}");
}

#[test]
fn a_socket_that_is_not_there() {
    let server = Kind::Plain.start();
    touch(&server.path("file"));
    expect_trouble(&server, "nowhere", "there is no such socket", "pause-control=SOCKET");
    expect_trouble(&server, "no/where", "there is no such socket", "nbdkit is running");
    expect_trouble(&server, "file/where", "there is no such socket", "nbdkit is running");
}

#[test]
fn a_socket_that_refuses_because_its_server_is_gone() {
    let server = Kind::Plain.start();
    drop(UnixListener::bind(server.path("dead")).expect("a socket"));
    expect_trouble(&server, "dead", "refused: the server of this socket is gone", "is running");
}

#[test]
fn a_socket_that_may_not_be_used() {
    if !crate::common::server::is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let server = Kind::Plain.start();
    // Where that user finds it.
    fs::set_permissions(server.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
    // By another process: what this one has open for writing, a process that
    // another test is just starting has open, too, and it could not be executed.
    let copied = Command::new("cp").arg(PROGRAM).arg(server.path("helper")).status();
    assert!(copied.is_ok_and(|status| status.success()));
    for action in ["pause", "resume"] {
        let mut command = Command::new(server.path("helper"));
        command.args([action, "control"]).current_dir(server.dir()).uid(65534).gid(65534);
        expect_failure(&finished(command), "control", "permission denied", "pause-mode");
        expect_flow(&server);
    }
}

#[test]
fn what_is_no_socket() {
    let server = Kind::Plain.start();
    touch(&server.path("file"));
    fs::create_dir(server.path("folder")).expect("a folder");
    let _datagram = UnixDatagram::bind(server.path("datagram")).expect("a socket");
    for path in ["file", "folder", "datagram"] {
        expect_trouble(&server, path, "this is not a pause socket", "pause-control");
    }
}

#[test]
fn the_socket_of_nbd_clients() {
    let server = Kind::Plain.start();
    expect_trouble(
        &server,
        "nbd",
        "not a pause socket but the one of NBD clients",
        "pause-control",
    );
}

#[test]
fn the_socket_of_another_service() {
    let server = Kind::Plain.start();
    let listener = UnixListener::bind(server.path("other")).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut command = [0];
            let _ = stream.read(&mut command);
            let _ = stream.write_all(b"Z");
            let _ = stream.read(&mut command);
        }
    });
    expect_trouble(&server, "other", "this is not a pause socket", "0x5a");
}

#[test]
fn a_service_that_closes_the_connection() {
    let server = Kind::Plain.start();
    let listener = UnixListener::bind(server.path("other")).expect("a socket");
    thread::spawn(move || listener.incoming().for_each(drop));
    expect_trouble(&server, "other", "has closed the connection", "not a pause socket");
}

#[test]
fn a_service_that_never_answers() {
    let server = Kind::Plain.start();
    let _listener = UnixListener::bind(server.path("mute")).expect("a socket");
    expect_trouble(&server, "mute", "no answer within 2.000 s", "another controller");
}

#[test]
fn a_service_that_lets_nobody_in() {
    let server = Kind::Plain.start();
    let mute = UnixListener::bind(server.path("full")).expect("a socket");
    // Its queue is full from now on.
    // SAFETY: listen(2) takes two integers.
    let listening = unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&mute), 0) };
    assert_eq!(listening, 0);
    let _queued = std::os::unix::net::UnixStream::connect(server.path("full")).expect("the queue");
    expect_trouble(&server, "full", "no answer within 2.000 s", "another controller");
}

#[test]
fn a_path_that_no_socket_can_have() {
    let server = Kind::Plain.start();
    let long = "x".repeat(108);
    expect_trouble(&server, &long, "this path has 108 bytes", "107");
}

#[test]
fn every_bad_socket_is_named_at_once() {
    let server = Kind::Plain.start();
    touch(&server.path("file"));
    let run = finished(helper(&server, &["run", "nowhere", "control", "file", "--", "true"]));
    expect_status(&run, 125);
    expect_said(&run, &["nowhere: there is no such socket", "file: this is not a pause socket"]);
}
