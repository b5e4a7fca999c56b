//! The control socket's place in the file system: what is refused and left alone, what
//! is replaced, with which permissions, and what is left at the end. One that is lost
//! while the server runs is in `socket_lost.rs`.

use super::*;

/// A socket that nobody has open.
fn dead_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
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
    type Make = fn(&Path);
    let occupants: [(&str, Make); 8] = [
        ("a regular file", |path| fs::write(path, "a disk image").unwrap()),
        ("an empty file", |path| fs::write(path, "").unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a FIFO", make_fifo),
        ("a link to a file", |path| symlink("file", path).unwrap()),
        ("a dangling link", |path| symlink("nowhere", path).unwrap()),
        ("a link to a dead socket", |path| symlink("dead", path).unwrap()),
        ("a link to a live socket", |path| symlink("live", path).unwrap()),
    ];
    for (what, make) in occupants {
        println!("{what}");
        let setup = Setup::in_memory();
        fs::write(setup.path("file"), "precious").unwrap();
        dead_socket(&setup.path("dead"));
        let _live = UnixListener::bind(setup.path("live")).unwrap();
        let others = || ["file", "dead", "live"].map(|name| look(&setup.path(name)));
        let before = others();
        make(&setup.path("control"));
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
    drop(owner);
    setup.start().stop();
}

#[test]
fn the_control_socket_of_another_server_is_refused_and_goes_on_working() {
    let first = Setup::in_memory().start();
    let path = first.control_path();
    let path = path.to_str().unwrap();
    Setup::in_memory().control(Some(path)).refused(&[path]);
    first.controller().pause();
    first.controller().resume();
    first.stop();
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

/// A parent folder, which `make` makes, is refused; `named` is told, and `why`.
fn is_refused_in(setup: Setup, make: fn(&Path), named: &str, why: &str) -> Setup {
    let setup = setup.control(Some("parent/control"));
    make(&setup.path("parent"));
    setup.refused(&["pause-control=", setup.path(named).to_str().unwrap(), why]);
    setup
}

#[test]
fn a_parent_that_is_missing_or_a_file_is_refused() {
    let setup = is_refused_in(Setup::in_memory(), |_| {}, "parent", "");
    assert!(!setup.path("parent").exists());
    let file = |path: &Path| fs::write(path, "precious").unwrap();
    let setup = is_refused_in(Setup::in_memory(), file, "parent/control", "");
    assert_eq!(fs::read(setup.path("parent")).unwrap(), b"precious");
}

#[test]
fn a_parent_that_is_unreadable_or_not_writable_is_refused() {
    let user = || Setup::in_memory().under_a_mere_user();
    let why = "ermission denied";
    let unreadable = |path: &Path| fs::create_dir(path).map(|()| set_mode(path, 0o000)).unwrap();
    let setup = is_refused_in(user(), unreadable, "parent", why);
    // So that it can be cleaned up.
    set_mode(&setup.path("parent"), 0o700);
    let not_writable = |path: &Path| fs::create_dir(path).map(|()| set_mode(path, 0o555)).unwrap();
    is_refused_in(user(), not_writable, "parent/control", why);
}

#[test]
fn a_mere_user_can_run_it() {
    let server = Setup::in_memory().under_a_mere_user().start();
    server.controller().pause();
    server.stop();
}

// What is replaced.

#[test]
fn a_dead_socket_is_replaced() {
    let setup = Setup::in_memory();
    dead_socket(&setup.path("control"));
    assert!(setup.path("control").exists());
    let server = setup.start();
    server.controller().pause();
    server.stop();
}

#[test]
fn the_socket_of_a_server_that_was_killed_is_replaced() {
    let folder = Setup::in_memory();
    let control = folder.path("control");
    let start = || Setup::in_memory().control(control.to_str()).start();
    let first = start();
    first.controller().pause();
    // Dropping it kills it.
    drop(first);
    assert!(control.exists());
    let second = start();
    second.controller().pause();
    second.stop();
}

#[test]
fn of_servers_that_start_at_once_on_a_dead_socket_one_gets_it() {
    let folder = Setup::in_memory();
    let control = folder.path("control");
    for _ in 0..5 {
        dead_socket(&control);
        let starting: Vec<_> =
            (0..6).map(|_| Setup::in_memory().control(control.to_str()).launch()).collect();
        let mut running: Vec<Server> =
            starting.into_iter().filter_map(|starting| starting.ready().ok()).collect();
        assert_eq!(running.len(), 1);
        let server = running.remove(0);
        Client::connect(&server).expect_a_whole_pause(&server);
        server.stop();
    }
}

// What is left at the end.

#[test]
fn a_socket_or_a_file_put_in_our_place_survives_our_exit() {
    for is_socket in [true, false] {
        let server = Setup::in_memory().start();
        let (control, theirs) = (server.control_path(), server.path("theirs"));
        let _alive = is_socket.then(|| UnixListener::bind(&theirs).unwrap());
        if !is_socket {
            fs::write(&theirs, "precious").unwrap();
        }
        let before = look(&theirs);
        // In one step, or the server might put its own back in between.
        fs::rename(theirs, &control).unwrap();
        server.terminate();
        let ended = server.ended(PROMPT);
        assert_eq!(ended.process.status.code(), Some(0), "{:#?}", ended.process);
        assert!(look(&control) == before, "it was touched");
    }
}

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

// Permissions.

#[test]
fn the_socket_has_exactly_pause_mode_whatever_the_umask_and_is_private_without() {
    let modes = [
        ("", 0o600),
        ("pause-mode=0660", 0o660),
        ("pause-mode=666", 0o666),
        ("pause-mode=0777", 0o777),
        ("pause-mode=0", 0),
        ("pause-mode=07", 0o7),
    ];
    for umask in [0, 0o022, 0o077, 0o377] {
        for (parameter, mode) in modes {
            let parameters: Vec<&str> = parameter.split_whitespace().collect();
            let server = Setup::in_memory().umask(umask).parameters(&parameters).start();
            let found = socket_mode(&server.control_path());
            assert_eq!(found, Some(mode), "{parameter}, umask {umask:o}");
            server.stop();
        }
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
