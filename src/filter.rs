//! The callbacks that nbdkit calls, and the table that names them. They only
//! translate from C: what they do is in `lifecycle` and `connection`.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};
use std::mem;
use std::ptr;

use crate::config;
use crate::connection::Connection;
use crate::gate::{Dropped, Worth};
use crate::lifecycle::{self, Failed};
use crate::nbdkit::sys::{
    NBDKIT_FILTER_API_VERSION, NBDKIT_FLAG_FUA, NBDKIT_VERSION_STRING, nbdkit_backend,
    nbdkit_context, nbdkit_extents, nbdkit_filter, nbdkit_next, nbdkit_next_config,
    nbdkit_next_config_complete, nbdkit_next_open, nbdkit_next_preconnect,
};
use crate::nbdkit::{self, Next};

/// How a callback reports success or failure to nbdkit.
fn status(result: Result<(), Failed>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(Failed) => -1,
    }
}

unsafe extern "C" fn load() {
    lifecycle::load();
}

unsafe extern "C" fn unload() {
    lifecycle::unload();
}

unsafe extern "C" fn config(
    next: nbdkit_next_config,
    nxdata: *mut nbdkit_backend,
    key: *const c_char,
    value: *const c_char,
) -> c_int {
    // SAFETY: nbdkit passes two strings that live for the call (nbdkit-filter(3), ".config").
    let taken = unsafe { lifecycle::config(nbdkit::string(key), nbdkit::string(value)) };
    match (taken, next) {
        // SAFETY: `next` is called with the nxdata that came with it, as ".config" may.
        (Ok(false), Some(next)) => unsafe { next(nxdata, key, value) },
        (Ok(_), _) => 0,
        (Err(Failed), _) => -1,
    }
}

unsafe extern "C" fn config_complete(
    next: nbdkit_next_config_complete,
    nxdata: *mut nbdkit_backend,
) -> c_int {
    match (lifecycle::config_complete(), next) {
        // SAFETY: `next` is called with the nxdata that came with it, as ".config_complete" may.
        (Ok(()), Some(next)) => unsafe { next(nxdata) },
        (result, _) => status(result),
    }
}

unsafe extern "C" fn get_ready(thread_model: c_int) -> c_int {
    status(lifecycle::get_ready(thread_model))
}

unsafe extern "C" fn after_fork(_backend: *mut nbdkit_backend) -> c_int {
    status(lifecycle::after_fork())
}

#[cfg(has_cleanup)]
unsafe extern "C" fn cleanup(_backend: *mut nbdkit_backend) {
    lifecycle::cleanup();
}

unsafe extern "C" fn preconnect(
    next: nbdkit_next_preconnect,
    nxdata: *mut nbdkit_backend,
    readonly: c_int,
) -> c_int {
    lifecycle::preconnect();
    match next {
        // SAFETY: `next` is called with the nxdata that came with it, as ".preconnect" may.
        Some(next) => unsafe { next(nxdata, readonly) },
        None => 0,
    }
}

unsafe extern "C" fn open(
    next: nbdkit_next_open,
    context: *mut nbdkit_context,
    readonly: c_int,
    exportname: *const c_char,
    _is_tls: c_int,
) -> *mut c_void {
    let Some(next) = next else {
        return ptr::null_mut();
    };
    // Before the layers below, which may fail.
    lifecycle::opens();
    // SAFETY: `next` is called with the context that came with it, as ".open" should.
    if unsafe { next(context, readonly, exportname) } == -1 {
        return ptr::null_mut();
    }
    lifecycle::open().map_or(ptr::null_mut(), |handle| handle.cast_mut().cast())
}

unsafe extern "C" fn close(handle: *mut c_void) {
    lifecycle::close(handle.cast());
}

unsafe extern "C" fn prepare(
    next: *mut nbdkit_next,
    handle: *mut c_void,
    _readonly: c_int,
) -> c_int {
    // SAFETY: `next` is good until `finalize`, which lets go of it, as does
    // `close`; it goes to another thread only where pauses flush, and then
    // `get_ready` has seen a thread model that allows that.
    let next = unsafe { Next::new(next) };
    // SAFETY: `handle` came from `open`; see `data_request`.
    status(lifecycle::prepare(unsafe { connection(handle) }, next))
}

unsafe extern "C" fn finalize(_next: *mut nbdkit_next, handle: *mut c_void) -> c_int {
    // SAFETY: `handle` came from `open`; see `data_request`.
    lifecycle::finalize(unsafe { connection(handle) });
    0
}

/// The connection behind a handle.
///
/// # Safety
/// `handle` came from `open` and is not given to `close` before `'a` ends; the
/// instance keeps the connection alive until then.
#[inline]
unsafe fn connection<'a>(handle: *mut c_void) -> &'a Connection {
    // SAFETY: by this function's contract.
    unsafe { &*handle.cast::<Connection>() }
}

/// Fails a data request with error `number`.
///
/// # Safety
/// `err` is where the error of a data request is wanted (nbdkit-filter(3),
/// ".pread" and following), or null (see `cache`).
#[cold]
unsafe fn refuse(err: *mut c_int, number: c_int) -> c_int {
    // SAFETY: by the contract.
    if let Some(err) = unsafe { err.as_mut() } {
        *err = number;
    }
    -1
}

/// Calls the function `$name` of the next layer.
macro_rules! below {
    ($next:ident . $name:ident ( $($arg:ident),* ), $err:ident) => {
        // SAFETY: `next` is that of the connection and good while a request
        // is in progress; it is called with itself and the arguments as they came.
        unsafe {
            match (*$next).$name {
                Some(below) => below($next, $($arg,)* $err),
                None => refuse($err, libc::EOPNOTSUPP),
            }
        }
    };
}

/// A callback for a data request: through the gate, to the function of the
/// same name in the next layer, with the same arguments. What follows `=>` gets
/// the connection and the result, while still inside the gate.
///
/// It is there twice, so that the common case has no call but that of the next layer,
/// and few registers to save. The other one takes over from it with a jump.
macro_rules! data_request {
    ($name:ident ( $($arg:ident : $type:ty),* ) $(=> $then:ident ( $flags:ident ))?) => {
        unsafe extern "C" fn $name(
            next: *mut nbdkit_next,
            handle: *mut c_void,
            $($arg: $type,)*
            err: *mut c_int,
        ) -> c_int {
            #[cold]
            #[inline(never)]
            unsafe extern "C" fn slowly(
                next: *mut nbdkit_next,
                handle: *mut c_void,
                $($arg: $type,)*
                err: *mut c_int,
            ) -> c_int {
                // SAFETY: nbdkit passes the handle of an open connection.
                let connection = unsafe { connection(handle) };
                let Ok(_pass) = connection.admit(Worth::All) else {
                    // SAFETY: `err` is as it came, from nbdkit or the filter above.
                    return unsafe { refuse(err, libc::ESHUTDOWN) };
                };
                let result = below!(next.$name($($arg),*), err);
                $($then(connection, $flags, result);)?
                result
            }

            // SAFETY: nbdkit passes the handle of an open connection.
            let connection = unsafe { connection(handle) };
            let Some(_pass) = connection.admit_at_once() else {
                // SAFETY: the arguments are as they came.
                return unsafe { slowly(next, handle, $($arg,)* err) };
            };
            let result = below!(next.$name($($arg),*), err);
            $($then(connection, $flags, result);)?
            result
        }
    };
}

/// The request may have changed the disk, in part even if it failed.
#[inline]
fn changed(connection: &Connection, flags: u32, result: c_int) {
    // What has FUA is stable when it is done.
    if flags & NBDKIT_FLAG_FUA == 0 || result != 0 {
        connection.changed();
    }
}

data_request!(pread(buf: *mut c_void, count: u32, offset: u64, flags: u32));
data_request!(pwrite(buf: *const c_void, count: u32, offset: u64, flags: u32) => changed(flags));
data_request!(trim(count: u32, offset: u64, flags: u32) => changed(flags));
data_request!(zero(count: u32, offset: u64, flags: u32) => changed(flags));
data_request!(extents(count: u32, offset: u64, flags: u32, extents: *mut nbdkit_extents));

unsafe extern "C" fn cache(
    next: *mut nbdkit_next,
    handle: *mut c_void,
    count: u32,
    offset: u64,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    // SAFETY: nbdkit passes the handle of an open connection.
    let connection = unsafe { connection(handle) };
    // nbdkit-readahead-filter and nbdkit-scan-filter ask for this in a thread of their
    // own, and have no place for an error. If we fail, nbdkit (1.32 to 1.48) reads it
    // anyway, and crashes. Nobody misses what was not read ahead.
    let worth = if err.is_null() { Worth::Nothing } else { Worth::All };
    match (connection.admit(worth), worth) {
        (Ok(_pass), _) => below!(next.cache(count, offset, flags), err),
        (Err(Dropped), Worth::Nothing) => 0,
        // SAFETY: `err` is as it came, from nbdkit or the filter above.
        (Err(Dropped), Worth::All) => unsafe { refuse(err, libc::ESHUTDOWN) },
    }
}

unsafe extern "C" fn flush(
    next: *mut nbdkit_next,
    handle: *mut c_void,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    // SAFETY: nbdkit passes the handle of an open connection.
    let connection = unsafe { connection(handle) };
    let Ok(_pass) = connection.admit(Worth::All) else {
        // SAFETY: `err` is as it came, from nbdkit or the filter above.
        return unsafe { refuse(err, libc::ESHUTDOWN) };
    };
    connection.flush(|| below!(next.flush(flags), err), |result| *result == 0)
}

/// nbdkit wants a pointer that it could write through.
struct Table(UnsafeCell<nbdkit_filter>);

// SAFETY: only nbdkit uses the table, from its main thread, while it registers
// the filter; the strings and functions in it live as long as the library.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new(nbdkit_filter {
    _api_version: NBDKIT_FILTER_API_VERSION as c_int,
    _version: NBDKIT_VERSION_STRING.as_ptr().cast(),
    name: c"pause".as_ptr(),
    longname: c"nbdkit pause filter".as_ptr(),
    description: c"Pauses and resumes NBD requests, for snapshots.".as_ptr(),

    load: Some(load),
    unload: Some(unload),
    config: Some(config),
    config_complete: Some(config_complete),
    config_help: config::HELP.as_ptr(),
    get_ready: Some(get_ready),
    after_fork: Some(after_fork),
    #[cfg(has_cleanup)]
    cleanup: Some(cleanup),
    preconnect: Some(preconnect),
    open: Some(open),
    close: Some(close),
    prepare: Some(prepare),
    finalize: Some(finalize),

    pread: Some(pread),
    pwrite: Some(pwrite),
    flush: Some(flush),
    trim: Some(trim),
    zero: Some(zero),
    extents: Some(extents),
    cache: Some(cache),

    // SAFETY: for a function pointer of C, NULL means that the filter leaves
    // that call alone (nbdkit-filter(3), "CALLBACKS"); for a string, none.
    ..unsafe { mem::zeroed() }
}));

/// The one symbol that nbdkit looks for (nbdkit-filter.h).
#[unsafe(no_mangle)]
pub extern "C" fn filter_init() -> *mut nbdkit_filter {
    TABLE.0.get()
}
