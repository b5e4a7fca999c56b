//! The control protocol as one controller speaks it: bytes to commands, one
//! reply a command, in order. What a command does is in `core`. A new command
//! begins in `pause_protocol`, which has the bytes, and here.

use std::collections::VecDeque;

use pause_protocol::{command, reply};

/// What a controller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `p`: close the gate and drain.
    Pause,
    /// `r`: open the gate.
    Resume,
    /// `+`: close the gate and drain, until this connection releases it.
    Hold,
    /// `-`: release it.
    LetGo,
    /// `?`: are there holds?
    Ask,
    /// `s`: what is the state?
    Status,
    /// Not a command; the reply is `X`.
    Unknown,
}

/// Which commands there are beside `p` and `r`.
#[derive(Clone, Copy)]
pub struct Offered {
    /// `+`, `-` and `?`.
    pub holds: bool,
    /// `s`.
    pub status: bool,
}

/// The reply to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `P`: paused, and no request is in flight.
    Paused,
    /// `R`: requests flow.
    Resumed,
    /// `+`: held, and no request is in flight.
    Held,
    /// `-`: the hold was in force until now.
    LetGo,
    /// `H`: there are holds.
    HasHolds,
    /// `X`: unknown, or it did not take effect.
    No,
}

impl Command {
    /// `None` for the white space that `echo` and a person's Enter key add.
    fn from_byte(byte: u8) -> Option<Command> {
        match byte {
            command::PAUSE => Some(Command::Pause),
            command::RESUME => Some(Command::Resume),
            command::HOLD => Some(Command::Hold),
            command::LET_GO => Some(Command::LetGo),
            command::ASK => Some(Command::Ask),
            command::STATUS => Some(Command::Status),
            b' ' | b'\t' | b'\n' => None,
            _ => Some(Command::Unknown),
        }
    }
}

impl Reply {
    fn to_byte(self) -> u8 {
        match self {
            Reply::Paused => reply::PAUSED,
            Reply::Resumed => reply::RESUMED,
            Reply::Held => reply::HELD,
            Reply::LetGo => reply::LET_GO,
            Reply::HasHolds => reply::HAS_HOLDS,
            Reply::No => reply::NO,
        }
    }
}

/// The dialogue with one controller: its commands not carried out yet, and its
/// replies not sent yet.
#[derive(Default)]
pub struct Dialogue {
    received: VecDeque<u8>,
    replies: Vec<u8>,
    /// The previous command has no reply yet, so the next one has to wait. This is
    /// the reply if all goes well.
    pending: Option<Reply>,
    /// The place among the replies of an `X` that reports lost writes.
    telling: Option<usize>,
}

impl Dialogue {
    /// Takes bytes as they come from the controller.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
    }

    /// The next command to carry out. After it comes `answer` or `wait_for`.
    pub fn next_command(&mut self) -> Option<Command> {
        if self.pending.is_some() {
            return None;
        }
        while let Some(byte) = self.received.pop_front() {
            if let Some(command) = Command::from_byte(byte) {
                return Some(command);
            }
        }
        None
    }

    /// Whether one can be carried out.
    pub fn has_command(&self) -> bool {
        self.pending.is_none() && !self.received.is_empty()
    }

    /// Replies to the current command.
    pub fn answer(&mut self, reply: Reply) {
        self.replies.push(reply.to_byte());
    }

    /// Replies to the current command with a whole line, its newline included.
    pub fn answer_at_length(&mut self, line: &str) {
        self.replies.extend_from_slice(line.as_bytes());
    }

    /// The current command gets its reply later: `hope`, if all goes well.
    pub fn wait_for(&mut self, hope: Reply) {
        self.pending = Some(hope);
    }

    /// Refuses the current command its pause. `tells` if that reports lost writes to
    /// the controller.
    pub fn refuse(&mut self, tells: bool) {
        if tells {
            self.telling.get_or_insert(self.replies.len());
        }
        self.answer(Reply::No);
    }

    /// Replies to the command that waits, if there is one; `tells` as for `refuse`.
    pub fn settle(&mut self, well: bool, tells: bool) {
        match self.pending.take() {
            Some(hope) if well => self.answer(hope),
            Some(_) => self.refuse(tells),
            None => {}
        }
    }

    /// Whether there is nothing left to carry out.
    pub fn is_done(&self) -> bool {
        self.pending.is_none() && self.received.is_empty()
    }

    /// Replies to send.
    pub fn replies(&self) -> &[u8] {
        &self.replies
    }

    /// The first `count` bytes of `replies` have been sent. Whether one of them
    /// reports lost writes.
    pub fn sent(&mut self, count: usize) -> bool {
        self.replies.drain(..count.min(self.replies.len()));
        let place = self.telling.take();
        // It moves up by what stood before it.
        self.telling = place.and_then(|place| place.checked_sub(count));
        place.is_some() && self.telling.is_none()
    }

    /// No reply can be sent any more.
    pub fn discard(&mut self) {
        self.replies.clear();
        self.telling = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_command_unless_it_is_white_space() {
        for byte in 0..=255u8 {
            let mut dialogue = Dialogue::default();
            dialogue.receive(&[byte]);
            let expected = match byte {
                b'p' => Some(Command::Pause),
                b'r' => Some(Command::Resume),
                b'+' => Some(Command::Hold),
                b'-' => Some(Command::LetGo),
                b'?' => Some(Command::Ask),
                b's' => Some(Command::Status),
                b' ' | b'\t' | b'\n' => None,
                _ => Some(Command::Unknown),
            };
            assert_eq!(dialogue.next_command(), expected, "byte {byte:#x}");
            assert_eq!(dialogue.next_command(), None);
        }
    }

    #[test]
    fn a_command_waits_for_the_reply_to_the_one_before() {
        let mut dialogue = Dialogue::default();
        dialogue.receive(b"p\nr");
        assert_eq!(dialogue.next_command(), Some(Command::Pause));
        dialogue.wait_for(Reply::Paused);
        assert_eq!(dialogue.next_command(), None);
        assert!(!dialogue.has_command() && !dialogue.is_done());
        dialogue.settle(true, false);
        assert_eq!(dialogue.next_command(), Some(Command::Resume));
        dialogue.answer(Reply::Resumed);
        assert!(dialogue.is_done());
        assert_eq!(dialogue.replies(), b"PR");
        dialogue.sent(1);
        assert_eq!(dialogue.replies(), b"R");
        dialogue.sent(5);
        assert_eq!(dialogue.replies(), b"");
    }

    #[test]
    fn a_command_that_waited_in_vain_is_answered_with_x() {
        let mut dialogue = Dialogue::default();
        dialogue.receive(b"+");
        assert_eq!(dialogue.next_command(), Some(Command::Hold));
        dialogue.wait_for(Reply::Held);
        dialogue.settle(false, false);
        // Nobody waits any more, so nobody is answered.
        dialogue.settle(true, false);
        assert_eq!(dialogue.replies(), b"X");
    }

    #[test]
    fn lost_writes_are_told_when_that_very_reply_is_sent() {
        let mut dialogue = Dialogue::default();
        dialogue.answer(Reply::Resumed);
        dialogue.refuse(true);
        dialogue.refuse(true);
        assert!(!dialogue.sent(1));
        assert!(dialogue.sent(1));
        assert!(!dialogue.sent(1));
        dialogue.refuse(true);
        dialogue.discard();
        dialogue.answer(Reply::No);
        assert!(!dialogue.sent(1));
    }
}
