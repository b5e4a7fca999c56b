//! Programs that drive the server: fio, nc, qemu-img, nbdcopy, a client in a
//! process of its own that can be killed, and a real disk image for them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::nbd::{Client, Request};
use super::process::{self, Finished, Process, run, run_with_input};
use super::server::Server;
use super::{GENEROUS, PROMPT, eventually, filter};

/// Runs `program` with `arguments` and expects success.
pub fn program(program: &str, arguments: &[&str]) -> Finished {
    run(command(program, arguments)).succeeded()
}

/// Starts `program` and lets it run.
pub fn start(program: &str, arguments: &[&str]) -> Process {
    Process::start(command(program, arguments))
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// fio's nbd engine on `server`, in the background.
pub fn fio(server: &Server, options: &[&str]) -> Process {
    let mut command = Command::new("fio");
    command
        // With a process for each job, these would live on where it is killed.
        .args(["--name=load", "--ioengine=nbd", "--group_reporting", "--thread"])
        .arg(format!("--uri={}", server.uri()))
        .args(options)
        // Where it would leave files, it leaves them there.
        .current_dir(server.dir());
    Process::start(command)
}

/// `nc` on the control socket, with `input`, until it ends.
pub fn nc(options: &[&str], socket: &Path, input: &[u8]) -> Finished {
    let mut command = Command::new("nc");
    command.args(options).arg("-U").arg(socket);
    run_with_input(command, input).succeeded()
}

/// Makes an ext4 file system of `mib` MiB at `path`, with real files in it: nbdkit's
/// filters, and 10 MB of this test itself.
pub fn ext4_image(path: &Path, mib: u32) {
    let content = tempfile::tempdir().expect("a temporary folder");
    let test = fs::read(env::current_exe().expect("this test")).expect("its content");
    fs::write(content.path().join("test"), &test[..test.len().min(10_000_000)]).expect("a file");
    for file in fs::read_dir(filter::stock().parent().expect("a folder")).expect("the filters") {
        let file = file.expect("a filter");
        fs::copy(file.path(), content.path().join(file.file_name())).expect("a copy");
    }
    let mut command = system_program("mke2fs");
    command.args(["-q", "-t", "ext4", "-d"]).arg(content.path()).arg(path).arg(format!("{mib}M"));
    run(command).succeeded();
}

/// One that is not always in the path of a user who is not root, or runs such.
pub fn system_program(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default()));
    command
}

/// Debian's python3 has libnbd's module, another one on the path may not.
pub const PYTHON: &str = "/usr/bin/python3";

const WRITER: &str = r#"
import os, socket, sys, nbd
uri, count, offset = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
handle = nbd.NBD()
handle.connect_uri(uri)
buffers = [nbd.Buffer.from_bytearray(bytearray(b"\xdd" * 512)) for i in range(count)]
for i, buffer in enumerate(buffers):
    handle.aio_pwrite(buffer, offset + 512 * i)
while not handle.aio_is_ready():
    handle.poll(100)
me = socket.socket(fileno=os.dup(handle.aio_get_fd())).getsockname()
print("sent", me[1] if isinstance(me, tuple) else "", flush=True)
while True:
    handle.poll(1000)
"#;

/// A client in a process of its own, which has writes of 512 bytes (all 0xdd)
/// in flight, and waits for their replies until it is killed.
pub struct Writer {
    process: Process,
    /// Its own TCP port and the server's, where it is connected by TCP.
    ports: Option<(u16, u16)>,
}

impl Writer {
    /// Connects, and returns when `count` writes, one after the other from
    /// `offset` on, are on their way.
    pub fn start(server: &Server, count: usize, offset: u64) -> Self {
        let process =
            start(PYTHON, &["-c", WRITER, &server.uri(), &count.to_string(), &offset.to_string()]);
        let mut said = String::new();
        eventually("the client's writes are sent", GENEROUS, || {
            assert_eq!(process.stderr(), "");
            said = process.stdout();
            said.ends_with('\n')
        });
        let port = said.trim().strip_prefix("sent").expect("it says that they are sent").trim();
        let ports = server.port().map(|server| (port.parse().expect("a port"), server));
        Writer { process, ports }
    }

    /// SIGKILL. When this returns its connection is closed at the server's end,
    /// too: over TCP the news may be on its way for a moment, and until it has
    /// come the server serves a client that is there, as far as it can know.
    pub fn kill(self) {
        self.process.kill();
        if let Some((client, server)) = self.ports {
            until_the_kernel_knows(server, client);
        }
    }
}

/// A write of 512 bytes (all 0xab) at offset 0, whose client has gone before the
/// server can take it in. Returns when it has come; see `Setup::logged_above`. nbdkit
/// itself loses one now and then, where a thread finds the end of the connection while
/// another has just read the request; then there is another client.
pub fn write_of_one_who_has_gone(server: &Server) {
    let come = server.writes_come();
    let start = Instant::now();
    while server.writes_come() == come {
        assert!(start.elapsed() < GENEROUS, "nbdkit loses every write");
        let mut client = Client::connect(server);
        process::stop(server.pid());
        client.send(Request::Write(0, 0xab));
        client.shut_down_sending_half();
        drop(client);
        process::go_on(server.pid());
        let sent = Instant::now();
        while server.writes_come() == come && sent.elapsed() < PROMPT {
            thread::sleep(Duration::from_millis(10));
        }
    }
    server.wait_for_writes(come + 1);
}

/// Waits until a client that was killed, with the TCP port `client` of 127.0.0.1,
/// is no longer connected to `server` there, as the server's end of it has it.
pub fn until_the_kernel_knows(server: u16, client: u16) {
    eventually("the server's kernel knows", GENEROUS, || !established(server, client));
}

/// Whether the TCP connection between these two ports of 127.0.0.1 is open in
/// both directions, seen from the first one (proc(5), /proc/net/tcp).
fn established(local: u16, remote: u16) -> bool {
    const ESTABLISHED: &str = "01";
    let ends = [format!("0100007F:{local:04X}"), format!("0100007F:{remote:04X}")];
    fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp").lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1..3] == ends && fields[3] == ESTABLISHED
    })
}

/// Whether `bytes` of the file at `path` from `offset` on are all zero.
pub fn is_zero(path: &Path, offset: u64, bytes: u64) -> bool {
    let content = fs::read(path).expect("the disk");
    content[offset as usize..(offset + bytes) as usize].iter().all(|&byte| byte == 0)
}
