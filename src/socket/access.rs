//! The permissions and the owner of a socket's file, and what is left of them where
//! it can't have the owner it had.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Who may connect.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub mode: u32,
    /// User and group; `None` leaves it at those that this process has.
    pub owner: Option<(u32, u32)>,
}

impl Access {
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Access { mode: found.mode() & 0o777, owner: Some((found.uid(), found.gid())) })
    }

    pub fn user(self) -> Option<u32> {
        self.owner.map(|(user, _)| user)
    }

    pub fn group(self) -> Option<u32> {
        self.owner.map(|(_, group)| group)
    }

    /// For another group than it was meant for, of which the members may now count
    /// as everybody else: these and the group get what both had.
    pub fn for_any_group(self) -> u32 {
        let common = (self.mode >> 3) & self.mode & 0o7;
        self.mode & 0o700 | common << 3 | common
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_group_a_socket_is_open_to_nobody_who_could_not_connect() {
        for (mode, expected) in [
            (0o600, 0o600),
            (0o660, 0o600),
            (0o640, 0o600),
            (0o606, 0o600),
            (0o664, 0o644),
            (0o666, 0o666),
        ] {
            let access = Access { mode, owner: None };
            assert_eq!(access.for_any_group(), expected, "{mode:o}");
        }
    }
}
