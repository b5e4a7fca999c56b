//! Controllers of all kinds. Each writes down what it sent and what came back;
//! whether that was right is for the model to say.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use parking_lot::RwLockReadGuard;

use crate::common::GENEROUS;
use crate::common::random::Random;
use crate::plan::Commands;
use crate::world::World;
use pause_model::{Exchange, Mark, Transcript, describe};

/// A holder that vanishes lets go within a second.
pub const A_SECOND: Duration = Duration::from_secs(1);

/// A connection to the control socket.
pub struct Wire<'w> {
    world: &'w World,
    stream: UnixStream,
    connection: Transcript,
    /// So many commands have their replies.
    answered: usize,
    /// While an `r` is under way.
    resumes: Option<RwLockReadGuard<'w, ()>>,
}

impl<'w> Wire<'w> {
    /// None where the server is going.
    pub fn connect(world: &'w World) -> Option<Self> {
        let connected = world.mark().at;
        let stream = match UnixStream::connect(world.server.control_path()) {
            Ok(stream) => stream,
            Err(_) if world.server_goes() => return None,
            Err(e) => panic!("a controller can't connect: {e}"),
        };
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit");
        stream.set_write_timeout(Some(GENEROUS)).expect("a time limit");
        let connection = Transcript::new(connected);
        Some(Wire { world, stream, connection, answered: 0, resumes: None })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        if bytes.contains(&b'r') && self.resumes.is_none() {
            self.resumes = Some(self.world.resumes.read());
        }
        let sent = self.world.mark();
        if let Err(e) = self.stream.write_all(bytes) {
            assert!(self.world.server_goes(), "a controller can't send: {e}");
        }
        let written = self.world.mark().at;
        let commands = bytes.iter().filter(|byte| !b" \t\n".contains(byte));
        let (reply, until) = (None, Mark::NEVER);
        self.connection.commands.extend(commands.map(|&byte| Exchange {
            byte,
            sent,
            written,
            reply,
            until,
        }));
    }

    /// Takes the replies that come next. False at the end of the connection.
    fn receive(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let count = match self.stream.read(&mut chunk) {
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return true;
            }
            Err(e) => {
                assert!(self.world.server_goes(), "a controller can't receive: {e}");
                0
            }
        };
        let until = self.world.mark();
        for &reply in &chunk[..count] {
            let Some(command) = self.connection.commands.get_mut(self.answered) else {
                panic!("a reply to no command: {:?} after {}", reply as char, self.told());
            };
            (command.reply, command.until) = (Some(reply), until);
            self.answered += 1;
        }
        count > 0
    }

    /// Waits for all replies. False where the server has gone before.
    pub fn settle(&mut self) -> bool {
        let start = Instant::now();
        while self.answered < self.connection.commands.len() {
            if !self.receive() {
                assert!(self.world.server_goes(), "closed by the server after {}", self.told());
                return false;
            }
            self.world.patience(start, || format!("a controller after {}", self.told()));
        }
        self.resumes = None;
        true
    }

    /// The last commands, in words.
    fn told(&self) -> String {
        let commands = &self.connection.commands;
        let last = &commands[commands.len().saturating_sub(10)..];
        last.iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    /// The last command and its reply.
    pub fn last_reply(&self) -> Option<u8> {
        self.connection.commands.last().and_then(|command| command.reply)
    }

    /// Sends nothing more, and takes all that comes, to the end. Where the server
    /// goes, it is the one to close: it must go although it is paused.
    pub fn finish(mut self) {
        if !self.world.server_goes() {
            self.connection.closed = self.world.mark();
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        let start = Instant::now();
        while self.receive() {
            self.world.patience(start, || format!("the end after {}", self.told()));
        }
        let missing = self.answered < self.connection.commands.len();
        assert!(!missing || self.world.server_goes(), "closed after {}", self.told());
        self.connection.gone = self.world.mark();
        self.world.controllers.lock().push(self.connection);
    }

    /// Dies, whatever is still to come.
    pub fn die(mut self, random: &mut Random) {
        self.connection.closed = self.world.mark();
        if random.once_in(2) {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        let Wire { world, stream, mut connection, answered, resumes } = self;
        drop(stream);
        // Its last words were heard when one is answered that came later. If a
        // pause was among them, what follows may wait for that: `r` ends it.
        let last_words = &mut connection.commands[answered..];
        let waits = last_words.iter().position(|command| b"p+".contains(&command.byte));
        let last_r = last_words.iter().rposition(|command| command.byte == b'r');
        let is_stuck = waits.is_some() && waits < last_r;
        if let Some(mut next) = Wire::connect(world) {
            next.resumes = resumes;
            next.send(if is_stuck { b"r?" } else { b"?" });
            if next.settle() {
                let heard = world.mark();
                last_words.iter_mut().for_each(|command| command.until = heard);
                connection.gone = Mark { at: heard.at + A_SECOND, ..heard };
            }
            next.finish();
        }
        world.controllers.lock().push(connection);
    }
}

/// One controller after the other, until all are told to leave.
pub fn come_and_go(world: &World, random: &mut Random) {
    while !world.controllers_leave() {
        let Some(mut wire) = Wire::connect(world) else { return };
        let is_served = match random.below(0..10) {
            0 => be_silent(&mut wire, random),
            1 => flood(&mut wire, random),
            _ => talk(&mut wire, random),
        };
        match random.below(0..3) {
            _ if !is_served || world.server_goes() => wire.finish(),
            0 => {
                wire.send(last_words(world.plan.commands, random));
                world.sleep(random.millis(0..10));
                wire.die(random);
            }
            1 => wire.die(random),
            _ => wire.finish(),
        }
        world.sleep(random.millis(0..world.plan.gap));
    }
}

/// Says nothing, or nothing after a first word.
fn be_silent(wire: &mut Wire, random: &mut Random) -> bool {
    if random.once_in(2) {
        wire.send(&commands(wire.world.plan.commands, random));
    }
    wire.world.sleep(random.millis(0..300));
    wire.settle()
}

/// One that waits for its replies, mostly.
fn talk(wire: &mut Wire, random: &mut Random) -> bool {
    let world = wire.world;
    for _ in 0..random.below(1..20) {
        if world.controllers_leave() {
            break;
        }
        wire.send(&commands(world.plan.commands, random));
        if random.once_in(10) {
            world.sleep(random.millis(0..world.plan.gap));
            wire.send(&commands(world.plan.commands, random));
        }
        if !wire.settle() {
            return false;
        }
        world.sleep(random.millis(0..world.plan.gap));
    }
    true
}

/// More than the server keeps in hand, and nobody reads the replies meanwhile.
fn flood(wire: &mut Wire, random: &mut Random) -> bool {
    let bytes: Vec<u8> = (0..random.below(1..16_000)).map(|_| noise(random)).collect();
    wire.send(&bytes);
    wire.world.sleep(random.millis(0..100));
    wire.settle()
}

/// Whether this is no command of any server.
pub fn is_noise(byte: u8) -> bool {
    !b"pr+-".contains(&byte)
}

fn noise(random: &mut Random) -> u8 {
    loop {
        let byte = random.below(0..256) as u8;
        if is_noise(byte) {
            return byte;
        }
    }
}

fn commands(commands: Commands, random: &mut Random) -> Vec<u8> {
    let alphabet: &[u8] = match commands {
        Commands::Pauses => b"ppprrr+-",
        Commands::Holds => b"+-",
        Commands::Both => b"pr++--",
    };
    let count = if random.once_in(3) { random.below(2..8) } else { 1 };
    let mut bytes = Vec::new();
    for _ in 0..count {
        if random.once_in(10) {
            bytes.push(noise(random));
        }
        bytes.push(random.one_of(alphabet));
    }
    if random.once_in(3) {
        bytes.push(b'\n');
    }
    bytes
}

/// What one says who does not wait for the answer.
fn last_words(commands: Commands, random: &mut Random) -> &'static [u8] {
    let choices: &[&[u8]] = match commands {
        Commands::Pauses => &[b"p", b"r", b"pr", b"?p", b"p?"],
        Commands::Holds => &[b"+", b"-", b"+-", b"?+", b"+?"],
        Commands::Both => &[b"p", b"r", b"+", b"-", b"pr", b"+r", b"+-", b"+?"],
    };
    random.one_of(choices)
}
