//! There is no more to be had of something that the server needs: threads, descriptors,
//! room for the control socket. Nothing is lost, and the log says why. Descriptors that
//! controllers and clients use up are in `controllers.rs`, and a log whose disk is full
//! is in `stuck_log.rs`.

use super::*;

// No threads.

/// Of processes, which threads count as, it has one or more already.
const NO_MORE_THREADS: &str = "--nproc=1:";

/// A client that has been served once has all its threads then.
const ONE_THREAD: &str = "--threads=1";

/// As many as it could ever have.
fn threads_again(server: &Server) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max processes")).unwrap();
    let most = line.split_whitespace().nth(1).unwrap();
    server.limit(&format!("--nproc={most}:"));
}

#[test]
fn without_a_thread_for_control_nbdkit_ends_and_says_what_to_raise() {
    let setup = Setup::in_memory().under_a_mere_user().under(&["prlimit", NO_MORE_THREADS]);
    let failure = setup.failure();
    expect_line(&failure.stderr, &["error: ", "pause-control", "control thread", "ulimit -u"]);
    assert!(!setup.path("control").exists(), "{failure:#?}");
}

#[test]
fn without_a_thread_to_flush_a_pause_is_refused_and_the_next_one_works() {
    let setup = Setup::in_memory().under_a_mere_user().logged().flushes();
    let mut stage = Stage::on(setup.options(&[ONE_THREAD]));
    stage.play("write").server.limit(NO_MORE_THREADS);
    stage.play("A:p=X read A:p=X read A:p=X read");
    let messages = stage.server.messages();
    expect_line(&messages, &["error: ", "pause-flush", "thread", "ulimit -u", "gave up"]);
    assert!(!stage.server.logged().contains(" Flush "), "{}", stage.server.logged());

    threads_again(&stage.server);
    stage.play("A:p=P");
    assert!(stage.server.logged().contains(" Flush "), "{}", stage.server.logged());
    stage.play("held A:r=R flow");
}

#[test]
fn clients_that_nbdkit_has_no_threads_for_harm_no_other_and_no_pause() {
    let mut stage = Stage::on(Setup::in_memory().under_a_mere_user().options(&[ONE_THREAD]));
    stage.play("goes is-gone");
    let at_rest = descriptors(stage.server.pid());
    for before in ["read A:r=R", "A:p=P"] {
        stage.play(before).server.limit(NO_MORE_THREADS);
        let mut refused = UnixStream::connect(stage.server.socket()).unwrap();
        refused.set_read_timeout(Some(GENEROUS)).unwrap();
        // What nbdkit does with it is nbdkit's affair.
        let _ = refused.read(&mut [0; 512]);
        drop(refused);
        stage.play("A:p=P held A:r=R flow");
        threads_again(&stage.server);
        Client::connect(&stage.server).leave();
    }
    stage.play("A.closes goes is-gone");
    eventually("nothing is kept", GENEROUS, || descriptors(stage.server.pid()) == at_rest);
    stage.end();
}

// No descriptors.

/// Starts nbdkit, and waits until the filter serves, too, or nbdkit has ended.
fn start_for_good(setup: Setup) -> Result<Server, Finished> {
    let mut server = setup.try_start()?;
    let mut ended = false;
    eventually("the filter serves", GENEROUS, || {
        ended = !server.is_running();
        ended || threads(server.pid()) > 1
    });
    if ended { Err(server.ended(GENEROUS).process) } else { Ok(server) }
}

#[test]
fn at_any_limit_on_descriptors_nbdkit_can_be_paused_or_ends_and_says_why() {
    // In a folder that stays when the server's goes.
    let folder = Setup::in_memory();
    let control = folder.path("control");
    let mut served = 0;
    let mut refusals = String::new();
    for count in 3..=24 {
        let setup = Setup::in_memory().most_descriptors(count).control(control.to_str());
        match start_for_good(setup) {
            Ok(server) => {
                served += 1;
                for _ in 0..2 {
                    server.controller().ask("pr", "PR");
                }
                // nbdkit takes three for a client.
                if count >= 20 {
                    Client::connect(&server).expect_a_whole_pause(&server);
                }
                server.stop();
            }
            Err(refusal) => {
                assert_eq!(served, 0, "with {count} it ends, and with fewer it does not");
                assert!(refusal.status.code().is_some_and(|code| code != 0), "{refusal:#?}");
                // Error 24: that is how the dynamic linker says it.
                let says = ["Too many open files", "Error 24"];
                assert!(says.iter().any(|what| refusal.stderr.contains(what)), "{refusal:#?}");
                assert!(!control.exists(), "{refusal:#?}");
                refusals.push_str(&refusal.stderr);
            }
        }
    }
    // All of that has happened.
    assert!(served >= 9, "{refusals}");
    expect_line(&refusals, &["error: ", "pause-control=/", "ulimit -n"]);
    expect_line(&refusals, &["error: ", "pause-control: ", "reserve a file descriptor"]);
}

// A file system that takes no socket.

/// nbdkit refuses to start with its control socket in a folder `full` of its own, which
/// is a tmpfs with these options, and says so in a line with its path and these words.
fn is_told_of_a_tmpfs(options: &str, words: &[&str]) {
    let may = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(words).args(["mount", "-t", "tmpfs", "tmpfs", "/tmp"]);
        run(command).status.success()
    };
    let unshare = [&["--mount"][..], &["--user", "--map-root-user", "--mount"]];
    let Some(unshare) = unshare.into_iter().find(|words| may(words)) else {
        println!("SKIPPED: {options}: this user may not mount a tmpfs, not even in a namespace");
        return;
    };
    let setup = Setup::in_memory().control(Some("full/control"));
    fs::create_dir(setup.path("full")).unwrap();
    let script = format!("mount -t tmpfs -o {options} tmpfs full && exec \"$@\"");
    let wrapper = [&["unshare"], unshare, &["bash", "-c", &script, "bash"]].concat();
    let path = format!("pause-control={}", setup.path("full/control").display());
    let refusal = setup.under(&wrapper).refusal();
    expect_line(&refusal.stderr, &[&["error: ", &path], words].concat());
}

#[test]
fn a_full_or_a_read_only_disk_for_the_control_socket_is_told_by_its_path() {
    // The folder itself is the one file.
    is_told_of_a_tmpfs("nr_inodes=1", &["No space left", "free space or inodes"]);
    is_told_of_a_tmpfs("ro", &["Read-only file system"]);
}
