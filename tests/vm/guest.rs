//! A guest of qemu: a distribution's kernel and a shell at its console. Its disks are
//! served by nbdkit. What it is told to do is up to the tests.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use super::common::files::make_fifo;
use super::common::{Process, Server, eventually};

/// Longer than anything takes on a slow machine without KVM.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// What the kernel says of a disk that has failed it.
const TROUBLE: [&str; 5] = ["I/O error", "EXT4-fs", "Aborting journal", "Remounting", "timed out"];

/// Writes file n over file n - 20, a page full of its number, and says so when it is on
/// the disk; ends when there is a file /stop. `$folder` is where.
const WRITER: &str = "n=0; while [ ! -e /stop ]; do n=$((n+1)); \
     yes $n | head -c 4096 >$folder/new; sync $folder/new; \
     mv $folder/new $folder/number-$((n%20)); sync $folder; echo ack $n; done";

/// The number in a file that it has written; None if it is torn.
pub fn number_in(content: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(content).ok()?.lines().next()?.parse().ok()?;
    let line = format!("{number}\n");
    let whole = line.bytes().cycle().take(4096);
    content.iter().copied().eq(whole).then_some(number)
}

/// It is killed when this is dropped.
pub struct Guest {
    qemu: Process,
    console: File,
    asked: u32,
}

impl Guest {
    /// Boots with the disks of these servers, as /dev/disk0 and so on, to which qemu
    /// tries to come back for ten minutes.
    pub fn boot(disks: &[&Server], folder: &Server) -> Self {
        let variable = |name| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let console = folder.path("console");
        make_fifo(&console);
        let mut command = Command::new("sh");
        command.args(["-c", "console=$1; shift; exec \"$@\" <$console", "sh"]).arg(&console);
        command.args(["qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"]);
        command.args(["-m", "192", "-serial", "stdio", "-accel", &variable("PAUSE_VM_ACCEL")]);
        command.args(["-kernel", &variable("PAUSE_VM_KERNEL")]);
        command.args(["-initrd", &variable("PAUSE_VM_INITRD")]);
        command.args(["-append", "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on"]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        for (number, disk) in disks.iter().enumerate() {
            let path = disk.socket();
            command.arg("-blockdev").arg(format!(
                "driver=nbd,node-name=disk{number},server.type=unix,server.path={},\
                 reconnect-delay=600",
                path.display()
            ));
            command.arg("-device");
            command.arg(format!("virtio-blk-pci,drive=disk{number},serial=disk{number}"));
        }
        let mut qemu = Process::start(command);
        let console = OpenOptions::new().write(true).open(console).expect("the console");
        eventually("the guest boots", PATIENCE, || {
            assert!(qemu.is_running(), "{}{}", qemu.stdout(), qemu.stderr());
            qemu.stdout().contains("READY")
        });
        Guest { qemu, console, asked: 0 }
    }

    /// Has its shell run a line, and does not wait for that.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.console, "{line}").expect("the console");
    }

    /// Has its shell run a line, which must succeed.
    pub fn run(&mut self, line: &str) {
        self.asked += 1;
        let mark = format!("done {} with ", self.asked);
        self.tell(&format!("{line}; echo \"{mark}$?\""));
        let mut status = String::new();
        eventually(line, PATIENCE, || {
            let console = self.console();
            let rest = console.split_once(&mark).map(|(_, rest)| rest.split_once('\r'));
            rest.flatten().is_some_and(|(found, _)| {
                status = found.to_owned();
                true
            })
        });
        assert_eq!(status, "0", "{line}\n{}", self.console());
    }

    /// What it has said so far.
    pub fn console(&self) -> String {
        self.qemu.stdout()
    }

    /// Mounts a disk and writes to it, from now on. The disk is almost full, so that
    /// blocks are soon used again, and a copy that mixes moments has some that are wrong.
    pub fn writes_to(&mut self, disk: &str) {
        self.run(&format!("mkdir -p /mnt && mount -t ext4 {disk} /mnt && folder=/mnt"));
        self.tell("dd if=/dev/zero of=/mnt/fill bs=64k 2>/dev/null");
        self.run("truncate -s $(($(stat -c %s /mnt/fill) - 409600)) /mnt/fill && sync");
        self.tell(&format!("{{ {WRITER}; }} &"));
        self.goes_on();
    }

    /// The last number that it has said to be on its disks.
    pub fn acknowledged(&self) -> u64 {
        let console = self.console();
        // The kernel may speak in the middle of a line, which then does not count.
        let numbers = console.lines().filter_map(|line| line.strip_prefix("ack ")?.parse().ok());
        numbers.max().unwrap_or(0)
    }

    /// Waits until more is on its disks, and nothing has gone wrong.
    pub fn goes_on(&mut self) {
        // Not the next one: that may have been on its way.
        let enough = self.acknowledged() + 3;
        eventually("the guest goes on", PATIENCE, || {
            self.is_well();
            self.acknowledged() >= enough
        });
    }

    /// Panics if its kernel has complained.
    pub fn is_well(&mut self) {
        let console = self.console();
        // Which is all it says of a disk that is well.
        let is_harmless =
            |line: &&str| line.contains("mounted filesystem") || line.contains("re-mounted");
        let complaint = console
            .lines()
            .filter(|line| !is_harmless(line))
            .find(|line| TROUBLE.iter().any(|trouble| line.contains(trouble)));
        assert_eq!(complaint, None, "{console}");
        assert!(self.qemu.is_running(), "{console}{}", self.qemu.stderr());
    }

    /// Unmounts what it writes to, and is well at that.
    pub fn stops_writing(&mut self) {
        self.run("touch /stop; wait; umount /mnt");
        self.is_well();
    }
}
