//! Many controllers, and bad ones: each is served whatever the others do, their number
//! is bounded, and nothing grows. What a command is answered is in `protocol.rs`, who
//! makes room for a hold in `hold.rs`.

use super::*;

/// So many are connected at once.
const MOST: usize = 64;

/// Far more than a socket keeps, in both directions.
const MOST_UNREAD: usize = 16 << 20;

fn start() -> Server {
    Setup::in_memory().start()
}

// How many.

#[test]
fn the_65th_controller_is_admitted_and_the_longest_idle_one_is_closed() {
    let server = start();
    let mut controllers = server.controllers(MOST);
    controllers.iter_mut().for_each(Controller::resume);
    // Now the second one has been idle for the longest time.
    controllers[0].resume();
    let mut late = server.controller();
    late.pause();
    controllers.remove(1).expect_closed();
    controllers.iter_mut().for_each(Controller::pause);
    // Now the late one has.
    server.controller().resume();
    late.expect_closed();
}

#[test]
fn of_hundreds_who_only_connect_the_last_64_stay_whatever_is_logged_and_are_served() {
    for level in ["off", "error", "warn", "trace"] {
        let server = Setup::in_memory().under(&["env", &format!("RUST_LOG={level}")]).start();
        let mut all = server.controllers(300);
        all[299].ask("pr", "PR");
        let (first, last) = all.split_at_mut(300 - MOST);
        first.iter_mut().for_each(Controller::expect_closed);
        last.iter_mut().for_each(Controller::resume);
    }
}

dialogues! {
    Setup::obedient() => {
        who_waits_for_its_pause_is_not_closed_to_admit_another:
            "reading A:p= crowd B:r=R A:=X";
        a_pause_of_a_controller_that_vanishes_during_the_drain_takes_effect:
            "reading A:p A.closes heard held B:p= returns B:=P still B:r=R flow";
    }
}

// Some that never read their replies.

/// Sends `commands`, and reads nothing, until the server takes nothing of it for a
/// while. `meanwhile` is done again and again.
fn stuck(server: &Server, commands: &[u8], mut meanwhile: impl FnMut()) -> (Controller, usize) {
    let mut controller = server.controller();
    controller.stream().set_nonblocking(true).unwrap();
    let chunk = commands.repeat(4096);
    let (mut sent, mut full_since) = (0, None);
    while full_since.is_none_or(|since: Instant| since.elapsed() < A_WHILE) {
        match controller.stream().write(&chunk) {
            Ok(count) => {
                sent += count;
                assert!(sent < MOST_UNREAD, "replies that nobody reads pile up without end");
                full_since = None;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                full_since.get_or_insert_with(Instant::now);
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("{e} after {sent} bytes"),
        }
        meanwhile();
    }
    assert!(sent > 10_000);
    controller.stream().set_nonblocking(false).unwrap();
    (controller, sent)
}

#[test]
fn a_controller_that_never_reads_its_replies_harms_nobody() {
    let server = start();
    let before = resident_kib(server.pid());
    let mut operator = server.controller();
    let mut client = Client::connect(&server);
    let (flooder, sent) = stuck(&server, b"x", || {
        operator.pause();
        operator.resume();
        client.ask(READ);
    });
    let after = resident_kib(server.pid());
    assert!(after < before + 4096, "{before} KiB before, {after} KiB after");
    // It is busy with nothing.
    server.expect_no_busy_loop(|| thread::sleep(Duration::from_secs(1)));
    // When it reads at last, no reply is missing.
    let replies = flooder.finish();
    assert_eq!(replies.len(), sent);
    assert!(replies.iter().all(|&reply| reply == b'X'));
    operator.resume();
}

#[test]
fn controllers_that_never_read_their_replies_do_not_lock_the_operator_out() {
    let server = start();
    let mut client = Client::connect(&server);
    let _stuck: Vec<_> = thread::scope(|scope| {
        let stuck = || stuck(&server, b"x", || {});
        let threads: Vec<_> = (0..MOST).map(|_| scope.spawn(stuck)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for _ in 0..3 {
        client.expect_a_whole_pause(&server);
    }
    client.leave();
    server.stop();
}

#[test]
fn controllers_that_never_read_their_replies_do_not_keep_the_server_from_ending() {
    let mut stage = Stage::on(Setup::with_disk(1).holds());
    let stuck = [b"p", b"+", b"x"].map(|command| stuck(&stage.server, command, || {}));
    stage.play("held term dropped");
    stage.ended();
    // They get what had been sent, and the end.
    for (mut controller, _) in stuck {
        let mut replies = Vec::new();
        let _ = controller.stream().read_to_end(&mut replies);
        assert!(!replies.is_empty());
    }
}

#[test]
fn a_hold_of_a_controller_that_never_reads_its_replies_lasts_until_it_dies() {
    let mut stage = Stage::on(Setup::in_memory().holds());
    let holder = stuck(&stage.server, b"+", || {});
    stage.play("held");
    drop(holder);
    stage.play("flow");
    stage.end();
}

/// It needs the cores for the flood, and measures.
#[test]
fn a_controller_that_floods_never_keeps_another_from_being_served() {
    let _alone = alone();
    let server = start();
    let flood = format!("yes | nc -U {}", server.control_path().display());
    let floods = [(); 3].map(|()| clients::start("sh", &["-c", &flood]));
    eventually("all have replies", GENEROUS, || {
        floods.iter().all(|flood| flood.stdout().starts_with("XX"))
    });
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let start = Instant::now();
        let mut operator = server.controller();
        operator.pause();
        operator.resume();
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < PROMPT, "{slowest:?}");
    let flood_goes_on = |flood: &Process| {
        let before = flood.stdout().len();
        eventually("it goes on", GENEROUS, || flood.stdout().len() > before);
    };
    floods.iter().for_each(flood_goes_on);
}

/// The contract has it that the server is paused then.
#[test]
fn one_that_speaks_another_protocol_and_pauses_the_server_by_that_is_named_in_the_log() {
    let mut stage = Stage::on(Setup::in_memory());
    for greeting in ["HEAD /path HTTP/1.1\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "*1\r\nping\r\n"] {
        let mut other = stage.server.controller();
        other.send(greeting.as_bytes());
        let commands = greeting.bytes().filter(|byte| !b" \n".contains(byte));
        let replies = commands.map(|byte| if byte == b'p' { 'P' } else { 'X' });
        other.expect(&replies.collect::<String>());
        stage.play("held A:r=R flow");
    }
    stage.play("told:3:among_bytes_that_are_not_commands");
    // Nor does it have to be told again and again, or where nothing is paused.
    stage.play("B:xp=XP B:xpr=XPR C:ppr=PPR C:x=X told:4:among_bytes_that_are_not_commands flow");
}

/// Half of the places are taken for good.
#[test]
fn nobody_makes_room_before_what_it_sent_is_carried_out() {
    let server = Setup::in_memory().holds().start();
    let mut holders = server.controllers(31);
    holders.iter_mut().for_each(Controller::hold);
    // So that all are there when it looks.
    stop(server.pid());
    let mut all = server.controllers(300);
    all.iter_mut().for_each(|controller| controller.send(b"xxxxxxxx"));
    go_on(server.pid());
    all.iter_mut().for_each(|controller| controller.expect("XXXXXXXX"));
    holders.iter_mut().for_each(|holder| holder.ask("-", "-"));
}

#[test]
fn r_is_answered_at_once_behind_hundreds_who_flood_the_socket_and_are_gone() {
    let server = start();
    // So that all are there when it looks.
    stop(server.pid());
    for _ in 0..400 {
        let mut gone = server.controller();
        gone.stream().set_nonblocking(true).unwrap();
        // As much as the socket takes.
        while gone.stream().write(&b"pr".repeat(4_096)).is_ok() {}
    }
    let mut operator = server.controller();
    operator.send(b"r");
    go_on(server.pid());
    assert_eq!(operator.reply_within(PROMPT), Ok(Some(b'R')));
}

// No descriptors.

/// It is over when controllers have been accepted as usual for some time.
fn end_of_episode(server: &Server) {
    // Without the message, some more than the ten seconds that it takes.
    let is_silent = env::var_os("RUST_LOG").is_some();
    let enough = Duration::from_secs(13);
    let over = server.messages_count("accepting controllers normally");
    let start = Instant::now();
    eventually("it is over", GENEROUS, || {
        server.controller().resume();
        thread::sleep(A_WHILE);
        match is_silent {
            true => start.elapsed() > enough,
            false => server.messages_count("accepting controllers normally") > over,
        }
    });
}

/// The server has said so often that it cannot accept a controller.
fn expect_complaints(server: &Server, count: usize) {
    assert_eq!(server.messages_count("cannot accept"), count, "{}", server.messages());
}

#[test]
fn out_of_descriptors_by_controllers_the_last_one_is_served_without_a_busy_loop() {
    let server = Setup::in_memory().most_descriptors(40).verbose().start();
    server.control_thread();
    let at_rest = descriptors(server.pid());
    for episode in 1..=2 {
        let mut controllers = server.controllers(60);
        // Each of those that come now is served, in exchange for an older one.
        for _ in 0..20 {
            let mut operator = server.controller();
            operator.ask("pr", "PR");
            controllers.push(operator);
        }
        expect_complaints(&server, episode);
        server.expect_no_busy_loop(|| thread::sleep(Duration::from_secs(1)));

        // Full recovery: as many as before can be connected at once.
        drop(controllers);
        let mut few = server.controllers(10);
        few.iter_mut().for_each(|controller| controller.ask("pr", "PR"));
        Client::connect(&server).ask(READ);
        expect_complaints(&server, episode);
        drop(few);
        eventually("all have left", GENEROUS, || descriptors(server.pid()) == at_rest);
        end_of_episode(&server);
    }
    server.stop();
}

/// Nothing that we could do would help: the limit is lower than what is in use,
/// with or without a descriptor that could be given up.
#[test]
fn while_no_controller_can_be_accepted_there_is_no_busy_loop_and_then_full_recovery() {
    let mut stage = Stage::on(Setup::in_memory().verbose());
    stage.play("goes is-gone");
    let in_use = descriptors(stage.server.pid());
    for episode in 1..=2 {
        stage.play("spare:-2 ABC:pr A:= idle");
        expect_complaints(&stage.server, episode);
        stage.play("spare:all ABC:=PR A.closes B.closes C.closes");
        end_of_episode(&stage.server);
        expect_complaints(&stage.server, episode);
        eventually("all have left", GENEROUS, || descriptors(stage.server.pid()) == in_use);
    }
    stage.end();
}

/// Clients take every descriptor as soon as there is one, also the one that a
/// controller leaves.
#[test]
fn out_of_descriptors_by_clients_one_controller_is_served_all_the_same() {
    const LIMIT: usize = 60;
    let server = Setup::in_memory().most_descriptors(LIMIT as u64).start();
    let mut first = Client::connect(&server);
    // malloc(3) opens a file for a moment where a process begins to have many threads.
    let mut at_rest = 0;
    eventually("it opens nothing more", GENEROUS, || {
        at_rest = descriptors(server.pid());
        thread::sleep(A_WHILE);
        descriptors(server.pid()) == at_rest
    });
    // A client takes three. nbdkit itself must not run short: it would keep
    // busy with failing, and lose what it has accepted.
    let mut clients = Vec::new();
    let with = |clients: usize| at_rest + 3 * clients;
    while with(clients.len() + 1) <= LIMIT {
        clients.push(UnixStream::connect(server.socket()).unwrap());
        eventually("the client is accepted", GENEROUS, || {
            descriptors(server.pid()) == with(clients.len())
        });
    }
    // None is left over, but for the one that the filter may have put by.
    limit_descriptors(server.pid(), next_descriptor(server.pid()));
    for _ in 0..5 {
        first.expect_a_whole_pause(&server);
    }
    let mut waiting = Vec::new();
    server.expect_no_busy_loop(|| {
        waiting.extend(server.controllers(5));
        thread::sleep(Duration::from_secs(1));
    });
    assert!(server.messages_count("cannot accept") >= 1, "{}", server.messages());

    drop(clients);
    eventually("the clients' descriptors are freed", GENEROUS, || {
        descriptors(server.pid()) < at_rest + 10
    });
    server.controllers(20).iter_mut().for_each(Controller::resume);
    Client::connect(&server).ask(READ);
}

#[test]
fn after_5000_control_connections_nothing_has_grown() {
    let server = start();
    let connect = |count: usize| {
        for number in 0..count {
            let mut controller = server.controller();
            match number % 4 {
                0 => controller.pause(),
                1 => controller.resume(),
                2 => controller.send(b"pr"),
                _ => {}
            }
        }
    };
    let state = || (server.threads(), descriptors(server.pid()));
    // The first ones may well take some memory for good.
    connect(500);
    server.controller().resume();
    let mut before = state();
    eventually("the controllers are gone", GENEROUS, || {
        let last = before;
        thread::sleep(A_WHILE);
        before = state();
        before == last && before.0 == 2 && before.1 < 20
    });
    let before_kib = resident_kib(server.pid());
    connect(5000);
    server.controller().resume();
    eventually("threads and descriptors are what they were", GENEROUS, || state() == before);
    let after_kib = resident_kib(server.pid());
    assert!(after_kib < before_kib + 512, "{before_kib} KiB before, {after_kib} KiB after");
}

// Some that vanish.

#[test]
fn pr_of_a_controller_that_vanishes_at_once_leaves_requests_flowing() {
    let server = Setup::in_memory().below("delay", &["rdelay=30ms"]).start();
    let mut client = Client::connect(&server);
    for number in 0..60 {
        let read = client.send(READ);
        // Replies that fail come before, between and after.
        server.controller().send([&b"pr"[..], b"xpr", b"xpxrx"][number % 3]);
        client.goes_on(read);
        // Nobody else says r.
        client.flows(Flush);
    }
}

#[test]
fn r_counts_also_where_its_sender_vanishes_before_the_reply() {
    let mut stage = Stage::on(Setup::in_memory());
    for _ in 0..50 {
        stage.play("A:p=P sends A:r A.closes flow");
    }
}
