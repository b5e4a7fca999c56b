//! Child processes that never outlive the test that started them, what they
//! wrote, and what /proc says about them. What they are is known elsewhere.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{GENEROUS, eventually};

/// A running child and its children, in a process group of their own, which is
/// killed when this is dropped.
pub struct Process {
    child: Child,
    what: String,
    stdout: File,
    stderr: File,
    status: Option<ExitStatus>,
}

/// A child that has ended.
#[derive(Debug)]
pub struct Finished {
    pub what: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Starts `command`, waits until it has ended, and panics if it hangs.
pub fn run(command: Command) -> Finished {
    Process::start(command).finish(GENEROUS)
}

/// Like `run`, with `input` on its standard input.
pub fn run_with_input(command: Command, input: &[u8]) -> Finished {
    Process::start_with_input(command, input).finish(GENEROUS)
}

impl Finished {
    /// Panics unless the exit status is 0.
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }
}

impl Process {
    /// With an empty standard input; output and errors are kept.
    pub fn start(command: Command) -> Self {
        Self::start_with_input(command, b"")
    }

    /// With `input`, and then its end, on the standard input.
    pub fn start_with_input(mut command: Command, input: &[u8]) -> Self {
        let mut stdin = tempfile::tempfile().expect("a temporary file");
        stdin.write_all(input).expect("a temporary file");
        stdin.rewind().expect("a temporary file");
        let stdout = tempfile::tempfile().expect("a temporary file");
        let stderr = tempfile::tempfile().expect("a temporary file");
        command.stdin(stdin).stdout(own(&stdout)).stderr(own(&stderr)).process_group(0);
        // So that it goes even if this process is killed, or this thread ends. And
        // it is told of signals that a shell ignores for what it runs in the
        // background, such as these tests.
        // SAFETY: prctl(2) and signal(2) are plain system calls, which may be made
        // between fork and exec.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let what = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
        Process { child, what, stdout, stderr, status: None }
    }

    /// The child's own id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        content(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        content(&self.stderr)
    }

    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// The exit status, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("waitpid");
        }
        self.status
    }

    /// Waits until `holds`, while this has to run.
    pub fn runs_until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        eventually(what, GENEROUS, || {
            assert!(self.is_running(), "{}", self.stderr());
            holds()
        });
    }

    /// Sends `signal` to the child alone.
    pub fn signal(&self, signal: i32) {
        // A child that has been waited for has no id any more.
        if self.status.is_none() {
            send_signal(self.pid(), signal);
        }
    }

    /// SIGKILL; when this returns, the child's files and sockets are closed.
    pub fn kill(mut self) {
        self.kill_group();
    }

    /// Waits until it has ended; panics after `limit`.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        let status = loop {
            match self.status() {
                Some(status) => break status,
                None if start.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                None => panic!("hangs: {}\n{}\n{}", self.what, self.stdout(), self.stderr()),
            }
        };
        Finished { what: self.what.clone(), status, stdout: self.stdout(), stderr: self.stderr() }
    }

    fn kill_group(&mut self) {
        if self.status().is_none() {
            // SAFETY: kill(2) takes two integers. The group is the child's
            // own, and the child has not been waited for.
            unsafe { libc::kill(-(self.pid() as libc::pid_t), libc::SIGKILL) };
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// kill(2), of a process that is known to be ours still.
pub fn send_signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) takes two integers.
    let sent = unsafe { libc::kill(pid as libc::pid_t, signal) };
    assert_eq!(sent, 0, "kill {pid}: {}", io::Error::last_os_error());
}

/// All of these words are in one line of what a program says.
pub fn expect_line(messages: &str, words: &[&str]) {
    let is_it = |line: &str| words.iter().all(|word| line.contains(word));
    assert!(messages.lines().any(is_it), "no line with {words:?} in:\n{messages}");
}

fn own(file: &File) -> Stdio {
    file.try_clone().expect("dup").into()
}

/// All of a file that the child writes to, without moving the place where it
/// writes, which is shared.
fn content(file: &File) -> String {
    let mut content = vec![0; file.metadata().expect("fstat").len() as usize];
    let count = file.read_at(&mut content, 0).expect("pread");
    content.truncate(count);
    String::from_utf8_lossy(&content).into_owned()
}

/// Whether there is such a process that is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| fields(&stat)[0] != "Z")
}

/// The fields of a /proc stat line that follow the name, the state being first.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect()
}

/// The number of threads of a process.
pub fn threads(pid: u32) -> usize {
    entries(format!("/proc/{pid}/task"))
}

/// The number of open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    entries(format!("/proc/{pid}/fd"))
}

/// The number that a process's next descriptor will have.
pub fn next_descriptor(pid: u32) -> u64 {
    (0..)
        .find(|number| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_err())
        .expect("a number")
}

/// Sets how many descriptors a process may have, and returns what it was.
pub fn limit_descriptors(pid: u32, count: u64) -> u64 {
    let mut before = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let pid = pid as libc::pid_t;
    // SAFETY: prlimit(2) reads and writes a limit of this frame.
    unsafe {
        assert_eq!(libc::prlimit64(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before), 0);
        let after = libc::rlimit64 { rlim_cur: count, ..before };
        let after = &raw const after;
        assert_eq!(libc::prlimit64(pid, libc::RLIMIT_NOFILE, after, std::ptr::null_mut()), 0);
    }
    before.rlim_cur
}

fn entries(folder: impl AsRef<Path>) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// The memory that a process uses, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc/PID/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The id of the process's one thread with this name. Waits until there is one.
pub fn thread_named(pid: u32, name: &str) -> u32 {
    let mut found = None;
    eventually(&format!("a thread {name} of {pid}"), GENEROUS, || {
        found = fs::read_dir(format!("/proc/{pid}/task"))
            .expect("/proc/PID/task")
            .filter_map(Result::ok)
            .find(|task| {
                fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
            })
            .and_then(|task| task.file_name().to_str()?.parse().ok());
        found.is_some()
    });
    found.expect("found")
}

/// SIGSTOP. The process does nothing from here on, in none of its threads, until
/// it is told to `go_on`.
pub fn stop(pid: u32) {
    send_signal(pid, libc::SIGSTOP);
    eventually("all of its threads stand still", GENEROUS, || {
        fs::read_dir(format!("/proc/{pid}/task")).expect("/proc/PID/task").all(|task| {
            let stat = fs::read_to_string(task.expect("a thread").path().join("stat"));
            // One that is gone does nothing either.
            stat.map_or(true, |stat| fields(&stat)[0] == "T")
        })
    });
}

/// SIGCONT.
pub fn go_on(pid: u32) {
    send_signal(pid, libc::SIGCONT);
}

/// The processor time that a thread has used.
pub fn cpu_time(pid: u32, tid: u32) -> Duration {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).expect("/proc/PID/task/TID");
    let fields = fields(&stat);
    // utime and stime, proc(5); the usual 100 ticks a second.
    let ticks: u64 = [11, 12].iter().map(|&i| fields[i].parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}
