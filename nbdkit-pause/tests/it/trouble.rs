//! What can be wrong with a socket, and what a person is told of it: which socket, what
//! is wrong, what to do. A server that goes wrong later is in `breaks.rs`.

use std::path::Path;

use super::*;

/// All three actions fail on `socket`, say why, and leave the good servers on both sides
/// of it running.
fn expect_trouble(good: &[Server; 2], socket: &str, why: &str, hint: &str) {
    let [first, last] = good;
    for (action, command, outcome) in [
        ("run", "-- touch ran", "touch was not run"),
        ("pause", "", "no server was paused"),
        ("resume", "", "not resumed: "),
    ] {
        if action == "resume" {
            good.iter().for_each(|server| server.controller().pause());
        }
        let last_socket = helper::socket(last);
        let words = format!("{action} --timeout 2 control {socket} {last_socket} {command}");
        let said = expect_failure(call(first, &words), socket, why, &[hint, outcome]);
        assert!(!said.contains(": paused"), "{said}");
        not_run(&[first, last]);
    }
}

fn expect_failure(command: Command, socket: &str, why: &str, more: &[&str]) -> String {
    let said = command.ends(125, more).stderr;
    expect_line(&said, &[why, &format!(" s: {socket}: ")]);
    said
}

#[test]
fn a_socket_that_is_not_there_or_is_none_or_refuses() {
    for kind in KINDS {
        let good = start_all([kind; 2]);
        let server = &good[0];
        server.make("file");
        fs::create_dir(server.path("folder")).unwrap();
        let _datagram = UnixDatagram::bind(server.path("datagram")).unwrap();
        leave_dead(&server.path("dead"), UnixListener::bind(server.path("dead")).unwrap());
        let long = "x".repeat(108);
        for (socket, why, hint) in [
            ("nowhere", "no such socket", "pause-control=SOCKET"),
            ("nowhere", "if systemd opens nbdkit's socket, nbdkit starts", "its first client"),
            ("no/where", "as there is no directory no", "RuntimeDirectory="),
            ("file/where", "no such socket", "nbdkit is running"),
            (
                "dead",
                "refused: the server of this socket is gone",
                "directory of the socket is mounted",
            ),
            ("file", "not a pause control socket", "pause-control"),
            ("folder", "not a pause control socket", "pause-control"),
            ("datagram", "not a pause control socket", "pause-control"),
            ("nbd", "not a pause control socket but one for NBD clients", "pause-control"),
            (&long, "this path is 108 bytes long", "107"),
        ] {
            expect_trouble(&good, socket, why, hint);
        }
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
        expect_failure(command, "control", "permission denied", &["pause-mode"]);
        expect_flow(&server);
    }
}

#[test]
fn the_socket_of_another_service_or_of_one_that_closes_the_connection() {
    let answer_z: fn(UnixStream) = |mut stream| {
        let _ = stream.read(&mut [0]);
        let _ = stream.write_all(b"Z");
        let _ = stream.read(&mut [0]);
    };
    for (service, why, hint) in [
        (answer_z, "not a pause control socket", "0x5a"),
        (drop, "the server closed the connection", "not a pause control socket"),
    ] {
        let good = start_all([Plain; 2]);
        let listener = UnixListener::bind(good[0].path("other")).unwrap();
        thread::spawn(move || listener.incoming().for_each(|stream| service(stream.unwrap())));
        expect_trouble(&good, "other", why, hint);
    }
}

#[test]
fn a_service_that_never_answers_or_lets_nobody_in() {
    let good = start_all([Plain; 2]);
    let listen = |name| UnixListener::bind(good[0].path(name)).unwrap();
    let [_mute, full] = ["mute", "full"].map(listen);
    // Its queue is full from now on.
    // SAFETY: listen(2) takes two integers.
    assert_eq!(unsafe { libc::listen(full.as_raw_fd(), 0) }, 0);
    let _queued = UnixStream::connect(good[0].path("full")).unwrap();
    for socket in ["mute", "full"] {
        expect_trouble(&good, socket, "no answer within 2.000 s", "another controller");
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

/// nbdkit has its socket from another program, which starts it with the first client.
#[test]
fn a_server_that_is_started_by_its_first_client_has_no_socket_before() {
    const ACTIVATE: &str = "/usr/bin/systemd-socket-activate";
    if !Path::new(ACTIVATE).exists() || debian::other_nbdkit() {
        println!("SKIPPED: there is no systemd, or another nbdkit is tested");
        return;
    }
    for kind in KINDS {
        let setup = kind.of(Setup::in_memory());
        let start = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).current_dir(setup.path(""));
            Process::start(command)
        };
        let words = setup.activated();
        let words = words.iter().map(String::as_str);
        let listen = format!("--listen={}", setup.path("nbd").display());
        let words = [&[ACTIVATE, &listen][..], &words.collect::<Vec<_>>()].concat();
        let mut server = start(&words);
        server.runs_until("its socket is there", || setup.path("nbd").exists());
        let call = || start(&[PROGRAM, "run", "control", "--", "true"]);
        call().ends(125, &["control: no such socket", "nbdkit starts with its first client"]);
        let mut client = UnixStream::connect(setup.path("nbd")).expect("a client");
        client.read_exact(&mut [0; 18]).expect("a greeting");
        call().ends(0, &[]);
    }
}

#[test]
fn the_filters_manual_has_what_nbdkit_itself_says() {
    let manual = Path::new(filter::PACKAGE).join("../nbdkit-pause-filter.pod");
    let manual = fs::read_to_string(manual).expect("the manual");
    for (setup, said) in [
        (Setup::in_memory().stock().holds(), "unknown parameter 'pause-hold'"),
        (Setup::in_memory().filter("libpause-is-not-there".into()), "cannot open filter "),
    ] {
        setup.refused(&[said]);
        assert!(manual.contains(said), "{said}");
    }
}
