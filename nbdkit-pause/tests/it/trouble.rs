//! What can be wrong with a socket, and what a person is told of it: which socket, what
//! is wrong, what to do. A server that goes wrong later is in `breaks.rs`.

use super::*;

/// All three actions fail on `socket`, say why, and leave the good server next to it
/// running.
fn expect_trouble(server: &Server, socket: &str, why: &str, hint: &str) {
    for action in ["run", "pause", "resume"] {
        let command = if action == "run" { "-- touch ran" } else { "" };
        let words = format!("{action} --timeout 2 control {socket} {command}");
        expect_failure(call(server, &words), socket, why, hint);
        not_run(&[server]);
    }
}

fn expect_failure(command: Command, socket: &str, why: &str, hint: &str) {
    let said = command.ends(125, &[why, hint]).stderr;
    expect_line(&said, &[why, &format!(" s: {socket}: ")]);
}

#[test]
fn a_socket_that_is_not_there_or_is_none_or_refuses() {
    let server = Plain.start();
    server.make("file");
    fs::create_dir(server.path("folder")).unwrap();
    let _datagram = UnixDatagram::bind(server.path("datagram")).unwrap();
    leave_dead(&server.path("dead"), UnixListener::bind(server.path("dead")).unwrap());
    let long = "x".repeat(108);
    for (socket, why, hint) in [
        ("nowhere", "no such socket", "pause-control=SOCKET"),
        ("no/where", "no such socket", "nbdkit is running"),
        ("file/where", "no such socket", "nbdkit is running"),
        ("dead", "connection refused: the server of this socket is gone", "is running"),
        ("file", "not a pause control socket", "pause-control"),
        ("folder", "not a pause control socket", "pause-control"),
        ("datagram", "not a pause control socket", "pause-control"),
        ("nbd", "not a pause control socket but one for NBD clients", "pause-control"),
        (&long, "this path is 108 bytes long", "107"),
    ] {
        expect_trouble(&server, socket, why, hint);
    }
}

#[test]
fn a_socket_that_may_not_be_used() {
    if !is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let server = Plain.start();
    // Where that user finds it.
    set_mode(server.dir(), 0o755);
    // By another process: what this one has open for writing, a process that
    // another test is just starting has open, too, and it could not be executed.
    clients::program("cp", &[PROGRAM, server.path("helper").to_str().unwrap()]);
    for action in ["pause", "resume"] {
        let mut command = Command::new(server.path("helper"));
        command.args([action, "control"]).current_dir(server.dir()).uid(NOBODY).gid(NOBODY);
        expect_failure(command, "control", "permission denied", "pause-mode");
        expect_flow(&server);
    }
}

/// A service at the socket `other`, next to a good server.
fn expect_trouble_with(service: impl Fn(UnixStream) + Send + 'static, why: &str, hint: &str) {
    let server = Plain.start();
    let listener = UnixListener::bind(server.path("other")).unwrap();
    thread::spawn(move || listener.incoming().for_each(|stream| service(stream.unwrap())));
    expect_trouble(&server, "other", why, hint);
}

#[test]
fn the_socket_of_another_service() {
    let answer_z = |mut stream: UnixStream| {
        let _ = stream.read(&mut [0]);
        let _ = stream.write_all(b"Z");
        let _ = stream.read(&mut [0]);
    };
    expect_trouble_with(answer_z, "not a pause control socket", "0x5a");
}

#[test]
fn a_service_that_closes_the_connection() {
    expect_trouble_with(drop, "the server closed the connection", "not a pause control socket");
}

#[test]
fn a_service_that_never_answers_or_lets_nobody_in() {
    let server = Plain.start();
    let [_mute, full] = ["mute", "full"].map(|name| UnixListener::bind(server.path(name)).unwrap());
    // Its queue is full from now on.
    // SAFETY: listen(2) takes two integers.
    assert_eq!(unsafe { libc::listen(full.as_raw_fd(), 0) }, 0);
    let _queued = UnixStream::connect(server.path("full")).unwrap();
    for socket in ["mute", "full"] {
        expect_trouble(&server, socket, "no answer within 2.000 s", "another controller");
    }
}

#[test]
fn every_bad_socket_is_named_at_once() {
    let server = Plain.start();
    server.make("file");
    call(&server, "run nowhere control file -- true")
        .ends(125, &["nowhere: no such socket", "file: not a pause control socket"]);
}

#[test]
fn the_same_server_twice_is_refused_before_it_is_paused() {
    for kind in KINDS {
        let server = kind.start();
        for second in ["control", "./control", &socket(&server)] {
            call(&server, &format!("run control {second} -- touch ran"))
                .ends(125, &["are the same socket"]);
        }
        not_run(&[&server]);
    }
}
