//! The end of the filter: no thread, process, socket or memory of ours is left, paused
//! or not, and what the library shows to the outside.

use super::*;

/// Starts a server, and stops it in one of many states.
fn start_and_stop(number: usize) {
    let mut stage = Stage::on(Setup::in_memory());
    let pid = stage.server.pid();
    match number % 4 {
        1 => _ = stage.play("goes"),
        3 => _ = stage.play("A:pr write A.closes"),
        // Half of them while they are paused and hold requests.
        _ => {
            stage.play("A:p=P");
            let held = ONE_OF_EACH.map(|request| stage.client().send(request));
            stage.client().all_read_by_server();
            stage.play("term");
            for ticket in held {
                // One that comes too late for that is not dropped.
                assert!(stage.client().reply_within(ticket, PROMPT).is_some());
            }
            if number % 8 == 2 {
                stage.play("A.closes");
            }
        }
    }
    stage.end();
    assert!(!is_alive(pid));
}

#[test]
fn a_thousand_starts_and_stops_leave_nothing() {
    together([0..500, 500..1000], |half| half.for_each(start_and_stop));
}

#[test]
fn a_server_that_served_many_clients_keeps_nothing_of_them() {
    let mut stage = Stage::on(Setup::in_memory());
    for round in 0..200 {
        if round % 10 == 0 {
            stage.play("A:p=P sends").client().all_read_by_server();
            stage.play("A:r=R flow");
        }
        stage.play("write goes");
    }
    stage.play("is-gone");
    stage.end();
}

/// Our thread has ended, and the control socket is gone, before the filter above
/// ours is unloaded, which is the next thing that nbdkit does; and long before the
/// process ends, which would end every thread.
#[test]
fn our_thread_ends_before_unload_returns_also_while_paused_with_controllers_and_held_requests() {
    let calls = "trace=exit,exit_group,unlink,unlinkat,write,writev";
    for line in ["goes term", "B:r=R A:p=P held term dropped goes A.is-closed B.is-closed"] {
        let setup = Setup::in_memory().verbose().above("nofilter", &[]);
        let strace = ["strace", "-f", "-s", "100", "-e", calls, "-o", "trace"];
        let mut stage = Stage::on(setup.under(&strace));
        let (ours, server_itself) = (stage.server.control_thread(), stage.server.pid());
        stage.play(line);
        let ended = stage.server.ended(GENEROUS).well();
        let trace = fs::read_to_string(ended.path("trace")).unwrap();
        // Each line is a thread id and what it did.
        let position = |tid: u32, call: &str, on: &str| {
            let is_it = |line: &str| {
                let (who, what) = line.split_once(' ').unwrap();
                who == tid.to_string() && what.trim().starts_with(call) && what.contains(on)
            };
            trace.lines().position(is_it).unwrap_or_else(|| panic!("no {call} in {trace}"))
        };
        let removal = position(ours, "unlink", "/control\"");
        let exit = position(ours, "exit(", "");
        let next = position(server_itself, "write", "nofilter: unload filter");
        assert!(removal < exit && exit < next, "{trace}");
    }
}

/// A write, kept from being done, of a client that is there at the end.
fn end_with_a_held_request(server: &Server) {
    let mut client = Client::connect(server);
    let held = client.held(WRITE);
    server.terminate();
    // Other filters than ours end it in a way of their own.
    assert!(matches!(client.reply_within(held, GENEROUS), Some(Err(_))));
}

// Memory.

/// What memcheck counts, in bytes but for the errors.
#[derive(Debug, PartialEq, Eq)]
struct Memcheck {
    errors: u64,
    definitely_lost: u64,
    indirectly_lost: u64,
    /// What is left of a thread that has not quite ended with the process is
    /// "possibly lost". nbdkit has such threads now and then; we have none.
    possibly_lost_by_us: usize,
}

fn under_valgrind(setup: Setup) -> Server {
    setup
        .under(&[
            "valgrind",
            "--leak-check=full",
            "--show-leak-kinds=definite,indirect,possible",
            "--errors-for-leak-kinds=none",
            "--keep-debuginfo=yes",
            "--log-file=valgrind",
        ])
        .start()
}

fn memcheck(server: Server) -> (Memcheck, String) {
    let ended = server.ended(GENEROUS).well();
    let report = fs::read_to_string(ended.path("valgrind")).unwrap();
    assert!(report.contains("ERROR SUMMARY"), "{report}");
    // "All heap blocks were freed" has no such lines.
    let number = |label: &str| {
        let rest = report.lines().find_map(|line| line.split_once(label))?.1;
        rest.trim_start().split(' ').next()?.replace(',', "").parse().ok()
    };
    let text = |line: &str| line.splitn(3, "==").nth(2).unwrap_or(line).trim().to_owned();
    let paragraphs = report.lines().map(text).collect::<Vec<_>>().join("\n");
    let us = filter::ours().to_str().unwrap();
    let lost_by_us = |record: &&str| record.contains("are possibly lost") && record.contains(us);
    let counted = Memcheck {
        errors: number("ERROR SUMMARY:").unwrap(),
        definitely_lost: number("definitely lost:").unwrap_or(0),
        indirectly_lost: number("indirectly lost:").unwrap_or(0),
        possibly_lost_by_us: paragraphs.split("\n\n").filter(lost_by_us).count(),
    };
    (counted, report)
}

/// Real load, and many clients one after the other and together.
fn load(server: &Server) {
    fio(server, &["--rw=randrw", "--bs=4k", "--size=1M", "--iodepth=8", "--fsync=8", "--loops=2"])
        .finish(GENEROUS)
        .succeeded();
    for _ in 0..3 {
        let mut clients = [Client::connect(server), Client::connect(server)];
        clients.iter_mut().for_each(|client| _ = client.ask(WRITE));
    }
}

/// All clients have left, and nbdkit has noticed, when the server ends.
#[test]
fn valgrind_finds_nothing_that_the_server_does_not_have_without_us() {
    let without = under_valgrind(Setup::in_memory().no_filter());
    load(&without);
    eventually("all have left", GENEROUS, || without.threads() == 1);
    without.terminate();
    let (without, _) = memcheck(without);

    let with = under_valgrind(Setup::in_memory());
    let mut controllers = with.controllers(10);
    thread::scope(|scope| {
        scope.spawn(|| load(&with));
        for round in 0..30 {
            let controller = &mut controllers[round % 10];
            controller.pause();
            controller.resume();
            controller.ask("x?prp\nr", "XXPRPR");
        }
    });
    // Some vanish, some stay. A client dies while its write is held.
    controllers.truncate(5);
    eventually("all have left", GENEROUS, || with.threads() == 2);
    with.controller().pause();
    let mut dying = Client::connect(&with);
    let held = dying.held(WRITE);
    // Under valgrind it takes its time from the socket to the filter.
    dying.expect_held(&[held], A_WHILE * 3);
    drop(dying);
    eventually("all have left", GENEROUS, || with.threads() == 2);
    with.terminate();
    let (with, report) = memcheck(with);
    assert_eq!(with, without, "{report}");
    controllers.iter_mut().for_each(Controller::expect_closed);
}

/// nbdkit itself loses some memory for each client that is still there when
/// it ends. nbdkit-delay-filter holds requests, too.
#[test]
fn valgrind_finds_nothing_at_a_shutdown_with_held_requests_that_other_filters_do_not_have() {
    let without = under_valgrind(Setup::in_memory().no_filter().below("delay", &["wdelay=60"]));
    end_with_a_held_request(&without);
    let (without, _) = memcheck(without);

    let with = under_valgrind(Setup::in_memory());
    let mut controller = with.controller();
    controller.pause();
    end_with_a_held_request(&with);
    let (with, report) = memcheck(with);
    assert_eq!(with, without, "{report}");
    controller.expect_closed();
}

// The library.

#[test]
fn only_filter_init_is_exported() {
    let mut nm = Command::new("nm");
    nm.args(["-D", "--defined-only"]).arg(filter::ours());
    let symbols = run(nm).succeeded().stdout;
    let names: Vec<&str> = symbols.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(names, ["filter_init"]);
}

#[test]
fn the_library_has_at_most_550_kb_and_no_symbols() {
    let size = fs::metadata(filter::ours()).unwrap().len();
    // With Rust 1.85 it has 531 kB, with a later one 470.
    assert!(size <= 550_000, "{size} bytes");
    let mut nm = Command::new("nm");
    nm.arg(filter::ours());
    assert!(run(nm).stderr.contains("no symbols"));
}
