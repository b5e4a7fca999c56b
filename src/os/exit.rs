//! What to do if nbdkit gives up with exit(3), as it does if its start fails late: it
//! calls no callback then. For an orderly end see `lifecycle`.

/// Calls `act` if this very process, not a fork of it, exits with an error. Only the
/// first call has an effect.
#[cfg(target_env = "gnu")]
pub fn at_failure(act: extern "C" fn()) {
    use std::process;
    use std::ptr;
    use std::sync::OnceLock;

    unsafe extern "C" {
        fn on_exit(
            function: extern "C" fn(libc::c_int, *mut libc::c_void),
            argument: *mut libc::c_void,
        ) -> libc::c_int;
    }
    static ACT: OnceLock<(u32, extern "C" fn())> = OnceLock::new();

    extern "C" fn exit(status: libc::c_int, _: *mut libc::c_void) {
        if let Some((process, act)) = ACT.get() {
            if status != 0 && process::id() == *process {
                act();
            }
        }
    }
    if ACT.set((process::id(), act)).is_ok() {
        // SAFETY: on_exit(3) takes a function that lives as long as the process,
        // since the library is never unmapped (build.rs).
        unsafe { on_exit(exit, ptr::null_mut()) };
    }
}

/// Does nothing: this C library has no exit handler that gets the status.
#[cfg(not(target_env = "gnu"))]
pub fn at_failure(_act: extern "C" fn()) {}
