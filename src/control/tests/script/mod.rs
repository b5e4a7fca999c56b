//! One controller's life, played from a script: what it sends, how its connection
//! behaves, when the pause it waits for is decided. The shipped `Controller` and
//! `Session` serve it over a stream in memory (`peer`), and where something else
//! comes of it than the protocol's rules say (`model`), `play` panics.
//!
//! The unit tests play scripts that are kept; the fuzz target, in `fuzz/`, plays
//! what it makes up. So that any bytes are a script, each of these stands for an
//! event, and every other byte is sent by the controller:
//!
//! | byte | event |
//! |---|---|
//! | `T` | a turn of the loop: poll tells what is ready |
//! | `S` | a turn in which poll tells that all is ready, true or not |
//! | `B` | a turn in which poll fails |
//! | `I` | a signal interrupts the next read and the next write |
//! | `O` | the next ten reads and writes are of one byte at most |
//! | `0` to `9` | so many more replies fit into the controller's buffer, and no more |
//! | `W` | any number of them does |
//! | `A`, `L`, `F` | from now on a pause takes effect at once, later, not at all |
//! | `Y`, `N` | by the next turn the pause has taken effect, has been ended |
//! | `E` | the controller sends no more |
//! | `H` | it is gone |
//! | `D`, `Z` | it receives no more: a write fails, takes nothing |
//! | `C` | its connection breaks: reads and writes fail |
//! | `G` | the next byte is sent 6,000 times, if that is the first flood |
//! | `Q` | the next byte is sent, whatever it is |
//!
//! At the end of the script the controller reads all its replies and sends no
//! more, and whatever pause it waits for takes effect.

mod model;
mod peer;

use std::cell::RefCell;
use std::fmt::Debug;
use std::mem;
use std::rc::Rc;

use crate::control::controller::Controller;
use crate::control::session::{Command, Reply};
use crate::os::{POLLERR, POLLHUP, PollFd};
use model::{Model, Verdict, is_white};
use peer::{Peer, Stream};

/// With so many replies unsent, a controller need not be listened to ...
pub const LISTENED: usize = 1_000;

/// ... and so many there are never.
const MOST_UNSENT: usize = 5_000;

/// What has come of a script that was played to its end.
pub struct Ending {
    /// The replies that the controller has received.
    pub replies: Vec<u8>,
    /// Whether its connection has failed, so that it lacks some.
    pub failed: bool,
    /// How many were unsent at worst.
    pub most_unsent: usize,
}

/// Plays `script`.
pub fn play(script: &[u8]) -> Ending {
    let mut scene = Scene::new();
    let mut script = script.iter().copied();
    while let Some(event) = script.next() {
        match event {
            b'T' => scene.turn(Poll::Tells),
            b'S' => scene.turn(Poll::TellsAll),
            b'B' => scene.turn(Poll::Fails),
            b'A' => scene.model.verdict = Verdict::Done,
            b'L' => scene.model.verdict = Verdict::Later,
            b'F' => scene.model.verdict = Verdict::Failed,
            b'Y' => scene.decided = Some(true),
            b'N' => scene.decided = Some(false),
            _ => scene.peer.borrow_mut().act(event, &mut script),
        }
        if scene.is_over {
            return scene.ending();
        }
    }
    scene.play_out();
    scene.ending()
}

/// How poll(2) is in a turn.
#[derive(Clone, Copy, PartialEq)]
enum Poll {
    Tells,
    TellsAll,
    Fails,
}

/// A controller, what serves it, and the model.
struct Scene {
    peer: Rc<RefCell<Peer>>,
    controller: Controller<Stream>,
    model: Model,
    /// What the next turn finds to have become of the pause.
    decided: Option<bool>,
    /// poll has told that the controller has left.
    hung_up: bool,
    /// So many of the replies received were compared with those owed.
    compared: usize,
    most_unsent: usize,
    /// The controller is finished, and would be parted with.
    is_over: bool,
}

impl Scene {
    fn new() -> Self {
        let peer = Rc::new(RefCell::new(Peer::default()));
        Scene {
            controller: Controller::over(Stream(peer.clone()), 1, None),
            peer,
            model: Model::new(),
            decided: None,
            hung_up: false,
            compared: 0,
            most_unsent: 0,
            is_over: false,
        }
    }

    /// What a turn of the control thread (`Loop::turn`) does for one controller,
    /// in the same order.
    fn turn(&mut self, poll: Poll) {
        let found = self.poll(poll);
        let before = self.state();
        self.read(&found);
        if let Some(well) = self.decided.take() {
            self.controller.session.settle(well);
            self.model.decide(well);
        }
        self.carry_out();
        self.write();
        self.let_leave();
        if poll == Poll::Tells && found.revents != 0 {
            assert_ne!(self.state(), before, "the loop turns and turns");
        }
    }

    fn poll(&self, poll: Poll) -> PollFd {
        // Nobody sees the descriptor; where nothing is awaited it is not looked at.
        let Some(events) = self.controller.awaited() else {
            return PollFd { fd: -1, events: 0, revents: 0 };
        };
        let found = self.peer.borrow().poll(events);
        let revents = match poll {
            Poll::Tells => found,
            Poll::TellsAll => found | events,
            Poll::Fails => 0,
        };
        PollFd { fd: -1, events, revents }
    }

    fn read(&mut self, found: &PollFd) {
        let before = self.peer.borrow().taken;
        let may_read = self.model.waiting.is_none() && self.has_begun_all();
        self.controller.polled(found);
        self.hung_up |= found.revents & (POLLHUP | POLLERR) != 0;
        assert!(may_read || self.peer.borrow().taken == before, "read though a command waits");
    }

    fn carry_out(&mut self) {
        let peer = self.peer.borrow();
        let taken = &peer.sent[..peer.taken];
        let session = &mut self.controller.session;
        while let Some(command) = session.next_command() {
            let (expected, verdict) = self.model.begin(taken);
            assert_eq!(command, expected);
            // As all controllers are told; this one waits for nothing.
            session.settle(verdict == Verdict::Done);
            let hope = match command {
                Command::Pause => Reply::Paused,
                Command::Resume => Reply::Resumed,
                Command::Hold => Reply::Held,
                Command::LetGo => Reply::LetGo,
                Command::Unknown => Reply::No,
            };
            match verdict {
                Verdict::Done => session.answer(hope),
                Verdict::Later => session.wait_for(hope),
                Verdict::Failed => session.answer(Reply::No),
            }
        }
        self.model.skip_white(taken);
        let waits = self.model.waiting.is_some();
        assert_eq!((session.is_waiting(), session.is_done()), (waits, !waits));
        assert!(waits || self.has_begun_all(), "a command is left lying");
    }

    fn write(&mut self) {
        self.peer.borrow_mut().told_full = false;
        self.controller.write();
        let peer = self.peer.borrow();
        let owed = self.model.owed.get(self.compared..peer.received.len());
        let owed = owed.expect("more replies than commands");
        let received = &peer.received[self.compared..];
        assert!(received == owed, "{} and not {}", received.escape_ascii(), owed.escape_ascii());
        self.compared = peer.received.len();

        let unsent = self.unsent();
        assert!(unsent == 0 || peer.told_full, "{unsent} replies are kept back");
        assert!(unsent <= MOST_UNSENT, "{unsent} replies have piled up");
        self.most_unsent = self.most_unsent.max(unsent);
    }

    fn let_leave(&mut self) {
        let peer = self.peer.borrow();
        let waits = self.model.waiting;
        let is_answered = waits.is_none() && self.has_begun_all() && self.unsent() == 0;
        self.is_over = self.controller.is_finished();
        assert_eq!(self.is_over, peer.told_end && is_answered, "finished too early, or too late");
        assert_eq!(self.controller.hung_up(), self.hung_up || peer.told_failure);
        // Its hold ends with it, and nobody else wants the pause.
        if self.controller.hung_up() && waits == Some(b'+') {
            self.controller.session.settle(false);
            self.model.decide(false);
        }
    }

    /// Turns until nothing is ready and nobody rings.
    fn settle_down(&mut self) {
        while !self.is_over {
            if self.decided.is_none() && self.poll(Poll::Tells).revents == 0 {
                return self.assert_may_sleep();
            }
            self.turn(Poll::Tells);
        }
    }

    /// The loop is about to wait: does it owe nothing to anyone?
    fn assert_may_sleep(&self) {
        let peer = self.peer.borrow();
        let waits = self.model.waiting.is_some();
        assert!(waits || self.has_begun_all(), "a command is left lying");
        assert!(waits || !peer.has_more() || self.unsent() >= LISTENED, "nobody listens");
        assert!(self.unsent() == 0 || !peer.takes_more(), "replies are kept back");
        assert!(self.hung_up || !peer.has_left(), "nobody sees that it has left");
    }

    /// Whatever the script has left open comes to an end.
    fn play_out(&mut self) {
        self.settle_down();
        self.peer.borrow_mut().room = None;
        self.peer.borrow_mut().sends_no_more = true;
        self.model.verdict = Verdict::Done;
        self.decided = Some(true);
        self.settle_down();
        assert!(self.is_over, "it is never finished");
    }

    fn ending(self) -> Ending {
        let mut peer = self.peer.borrow_mut();
        assert!(peer.told_failure || peer.taken == peer.sent.len(), "commands are lost");
        let taken = &peer.sent[..peer.taken];
        let commands = taken.iter().filter(|byte| !is_white(byte)).count();
        assert_eq!(self.model.owed.len(), commands, "one reply a command");
        Ending {
            replies: mem::take(&mut peer.received),
            failed: peer.told_failure,
            most_unsent: self.most_unsent,
        }
    }

    /// Whether every command that was read has begun.
    fn has_begun_all(&self) -> bool {
        self.model.begun == self.peer.borrow().taken
    }

    /// How many replies the controller lacks and can still be sent.
    fn unsent(&self) -> usize {
        let peer = self.peer.borrow();
        if peer.told_failure { 0 } else { self.model.owed.len() - peer.received.len() }
    }

    /// Changes with whatever a turn brings about.
    fn state(&self) -> impl PartialEq + Debug + use<> {
        let replies = self.controller.session.replies().len();
        (self.peer.borrow().results, self.model.begun, replies, self.hung_up)
    }
}
