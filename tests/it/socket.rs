//! The control socket's place in the file system: what is refused and left alone, what
//! is replaced, with which permissions, and what is left at the end. One that is lost
//! while the server runs is in `socket_lost.rs`.

use super::*;

/// A socket that nobody has open.
fn dead_socket(path: &Path) {
    leave_dead(path, UnixListener::bind(path).unwrap());
}

// What is refused.

/// nbdkit refuses to start with its control socket at this path, says so, and leaves
/// what is there alone.
fn is_refused_and_untouched(setup: &Setup, control: &str) {
    let path = setup.path(control);
    let before = look(&path);
    setup.refused(&["pause-control", path.to_str().unwrap()]);
    assert!(look(&path) == before, "it was touched");
}

#[test]
fn what_is_there_is_refused_and_untouched() {
    for make in [
        "echo a disk image >control",
        ": >control",
        "mkdir control",
        "mkfifo control",
        "ln -s file control",
        "ln -s nowhere control",
        "ln -s dead control",
        "ln -s live control",
    ] {
        println!("{make}");
        let setup = Setup::in_memory();
        fs::write(setup.path("file"), "precious").unwrap();
        dead_socket(&setup.path("dead"));
        let _live = UnixListener::bind(setup.path("live")).unwrap();
        let others = || ["file", "dead", "live"].map(|name| look(&setup.path(name)));
        let before = others();
        shell(&setup.path(""), make);
        is_refused_and_untouched(&setup, "control");
        assert!(others() == before && !setup.path("nowhere").exists());
    }
    is_refused_and_untouched(&Setup::with_disk(1).control(Some("disk.img")), "disk.img");
}

#[test]
fn a_live_socket_is_refused_and_its_owner_not_even_disturbed() {
    let setup = Setup::in_memory();
    let listener = UnixListener::bind(setup.path("control")).unwrap();
    is_refused_and_untouched(&setup, "control");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    UnixStream::connect(setup.path("control")).unwrap();
    listener.accept().unwrap();
}

/// As the socket of a server that is just starting.
#[test]
fn a_socket_whose_owner_does_not_listen_yet_is_refused_and_untouched() {
    let setup = Setup::in_memory();
    let owner = bound_socket(&setup.path("control"));
    is_refused_and_untouched(&setup, "control");
    leave_dead(&setup.path("control"), owner);
    setup.start().stop();
}

/// A path that, made absolute, has this many bytes.
fn path_of_length(setup: &Setup, length: usize) -> String {
    let folder = setup.path("");
    let folder = folder.to_str().unwrap();
    assert!(folder.len() < length, "the temporary folder's path is too long");
    format!("{folder}{}", "x".repeat(length - folder.len()))
}

#[test]
fn a_path_of_107_bytes_is_served_and_a_longer_one_is_refused() {
    let setup = Setup::in_memory();
    let path = path_of_length(&setup, 107);
    let server = setup.control(Some(&path)).start();
    server.controller().pause();
    server.stop();

    let mut setup = Setup::in_memory();
    let long = path_of_length(&setup, 108);
    // Given as a relative path, it is the absolute one that counts.
    for given in [&long, long.rsplit('/').next().unwrap()] {
        setup = setup.control(Some(given));
        setup.refused(&["pause-control=", &long, "107"]);
    }
}

#[test]
fn a_parent_that_cannot_have_the_socket_is_refused_and_untouched() {
    for (make, named, why) in [
        ("true", "parent", ""),
        ("echo precious >parent", "parent/control", ""),
        ("mkdir -m 000 parent", "parent", "ermission denied"),
        ("mkdir -m 555 parent", "parent/control", "ermission denied"),
    ] {
        println!("{make}");
        let setup = Setup::in_memory().under_a_mere_user().control(Some("parent/control"));
        let parent = setup.path("parent");
        shell(&setup.path(""), make);
        let look = || parent.exists().then(|| look(&parent));
        let before = look();
        setup.refused(&["pause-control=", setup.path(named).to_str().unwrap(), why]);
        assert!(look() == before, "it was touched");
        // So that it can be cleaned up.
        shell(&setup.path(""), "[ ! -d parent ] || chmod 700 parent");
    }
}

// What is replaced.

#[test]
fn of_servers_that_start_at_once_on_the_dead_socket_of_one_that_was_killed_one_gets_it() {
    let folder = Setup::in_memory();
    let control = folder.path("control");
    let launch = || Setup::in_memory().control(control.to_str()).launch();
    // To drop it is to kill it.
    drop(launch().ready().map_err(|_| "it does not start").unwrap());
    for _ in 0..5 {
        assert!(control.exists());
        let starting = [(); 6].map(|()| launch());
        let running: Vec<Server> =
            starting.into_iter().filter_map(|starting| starting.ready().ok()).collect();
        assert_eq!(running.len(), 1);
        Client::connect(&running[0]).expect_a_whole_pause(&running[0]);
    }
}

// What is left at the end.

#[test]
fn a_socket_that_somebody_has_removed_is_no_trouble_at_exit() {
    let server = Setup::in_memory().start();
    fs::remove_file(server.control_path()).unwrap();
    // It may be put back before the end, which is told, but is no trouble.
    let ended = server.stop();
    assert!(!ended.process.stderr.contains("cannot"), "{:#?}", ended.process);
}

#[test]
fn no_socket_is_left_when_nbdkit_cannot_have_its_own_socket() {
    let setup = Setup::in_memory();
    let _listener = UnixListener::bind(setup.path("nbd")).unwrap();
    setup.refused(&[]);
    assert!(!setup.path("control").exists());
}

#[test]
fn no_socket_is_left_when_the_plugin_fails_to_get_ready_or_after_the_fork() {
    for call in ["get_ready", "after_fork"] {
        let fails = format!("{call}=echo EIO not today >&2; exit 1");
        let setup = Setup::new(&["eval", "get_size=echo 1M", "pread=exit 1", &fails]);
        let failure = setup.failure();
        assert!(failure.stderr.contains("not today"), "{failure:#?}");
        assert!(!setup.path("control").exists(), "{failure:#?}");
    }
}

#[test]
fn the_umask_of_the_server_is_what_it_would_be_without_us() {
    let umask = |setup: Setup| {
        let server = setup.umask(0o027).start();
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("Umask:"));
        line.expect("a umask").to_owned()
    };
    assert_eq!(umask(Setup::in_memory()), umask(Setup::in_memory().no_filter()));
}
