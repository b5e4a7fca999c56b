//! An NBD client: libnbd's C library, as little of it as the tests need, so
//! that requests can be pipelined, and looked after, on one connection.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use super::server::Server;
use super::{A_WHILE, GENEROUS, PROMPT, eventually, nbdkit};

/// libnbd.h
mod sys {
    use std::ffi::{c_char, c_int, c_uint, c_void};

    type Handle = *mut c_void;
    type Extents =
        unsafe extern "C" fn(*mut c_void, *const c_char, u64, *mut u32, usize, *mut c_int) -> c_int;

    /// What is called at the end of a request, which is not what we use, or with
    /// what was asked for.
    #[repr(C)]
    pub struct Callback<F> {
        pub callback: Option<F>,
        pub user_data: *mut c_void,
        pub free: Option<unsafe extern "C" fn(*mut c_void)>,
    }

    pub type Done = Callback<unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int>;
    pub type Extent = Callback<Extents>;

    #[rustfmt::skip]
    #[link(name = "nbd")]
    unsafe extern "C" {
        pub fn nbd_create() -> Handle;
        pub fn nbd_close(h: Handle);
        pub fn nbd_get_error() -> *const c_char;
        pub fn nbd_get_errno() -> c_int;
        pub fn nbd_add_meta_context(h: Handle, name: *const c_char) -> c_int;
        pub fn nbd_set_uri_allow_local_file(h: Handle, allow: bool) -> c_int;
        pub fn nbd_aio_connect_uri(h: Handle, uri: *const c_char) -> c_int;
        pub fn nbd_aio_connect_command(h: Handle, argv: *const *const c_char) -> c_int;
        pub fn nbd_get_tls_negotiated(h: Handle) -> c_int;
        pub fn nbd_aio_is_ready(h: Handle) -> c_int;
        pub fn nbd_aio_is_connecting(h: Handle) -> c_int;
        pub fn nbd_aio_get_fd(h: Handle) -> c_int;
        pub fn nbd_poll(h: Handle, timeout: c_int) -> c_int;
        pub fn nbd_get_size(h: Handle) -> i64;
        pub fn nbd_is_read_only(h: Handle) -> c_int;
        pub fn nbd_shutdown(h: Handle, flags: c_uint) -> c_int;
        pub fn nbd_aio_command_completed(h: Handle, cookie: u64) -> c_int;
        pub fn nbd_aio_pread(h: Handle, to: *mut c_void, n: usize, at: u64, done: Done, f: u32) -> i64;
        pub fn nbd_aio_pwrite(h: Handle, from: *const c_void, n: usize, at: u64, done: Done, f: u32) -> i64;
        pub fn nbd_aio_flush(h: Handle, done: Done, f: u32) -> i64;
        pub fn nbd_aio_trim(h: Handle, n: u64, at: u64, done: Done, f: u32) -> i64;
        pub fn nbd_aio_zero(h: Handle, n: u64, at: u64, done: Done, f: u32) -> i64;
        pub fn nbd_aio_cache(h: Handle, n: u64, at: u64, done: Done, f: u32) -> i64;
        pub fn nbd_aio_block_status(h: Handle, n: u64, at: u64, to: Extent, done: Done, f: u32) -> i64;
    }
}

/// A request of 512 bytes at an offset, where its kind has such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Read(u64),
    /// All bytes are this one.
    Write(u64, u8),
    Flush,
    Trim(u64),
    Zero(u64),
    Extents(u64),
    Cache(u64),
}

pub use Request::{Cache, Extents, Flush, Read, Trim, Write, Zero};

pub const READ: Request = Read(0);
pub const WRITE: Request = Write(0, 0xaa);

/// One of each kind.
pub const ONE_OF_EACH: [Request; 7] =
    [READ, Write(512, 0xaa), Flush, Trim(1024), Zero(1536), Extents(2048), Cache(2560)];

const SIZE: usize = 512;

/// LIBNBD_CMD_FLAG_FUA
const FUA: u32 = 1;

/// A request that was sent; what to ask for its reply with.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

/// The reply: what was read, if anything, or an errno.
pub type Reply = Result<Vec<u8>, c_int>;

pub struct Client {
    handle: *mut c_void,
    /// libnbd reads from and writes to these until their requests are over.
    buffers: HashMap<u64, Vec<u8>>,
}

// SAFETY: a libnbd handle may be used from any thread (libnbd(3)).
unsafe impl Send for Client {}

impl Client {
    /// Connects and negotiates; panics if that takes too long.
    pub fn connect(server: &Server) -> Self {
        Client::connect_within(server, GENEROUS)
            .unwrap_or_else(|| panic!("the server lets no client in"))
    }

    /// Connects and negotiates; None if that takes longer than `limit`.
    pub fn connect_within(server: &Server, limit: Duration) -> Option<Self> {
        let client = Client::new();
        let uri = CString::new(server.uri()).expect("no NUL");
        // SAFETY: the handle is open; the string ends in NUL and outlives the
        // call. A key may be read from a file.
        unsafe {
            check(sys::nbd_set_uri_allow_local_file(client.handle, true));
            check(sys::nbd_aio_connect_uri(client.handle, uri.as_ptr()));
        }
        client.is_ready_within(limit).then_some(client)
    }

    /// Starts a server by this command line, and connects to its standard input
    /// and output. The server ends with the client.
    pub fn of_command(words: &[String]) -> Self {
        let client = Client::new();
        let words: Vec<CString> =
            words.iter().map(|word| CString::new(word.as_str()).expect("no NUL")).collect();
        let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        pointers.push(ptr::null());
        // SAFETY: the handle is open; the strings end in NUL, the list of them
        // in NULL, and all outlive the call.
        check(unsafe { sys::nbd_aio_connect_command(client.handle, pointers.as_ptr()) });
        assert!(client.is_ready_within(GENEROUS), "the server lets no client in");
        client
    }

    fn new() -> Self {
        // SAFETY: takes nothing.
        let handle = unsafe { sys::nbd_create() };
        assert!(!handle.is_null(), "{}", last_error());
        // SAFETY: the handle is open; the string ends in NUL.
        check(unsafe { sys::nbd_add_meta_context(handle, c"base:allocation".as_ptr()) });
        Client { handle, buffers: HashMap::new() }
    }

    fn is_ready_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < limit {
            // SAFETY: the handle is open.
            match unsafe { sys::nbd_aio_is_ready(self.handle) } {
                1 => return true,
                // SAFETY: the handle is open.
                _ if unsafe { sys::nbd_aio_is_connecting(self.handle) } != 1 => {
                    panic!("cannot connect: {}", last_error())
                }
                _ => self.work(Duration::from_millis(10)),
            }
        }
        false
    }

    /// Whether what it says is encrypted.
    pub fn speaks_tls(&self) -> bool {
        // SAFETY: the handle is open.
        unsafe { sys::nbd_get_tls_negotiated(self.handle) == 1 }
    }

    /// The size of the disk, as negotiated.
    pub fn size(&self) -> i64 {
        // SAFETY: the handle is open.
        unsafe { sys::nbd_get_size(self.handle) }
    }

    /// Whether the server takes writes.
    pub fn can_write(&self) -> bool {
        // SAFETY: the handle is open.
        unsafe { sys::nbd_is_read_only(self.handle) == 0 }
    }

    /// Sends a request and does not wait for its reply.
    pub fn send(&mut self, request: Request) -> Ticket {
        self.send_with(request, 0)
    }

    fn send_with(&mut self, request: Request, flags: u32) -> Ticket {
        let mut buffer = match request {
            Read(_) => vec![0; SIZE],
            Write(_, byte) => vec![byte; SIZE],
            _ => Vec::new(),
        };
        let size = SIZE as u64;
        let (h, data) = (self.handle, buffer.as_mut_ptr().cast::<c_void>());
        let extents =
            sys::Extent { callback: Some(ignore_extents), user_data: ptr::null_mut(), free: None };
        // SAFETY: the handle is open; the buffer has SIZE bytes on the heap,
        // which stay where they are until the request is over or the handle
        // is closed; NULL callbacks are allowed but for the extents, and
        // `ignore_extents` touches nothing.
        let cookie = unsafe {
            match request {
                Read(at) => sys::nbd_aio_pread(h, data, SIZE, at, done(), flags),
                Write(at, _) => sys::nbd_aio_pwrite(h, data, SIZE, at, done(), flags),
                Flush => sys::nbd_aio_flush(h, done(), flags),
                Trim(at) => sys::nbd_aio_trim(h, size, at, done(), flags),
                Zero(at) => sys::nbd_aio_zero(h, size, at, done(), flags),
                Cache(at) => sys::nbd_aio_cache(h, size, at, done(), flags),
                Extents(at) => sys::nbd_aio_block_status(h, size, at, extents, done(), flags),
            }
        };
        assert!(cookie > 0, "{request:?}: {}", last_error());
        self.buffers.insert(cookie as u64, buffer);
        Ticket(cookie as u64)
    }

    /// The reply, if it comes within `limit`.
    pub fn reply_within(&mut self, ticket: Ticket, limit: Duration) -> Option<Reply> {
        let start = Instant::now();
        loop {
            // SAFETY: the handle is open.
            let completed = unsafe { sys::nbd_aio_command_completed(self.handle, ticket.0) };
            let result = match completed {
                0 => None,
                1 => Some(Ok(())),
                // SAFETY: takes nothing.
                _ => Some(Err(unsafe { sys::nbd_get_errno() })),
            };
            if let Some(result) = result {
                let buffer = self.buffers.remove(&ticket.0).unwrap_or_default();
                return Some(result.map(|()| buffer));
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            self.work(left.min(Duration::from_millis(20)));
        }
    }

    /// The reply; panics if there is none.
    pub fn reply(&mut self, ticket: Ticket) -> Reply {
        self.reply_within(ticket, GENEROUS).unwrap_or_else(|| panic!("request {ticket:?} hangs"))
    }

    /// Sends a request that is held: the server has read it, and no reply comes for a
    /// while.
    pub fn held(&mut self, request: Request) -> Ticket {
        let ticket = self.send(request);
        self.all_read_by_server();
        self.expect_held(&[ticket], A_WHILE);
        ticket
    }

    /// What was held, or sent a moment ago, is carried out now.
    pub fn goes_on(&mut self, ticket: Ticket) -> Vec<u8> {
        let reply = self.reply_within(ticket, PROMPT).expect("the request is held still");
        reply.expect("success")
    }

    /// A request that comes now is carried out at once.
    pub fn flows(&mut self, request: Request) -> Vec<u8> {
        let ticket = self.send(request);
        self.goes_on(ticket)
    }

    /// Sends a read that stays in the plugin; see `Setup::obedient`.
    pub fn read_stays_in_plugin(&mut self, server: &Server) -> Ticket {
        let _ = std::fs::remove_file(server.path("reading"));
        server.make("slow-read");
        let read = self.send(READ);
        server.await_file("reading");
        read
    }

    /// Sends a request, waits for its reply, and expects success.
    pub fn ask(&mut self, request: Request) -> Vec<u8> {
        let ticket = self.send(request);
        match self.reply(ticket) {
            Ok(data) => data,
            Err(e) => panic!("{request:?}: {}", io::Error::from_raw_os_error(e)),
        }
    }

    /// Like `ask`, with FUA: when the reply comes, the change is stable.
    pub fn ask_fua(&mut self, request: Request) {
        let ticket = self.send_with(request, FUA);
        assert!(self.reply(ticket).is_ok(), "{request:?} with FUA");
    }

    /// The request was held, and was dropped: within `limit` it fails, or where
    /// nbdkit can do that the connection ends without a reply.
    pub fn expect_dropped(&mut self, ticket: Ticket, limit: Duration) {
        let error = match nbdkit::cuts_connections() {
            true => libc::ENOTCONN,
            false => libc::ESHUTDOWN,
        };
        assert_eq!(self.reply_within(ticket, limit), Some(Err(error)), "a held request");
    }

    /// No reply to any of these comes for a while.
    pub fn expect_held(&mut self, tickets: &[Ticket], time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            for &ticket in tickets {
                if let Some(reply) = self.reply_within(ticket, Duration::ZERO) {
                    panic!("{ticket:?} was not held: {:?}", reply.map(|_| "success"));
                }
            }
            self.work(Duration::from_millis(10));
        }
    }

    /// A pause holds a write at offset 0 back and lets it go on, and it is carried
    /// out. Nobody else may write there.
    pub fn expect_a_whole_pause(&mut self, server: &Server) {
        let mut controller = server.controller();
        controller.pause();
        let held = self.send(WRITE);
        self.expect_held(&[held], A_WHILE / 3);
        controller.resume();
        self.goes_on(held);
        assert_eq!(self.ask(READ), [0xaa; SIZE]);
    }

    /// Waits until the server has read all that was sent; over TCP, until it has come
    /// to its kernel.
    pub fn all_read_by_server(&mut self) {
        eventually("the server reads the requests", GENEROUS, || {
            self.work(Duration::ZERO);
            let mut unread: c_int = 0;
            // SAFETY: TIOCOUTQ writes an int (unix(7)).
            let asked = unsafe { libc::ioctl(self.fd(), libc::TIOCOUTQ, &raw mut unread) };
            assert_eq!(asked, 0, "{}", io::Error::last_os_error());
            // SAFETY: the handle is open.
            unread == 0 && unsafe { sys::nbd_aio_is_ready(self.handle) } == 1
        });
    }

    /// Tells the server that nothing more will be sent, below NBD.
    pub fn shut_down_sending_half(&self) {
        // SAFETY: shutdown(2) takes two integers.
        let shut = unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) };
        assert_eq!(shut, 0, "{}", io::Error::last_os_error());
    }

    /// Vanishes. To close the socket is not enough: a process that another test is
    /// just starting may have it, too, until it execs.
    pub fn die(self) {
        self.shut_down_sending_half();
    }

    /// Leaves in good order, as a client does that has no request in flight.
    pub fn leave(self) {
        // SAFETY: the handle is open.
        check(unsafe { sys::nbd_shutdown(self.handle, 0) });
    }

    fn fd(&self) -> c_int {
        // SAFETY: the handle is open.
        unsafe { sys::nbd_aio_get_fd(self.handle) }
    }

    /// Lets libnbd send and receive what it can, for `limit` at most.
    fn work(&self, limit: Duration) {
        // SAFETY: the handle is open.
        if unsafe { sys::nbd_poll(self.handle, limit.as_millis() as c_int) } == -1 {
            // The connection is dead.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: the handle is closed once, and before the buffers go.
        unsafe { sys::nbd_close(self.handle) };
    }
}

fn done() -> sys::Done {
    sys::Done { callback: None, user_data: ptr::null_mut(), free: None }
}

unsafe extern "C" fn ignore_extents(
    _: *mut c_void,
    _: *const c_char,
    _: u64,
    _: *mut u32,
    _: usize,
    _: *mut c_int,
) -> c_int {
    0
}

fn check(result: c_int) {
    assert_ne!(result, -1, "{}", last_error());
}

fn last_error() -> String {
    // SAFETY: nbd_get_error returns NULL or a string of this thread, which
    // lives until the next call into libnbd.
    unsafe {
        let error = sys::nbd_get_error();
        if error.is_null() {
            return "no error".to_owned();
        }
        CStr::from_ptr(error).to_string_lossy().into_owned()
    }
}
