//! The permissions and the owner of a socket's file, and which permissions are left if
//! it can't have its former owner.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Which users may connect.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub mode: u32,
    /// User and group; `None` means those of this process.
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

    /// The permissions under another group than the intended one. Members of that one
    /// may now count as others: group and others get only what both had.
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
