//! The server is told to go during a pause, or dies: held requests are dropped at
//! once, the server goes as soon as its clients have, and qemu's client takes what was
//! held to the next one. What may not be dropped is in `never_harmed.rs`.

use super::*;

/// `count` clients have each `first` requests held; then they send `more`, which the
/// server has not read yet where it serves one at a time.
fn sigterm(model: ThreadModel, count: usize, first: usize, more: usize) {
    println!("{model:?}, {count} clients");
    let server = Setup::with_disk(1).thread_model(model).start();
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(&server)).collect();
    // One that connects and says nothing.
    let silent = UnixStream::connect(server.socket()).unwrap();
    let mut controller = server.controller();
    controller.pause();
    let send = |client: &mut Client| {
        let requests = [WRITE, Flush, READ].into_iter().cycle().take(first);
        let tickets: Vec<Ticket> = requests.map(|request| client.send(request)).collect();
        client.all_read_by_server();
        tickets
    };
    let held: Vec<_> = clients.iter_mut().map(send).collect();
    let send_more = |client: &mut Client| (0..more).map(|_| client.send(WRITE)).collect();
    let unread: Vec<Vec<Ticket>> = clients.iter_mut().map(send_more).collect();
    clients[0].expect_held(&held[0], A_WHILE);

    let start = Instant::now();
    server.terminate();
    for (client, tickets) in clients.iter_mut().zip(&held) {
        for &ticket in tickets {
            client.expect_dropped(ticket, PROMPT.saturating_sub(start.elapsed()));
        }
    }
    for (client, tickets) in clients.iter_mut().zip(&unread) {
        for &ticket in tickets {
            let reply = client.reply_within(ticket, GENEROUS);
            assert!(matches!(reply, Some(Err(_))), "a request behind it: {reply:?}");
        }
    }
    drop((clients, silent));
    let ended = server.ended(PROMPT).well();
    assert!(is_zero(&ended.path("disk.img"), 0, 1 << 20));
    // Nobody is left to answer.
    controller.expect_closed();
}

#[test]
fn sigterm_drops_held_requests_and_the_server_goes() {
    sigterm(ThreadModel::Parallel, 4, 12, 0);
    // With all threads busy.
    sigterm(ThreadModel::Parallel, 3, 16, 16);
    // One after the other would take 100 ms each, and together too long.
    sigterm(ThreadModel::SerializeRequests, 60, 1, 3);
    sigterm(ThreadModel::SerializeConnections, 1, 1, 3);
}

/// One is held, and has nbdkit's only lock. When it is dropped the others come, one
/// by one, to a server that ends and a gate that is closed. They could be the last
/// writes of a file system above us, and so they end the pause.
#[test]
fn at_sigterm_what_waits_in_nbdkit_for_a_held_request_is_carried_out() {
    let setup = Setup::with_disk(1).thread_model(ThreadModel::SerializeAllRequests);
    let server = setup.holds().logged_above().start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&server)).collect();
    let mut controller = server.controller();
    controller.hold();
    let send = |(block, client): (usize, &mut Client)| {
        let ticket = client.send(Write(512 * block as u64, 0xee));
        client.all_read_by_server();
        if block == 0 {
            server.wait_for_writes(1);
        }
        ticket
    };
    let sent: Vec<Ticket> = clients.iter_mut().enumerate().map(send).collect();
    clients[0].expect_held(&sent[..1], A_WHILE);
    server.terminate();
    clients[0].expect_dropped(sent[0], PROMPT);
    for (client, &ticket) in clients.iter_mut().zip(&sent).skip(1) {
        client.goes_on(ticket);
    }
    drop(clients);
    let ended = server.ended(PROMPT).well();
    // Whoever relied on the pause hears of it.
    expect_line(&ended.process.stderr, &["error", "shutting down", "ended the pause"]);
    let disk = ended.disk();
    assert_eq!(disk[..512], [0; 512]);
    assert_eq!(disk[512..20 * 512], [0xee; 19 * 512]);
}

dialogues! {
    Setup::in_memory() => {
        sigterm_during_a_pause_without_clients_ends_the_server:
            "goes is-gone A:p=P term A.is-closed";
    }
    Setup::obedient() => {
        sigterm_during_a_drain_drops_held_requests_and_the_server_goes_when_the_plugin_returns:
            "reading A:p= held term dropped";
    }
}

#[test]
fn a_client_that_stays_after_sigterm_gets_errors_until_it_leaves() {
    let mut stage = Stage::on(Setup::with_disk(1));
    stage.play("A:p=P held term dropped");
    if !nbdkit::cuts_connections() {
        // nbdkit still waits for its next request, and need not answer it well.
        let late = stage.client().send(WRITE);
        assert!(matches!(stage.client().reply_within(late, PROMPT), Some(Err(_))));
    }
    assert!(is_zero(&stage.ended().path("disk.img"), 0, 512));
}

/// A client at two pipes is told that its negotiation has failed: a connection that is
/// cut could not tell it, and nbdkit would die of that.
#[test]
fn sigterm_while_a_client_on_pipes_negotiates_ends_the_server_well() {
    let setup = Setup::with_disk(1).above("partition", &["partition=1"]);
    let control = setup.path("control");
    let setup = setup.control(control.to_str());
    // The filter above reads this when the client has told which export it wants.
    let mut partitions = [0; 512];
    partitions[446 + 4] = 0x83;
    partitions[446 + 8] = 1;
    partitions[446 + 12] = 100;
    partitions[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = fs::OpenOptions::new().write(true).open(setup.path("disk.img")).unwrap();
    disk.write_all_at(&partitions, 0).unwrap();

    let words = setup.on_stdin();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(nbdkit::environment()).current_dir(setup.path(""));
    let log = fs::File::create(setup.path("stderr")).unwrap();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let mut server = command.spawn().unwrap();
    let (mut input, mut output) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
    output.read_exact(&mut [0; 18]).unwrap();
    Controller::connect(&control).pause();
    // NBD's fixed newstyle; NBD_OPT_GO for the export without a name.
    let go = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7], &[0, 0, 0, 6], &[0; 6]].concat();
    input.write_all(&go).unwrap();
    thread::sleep(A_WHILE);
    send_signal(server.id(), libc::SIGTERM);
    thread::sleep(A_WHILE);
    drop((input, output));
    let start = Instant::now();
    while server.try_wait().unwrap().is_none() && start.elapsed() < PROMPT {
        thread::sleep(A_WHILE / 10);
    }
    // It may not be left behind.
    let _ = server.kill();
    let status = server.wait().unwrap();
    let said = fs::read_to_string(setup.path("stderr")).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!control.exists());
}

// A server that starts again: a guest of qemu never hears of it.

/// The server's disk, as qemu's programs name it. They try for so many seconds to come
/// back.
fn for_qemu(server: &Server, reconnect: u32) -> String {
    format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},\
         file.reconnect-delay={reconnect}",
        server.socket().display()
    )
}

/// Writes the first block: `$1` is the disk.
const QEMU_IO: &str = "qemu-io --image-opts -c 'write -P 0xee 0 512' \"$1\"";
const QEMU_IMG: &str = "head -c 512 /dev/zero | tr '\\0' '\\356' >block &&
     qemu-img convert -n -f raw --target-image-opts block \"$1\"";

/// A script in the server's folder, which is about to write, and is held.
fn held_qemu(server: &Server, script: &str, reconnect: u32) -> Process {
    server.controller().pause();
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", &for_qemu(server, reconnect)]).current_dir(server.dir());
    let mut qemu = Process::start(command);
    server.wait_for_writes(1);
    assert!(qemu.is_running());
    qemu
}

/// The server ends, in one of two ways, and another one can take its place.
fn end(server: Server, signal: i32) -> Setup {
    send_signal(server.pid(), signal);
    server.ended(PROMPT).again()
}

/// It is held when the server is told to end, or dies.
fn a_held_write_is_taken_to_the_next_server(signal: i32) {
    together([QEMU_IO, QEMU_IMG], |script| {
        let server = Setup::with_disk(1).logged_above().start();
        let qemu = held_qemu(&server, script, 60);
        let server = end(server, signal).start();
        let finished = qemu.finish(GENEROUS).succeeded();
        assert!(!finished.stdout.contains("failed"), "{finished:#?}");
        assert_eq!(server.stop().disk()[..512], [0xee; 512]);
    });
}

#[test]
fn a_write_that_is_held_when_the_server_is_told_to_end_is_taken_to_the_next_one() {
    if !nbdkit::cuts_connections() {
        println!("SKIPPED: before 1.34 nbdkit can't cut a connection, and the write fails");
        return;
    }
    a_held_write_is_taken_to_the_next_server(libc::SIGTERM);
}

#[test]
fn a_write_that_is_held_when_the_server_is_killed_is_taken_to_the_next_one() {
    a_held_write_is_taken_to_the_next_server(libc::SIGKILL);
}

/// So it is where nobody waits for a server to come back.
#[test]
fn without_reconnecting_a_held_write_fails_when_the_server_ends() {
    let rows =
        [QEMU_IO, QEMU_IMG].map(|script| [libc::SIGTERM, libc::SIGKILL].map(|s| (script, s)));
    together(rows.concat(), |(script, signal)| {
        let server = Setup::with_disk(1).logged_above().start();
        let qemu = held_qemu(&server, script, 0);
        let ended = end(server, signal);
        let finished = qemu.finish(GENEROUS);
        assert!(!finished.status.success(), "{finished:#?}");
        assert!(is_zero(&ended.path("disk.img"), 0, 512));
    });
}

/// Nothing of it is held: it has to notice that the server is another one. By SIGKILL,
/// since nbdkit waits for idle clients to leave.
#[test]
fn an_idle_qemu_goes_on_with_the_next_server_and_without_reconnecting_gets_an_error() {
    together([60, 0], |reconnect| {
        let server = Setup::with_disk(1).logged_above().start();
        let pipe = server.path("commands");
        make_fifo(&pipe);
        let mut command = Command::new("sh");
        command.args(["-c", "exec qemu-io --image-opts \"$1\" <commands", "sh"]);
        command.arg(for_qemu(&server, reconnect)).current_dir(server.dir());
        let qemu = Process::start(command);
        let mut commands = fs::OpenOptions::new().write(true).open(pipe).unwrap();
        commands.write_all(b"write -P 0xdd 512 512\n").unwrap();
        server.wait_for_writes(1);
        server.controller().pause();
        let server = end(server, libc::SIGKILL).start();
        commands.write_all(b"write -P 0xee 0 512\n").unwrap();
        drop(commands);
        let finished = qemu.finish(GENEROUS);
        let disk = server.stop().disk();
        assert_eq!(disk[512..1024], [0xdd; 512]);
        if reconnect > 0 {
            assert!(finished.stdout.contains("wrote 512/512 bytes at offset 0"), "{finished:#?}");
            assert_eq!(disk[..512], [0xee; 512]);
        } else {
            assert!(finished.stdout.contains("write failed"), "{finished:#?}");
            assert_eq!(disk[..512], [0; 512]);
        }
    });
}

// A client that connects as the server ends.

/// The layers are still there when its thread begins.
const SLOW_CLEANUP: &str = "
def cleanup():
    pathlib.Path('begun').touch()
    while os.path.exists('slow'): time.sleep(0.02)
";

/// nbdkit waits for the clients whose threads have begun. This one's takes a second for
/// that, and comes when the server ends already. Without us it would negotiate, and
/// nbdkit unload nothing before that is over, or crash where it is just over.
#[test]
fn a_client_that_connects_as_the_server_ends_does_not_keep_it() {
    let server = plugins::in_python(SLOW_CLEANUP)
        .verbose()
        .under(&["strace", "-f", "-o", "trace", "-e", "inject=set_robust_list:delay_enter=1000000"])
        .start();
    // Our own thread has begun, too.
    server.all_is_heard();
    let before = server.threads();
    server.make("slow");
    let mut client = UnixStream::connect(server.socket()).unwrap();
    eventually("it has a thread", GENEROUS, || server.threads() > before);
    server.terminate();
    server.await_file("begun");
    server.says("pause: preconnect");
    // It would begin to negotiate.
    thread::sleep(A_WHILE);
    server.remove("slow");
    server.ended(GENEROUS).well();
    assert_eq!(client.read(&mut [0; 18]).unwrap(), 0);
}
