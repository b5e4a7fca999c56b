//! A controller: a raw connection to the control socket, which tells a reply
//! that is late from one that never comes.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::GENEROUS;

pub struct Controller(UnixStream);

impl Controller {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket)
            .unwrap_or_else(|e| panic!("connect to {}: {e}", socket.display()));
        Controller(stream)
    }

    /// The bare connection.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.0
    }

    /// Sends commands, and waits for no reply.
    pub fn send(&mut self, commands: &[u8]) {
        self.0.write_all(commands).expect("send a command");
    }

    /// The next reply, if it comes within `limit`; an error when the server
    /// has closed the connection.
    pub fn reply_within(&mut self, limit: Duration) -> Result<Option<u8>, ErrorKind> {
        let start = Instant::now();
        let mut reply = [0];
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.0.set_read_timeout(Some(left)).expect("a time limit");
            match self.0.read(&mut reply) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof),
                Ok(_) => return Ok(Some(reply[0])),
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    kind => return Err(kind),
                },
            }
        }
    }

    /// The next replies are exactly these.
    pub fn expect(&mut self, replies: &str) {
        let mut got = String::new();
        while got.len() < replies.len() {
            match self.reply_within(GENEROUS) {
                Ok(Some(reply)) => got.push(reply as char),
                other => panic!("{other:?} after the replies {got:?}, expected {replies:?}"),
            }
        }
        assert_eq!(got, replies);
    }

    /// No reply comes for so long.
    pub fn expect_silence(&mut self, time: Duration) {
        assert_eq!(self.reply_within(time), Ok(None), "a reply came too early");
    }

    /// The server has closed the connection, or does so now.
    pub fn expect_closed(&mut self) {
        match self.reply_within(GENEROUS) {
            Err(_) => {}
            other => panic!("{other:?} where the connection should be closed"),
        }
    }

    /// These commands get these replies.
    pub fn ask(&mut self, commands: &str, replies: &str) {
        self.send(commands.as_bytes());
        self.expect(replies);
    }

    /// `p`, and waits until it is in force.
    pub fn pause(&mut self) {
        self.ask("p", "P");
    }

    /// `+`, and waits until it is in force.
    pub fn hold(&mut self) {
        self.ask("+", "+");
    }

    /// `r`, and waits for the reply.
    pub fn resume(&mut self) {
        self.ask("r", "R");
    }

    /// The next reply, which is a line.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            match self.reply_within(GENEROUS) {
                Ok(Some(byte)) => line.push(byte),
                other => panic!("{other:?} after {line:?}"),
            }
        }
        String::from_utf8(line).expect("UTF-8")
    }

    /// Sends nothing more, and returns all replies up to the end.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.shutdown(Shutdown::Write).expect("shutdown");
        let mut replies = Vec::new();
        loop {
            match self.reply_within(GENEROUS) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => panic!("the connection stays open after {replies:?}"),
                Err(ErrorKind::UnexpectedEof) => return replies,
                Err(e) => panic!("{e} after {replies:?}"),
            }
        }
    }
}
