//! How the program speaks: lines on standard error, each with the time since the
//! start. The modules that call it know what to say.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Says things, and when after the start it says them.
#[derive(Clone, Copy)]
pub struct Report {
    start: Instant,
}

impl Report {
    /// Starts the clock.
    pub fn new() -> Self {
        Report { start: Instant::now() }
    }

    /// Says one line. If nobody is there to read it, this does nothing, while
    /// eprintln! would panic and leave servers paused.
    pub fn say(self, what: impl Display) {
        let time = self.start.elapsed().as_secs_f64();
        // In one piece, so that no other program writes in the middle of it.
        let line = format!("nbdkit-pause: {time:.3} s: {what}\n");
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// A time as the program says it.
pub struct Seconds(pub Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0.as_secs_f64())
    }
}

/// The command line that resumes the server with this control socket, in
/// whatever folder a person types it.
pub fn how_to_resume(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    format!("nbdkit-pause resume {}", for_a_shell(&path.display().to_string()))
}

fn for_a_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_can_be_typed() {
        assert_eq!(how_to_resume(Path::new("/run/a.sock")), "nbdkit-pause resume /run/a.sock");
        assert_eq!(
            how_to_resume(Path::new("/run/it's here")),
            r"nbdkit-pause resume '/run/it'\''s here'"
        );
        // It works in any folder.
        assert!(how_to_resume(Path::new("a.sock")).contains(" /"));
    }
}
