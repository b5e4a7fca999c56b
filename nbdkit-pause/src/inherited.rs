//! The descriptors that this program was started with. A process that outlives it must
//! not have them: it would keep a lock, or a pipe that somebody reads to its end.

use std::fs;

use crate::error::StateError;

/// They are files of this directory.
const LIST: &str = "/proc/self/fd";

/// Closes all of them but the standard streams. Call it first of all.
///
/// # Errors
/// `/proc` is missing.
pub fn close() -> Result<(), StateError> {
    let error = |e| StateError::System(LIST.into(), e);
    let mut descriptors = Vec::new();
    for entry in fs::read_dir(LIST).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        descriptors.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for descriptor in descriptors.into_iter().filter(|&it| it > libc::STDERR_FILENO) {
        // SAFETY: nothing in this program has opened one yet, but for the directory, which
        // is closed already: then this fails.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}
