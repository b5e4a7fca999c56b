//! Snapshots as people take them, `nbdkit-pause run -- cp`, of disks that are
//! written to, while the helper is killed at random moments: the server is
//! never left paused, and no snapshot that was reported good is torn.

use super::*;

fn with_holds(setup: Setup) -> Setup {
    // No power is cut here, and a busy machine takes seconds for a sync.
    setup.holds().flushes().below("fua", &["fuamode=discard"])
}

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

// A writer with a journal of its own, on two disks.

/// Blocks on each disk. A block is full of its number.
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;

/// Writes number n to the journal's four places, waits, writes n to the block
/// of the data disk, waits, and so on. All of them go round.
const JOURNALED: &str = r#"
import struct, sys, nbd
journal, data = nbd.NBD(), nbd.NBD()
journal.connect_uri(sys.argv[1])
data.connect_uri(sys.argv[2])
n = 0
while True:
    n += 1
    block = struct.pack("<Q", n) * 512
    buffer = nbd.Buffer.from_bytearray(bytearray(block))
    place = n % 64 * 4096
    cookies = [journal.aio_pwrite(buffer, place + part * 64 * 4096) for part in range(3)]
    for cookie in cookies:
        while not journal.aio_command_completed(cookie):
            journal.poll(-1)
    journal.pwrite(block, place + 3 * 64 * 4096)
    data.pwrite(block, place)
    print(n, flush=True)
"#;

/// The numbers of the blocks of a copy; None for one that is torn.
fn blocks(copy: &Path) -> Vec<Option<u64>> {
    let content = fs::read(copy).expect("a copy");
    content
        .chunks(BLOCK)
        .map(|block| {
            let mut numbers =
                block.chunks(8).map(|number| u64::from_le_bytes(number.try_into().unwrap()));
            let first = numbers.next().unwrap();
            numbers.all(|number| number == first).then_some(first)
        })
        .collect()
}

/// What has to be true of a set that a power cut has left; or what is not.
fn journal_rule(folder: &Path, acknowledged: u64) -> Result<(), String> {
    let (journal, data) = (blocks(&folder.join("journal")), blocks(&folder.join("data")));
    let place = |n: u64| (n % BLOCKS) as usize;
    let parts = |n: u64, part: usize| journal[place(n) + part * BLOCKS as usize];
    // The last number that was committed.
    let committed = (0..BLOCKS).filter_map(|n| parts(n, 3)).max().ok_or("no commit")?;
    if committed < acknowledged {
        return Err(format!("{acknowledged} was acknowledged, {committed} is committed"));
    }
    // All that is so young that nothing has come over it.
    let oldest = (committed + 2).saturating_sub(BLOCKS).max(1);
    for n in oldest..=committed {
        // All was in the journal before the commit, and all stays.
        for part in 0..4 {
            if parts(n, part) != Some(n) {
                return Err(format!("part {part} of {n} is {:?}", parts(n, part)));
            }
        }
        // The data went out after the commit, and came in before the next one.
        let data = data[place(n)];
        if data != Some(n) && n != committed {
            return Err(format!("the data of {n} is {data:?}, {committed} is committed"));
        }
    }
    match data.iter().position(|&data| data.is_none_or(|data| data > committed)) {
        Some(place) => Err(format!("block {place} is {:?}, after {committed}", data[place])),
        None => Ok(()),
    }
}

/// The journal first, which is the wrong way without a pause.
const COPY_BOTH: &str = r#"
    cp --reflink=auto "$2" "$1/journal" && sleep 0.02 && cp --reflink=auto "$3" "$1/data""#;

#[test]
fn no_good_snapshot_of_a_journal_and_its_data_on_two_disks_is_torn() {
    let servers: [Server; 2] = [1, 2].map(|_| with_holds(Setup::with_disk(1)).start());
    let mut command = Command::new(PYTHON);
    command.args(["-c", JOURNALED]).args(servers.iter().map(Server::uri));
    let mut writer = Writer(Process::start(command));
    let disks = [servers[0].path("disk.img"), servers[1].path("disk.img")];
    let disks = [disks[0].as_path(), disks[1].as_path()];
    // Once all blocks are in use.
    writer.comes_to(2 * BLOCKS + 1);
    snapshots_while_helpers_are_killed(
        &[&servers[0], &servers[1]],
        &mut writer,
        (COPY_BOTH, &disks),
        (25, 25),
        |folder, acknowledged| journal_rule(folder, acknowledged).unwrap(),
    );
    // What the rule finds where nothing is paused.
    let mut next_folder = folders(servers[1].dir().to_owned());
    eventually("a torn snapshot without a pause", GENEROUS, || {
        let folder = next_folder();
        without_pause(COPY_BOTH, &[&[folder.as_path()], &disks[..]].concat());
        journal_rule(&folder, 0).is_err()
    });
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

/// What has to be true of a file system that a power cut has left: e2fsck is
/// content once the journal is replayed, and all acknowledged files are there.
fn file_system_rule(folder: &Path, acknowledged: u64) -> Result<(), String> {
    let image = folder.join("image");
    let on_image = |program: &str, arguments: &[&str]| {
        let mut command = clients::system_program(program);
        command.args(arguments).arg(&image);
        run(command)
    };
    let replayed = on_image("e2fsck", &["-fy", "-E", "journal_only"]);
    if replayed.status.code().is_none_or(|code| code > 1) {
        return Err(format!("{replayed:#?}"));
    }
    let checked = on_image("e2fsck", &["-fn"]);
    if !checked.status.success() {
        return Err(format!("{checked:#?}"));
    }
    on_image("debugfs", &["-R", &format!("rdump / {}", folder.display())]).succeeded();
    let mut files = HashMap::new();
    for place in 0..20 {
        let path = folder.join(format!("number-{place}"));
        let Ok(content) = fs::read(&path) else { continue };
        let number = content.get(..8).map(|n| u64::from_le_bytes(n.try_into().unwrap()));
        match number {
            Some(n) if content == n.to_le_bytes().repeat(512) => files.insert(place, n),
            _ => return Err(format!("{} is torn", path.display())),
        };
    }
    for n in acknowledged.saturating_sub(19).max(1)..=acknowledged {
        let found = files.get(&(n % 20));
        if found.is_none_or(|&found| found < n) {
            return Err(format!("{acknowledged} was acknowledged, file {n} is {found:?}"));
        }
    }
    Ok(())
}

const COPY: &str = r#"cp --reflink=auto "$2" "$1/image""#;

/// The end of the disk first, and the beginning with the journal's superblock
/// later, as a snapshot that takes long would.
const COPY_SLOWLY: &str = r#"
    size=$(stat -c %s "$2")
    dd if="$2" of="$1/image" bs=1M skip=4 seek=4 conv=notrunc status=none
    sleep 0.1
    dd if="$2" of="$1/image" bs=1M count=4 conv=notrunc status=none
    truncate -s "$size" "$1/image""#;

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
