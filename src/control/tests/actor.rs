//! A controller on the stage, from its own side, and how it takes what it has been
//! sent apart.

use std::collections::VecDeque;

use pause_model::Transcript;

use crate::control::controller::Id;

/// See the file's text.
pub struct Actor {
    /// None when the connection is closed on both sides.
    pub id: Option<Id>,
    /// Sent, and not read yet.
    pub outbox: VecDeque<u8>,
    pub sends_no_more: bool,
    pub is_gone: bool,
    /// It takes its replies.
    pub reads: bool,
    /// The first byte of each reply.
    pub received: Vec<u8>,
    /// The replies that are lines.
    pub lines: Vec<String>,
    /// Whether all was stable, for each reply that it has not taken yet.
    pub stable: Vec<bool>,
    pub connection: Transcript,
}

impl Actor {
    pub fn new(id: Id, connection: Transcript) -> Self {
        let (outbox, received, lines, stable) = <_>::default();
        let (sends_no_more, is_gone, reads) = (false, false, true);
        let id = Some(id);
        Actor { id, outbox, sends_no_more, is_gone, reads, received, lines, stable, connection }
    }
}

/// One reply after the other. A line begins with a brace.
pub fn apart(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut replies = Vec::new();
    while let Some(first) = bytes.first() {
        let end = match first {
            b'{' => bytes.iter().position(|&byte| byte == b'\n').expect("a whole line"),
            _ => 0,
        };
        let (reply, rest) = bytes.split_at(end + 1);
        replies.push(reply);
        bytes = rest;
    }
    replies
}
