//! Snapshots as people take them, `nbdkit-pause run -- cp`, of disks that are
//! written to, while the helper is killed at random moments: the server is
//! never left paused, and no snapshot that was reported good is torn.

use super::*;

fn with_holds(setup: Setup) -> Setup {
    // No power is cut here, and a busy machine takes seconds for a sync.
    setup.holds().flushes().below("fua", &["fuamode=discard"])
}

const STOCK: fn() -> Setup = || Setup::with_disk(1).stock();
const PLAIN: fn() -> Setup = || Setup::with_disk(1);
const HOLDS: fn() -> Setup = || with_holds(Setup::with_disk(1));

/// A process that writes, and prints a number when that is on the disk.
struct Writer(Process);

impl Writer {
    /// The last number that it has printed.
    fn acknowledged(&self) -> u64 {
        let output = self.0.stdout();
        // The last line may not be whole yet.
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.rsplit('\n').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Waits until it has come so far.
    fn comes_to(&mut self, number: u64) {
        eventually("the writer goes on", GENEROUS, || {
            assert!(self.0.is_running(), "{}", self.0.stderr());
            self.acknowledged() >= number
        });
    }

    /// Waits until it has come further: its server isn't paused.
    fn goes_on(&mut self) {
        // Not the next one: that may have been on its way.
        self.comes_to(self.acknowledged() + 2);
    }
}

/// New folders, each for the copies of one snapshot.
fn folders(dir: PathBuf) -> impl FnMut() -> PathBuf {
    let mut names = (1..).map(move |number| dir.join(format!("snapshot-{number}")));
    move || {
        let folder = names.next().expect("a name");
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }
}

/// `script` in `sh`, with these arguments, while all servers are paused.
fn under_pause(servers: &[&Server], script: &str, arguments: &[&Path]) -> Process {
    let mut command = Command::new(filter::helper());
    command
        .arg("run")
        .args(servers.iter().map(|server| server.control_path()))
        .args(["--", "sh", "-c", script, "sh"])
        .args(arguments);
    Process::start(command)
}

/// The same, and they are not.
fn without_pause(script: &str, arguments: &[&Path]) -> Finished {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(arguments);
    run(command).succeeded()
}

/// Takes snapshots until enough were good, and enough helpers were killed.
/// Those that are reported good have to pass `check`, which gets the folder
/// and the last number that was acknowledged before.
fn snapshots_while_helpers_are_killed(
    servers: &[&Server],
    writer: &mut Writer,
    (script, disks): (&str, &[&Path]),
    (good_ones, killed_ones): (u32, u32),
    check: impl Fn(&Path, u64),
) {
    let mut random = Random::new();
    let mut next_folder = folders(servers[0].dir().to_owned());
    let (mut good, mut killed, mut killed_in_pause) = (0, 0, 0);
    // How long one takes now, in ms: the killer has to hit it.
    let mut usual = 20;
    while good < good_ones || killed < killed_ones || killed_in_pause < killed_ones / 4 {
        writer.goes_on();
        let folder = next_folder();
        let before = writer.acknowledged();
        let start = Instant::now();
        let helper = under_pause(servers, script, &[&[folder.as_path()], disks].concat());
        if random.below(0..3) == 0 || killed >= killed_ones && killed_in_pause >= killed_ones / 4 {
            let finished = helper.finish(GENEROUS).succeeded();
            usual = start.elapsed().as_millis().clamp(5, 200) as u64;
            assert!(finished.stderr.contains("paused"), "{finished:#?}");
        } else {
            thread::sleep(random.millis(0..usual));
            helper.signal(libc::SIGKILL);
            let finished = helper.finish(GENEROUS);
            if !finished.status.success() {
                killed += 1;
                // The command was running, and perhaps still is.
                killed_in_pause += u32::from(finished.stderr.contains(" s: running "));
                writer.goes_on();
                continue;
            }
        }
        check(&folder, before);
        good += 1;
    }
}

/// Copies the disks, one after the other, and takes its time.
const COPY: &str = r#"
    folder=$1 number=0
    shift
    for disk; do
        cp --reflink=auto "$disk" "$folder/$number" && sleep 0.02 || exit
        number=$((number + 1))
    done"#;

// Several disks under one run: they are copied as a power cut would have left them.

/// Writes number n to two blocks of each disk in turn, waits for each reply, then n + 1,
/// and so on. A block is full of its number.
const IN_TURN: &str = r#"
import sys, nbd
disks = [nbd.NBD() for uri in sys.argv[1:]]
for disk, uri in zip(disks, sys.argv[1:]):
    disk.connect_uri(uri)
n = 0
while True:
    n += 1
    for disk in disks:
        for place in 0, 512 * 1024:
            disk.pwrite(n.to_bytes(8, "little") * 512, place)
    print(n, flush=True)
"#;

/// So far as the writer has come in its round, a block has the number of the first one;
/// from there on, the one before; and all that was acknowledged is there.
fn in_turn_rule(folder: &Path, count: usize, acknowledged: u64) -> Result<(), String> {
    let copies = (0..count).map(|disk| fs::read(folder.join(disk.to_string())).expect("a copy"));
    let mut numbers = Vec::new();
    for copy in copies {
        for block in [&copy[..4096], &copy[512 * 1024..][..4096]] {
            let number = u64::from_le_bytes(block[..8].try_into().unwrap());
            if block != number.to_le_bytes().repeat(512) {
                return Err(format!("a block with {number} is torn"));
            }
            numbers.push(number);
        }
    }
    let behind: Vec<u64> = numbers.iter().map(|number| numbers[0].wrapping_sub(*number)).collect();
    let is_right = behind.is_sorted()
        && behind.iter().all(|&behind| behind <= 1)
        && numbers.iter().all(|&number| number >= acknowledged);
    if is_right { Ok(()) } else { Err(format!("{numbers:?}, {acknowledged} was acknowledged")) }
}

#[test]
fn no_good_snapshot_of_several_disks_has_a_torn_block_or_writes_out_of_order() {
    for (setup, count, numbers) in [
        (STOCK, 2, (8, 0)),
        (STOCK, 8, (8, 0)),
        (PLAIN, 3, (8, 0)),
        (PLAIN, 8, (8, 0)),
        (HOLDS, 2, (25, 25)),
        (HOLDS, 8, (8, 8)),
    ] {
        println!("{count} disks, {numbers:?} snapshots");
        let servers: Vec<Server> = (0..count).map(|_| setup().start()).collect();
        let disks: Vec<_> = servers.iter().map(|server| server.path("disk.img")).collect();
        let disks: Vec<&Path> = disks.iter().map(PathBuf::as_path).collect();
        let mut command = Command::new(PYTHON);
        command.args(["-c", IN_TURN]).args(servers.iter().map(Server::uri));
        let mut writer = Writer(Process::start(command));
        writer.comes_to(1);
        snapshots_while_helpers_are_killed(
            &servers.iter().collect::<Vec<_>>(),
            &mut writer,
            (COPY, &disks),
            numbers,
            |folder, acknowledged| in_turn_rule(folder, count, acknowledged).unwrap(),
        );
        // What the rule finds where nothing is paused.
        let mut next_folder = folders(servers[0].path("unpaused"));
        eventually("a torn snapshot without a pause", GENEROUS, || {
            let folder = next_folder();
            without_pause(COPY, &[&[folder.as_path()], &disks[..]].concat());
            in_turn_rule(&folder, count, 0).is_err()
        });
    }
}

// A real file system.

/// The program of the writer's side. It has a mount namespace of its own, so
/// that nothing stays mounted, whatever becomes of it.
const MOUNT: &str = r#"
set -e
uri=$1
touch disk
mkdir mnt
nbdfuse disk "$uri" & nbdfuse=$!
for i in $(seq 500); do [ -s disk ] && break; sleep 0.01; done
mount -o loop disk mnt
/usr/bin/python3 -c "$2" mnt || true
umount mnt
umount disk
wait $nbdfuse
"#;

/// Makes file n of four KiB, each eight bytes being n, in place of file n-20;
/// it is on the disk when n is printed. Ends when there is a file `stop`.
const FILES: &str = r#"
import os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
n = 0
while not os.path.exists("stop"):
    n += 1
    name = "%s/new-%d" % (sys.argv[1], n)
    with open(name, "wb") as file:
        file.write(struct.pack("<Q", n) * 512)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name, "%s/number-%d" % (sys.argv[1], n % 20))
    os.fsync(folder)
    print(n, flush=True)
"#;

/// The number in a file of `FILES`; None if it is torn.
fn number_in(content: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(content.get(..8)?.try_into().ok()?);
    (content == number.to_le_bytes().repeat(512)).then_some(number)
}

fn file_system_rule(folder: &Path, acknowledged: u64) -> Result<(), String> {
    ext4::rule(&folder.join("0"), acknowledged, number_in)
}

/// The end of the disk first, and the beginning with the journal's superblock
/// later, as a snapshot that takes long would.
const COPY_SLOWLY: &str = r#"
    size=$(stat -c %s "$2")
    dd if="$2" of="$1/0" bs=1M skip=4 seek=4 conv=notrunc status=none
    sleep 0.1
    dd if="$2" of="$1/0" bs=1M count=4 conv=notrunc status=none
    truncate -s "$size" "$1/0""#;

#[test]
fn no_good_snapshot_of_a_mounted_ext4_is_torn() {
    let setup = with_holds(Setup::new(&["file", "disk.img"]));
    clients::ext4_image(&setup.path("disk.img"), 32);
    let server = setup.start();
    let mut command = clients::system_program("unshare");
    command
        .args(["--mount", "--propagation=private", "sh", "-c", MOUNT, "sh"])
        .args([&server.uri(), FILES])
        .current_dir(server.dir());
    let mut writer = Writer(Process::start(command));
    let mut is_mounted = true;
    eventually("the file system is mounted", GENEROUS, || {
        is_mounted = writer.0.is_running();
        !is_mounted || writer.acknowledged() > 40
    });
    if !is_mounted {
        // It takes root, FUSE and a loop device.
        println!("SKIPPED: no file system can be mounted here: {}", writer.0.stderr());
        return;
    }
    let disk = server.path("disk.img");
    snapshots_while_helpers_are_killed(
        &[&server],
        &mut writer,
        (COPY, &[&disk]),
        (10, 10),
        |folder, acknowledged| file_system_rule(folder, acknowledged).unwrap(),
    );
    // What e2fsck finds where nothing is paused, and only there.
    let folder = server.path("paused");
    fs::create_dir(&folder).unwrap();
    let before = writer.acknowledged();
    let arguments = [folder.as_path(), &disk];
    under_pause(&[&server], COPY_SLOWLY, &arguments).finish(GENEROUS).succeeded();
    file_system_rule(&folder, before).unwrap();
    let mut next_folder = folders(server.path("unpaused"));
    eventually("a torn snapshot without a pause", GENEROUS, || {
        let folder = next_folder();
        let before = writer.acknowledged();
        without_pause(COPY_SLOWLY, &[&folder, &disk]);
        file_system_rule(&folder, before).is_err()
    });
    fs::write(server.path("stop"), "").unwrap();
    writer.0.finish(GENEROUS).succeeded();
}
