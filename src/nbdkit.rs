//! Safe wrappers around the functions that nbdkit offers to filters, and the raw
//! bindings they come from. It makes no decisions.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What bindgen made of the installed nbdkit-filter.h.
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code)]
#[allow(clippy::all)]
pub mod sys {
    include!(concat!(env!("OUT_DIR"), "/nbdkit_sys.rs"));
}

/// The version of nbdkit that this was built for, and so of the server: nbdkit loads
/// no other filter.
pub fn version() -> &'static str {
    CStr::from_bytes_with_nul(sys::NBDKIT_VERSION_STRING)
        .ok()
        .and_then(|version| version.to_str().ok())
        .unwrap_or_default()
}

/// Writes a message to the server's log (stderr or syslog), whether or not it runs
/// with `-v`. Any thread may call this (nbdkit-plugin(3), "ERROR HANDLING").
pub fn error(message: fmt::Arguments<'_>) {
    let message = c_string(message);
    // SAFETY: nbdkit_error is printf-like (nbdkit-common.h); the format takes
    // exactly one string, and both strings end in NUL and outlive the call.
    unsafe { sys::nbdkit_error(ONE_STRING.as_ptr(), message.as_ptr()) }
}

/// Writes a message to the server's log if it runs with `-v`. Any thread may
/// call this (nbdkit-plugin(3), "DEBUGGING").
pub fn debug(message: fmt::Arguments<'_>) {
    let message = c_string(message);
    // SAFETY: nbdkit_debug is printf-like (nbdkit-common.h); see `error`.
    unsafe { sys::nbdkit_debug(ONE_STRING.as_ptr(), message.as_ptr()) }
}

const ONE_STRING: &CStr = c"%s";

fn c_string(message: fmt::Arguments<'_>) -> CString {
    let mut bytes = Vec::with_capacity(160);
    // Writing to memory does not fail.
    let _ = bytes.write_fmt(message);
    // A NUL can come from a parameter; the rest of the message is worth printing.
    bytes.retain(|byte| *byte != 0);
    CString::new(bytes).unwrap_or_default()
}

/// Makes a path absolute, relative to the current directory, without asking
/// the file system what is there (nbdkit-plugin(3), "nbdkit_absolute_path").
/// `None` if nbdkit failed; it has then said why itself.
pub fn absolute_path(path: &CStr) -> Option<PathBuf> {
    // SAFETY: nbdkit_absolute_path takes a NUL-terminated string that it only
    // reads, and returns NULL or a string that the caller must free(3).
    let absolute = unsafe { sys::nbdkit_absolute_path(path.as_ptr()) };
    if absolute.is_null() {
        return None;
    }
    // SAFETY: not NULL, so a NUL-terminated string of ours (see above).
    let bytes = unsafe { CStr::from_ptr(absolute) }.to_bytes().to_vec();
    // SAFETY: allocated by nbdkit with malloc(3) for us to free, once.
    unsafe { libc::free(absolute.cast()) };
    Some(PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// Whether a request of the calling thread can no longer be of use: the
/// server is shutting down, or the client of this thread's own connection is
/// gone. A thread that serves no connection sees only the former.
///
/// nbdkit-plugin(3), "nbdkit_nanosleep": it fails when there is no point in
/// continuing the current command. With a zero time it is a poll (measured).
/// If it fails it prints an error line of its own.
pub fn no_use_going_on() -> bool {
    // SAFETY: nbdkit_nanosleep takes plain numbers and any thread may call it.
    let has_failed = unsafe { sys::nbdkit_nanosleep(0, 0) == -1 };
    // It could fail for want of memory, say.
    has_failed && io::Error::last_os_error().raw_os_error() == Some(libc::ESHUTDOWN)
}

type Disconnect = extern "C" fn(force: c_int);

static DISCONNECT: OnceLock<Option<Disconnect>> = OnceLock::new();

/// Finds out if `cut_connection` can cut. Call it in `config_complete`: only then
/// is the answer of nbdkit_stdio_safe (nbdkit-plugin(3)) right.
pub fn look_for_disconnect() {
    DISCONNECT.get_or_init(|| {
        // With `nbdkit -s` the client can be at two pipes. nbdkit (1.42 measured) then
        // dies of an assertion if it still has something to say on one that was cut.
        // SAFETY: nbdkit_stdio_safe takes nothing.
        if unsafe { sys::nbdkit_stdio_safe() } == 0 {
            return None;
        }
        // nbdkit 1.34 and newer have it. Look it up rather than link it: an older one
        // that gets this library should report the wrong version, not a missing
        // symbol.
        // SAFETY: dlsym(3) takes a string that ends in NUL.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"nbdkit_disconnect".as_ptr()) };
        // SAFETY: NULL is None; else it is a function of this type, by nbdkit-plugin(3),
        // in the program itself, which is never unloaded.
        unsafe { mem::transmute::<*mut c_void, Option<Disconnect>>(found) }
    });
}

/// Whether `cut_connection` cuts.
pub fn can_cut_connections() -> bool {
    matches!(DISCONNECT.get(), Some(Some(_)))
}

/// Cuts the connection of the calling thread: nbdkit answers none of its requests
/// any more, and its client sees it end. Does nothing on a thread that serves no
/// connection (nbdkit-plugin(3), "nbdkit_disconnect").
///
/// Blocks while another thread of the connection sends a reply to a client that does
/// not read.
pub fn cut_connection() {
    const FORCE: c_int = 1;
    if let Some(Some(disconnect)) = DISCONNECT.get() {
        disconnect(FORCE);
    }
}

/// Parses a BOOL parameter by nbdkit's own rules (nbdkit-plugin(3),
/// "nbdkit_parse_bool"). `None` if it is not one; nbdkit has then said so.
pub fn parse_bool(value: &CStr) -> Option<bool> {
    // SAFETY: nbdkit_parse_bool reads a NUL-terminated string.
    match unsafe { sys::nbdkit_parse_bool(value.as_ptr()) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// The next layer of one connection, for calls from a thread of ours. It is
/// good from the connection's `prepare` to its `finalize` (nbdkit-filter(3),
/// "NEXT PLUGIN"), and may be used from any thread, as far as the server's thread
/// model allows.
pub struct Next(*mut sys::nbdkit_next);

// SAFETY: see the type: the pointer is not bound to a thread.
unsafe impl Send for Next {}

impl Next {
    /// # Safety
    /// `next` came with `prepare`, and this `Next` is dropped before `finalize`
    /// or `close` of the same connection returns. On another thread it is used only
    /// while the thread model allows a call on this connection beside all others that
    /// are in progress.
    pub unsafe fn new(next: *mut sys::nbdkit_next) -> Self {
        Next(next)
    }

    /// Whether the next layer can be flushed.
    ///
    /// # Errors
    /// It does not know; it has said why.
    pub fn can_flush(&self) -> Result<bool, ()> {
        // SAFETY: `next` is good, by the contract of `new`.
        match unsafe { (*self.0).can_flush.map(|can_flush| can_flush(self.0)) } {
            Some(0) | None => Ok(false),
            Some(-1) => Err(()),
            Some(_) => Ok(true),
        }
    }

    /// Makes written data stable. Only if `can_flush` says yes.
    ///
    /// # Errors
    /// The error of the next layer.
    pub fn flush(&self) -> Result<(), FlushFailed> {
        // For a layer that does not say why.
        let mut number: c_int = libc::EIO;
        // SAFETY: `next` is good, by the contract of `new`; no flags, as
        // nbdkit-filter(3), ".flush", asks.
        match unsafe { (*self.0).flush.map(|flush| flush(self.0, 0, &raw mut number)) } {
            Some(0) => Ok(()),
            _ => Err(FlushFailed(io::Error::from_raw_os_error(number))),
        }
    }
}

/// The next layer could not be flushed.
#[derive(Debug)]
pub struct FlushFailed(pub io::Error);

impl fmt::Display for FlushFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flush failed: {}", self.0)
    }
}

impl std::error::Error for FlushFailed {}

/// A string that nbdkit passed to a callback.
///
/// # Safety
/// `string` is NULL or a NUL-terminated string that lives for `'a`.
pub unsafe fn string<'a>(string: *const c_char) -> &'a CStr {
    if string.is_null() {
        return c"";
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(string) }
}

/// Unit tests and the fuzz target run without a server, but still have to link.
/// These stand in for its functions; nothing is tested through them.
#[cfg(any(test, feature = "fuzzing"))]
mod no_server {
    use std::ffi::{c_char, c_int};

    #[unsafe(no_mangle)]
    extern "C" fn nbdkit_error(_format: *const c_char, _message: *const c_char) {}

    #[unsafe(no_mangle)]
    extern "C" fn nbdkit_debug(_format: *const c_char, _message: *const c_char) {}

    #[unsafe(no_mangle)]
    extern "C" fn nbdkit_absolute_path(_path: *const c_char) -> *mut c_char {
        std::ptr::null_mut()
    }

    #[unsafe(no_mangle)]
    extern "C" fn nbdkit_parse_bool(_value: *const c_char) -> c_int {
        -1
    }

    #[unsafe(no_mangle)]
    extern "C" fn nbdkit_stdio_safe() -> c_int {
        1
    }

    #[unsafe(no_mangle)]
    extern "C" fn nbdkit_nanosleep(_seconds: u32, _nanoseconds: u32) -> c_int {
        0
    }
}
