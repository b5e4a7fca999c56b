//! What to do if nbdkit or a layer gives up with exit(3), as nbdkit does if its start
//! fails late: no callback is called then. For an orderly end see `lifecycle`.

use std::process;
use std::sync::OnceLock;

/// Calls `act` if this very process, not a fork of it, calls exit(3), whatever its
/// status. Only the first call has an effect.
pub fn at_exit(act: extern "C" fn()) {
    static ACT: OnceLock<(u32, extern "C" fn())> = OnceLock::new();

    extern "C" fn exit() {
        if let Some((process, act)) = ACT.get() {
            if process::id() == *process {
                act();
            }
        }
    }
    if ACT.set((process::id(), act)).is_ok() {
        // SAFETY: atexit(3) takes a function that lives as long as the process,
        // since the library is never unmapped (build.rs).
        unsafe { libc::atexit(exit) };
    }
}
