//! What to do about an error of the system, if that is known: the end of a message.
//! The message itself says what was tried, and on what.

use std::fmt;
use std::io;

/// An error, followed by its remedy.
pub struct Advised<'a>(pub &'a io::Error);

impl fmt::Display for Advised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Advised(e) = self;
        match remedy(e) {
            Some(remedy) => write!(f, "{e}: {remedy}"),
            None => write!(f, "{e}"),
        }
    }
}

/// What to do about it, if that is known.
pub fn remedy(e: &io::Error) -> Option<&'static str> {
    match e.raw_os_error()? {
        libc::EMFILE => Some("raise the limit on open files (ulimit -n)"),
        libc::ENFILE => Some("the whole system is out of file descriptors: raise fs.file-max"),
        // What pthread_create(3) says of any shortage, of memory too.
        libc::EAGAIN => Some(
            "raise the limit on threads (ulimit -u, or TasksMax= in a systemd unit), \
             or free memory",
        ),
        libc::ENOSPC | libc::EDQUOT => Some("free space or inodes there"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_comes_after_the_error_where_there_is_one() {
        for (number, end) in [(libc::EMFILE, "(ulimit -n)"), (libc::EACCES, "(os error 13)")] {
            let e = io::Error::from_raw_os_error(number);
            let advised = Advised(&e).to_string();
            assert!(advised.starts_with(&e.to_string()), "{advised}");
            assert!(advised.ends_with(end), "{advised}");
        }
        let e = io::Error::other("no number");
        assert_eq!(Advised(&e).to_string(), "no number");
    }
}
