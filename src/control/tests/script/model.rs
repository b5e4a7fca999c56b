//! The protocol as the README states it, for a list of bytes: which command must
//! be next, and what is to be replied. It shares nothing with the code it judges
//! but the names of the commands.

use crate::control::session::Command;

/// What becomes of a command that asks for a pause, or gives one back.
#[derive(Clone, Copy, PartialEq)]
pub enum Verdict {
    Done,
    Later,
    Failed,
}

/// See the file's text.
pub struct Model {
    /// What becomes of the next command.
    pub verdict: Verdict,
    /// What was read before this byte has been carried out, or is white space.
    pub begun: usize,
    /// The command that has begun and has no reply yet.
    pub waiting: Option<u8>,
    /// Every reply there must be so far.
    pub owed: Vec<u8>,
}

impl Model {
    pub fn new() -> Self {
        Model { verdict: Verdict::Later, begun: 0, waiting: None, owed: Vec::new() }
    }

    /// White space is no command.
    pub fn skip_white(&mut self, taken: &[u8]) {
        while taken.get(self.begun).is_some_and(is_white) {
            self.begun += 1;
        }
    }

    /// A command is carried out, of those in `taken`: which one must it be, and
    /// what becomes of it?
    pub fn begin(&mut self, taken: &[u8]) -> (Command, Verdict) {
        assert_eq!(self.waiting, None, "a command has begun before the one before it is answered");
        self.skip_white(taken);
        let byte = *taken.get(self.begun).expect("a command that nobody has sent");
        self.begun += 1;
        let (command, verdict) = match byte {
            b'p' => (Command::Pause, self.verdict),
            b'+' => (Command::Hold, self.verdict),
            // The hold was in force or it wasn't: that is known at once.
            b'-' if self.verdict == Verdict::Later => (Command::LetGo, Verdict::Done),
            b'-' => (Command::LetGo, self.verdict),
            b'r' => (Command::Resume, Verdict::Done),
            _ => (Command::Unknown, Verdict::Failed),
        };
        match verdict {
            Verdict::Done => self.answer(byte, true),
            Verdict::Failed => self.answer(byte, false),
            Verdict::Later => self.waiting = Some(byte),
        }
        (command, verdict)
    }

    /// The pause has taken effect, or has been ended.
    pub fn decide(&mut self, well: bool) {
        if let Some(byte) = self.waiting.take() {
            self.answer(byte, well);
        }
    }

    fn answer(&mut self, byte: u8, well: bool) {
        self.owed.push(match byte {
            b'p' if well => b'P',
            b'r' if well => b'R',
            b'+' | b'-' if well => byte,
            _ => b'X',
        });
    }
}

pub fn is_white(byte: &u8) -> bool {
    b" \t\n".contains(byte)
}
