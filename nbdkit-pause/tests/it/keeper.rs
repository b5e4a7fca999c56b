//! The process between `begin` and `end`: it has nothing of what `begin` was given, no
//! standard error and no signal mask hinders it, and whenever anything is killed or comes
//! together, the servers resume and `end` tells the truth.

use libc::{SIGHUP, SIGINT, SIGKILL, SIGTERM};

use super::always_heard::*;
use super::*;

/// The fields of `/proc/PID/stat` that follow the name.
fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    fields.split(' ').map(str::to_owned).collect()
}

#[test]
fn it_has_nothing_of_what_begin_was_given() {
    for kind in KINDS {
        let server = kind.start();
        let (_person, terminal, path) = terminal();
        // On a terminal, with a lock, and with a pipe that is read to its end.
        let script = r#"exec <"$1" 9>lock; flock 9; said=$("$0" begin --id it "$2" 2>&1) || exit
            echo "$said"; [ -t 0 ]"#;
        let words =
            ["setsid", "--ctty", "--wait", "sh", "-c", script, PROGRAM, &path, &socket(&server)];
        let mut command = command_of(&server, &words);
        command.env("XDG_RUNTIME_DIR", server.dir());
        let begun = run_on_terminal(command, &terminal).ends(0, &[]);
        assert!(begun.stdout.contains(": paused"), "{begun:#?}");
        let keeper = keeper(&server).expect("a keeper");
        let stat = stat(keeper);
        assert_eq!([&stat[3], &stat[4]], [&keeper.to_string(), "0"], "session, terminal");
        for entry in fs::read_dir(format!("/proc/{keeper}/fd")).unwrap() {
            let entry = entry.unwrap().path();
            let (number, what) = (entry.file_name().unwrap(), fs::read_link(&entry).unwrap());
            let what = what.display().to_string();
            let ours = ["socket:", "anon_inode:[signalfd]", "/dev/null"];
            let is_ours = ours.iter().any(|ours| what.starts_with(ours));
            let is_state = what.contains("/nbdkit-pause");
            assert!(is_ours || is_state, "{number:?}: {what}");
        }
        let directory = fs::read_link(format!("/proc/{keeper}/cwd")).unwrap();
        assert_eq!(directory.to_str(), Some("/"));
        clients::program("flock", &["--nonblock", server.path("lock").to_str().unwrap(), "true"]);
        // Its terminal goes.
        drop((_person, terminal));
        let mut held = expect_paused(&server);
        held.stays();
        end(&server).ends(0, &[]);
        held.goes_on();
    }
}

/// With this terminal as the standard input.
fn run_on_terminal(mut command: Command, terminal: &fs::File) -> Finished {
    let fd = terminal.as_raw_fd();
    // SAFETY: dup2(2) is a plain system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    run(command)
}

/// With a standard error that takes nothing, both return, and do what they should.
fn expect_to_return<T>(stuck: impl Fn(&Server) -> (String, T) + Sync) {
    // Opened once, as the disk that it is on may be paused later.
    let script = r#""$0" begin --id it control; echo $? >begun
        while [ -e pid ] && [ ! -e go ]; do sleep 0.01; done
        "$0" end --id it; exit"#;
    together(KINDS, |kind| {
        for (signal, status) in [(None, 0), (Some(SIGTERM), 124)] {
            let server = kind.start();
            let both;
            let (path, _stuck) = stuck(&server);
            let mut command = command_of(&server, &["sh", "-c", script, PROGRAM]);
            command.env("XDG_RUNTIME_DIR", server.dir());
            both = start_with_stderr(command, &path);
            eventually("begin has ended", PROMPT, || server.content("begun") == "0\n");
            let mut held = expect_paused(&server);
            held.stays();
            match signal {
                None => server.make("go"),
                Some(signal) => send_signal(keeper(&server).expect("a keeper"), signal),
            }
            held.goes_on_within(PROMPT);
            server.make("go");
            both.ends(status, &[]);
        }
    });
}

#[test]
fn a_full_pipe_for_standard_error_keeps_neither_from_returning() {
    expect_to_return(full_pipe);
}

#[test]
fn a_stopped_terminal_for_standard_error_keeps_neither_from_returning() {
    expect_to_return(stopped_terminal);
}

#[test]
fn a_standard_error_on_the_paused_disk_keeps_neither_from_returning() {
    if can_mount() {
        expect_to_return(mounted);
    }
}

#[test]
fn a_begin_that_can_not_say_anything_is_heard_while_the_servers_drain() {
    for kind in OURS {
        let (server, _client) = kind.stuck();
        let (path, _stuck) = full_pipe(&server);
        let begin = start_with_stderr(hook(&server, "begin --id it control"), &path);
        let held = wait_until_paused(&server);
        begin.signal(SIGTERM);
        held.goes_on_within(PROMPT);
        begin.ends(128 + SIGTERM, &[]);
        expect_nothing_behind(&server);
    }
}

#[test]
fn a_begin_that_is_killed_while_the_servers_drain_leaves_no_process_and_end_tells() {
    for kind in OURS {
        let (quick, (stuck, _client)) = (kind.start(), kind.stuck());
        let begin =
            Process::start(hook(&quick, &format!("begin --id it control {}", socket(&stuck))));
        let mut held = [&quick, &stuck].map(wait_until_paused);
        let processes = children(begin.pid());
        assert!(!processes.is_empty(), "nothing prints for it");
        begin.signal(SIGKILL);
        eventually("they end", PROMPT, || processes.iter().all(|&pid| !is_alive(pid)));
        match kind {
            Holds => held.into_iter().for_each(Held::goes_on),
            _ => held[0].stays(),
        }
        end(&quick).ends(124, &["something killed the process that kept the pause"]);
        not_run(&[&quick, &stuck]);
        expect_nothing_behind(&quick);
    }
}

#[test]
fn signals_that_were_blocked_or_ignored_are_heard() {
    let all = [(block as fn(), vec![SIGTERM, SIGINT, SIGHUP]), (ignore, vec![SIGTERM])];
    for (first, signals) in all {
        for signal in signals {
            let server = Holds.start();
            let begin = || after(first, hook(&server, "begin --id it control"));
            begin().ends(0, &[]);
            let held = expect_paused(&server);
            send_signal(keeper(&server).expect("a keeper"), signal);
            held.goes_on_within(PROMPT);
            after(first, hook(&server, "end --id it")).ends(124, &[]);
            begin().ends(0, &[]);
            after(first, hook(&server, "end --id it")).ends(0, &[]);
        }
    }
}

#[test]
fn a_signal_that_ends_the_end_leaves_its_news_to_the_next_one() {
    let server = Holds.start();
    begin(&[&server], "");
    let keeper = keeper(&server).expect("a keeper");
    stop(keeper);
    for first in [|| {}, block] {
        let end = Process::start(after(first, hook(&server, "end --id it")));
        thread::sleep(A_WHILE);
        end.signal(SIGINT);
        assert_eq!(end.finish(PROMPT).status.signal(), Some(SIGINT));
    }
    go_on(keeper);
    expect_flow(&server);
    end(&server).ends(0, &["unbroken"]);
}

#[test]
fn a_keeper_that_is_stopped_does_not_keep_the_servers_paused_after_end() {
    together(KINDS, |kind| {
        let server = kind.start();
        begin(&[&server], "");
        let held = expect_paused(&server);
        stop(keeper(&server).expect("a keeper"));
        end(&server).ends(124, &["does not end: killing it", UNUSABLE]);
        held.goes_on();
        expect_nothing_behind(&server);
    });
}

#[test]
fn a_keeper_that_can_not_be_seen_from_a_container_is_not_killed_from_there() {
    if !is_root() {
        println!("SKIPPED: only root can make a namespace");
        return;
    }
    let server = Holds.start();
    begin(&[&server], "");
    let keeper = keeper(&server).expect("a keeper");
    stop(keeper);
    let mut held = expect_paused(&server);
    let words = ["unshare", "--pid", "--fork", PROGRAM, "end", "--id", "it"];
    let mut command = command_of(&server, &words);
    command.env("XDG_RUNTIME_DIR", server.dir());
    command.ends(125, &["kill it, in the container where `begin` was run"]);
    held.stays();
    go_on(keeper);
    held.goes_on();
    end(&server).ends(0, &["unbroken"]);
}

// Whenever it happens.

/// Between `begin` and its keeper, both have the pause: the keeper is a process already,
/// but not on its own yet.
#[test]
fn whoever_gets_a_signal_while_the_pause_is_handed_over_all_servers_resume() {
    let slow = ["strace", "-f", "-o", "trace", "-e", "inject=setsid:delay_enter=6s"];
    let begin = [&slow[..], &[PROGRAM, "begin", "--id", "it", "control"]].concat();
    together(KINDS, |kind| {
        for (to_keeper, signal) in [(false, SIGTERM), (false, SIGKILL), (true, SIGKILL)] {
            let server = kind.start();
            let mut command = command_of(&server, &begin);
            command.env("XDG_RUNTIME_DIR", server.dir());
            let strace = Process::start(command);
            let held = wait_until_paused(&server);
            let [helper] = children(strace.pid())[..] else { panic!("one child of strace") };
            let comm = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
            let mut keepers = children(helper);
            keepers.retain(|pid| comm(pid) != "pause-stderr\n");
            let [keeper] = keepers[..] else { panic!("no keeper: {}", strace.stderr()) };
            send_signal(if to_keeper { keeper } else { helper }, signal);
            // Long before --max.
            held.goes_on_within(GENEROUS / 2);
            let ended = strace.finish(GENEROUS);
            let status = match (to_keeper, signal) {
                (true, _) => Some(125),
                (_, SIGTERM) => Some(128 + SIGTERM),
                // strace ends as it did.
                _ => None,
            };
            assert_eq!(ended.status.code(), status, "{ended:#?}");
            expect_nothing_behind(&server);
            expect_flow(&server);
        }
    });
}

#[test]
fn of_many_begins_at_once_one_has_the_pause() {
    let server = Holds.start();
    for _ in 0..10 {
        let begins: Vec<_> =
            (0..6).map(|_| Process::start(hook(&server, "begin --id it control"))).collect();
        let ended: Vec<_> = begins.into_iter().map(|begin| begin.finish(GENEROUS)).collect();
        let mut statuses: Vec<_> = ended.iter().map(|it| it.status.code().unwrap()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [0, 125, 125, 125, 125, 125], "{ended:#?}");
        expect_paused(&server);
        end(&server).ends(0, &[]);
        expect_flow(&server);
    }
}

#[test]
fn of_two_ends_at_once_one_is_told() {
    let server = Holds.start();
    for _ in 0..10 {
        begin(&[&server], "");
        let ends = [(); 2].map(|()| Process::start(hook(&server, "end --id it")));
        let mut statuses = ends.map(|end| end.finish(GENEROUS).status.code().unwrap());
        statuses.sort_unstable();
        assert_eq!(statuses, [0, 125]);
    }
}

/// It has opened the file when another one removes it.
#[test]
fn an_end_that_comes_to_the_lock_too_late_is_not_told_again() {
    let server = Holds.start();
    begin(&[&server], "");
    let strace = ["strace", "-o", "trace", "-e", "inject=flock:delay_enter=5s"];
    let mut command = command_of(&server, &[&strace[..], &[PROGRAM, "end", "--id", "it"]].concat());
    command.env("XDG_RUNTIME_DIR", server.dir());
    let mut late = Process::start(command);
    let pid = late.pid();
    let has_open = |pid: u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|it| it.ends_with("it.state"))
    };
    late.runs_until("it is opened", || children(pid).into_iter().any(has_open));
    end(&server).ends(0, &[]);
    late.ends(125, &["no pause named it"]);
}

#[test]
fn an_end_about_when_the_max_is_over_tells_the_truth() {
    let mut random = Random::new();
    for kind in KINDS {
        let server = kind.start();
        let (mut good, mut bad) = (0, 0);
        let start = Instant::now();
        while good < 10 || bad < 10 {
            assert!(start.elapsed() < GENEROUS, "{good} in time, {bad} too late");
            let begun = run(hook(&server, "begin --id it --max 100ms control"));
            if !begun.status.success() {
                // Here the machine had something else to do for so long.
                begun.ends(125, &["--max"]);
                expect_nothing_behind(&server);
                continue;
            }
            let mut client = Client::connect(&server);
            let ticket = client.send(Write(0, 1));
            thread::sleep(random.millis(0..120));
            let is_over = client.reply_within(ticket, Duration::from_millis(1)).is_some();
            let ended = end(&server);
            match ended.status.code() {
                Some(0) => assert!(!is_over, "{ended:#?}"),
                status => assert_eq!(status, Some(124), "{ended:#?}"),
            }
            let count = if ended.status.success() { &mut good } else { &mut bad };
            *count += 1;
            expect_flow(&server);
        }
    }
}

#[test]
fn whenever_begin_is_killed_the_name_and_the_server_are_free_after_end() {
    let mut random = Random::new();
    for kind in KINDS {
        let server = kind.start();
        for round in 0..40 {
            let begin = Process::start(hook(&server, "begin --id it control"));
            thread::sleep(random.millis(0..12));
            begin.kill();
            let ended = end(&server);
            let is_right = matches!(ended.status.code(), Some(0 | 124 | 125));
            assert!(is_right, "{kind:?}, round {round}: {ended:#?}");
            expect_flow(&server);
            expect_nothing_behind(&server);
        }
    }
}

#[test]
fn whenever_the_keeper_is_killed_end_tells_the_truth() {
    let mut random = Random::new();
    for kind in KINDS {
        let server = kind.start();
        for round in 0..20 {
            begin(&[&server], "");
            let pid = keeper(&server).expect("a keeper");
            let end = Process::start(hook(&server, "end --id it"));
            thread::sleep(random.millis(0..6));
            // It may be gone.
            // SAFETY: kill(2) takes two integers.
            unsafe { libc::kill(pid as libc::pid_t, SIGKILL) };
            let ended = end.finish(GENEROUS);
            let said = &ended.stderr;
            match ended.status.code() {
                Some(0) => assert!(said.contains("after a pause"), "round {round}: {ended:#?}"),
                status => {
                    assert_eq!(status, Some(124), "round {round}: {ended:#?}");
                    assert!(said.contains("something killed"), "round {round}: {ended:#?}");
                }
            }
            expect_flow(&server);
            expect_nothing_behind(&server);
        }
    }
}
