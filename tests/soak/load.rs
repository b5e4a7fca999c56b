//! Clients. Each is a process of its own with one connection, a *life*: it has a
//! region of the disk to itself, says what it writes there, and leaves in good
//! order, hangs up, or is killed. Beside them fio, which only makes load.

use std::time::{Duration, Instant};

use pause_model::Mark;

use crate::common::clients::{self, PYTHON, until_the_kernel_knows};
use crate::common::process::{Finished, Process};
use crate::common::random::Random;
use crate::common::{GENEROUS, eventually};
use crate::controllers::{A_SECOND, Wire};
use crate::log::{Log, connection_of, has_ended};
use crate::plan::{Commands, DISK, End, dead_clients_are_dangerous};
use crate::world::{SOON, World};

const BLOCK: u64 = 512;
const BLOCKS: u64 = 32;

/// What one life has of the disk.
pub const REGION: u64 = BLOCK * BLOCKS;

/// Where fio works, in MiB. What is before that is for the others.
const FIO: u64 = DISK / 2;

/// Any requests, `depth` at once, on blocks that are each full of one number.
/// Says what it sends to a block and what was done. After the last block of its
/// own comes one that it trims, which stays zero. On SIGTERM it waits for its
/// replies and leaves; on SIGUSR1 it shuts down its sending half, below NBD.
const CLIENT: &str = r#"
import os, random, signal, socket, sys, time, nbd
uri, offset, blocks, depth, gap, seed = sys.argv[1], *map(int, sys.argv[2:])
random.seed(seed)
told = set()
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
def leave(number, _):
    told.add(number)
    try:
        if number == signal.SIGUSR1:
            connection.shutdown(socket.SHUT_WR)
            say("gone")
    except OSError:
        pass
for number in signal.SIGTERM, signal.SIGUSR1:
    signal.signal(number, leave)
handle = nbd.NBD()
handle.add_meta_context("base:allocation")
say("connecting")
handle.connect_uri(uri)
connection = socket.socket(fileno=os.dup(handle.aio_get_fd()))
name = connection.getsockname()
say("port", name[1] if isinstance(name, tuple) else 0)
content, flying, lost, failed = [0] * blocks, {}, False, None
def send(block):
    at, value = offset + 512 * block, content[block]
    kind = random.choice("wwwwwrrrzftec")
    if kind in "wz":
        value = value % 250 + 1 if kind == "w" else 0
        say("sent", block, value)
    buffer = nbd.Buffer.from_bytearray(bytearray([value]) * 512)
    if kind == "r": buffer = nbd.Buffer(512)
    send = {
        "w": lambda: handle.aio_pwrite(buffer, at),
        "r": lambda: handle.aio_pread(buffer, at),
        "z": lambda: handle.aio_zero(512, at),
        "f": lambda: handle.aio_flush(),
        "t": lambda: handle.aio_trim(512, offset + 512 * blocks),
        "e": lambda: handle.aio_block_status(512, at, lambda *_: 0),
        "c": lambda: handle.aio_cache(512, at),
    }
    flying[send[kind]()] = kind, block, value, buffer
while flying or not (told or lost or failed):
    try:
        while not (told or lost or failed) and len(flying) < depth:
            busy = [block for _, block, _, _ in flying.values()]
            send(random.choice([block for block in range(blocks) if block not in busy]))
        handle.poll(100)
    except nbd.Error:
        lost = True
        time.sleep(0.001)
    for cookie, (kind, block, value, buffer) in list(flying.items()):
        try:
            if not handle.aio_command_completed(cookie): continue
            if kind in "wz": say("done", block, value)
            if kind == "r" and buffer.to_bytearray() != bytearray([value]) * 512:
                sys.exit("WRONG: block %d was not %d" % (block, value))
            content[block] = value
        except nbd.Error as e:
            failed = e.errno or str(e)
        del flying[cookie]
    time.sleep(gap / 1000)
if failed or lost:
    sys.exit("failed: %s" % failed)
"#;

/// How requests fail once SIGTERM was sent: with the first, if they were held.
const ERRORS: [&str; 5] = ["None", "ESHUTDOWN", "ENOTCONN", "ECONNRESET", "EPIPE"];

/// One connection, and what became of its writes.
pub struct Life {
    pub number: u64,
    /// It has ended without a farewell, and by then the server's kernel knew.
    pub died: Option<Mark>,
    /// How many requests it has in flight at once.
    depth: u64,
    /// When it died all that it had asked for was held, and was dropped.
    pub was_held: bool,
    blocks: [Block; BLOCKS as usize],
}

/// A block is full of one number.
#[derive(Clone, Copy, Default)]
struct Block {
    /// The last one that was acknowledged.
    settled: u8,
    /// Sent later, and perhaps written.
    flying: Option<u8>,
}

impl Life {
    /// Takes what the process has said.
    fn learn(&mut self, said: &str) {
        // The last line may not be whole.
        for line in said.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [what @ ("sent" | "done"), block, value] = words[..] {
                let block = &mut self.blocks[block.parse::<usize>().expect("a block")];
                let value = value.parse().expect("a value");
                match what {
                    "sent" => block.flying = Some(value),
                    _ => *block = Block { settled: value, flying: None },
                }
            }
        }
    }

    /// What is on the disk and can't be.
    pub fn wrong_on(&self, disk: &[u8]) -> Vec<String> {
        let region = &disk[(self.number * REGION) as usize..][..REGION as usize];
        let blocks = region.chunks(BLOCK as usize).zip(&self.blocks).enumerate();
        let wrong = blocks.filter(|(_, (found, known))| {
            let can_be = |value: u8| found.iter().all(|&byte| byte == value);
            !can_be(known.settled) && !known.flying.is_some_and(can_be)
        });
        wrong
            .map(|(block, (found, Block { settled, flying }))| {
                format!(
                    "client {}, block {block}: {} on the disk, where {settled} was acknowledged \
                     and {flying:?} sent",
                    self.number, found[0]
                )
            })
            .collect()
    }
}

/// How a client ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Leaves,
    HangsUp,
    IsKilled,
    IsKilledInAPause,
}

/// One client after the other, until all are told to leave.
pub fn come_and_go(world: &World, random: &mut Random) {
    while !world.all_leave() {
        let mut depth = random.one_of(&[1, 4, 31]);
        let mut fate = random.one_of(&[
            Fate::Leaves,
            Fate::HangsUp,
            Fate::IsKilled,
            Fate::IsKilledInAPause,
            Fate::IsKilledInAPause,
        ]);
        if dead_clients_are_dangerous() {
            match fate {
                Fate::IsKilled => depth = 1,
                // The pause might be over too early.
                Fate::IsKilledInAPause if world.plan.timeout.is_some() => fate = Fate::Leaves,
                _ => {}
            }
        }
        let number = world.next_life();
        assert!(number < (FIO << 20) / REGION, "too many clients for this disk");
        let blocks = Default::default();
        let mut life = Life { number, died: None, depth, was_held: false, blocks };
        let (gap, seed) = (random.one_of(&[0, 1, 5]), random.below(0..1 << 32));
        let numbers = [number * REGION, BLOCKS - 1, depth, gap, seed].map(|n| n.to_string());
        let mut words = vec!["-c", CLIENT];
        let uri = world.server.uri();
        words.push(&uri);
        words.extend(numbers.iter().map(String::as_str));
        let connects = world.connects.read();
        if world.all_leave() {
            return;
        }
        let mut process = clients::start(PYTHON, &words);
        let is_in = says(world, &mut process, "connecting") && {
            // In line it may wait for long, but its thread is there soon.
            says_within(world, &mut process, "port", A_SECOND).unwrap_or(true)
        };
        drop(connects);
        match is_in && says(world, &mut process, "port") {
            true => world.sleep(random.millis(0..500)),
            false => fate = Fate::Leaves,
        }
        let finished = end(world, random, process, fate, &mut life);
        life.learn(&finished.stdout);
        world.lives.lock().push(life);
    }
}

/// Waits until it says so. False if all are told to leave before.
fn says(world: &World, process: &mut Process, what: &str) -> bool {
    says_within(world, process, what, Duration::MAX).unwrap_or(false)
}

/// The same, but for no longer than `limit`: None.
fn says_within(world: &World, process: &mut Process, what: &str, limit: Duration) -> Option<bool> {
    let start = Instant::now();
    while start.elapsed() < limit {
        // In this order: it may say so, and end, in between.
        let is_running = process.is_running();
        if process.stdout().contains(what) {
            return Some(true);
        }
        if world.all_leave() || world.server_goes() {
            return Some(false);
        }
        assert!(is_running, "a client has ended: {}", process.stderr());
        world.patience(start, || format!("'{what}' of a client"));
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

fn end(
    world: &World,
    random: &mut Random,
    mut process: Process,
    fate: Fate,
    life: &mut Life,
) -> Finished {
    match fate {
        Fate::IsKilled if !world.all_leave() => return kill(world, process, life),
        Fate::IsKilledInAPause if !world.controllers_leave() => {
            match kill_in_a_pause(world, random, process, life) {
                Ok(finished) => return finished,
                Err(it) => process = it,
            }
        }
        Fate::HangsUp => {
            process.signal(libc::SIGUSR1);
            if says(world, &mut process, "gone") {
                // Over TCP it may not be known at once.
                life.died = Some(if world.plan.tcp { Mark::NEVER } else { world.mark() });
            }
        }
        _ => {}
    }
    process.signal(libc::SIGTERM);
    let start = Instant::now();
    while process.is_running() {
        world.patience(start, || {
            let said = process.stdout();
            let last = said.rsplit('\n').take(40).collect::<Vec<_>>().join(", ");
            format!("client {}, who said, latest first, {last}", life.number)
        });
        std::thread::sleep(Duration::from_millis(2));
    }
    let finished = process.finish(GENEROUS);
    let why = finished.stderr.trim();
    let is_known = ERRORS.iter().any(|error| why == format!("failed: {error}"))
        // It was too late to connect, or to say that it has.
        || !finished.stdout.contains("port");
    let may_fail = world.server_goes() || fate == Fate::HangsUp;
    let is_right = why.is_empty() || may_fail && is_known || world.failed();
    assert!(is_right, "client {}: {why}", life.number);
    finished
}

/// SIGKILL. When this returns, the connection is closed at the server's end.
fn kill(world: &World, process: Process, life: &mut Life) -> Finished {
    let said = process.stdout();
    let port = said.split_whitespace().skip_while(|word| *word != "port").nth(1);
    let port = port.expect("a port").parse().expect("a port");
    process.signal(libc::SIGKILL);
    let finished = process.finish(GENEROUS);
    if let Some(server) = world.server.port() {
        until_the_kernel_knows(server, port);
    }
    life.died = Some(world.mark());
    finished
}

/// Pauses, kills, and resumes, and nobody else resumes before it is dead. The
/// process comes back where there was no pause to be had.
fn kill_in_a_pause(
    world: &World,
    random: &mut Random,
    process: Process,
    life: &mut Life,
) -> Result<Finished, Process> {
    let nobody_resumes = world.resumes.write();
    let Some(mut wire) = Wire::connect(world) else { return Err(process) };
    let command = match world.plan.commands {
        Commands::Pauses => b'p',
        Commands::Holds => b'+',
        Commands::Both => random.one_of(b"p+"),
    };
    wire.send(&[command]);
    let is_paused = wire.settle() && wire.last_reply() != Some(b'X');
    let mut result = Err(process);
    if is_paused && !world.server_goes() {
        // It sends no more than it may have in flight. In a second, however busy the
        // machine is, that has arrived.
        let all_can_be_held =
            life.depth <= world.plan.model.at_once() as u64 && !world.plan.has_one_lock();
        let all_arrive = all_can_be_held && world.plan.timeout.is_none() && random.once_in(3);
        world.sleep(if all_arrive { A_SECOND } else { random.millis(0..150) });
        life.was_held = all_arrive && !world.all_leave();
        result = result.or_else(|process| Ok(kill(world, process, life)));
        match random.below(0..4) {
            0 if life.was_held => wait_until_its_threads_are_free(world, life),
            1 => world.sleep(random.millis(0..150)),
            _ => {}
        }
    }
    drop(nobody_resumes);
    if !world.server_goes() {
        wire.send(if command == b'p' { b"r" } else { b"-" });
        wire.settle();
    }
    wire.finish();
    result
}

/// In the pause still: the resume would free them in any case. A server that goes
/// need not close connections one by one.
fn wait_until_its_threads_are_free(world: &World, life: &Life) {
    let Some(connection) = connection_of(life.number, &world.server.logged()) else { return };
    let what = format!("client {} is dead, and no request of it waits", life.number);
    eventually(&what, SOON, || {
        world.server_goes() || has_ended(connection, &world.server.logged())
    });
}

/// Works until it is time to leave, or until the server goes. When this returns,
/// it is connected: it was before once, to look at the disk.
pub fn fio(world: &World, depth: u32) -> Process {
    let runtime = match world.plan.end {
        End::Deserted => format!("--runtime={}ms", world.plan.length.as_millis()),
        End::Terminated => "--runtime=300".to_owned(),
    };
    let place = [format!("--offset={FIO}M"), format!("--size={FIO}M")];
    let depth = format!("--iodepth={depth}");
    let mut options = vec!["--rw=randrw", "--bs=4k", "--fsync=32", "--rate_iops=1000"];
    options.extend(["--time_based", &runtime, &place[0], &place[1], &depth]);
    let fio = clients::fio(&world.server, &options);
    eventually("fio is at work", GENEROUS, || Log::new(&world.server.logged()).requests() > 0);
    fio
}
