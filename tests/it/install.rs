//! Installing it: `scripts/install` and `uninstall`, the Debian package that
//! `scripts/deb` builds, and a build after an upgrade of nbdkit. Each has a
//! folder, or a small system, of its own. What the filter does once it is
//! loaded is a matter of the other files.

use super::*;

/// All that these scripts listen to in the environment.
const SETTINGS: [&str; 8] = [
    "DESTDIR",
    "PREFIX",
    "FILTERDIR",
    "NBDKIT_VERSION",
    "PAUSE_FILTER",
    "PAUSE_HELPER",
    "CARGO_TARGET_DIR",
    "DEB_REVISION",
];

fn script(name: &str, settings: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(Path::new(PACKAGE).join("scripts").join(name));
    for setting in SETTINGS {
        command.env_remove(setting);
    }
    for (setting, value) in settings {
        command.arg(format!("{setting}={}", value.display()));
    }
    command
}

/// `scripts/install` with what was built here, and these settings.
fn install(settings: &[(&str, &Path)]) -> Command {
    let built = [("PAUSE_FILTER", filter::ours()), ("PAUSE_HELPER", filter::helper())];
    script("install", &[&built, settings].concat())
}

fn uninstall(settings: &[(&str, &Path)]) -> Command {
    script("uninstall", settings)
}

fn folder() -> TempDir {
    // Spaces, since a path can have them.
    tempfile::Builder::new().prefix("pause in stall-").tempdir().expect("a temporary folder")
}

/// A folder to install into; None, and says so, if another nbdkit is tested than
/// the one that is installed here. To install it once is enough.
fn place() -> Option<TempDir> {
    if debian::other_nbdkit() {
        println!("SKIPPED: it is installed for the nbdkit of this machine only");
        return None;
    }
    Some(folder())
}

fn make(folder: &Path) -> &Path {
    fs::create_dir_all(folder).expect("a folder");
    folder
}

/// All that is below a folder, with permissions and content.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let what = if metadata.is_dir() {
                folders.push(path.clone());
                "folder".to_owned()
            } else if metadata.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap().display())
            } else if metadata.is_file() {
                let mut hash = DefaultHasher::new();
                fs::read(&path).unwrap().hash(&mut hash);
                format!("{} bytes, {:x}", metadata.len(), hash.finish())
            } else {
                "something else".to_owned()
            };
            let mode = metadata.mode() & 0o7777;
            all.insert(path.strip_prefix(root).unwrap().to_owned(), format!("{mode:o} {what}"));
        }
    }
    all
}

/// What is in the second listing alone: files, not folders.
fn new_files(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let new = after
        .iter()
        .filter(|(path, what)| before.get(*path) != Some(*what) && !what.ends_with("folder"));
    new.map(|(path, what)| format!("{} {}", &what[..3], path.display())).collect()
}

/// nbdkit's own folder of filters on this machine.
fn own_filters() -> PathBuf {
    filter::stock().parent().unwrap().to_path_buf()
}

/// Nothing but the manual page is there to look up in an emergency: no README is
/// installed.
fn expect_whole_page(page: &str) {
    for heading in ["PARAMETERS", "SECURITY", "LIMITS", "WHEN SOMETHING IS WRONG"] {
        let found = page.lines().any(|line| {
            line.strip_prefix(".SH ").is_some_and(|is| is.trim_matches('"') == heading)
        });
        assert!(found, "no {heading} in {page}");
    }
}

/// Another file, and for nbdkit the same filter.
fn ours_and_a_byte(folder: &Path) -> PathBuf {
    let path = folder.join("libpause.so");
    let mut content = fs::read(filter::ours()).unwrap();
    content.push(0);
    fs::write(&path, content).unwrap();
    path
}

// --- scripts/install and scripts/uninstall ---------------------------------

/// A tree as a system's: nbdkit's own filter, files of others, empty folders.
fn tree(root: &Path) {
    let filters = root.join(own_filters().strip_prefix("/").unwrap());
    fs::copy(filter::stock(), make(&filters).join("nbdkit-pause-filter.so")).unwrap();
    make(&root.join("usr/local/bin"));
    make(&root.join("usr/local/share/zsh"));
    let pages = root.join("usr/local/share/man/man1");
    fs::write(make(&pages).join("nbdkit-pause-filter.1"), "nbdkit's own\n").unwrap();
}

#[test]
fn uninstall_leaves_the_tree_as_it_was_before_install() {
    let Some(dir) = place() else { return };
    let root = dir.path();
    tree(root);
    let before = listing(root);

    let said = run(install(&[("DESTDIR", root)])).succeeded();
    let after = listing(root);
    let filter = own_filters().join("nbdkit-libpause-filter.so");
    let filter = filter.strip_prefix("/").unwrap();
    assert_eq!(
        new_files(&before, &after),
        [
            format!("644 {}", filter.display()),
            "755 usr/local/bin/nbdkit-pause".to_owned(),
            "644 usr/local/share/bash-completion/completions/nbdkit-pause".to_owned(),
            "644 usr/local/share/fish/vendor_completions.d/nbdkit-pause.fish".to_owned(),
            "644 usr/local/share/man/man1/nbdkit-libpause-filter.1".to_owned(),
            "644 usr/local/share/man/man1/nbdkit-pause.1".to_owned(),
            "644 usr/local/share/nbdkit-libpause/folders-made".to_owned(),
            "644 usr/local/share/zsh/site-functions/_nbdkit-pause".to_owned(),
        ]
    );
    assert!(before.iter().all(|(path, what)| after.get(path) == Some(what)), "{after:#?}");
    assert_eq!(fs::read(root.join(filter)).unwrap(), fs::read(filter::ours()).unwrap());
    for page in ["nbdkit-libpause-filter", "nbdkit-pause"] {
        let text = root.join(format!("usr/local/share/man/man1/{page}.1"));
        let text = fs::read_to_string(text).unwrap();
        let title = format!(".TH {} 1 ", page.to_uppercase());
        assert!(text.lines().any(|line| line.replace('"', "").starts_with(&title)), "{text}");
    }
    let page = root.join("usr/local/share/man/man1/nbdkit-libpause-filter.1");
    expect_whole_page(&fs::read_to_string(page).unwrap());
    assert!(said.stdout.contains("nbdkit --filter=libpause "), "{said:#?}");

    // Once more is the same as once.
    run(install(&[("DESTDIR", root)])).succeeded();
    assert_eq!(listing(root), after);

    run(uninstall(&[("DESTDIR", root)])).succeeded();
    assert_eq!(listing(root), before);
    let said = run(uninstall(&[("DESTDIR", root)])).succeeded();
    assert!(said.stdout.contains("nothing is installed"), "{said:#?}");
    assert_eq!(listing(root), before);
}

#[test]
fn settings_are_taken_from_the_environment_too() {
    let Some(dir) = place() else { return };
    let mut command = install(&[]);
    command.env("DESTDIR", dir.path()).env("PREFIX", "/opt").env("FILTERDIR", "/filters");
    run(command).succeeded();
    for file in ["opt/bin/nbdkit-pause", "filters/nbdkit-libpause-filter.so"] {
        assert!(dir.path().join(file).is_file(), "{:#?}", listing(dir.path()));
    }
    let mut command = uninstall(&[]);
    command.env("DESTDIR", dir.path()).env("PREFIX", "/opt").env("FILTERDIR", "/filters");
    run(command).succeeded();
    assert_eq!(listing(dir.path()), BTreeMap::new());
}

#[test]
fn a_folder_that_has_got_something_else_stays() {
    let Some(dir) = place() else { return };
    let root = dir.path();
    make(&root.join("usr/local/other/empty"));
    run(install(&[("DESTDIR", root)])).succeeded();
    let theirs = root.join("usr/local/share/zsh/site-functions/_of_another");
    fs::write(&theirs, "theirs").unwrap();
    // The record has no power over folders where nothing of ours belongs.
    let record = root.join("usr/local/share/nbdkit-libpause/folders-made");
    let mut record = fs::File::options().append(true).open(record).unwrap();
    record.write_all(b"/usr/local/other/empty\n/usr/local/other\n\n/\n").unwrap();

    run(uninstall(&[("DESTDIR", root)])).succeeded();
    let left: Vec<PathBuf> = listing(root).into_keys().collect();
    let expected = [
        "usr",
        "usr/local",
        "usr/local/other",
        "usr/local/other/empty",
        "usr/local/share",
        "usr/local/share/zsh",
        "usr/local/share/zsh/site-functions",
        "usr/local/share/zsh/site-functions/_of_another",
    ];
    assert_eq!(left, expected.map(PathBuf::from));
}

#[test]
fn in_folders_of_ones_own_it_is_used_by_path() {
    let Some(dir) = place() else { return };
    let (prefix, filters) = (dir.path().join("my prefix"), dir.path().join("my filters"));
    let settings: [(&str, &Path); 2] = [("PREFIX", &prefix), ("FILTERDIR", &filters)];
    let said = run(install(&settings)).succeeded();
    let installed = filters.join("nbdkit-libpause-filter.so");
    // As a shell takes it.
    let quoted = installed.display().to_string().replace(' ', "\\ ");
    assert!(said.stdout.contains(&format!("--filter={quoted} ")), "{said:#?}");

    let server = Setup::in_memory().filter(installed).parameters(&["pause-hold=true"]).start();
    let mut command = Command::new(prefix.join("bin/nbdkit-pause"));
    command.arg("run").arg(server.control_path()).args(["--", "echo", "the snapshot"]);
    assert_eq!(run(command).succeeded().stdout, "the snapshot\n");
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(Request::Read(0));
    client.all_read_by_server();
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
    drop(client);
    server.stop();

    run(uninstall(&settings)).succeeded();
    assert_eq!(listing(dir.path()), BTreeMap::new());
}

#[test]
fn without_the_helper_the_filter_and_its_page_are_installed() {
    let Some(dir) = place() else { return };
    let root = dir.path().join("root");
    let settings = [
        ("DESTDIR", root.as_path()),
        ("FILTERDIR", Path::new("/filters")),
        ("PAUSE_FILTER", filter::ours()),
        ("PAUSE_HELPER", &dir.path().join("not-built")),
    ];
    let said = run(script("install", &settings)).succeeded();
    assert!(said.stdout.contains("without the helper"), "{said:#?}");
    assert_eq!(
        new_files(&BTreeMap::new(), &listing(&root)),
        [
            "644 filters/nbdkit-libpause-filter.so",
            "644 usr/local/share/man/man1/nbdkit-libpause-filter.1",
            "644 usr/local/share/nbdkit-libpause/folders-made",
        ]
    );
}

/// It fails, says this, and touches nothing.
fn refuses(command: Command, root: &Path, said: &[&str]) {
    let before = listing(root);
    let refusal = run(command);
    assert_eq!(refusal.status.code(), Some(1), "{refusal:#?}");
    for what in said {
        assert!(refusal.stderr.contains(what), "not {what:?}: {refusal:#?}");
    }
    assert_eq!(listing(root), before);
}

#[test]
fn a_missing_build_is_told_with_the_command_that_makes_it() {
    let Some(dir) = place() else { return };
    let nothing = dir.path().join("nothing");
    let settings = [("DESTDIR", dir.path()), ("CARGO_TARGET_DIR", nothing.as_path())];
    let missing = nothing.join("release/libpause.so").display().to_string();
    refuses(script("install", &settings), dir.path(), &[&missing, "cargo build --release"]);
}

#[test]
fn a_filter_for_another_nbdkit_is_refused() {
    let Some(dir) = place() else { return };
    let (version, other) = (installed_nbdkit(), "9.99.9");
    // Versions are strings in C.
    let mut content = fs::read(filter::ours()).unwrap();
    let wanted = format!("\0{version}\0").into_bytes();
    let places: Vec<usize> = content
        .windows(wanted.len() - 1)
        .enumerate()
        .filter(|(_, bytes)| *bytes == &wanted[1..])
        .map(|(place, _)| place)
        .collect();
    assert_eq!(places.len(), 1, "{version} is not in the filter once");
    let other = format!("{other:.*}", version.len());
    content[places[0]..places[0] + other.len()].copy_from_slice(other.as_bytes());
    let path = dir.path().join("other.so");
    fs::write(&path, content).unwrap();

    let settings = [("DESTDIR", dir.path()), ("PAUSE_FILTER", &path)];
    let said = [&path.display().to_string(), &other, &version, "cargo build --release"];
    refuses(script("install", &settings), dir.path(), &said);
    // It is right for a package of that version, and then only for that.
    let other = Path::new(&other);
    let settings = [settings[0], settings[1], ("NBDKIT_VERSION", other)];
    run(script("install", &settings)).succeeded();
}

#[test]
fn a_file_that_belongs_to_a_package_is_left_to_it() {
    let Some(dir) = place() else { return };
    if !Path::new("/usr/bin/dpkg-query").exists() {
        println!("SKIPPED: it takes dpkg");
        return;
    }
    let (prefix, filters) = (dir.path().join("usr"), dir.path().join("filters"));
    let settings = [("PREFIX", prefix.as_path()), ("FILTERDIR", &filters)];
    run(install(&settings)).succeeded();

    // What dpkg(1) knows then.
    let known = folder();
    let info = make(&known.path().join("info")).to_path_buf();
    let status = "Package: other\nStatus: install ok installed\nVersion: 1\n\
                  Architecture: all\nMaintainer: nobody\nDescription: other\n";
    fs::write(known.path().join("status"), status).unwrap();
    fs::write(info.join("format"), "1\n").unwrap();
    let filter = filters.join("nbdkit-libpause-filter.so").display().to_string();
    fs::write(info.join("other.list"), format!("{filter}\n")).unwrap();

    for mut command in [install(&settings), uninstall(&settings)] {
        command.env("DPKG_ADMINDIR", known.path());
        refuses(command, dir.path(), &[&filter, "the package other", "remove the package"]);
    }
    // It is not this system's where it goes into a package itself.
    let mut command =
        install(&[settings.as_slice(), &[("DESTDIR", &known.path().join("new"))]].concat());
    command.env("DPKG_ADMINDIR", known.path());
    run(command).succeeded();
    run(uninstall(&settings)).succeeded();
}

#[test]
fn a_file_that_is_no_filter_is_refused() {
    let Some(dir) = place() else { return };
    let path = dir.path().join("libpause.so");
    fs::write(&path, "not a library").unwrap();
    let settings = [("DESTDIR", dir.path()), ("PAUSE_FILTER", &path)];
    let said = [&path.display().to_string(), "nbdkit does not load"];
    refuses(script("install", &settings), dir.path(), &said);
}

#[test]
fn a_setting_that_makes_no_sense_is_refused_by_name() {
    let Some(dir) = place() else { return };
    for (setting, value) in [("DESTIDR", "/x"), ("PREFIX", "usr"), ("FILTERDIR", "./filters")] {
        let settings = [("DESTDIR", dir.path()), (setting, Path::new(value))];
        for command in [install(&settings), uninstall(&settings)] {
            refuses(command, dir.path(), &[&format!("{setting}={value}")]);
        }
    }
}

/// Without root's right to write everywhere, if this is root.
fn with_rights_of_a_user(mut command: Command) -> Command {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    // SAFETY: prctl(2) is a plain system call, which may be made between fork
    // and exec.
    unsafe {
        command.pre_exec(|| {
            // A user has no such right, and can't drop it either.
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
            Ok(())
        });
    }
    command
}

#[test]
fn a_folder_that_can_not_be_written_is_told_before_anything_is_touched() {
    let Some(dir) = place() else { return };
    let root = dir.path();
    tree(root);
    let bin = root.join("usr/local/bin");
    let writable = |yes: bool| {
        let mode = fs::Permissions::from_mode(if yes { 0o755 } else { 0o555 });
        fs::set_permissions(&bin, mode).unwrap();
    };
    let named = bin.display().to_string();
    let settings = [("DESTDIR", root)];
    writable(false);
    refuses(with_rights_of_a_user(install(&settings)), root, &[&named, "DESTDIR"]);
    writable(true);
    run(install(&settings)).succeeded();
    writable(false);
    refuses(with_rights_of_a_user(uninstall(&settings)), root, &[&named]);
    refuses(with_rights_of_a_user(install(&settings)), root, &[&named]);
    writable(true);
    run(with_rights_of_a_user(uninstall(&settings))).succeeded();
}

#[test]
fn a_server_that_runs_is_not_disturbed_by_an_install_over_its_filter() {
    let Some(dir) = place() else { return };
    let filters = dir.path().join("filters");
    let settings =
        [("FILTERDIR", filters.as_path()), ("PREFIX", dir.path()), ("DESTDIR", Path::new(""))];
    run(install(&settings)).succeeded();
    let installed = filters.join("nbdkit-libpause-filter.so");
    let server = Setup::in_memory().filter(installed.clone()).start();
    let mut client = Client::connect(&server);
    let mut controller = server.controller();
    controller.pause();
    let held = client.send(Request::Write(0, 7));
    client.all_read_by_server();

    let new = ours_and_a_byte(dir.path());
    let settings = [&settings[..], &[("PAUSE_FILTER", &new)]].concat();
    run(install(&settings)).succeeded();
    assert_eq!(fs::read(&installed).unwrap(), fs::read(&new).unwrap());

    // What it has mapped is the old file still.
    let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    let name = installed.display().to_string();
    let mapped: Vec<&str> = maps.lines().filter(|line| line.contains(&name)).collect();
    assert!(!mapped.is_empty(), "{maps}");
    assert!(mapped.iter().all(|line| line.ends_with("(deleted)")), "{mapped:#?}");
    client.expect_held(&[held], A_WHILE);
    controller.resume();
    client.reply(held).unwrap();
    assert_eq!(client.ask(Request::Read(0)), [7; 512]);
    controller.pause();
    controller.resume();
    drop(client);
    server.stop();

    let server = Setup::in_memory().filter(installed).start();
    server.controller().pause();
    server.stop();
}

#[test]
fn a_filter_that_is_replaced_is_there_and_whole_at_every_moment() {
    let Some(dir) = place() else { return };
    let new = ours_and_a_byte(dir.path());
    let contents = [filter::ours(), &new].map(|path| fs::read(path).unwrap());
    let root = dir.path().join("root");
    let settings = [("DESTDIR", root.as_path()), ("FILTERDIR", Path::new("/filters"))];
    run(install(&settings)).succeeded();
    let installed = root.join("filters/nbdkit-libpause-filter.so");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let content = fs::read(&installed).expect("the filter is there");
                assert!(contents.contains(&content), "{} bytes", content.len());
                looks += 1;
            }
            looks
        });
        for round in 0..6 {
            let path = if round % 2 == 0 { &new } else { filter::ours() };
            run(install(&[&settings[..], &[("PAUSE_FILTER", path)]].concat())).succeeded();
        }
        done.store(true, Ordering::Relaxed);
        assert!(looks.join().unwrap() > 100);
    });
    let names: Vec<_> = fs::read_dir(root.join("filters")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

// --- the Debian package ----------------------------------------------------

const NAME: &str = "nbdkit-libpause";

/// A Debian package of this filter, made in this folder.
fn package(release: &Release, filter: &Path, revision: u32, into: &Path) -> PathBuf {
    run(deb(release, filter, revision, into)).succeeded();
    let mut packages = fs::read_dir(into).unwrap().map(|entry| entry.unwrap().path());
    packages.find(|path| path.extension() == Some("deb".as_ref())).expect("a package")
}

fn deb(release: &Release, filter: &Path, revision: u32, into: &Path) -> Command {
    let revision = revision.to_string();
    let settings = [
        ("CARGO_TARGET_DIR", into),
        ("NBDKIT_VERSION", Path::new(&release.nbdkit)),
        ("PAUSE_FILTER", filter),
        ("PAUSE_HELPER", filter::helper()),
        ("DEB_REVISION", Path::new(&revision)),
    ];
    script("deb", &settings)
}

/// The package of what was built here, revision 1: made once for all tests.
fn first_package(release: &Release) -> PathBuf {
    static MADE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    let made = made.entry(release.nbdkit.clone()).or_insert_with(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package").join(&release.nbdkit);
        let _ = fs::remove_dir_all(&folder);
        package(release, &release.filter(), 1, &folder)
    });
    made.clone()
}

/// What a system has, but for what dpkg and servers keep in it.
fn content(system: &System) -> BTreeMap<PathBuf, String> {
    let mut all = listing(&system.path(""));
    all.retain(|path, _| !path.starts_with("var/lib/dpkg") && !path.starts_with("srv"));
    all
}

/// A client's copy of the whole disk is held up for as long as the server is
/// paused, and goes on.
fn pauses_a_copy(server: &Served) {
    let before = server.logged();
    let since = |before: &str| server.logged()[before.len()..].to_owned();
    let mut controller = server.controller();
    controller.pause();
    let mut copy = clients::start("nbdcopy", &[&server.uri(), "null:"]);
    eventually("the client is connected", GENEROUS, || since(&before).contains(" Connect "));
    thread::sleep(A_WHILE);
    assert!(copy.is_running(), "{}", copy.stderr());
    assert!(!since(&before).contains("offset="), "{}", server.logged());
    controller.resume();
    copy.finish(GENEROUS).succeeded();
    assert!(since(&before).contains(" Read "), "{}", server.logged());
}

/// A release to test with; None, and says why, where there can be none.
fn release(name: &'static str) -> Option<Release> {
    let skipped = |why: String| println!("SKIPPED: no system of {name} here: {}", why.trim());
    match debian::why_not() {
        Some(why) => {
            skipped(why);
            None
        }
        None => Release::get(name).map_err(skipped).ok(),
    }
}

/// The whole life of the package in a system of this release. Servers with
/// nbdkit's own filter are not told to end but killed: it crashes then, now and
/// then, if a controller has just left.
fn a_package_comes_and_goes(name: &'static str) {
    let Some(release) = release(name) else { return };
    let system = System::with_nbdkit(&release);
    let filters = system.filters();
    let stock = system.path(filters.join("nbdkit-pause-filter.so"));
    let stock_is = fs::read(&stock).unwrap();
    let before = content(&system);
    let version = |revision: u32| {
        format!("{}-{revision}+nbdkit{}", env!("CARGO_PKG_VERSION"), release.nbdkit)
    };
    let by_path = filters.join("nbdkit-libpause-filter.so").display().to_string();

    // Install.
    system.install(&first_package(&release)).succeeded();
    assert_eq!(system.state_of(NAME), format!("installed {}", version(1)));
    assert_eq!(fs::read(&stock).unwrap(), stock_is);
    let installed = content(&system);
    assert!(before.iter().all(|(path, what)| installed.get(path) == Some(what)));
    let multiarch = filters.strip_prefix("/").unwrap().display().to_string();
    assert_eq!(
        new_files(&before, &installed),
        [
            "755 usr/bin/nbdkit-pause".to_owned(),
            format!("644 {multiarch}/nbdkit-libpause-filter.so"),
            "644 usr/share/bash-completion/completions/nbdkit-pause".to_owned(),
            "644 usr/share/doc/nbdkit-libpause/changelog.Debian.gz".to_owned(),
            "644 usr/share/doc/nbdkit-libpause/changelog.gz".to_owned(),
            "644 usr/share/doc/nbdkit-libpause/copyright".to_owned(),
            "644 usr/share/fish/vendor_completions.d/nbdkit-pause.fish".to_owned(),
            "644 usr/share/man/man1/nbdkit-libpause-filter.1.gz".to_owned(),
            "644 usr/share/man/man1/nbdkit-pause.1.gz".to_owned(),
            "644 usr/share/zsh/vendor-completions/_nbdkit-pause".to_owned(),
        ]
    );

    let mut gunzip = Command::new("gzip");
    gunzip.arg("-dc").arg(system.path("usr/share/man/man1/nbdkit-libpause-filter.1.gz"));
    expect_whole_page(&run(gunzip).succeeded().stdout);

    // Use, by name and by path; nbdkit's own is what `pause` is, as before.
    let server = system.serve("libpause");
    pauses_a_copy(&server);
    assert!(!server.mapped("nbdkit-libpause-filter.so").is_empty());
    let by_path = system.serve(&by_path);
    pauses_a_copy(&by_path);
    assert!(!by_path.mapped("nbdkit-libpause-filter.so").is_empty());
    by_path.stop();
    let own = system.serve("pause");
    pauses_a_copy(&own);
    assert!(!own.mapped("nbdkit-pause-filter.so").is_empty());
    assert!(own.mapped("libpause").is_empty());
    drop(own);

    // Upgrade, with a server that runs.
    let dir = folder();
    let newer = dir.path().join("newer.so");
    fs::write(&newer, [fs::read(release.filter()).unwrap(), vec![0]].concat()).unwrap();
    system.install(&package(&release, &newer, 2, dir.path())).succeeded();
    assert_eq!(system.state_of(NAME), format!("installed {}", version(2)));
    assert_eq!(fs::read(&stock).unwrap(), stock_is);
    let filter = system.path(filters.join("nbdkit-libpause-filter.so"));
    assert_eq!(fs::read(filter).unwrap(), fs::read(&newer).unwrap());
    assert_eq!(content(&system).keys().collect::<Vec<_>>(), installed.keys().collect::<Vec<_>>());
    let old = server.mapped("nbdkit-libpause-filter.so");
    assert!(old.iter().all(|line| line.ends_with("(deleted)")), "{old:#?}");
    pauses_a_copy(&server);
    let newer = system.serve("libpause");
    pauses_a_copy(&newer);
    server.stop();

    // Removal, with a server that runs.
    system.dpkg(&["--purge".as_ref(), NAME.as_ref()]).succeeded();
    assert_eq!(system.state_of(NAME), "");
    assert_eq!(fs::read(&stock).unwrap(), stock_is);
    assert_eq!(content(&system), before);
    pauses_a_copy(&newer);
    newer.stop();
    let own = system.serve("pause");
    pauses_a_copy(&own);
    drop(own);
    let mut command = system.nbdkit();
    command.args(["--filter=libpause", "memory", "1M", "pause-control=/srv/control"]);
    let refusal = run(command);
    assert!(refusal.stderr.contains("nbdkit-libpause-filter.so"), "{refusal:#?}");
}

#[test]
fn a_package_is_installed_used_upgraded_and_removed_on_bookworm() {
    a_package_comes_and_goes("bookworm");
}

#[test]
fn a_package_is_installed_used_upgraded_and_removed_on_trixie() {
    a_package_comes_and_goes("trixie");
}

#[test]
fn a_package_for_one_nbdkit_is_not_configured_beside_another() {
    let (Some(bookworm), Some(trixie)) = (release("bookworm"), release("trixie")) else { return };
    for (is_for, is_there) in [(&bookworm, &trixie), (&trixie, &bookworm)] {
        let system = System::with_nbdkit(is_there);
        let stock = system.path(system.filters().join("nbdkit-pause-filter.so"));
        let stock_is = fs::read(&stock).unwrap();
        let refusal = system.install(&first_package(is_for));
        assert_eq!(refusal.status.code(), Some(1), "{refusal:#?}");
        assert!(refusal.stderr.contains("depends on nbdkit ("), "{refusal:#?}");
        assert!(system.state_of(NAME).starts_with("unpacked "), "{}", system.state_of(NAME));
        assert_eq!(fs::read(&stock).unwrap(), stock_is);
    }
}

/// dpkg's own word on versions.
fn compare(version: &str, relation: &str, other: &str) -> bool {
    let mut command = Command::new("dpkg");
    command.args(["--compare-versions", version, relation, other]);
    run(command).status.success()
}

#[test]
fn a_package_depends_on_one_nbdkit_in_all_revisions_and_sorts_by_its_own_version_first() {
    let Some(release) = release("bookworm") else { return };
    let package = first_package(&release);
    let field = |name: &str| {
        let mut command = Command::new("dpkg-deb");
        command.arg("--field").arg(&package).arg(name);
        run(command).succeeded().stdout.trim().to_owned()
    };
    let depends = field("Depends");
    let bounds: Vec<(&str, &str)> = depends
        .split(", ")
        .filter_map(|one| one.strip_prefix("nbdkit (")?.strip_suffix(')')?.split_once(' '))
        .collect();
    assert_eq!(bounds.len(), 2, "{depends}");
    let fits = |version: &str| bounds.iter().all(|(how, bound)| compare(version, how, bound));
    let nbdkit = &release.nbdkit;
    for revision in ["-1", "-1+b2", "-1+deb12u1", "-1~bpo12+1", "-2ubuntu3.1", "+dfsg-1"] {
        assert!(fits(&format!("{nbdkit}{revision}")), "{revision}: {depends}");
    }
    let (start, last) = nbdkit.rsplit_once('.').unwrap();
    let last: u32 = last.parse().unwrap();
    for last in [last - 1, last + 1] {
        for revision in ["-1", "-1~bpo12+1", "~rc1-1"] {
            assert!(!fits(&format!("{start}.{last}{revision}")), "{last} {revision}: {depends}");
        }
    }

    let version = field("Version");
    let start = version.strip_suffix(&format!("-1+nbdkit{nbdkit}")).expect("such a version");
    // A rebuild for a later nbdkit, a later package, a later libpause.
    for later in [
        format!("{start}-1+nbdkit1.100.2"),
        format!("{start}-2+nbdkit1.26.0"),
        format!("{start}.1-1+nbdkit1.26.0"),
    ] {
        assert!(compare(&version, "lt", &later), "{version} {later}");
    }
}

#[test]
fn a_package_has_the_same_bytes_each_time_and_root_owns_all_of_it() {
    let Some(release) = release("bookworm") else { return };
    let first = first_package(&release);
    // Times of files have parts of a second; those in packages don't.
    thread::sleep(Duration::from_millis(1100));
    let dir = folder();
    let mut command = deb(&release, &release.filter(), 1, dir.path());
    command.env("TZ", "Asia/Tokyo").env("LC_ALL", "C").current_dir("/");
    if crate::common::server::is_root() {
        command.gid(65534);
    }
    // SAFETY: umask(2) is a plain system call, which may be made between fork
    // and exec.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o077);
            Ok(())
        });
    }
    run(command).succeeded();
    let again = dir.path().join(first.file_name().unwrap());
    let mut command = Command::new("dpkg-deb");
    command.arg("--contents").arg(&again);
    let all = run(command).succeeded().stdout;
    assert!(all.lines().all(|line| line.contains(" root/root ")), "{all}");
    assert!(fs::read(first).unwrap() == fs::read(again).unwrap(), "two packages");
}

#[test]
fn what_the_script_installs_is_found_by_its_short_name() {
    let Some(release) = release("bookworm") else { return };
    let system = System::with_nbdkit(&release);
    let before = content(&system);
    let (root, filters) = (system.path(""), system.filters());
    let settings = [("DESTDIR", root.as_path()), ("FILTERDIR", &filters)];
    let command = script(
        "install",
        &[
            &settings[..],
            &[
                ("NBDKIT_VERSION", Path::new(&release.nbdkit)),
                ("PAUSE_FILTER", &release.filter()),
                ("PAUSE_HELPER", filter::helper()),
            ],
        ]
        .concat(),
    );
    run(command).succeeded();
    let server = system.serve("libpause");
    assert!(!server.mapped("nbdkit-libpause-filter.so").is_empty());
    pauses_a_copy(&server);
    server.stop();
    let own = system.serve("pause");
    assert!(own.mapped("libpause").is_empty());
    pauses_a_copy(&own);
    drop(own);
    run(uninstall(&settings)).succeeded();
    assert_eq!(content(&system), before);
}

// --- the build -------------------------------------------------------------

/// What cargo did, and for which nbdkit the bindings are now.
struct Checked {
    anew: bool,
    bindings: String,
}

/// Compiles the filter, but for its machine code, against the nbdkit of a system.
fn check(build: &BuildFolder, system: &System) -> Checked {
    let pkgconfig = fs::read_dir(system.path("usr/lib"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("pkgconfig"))
        .find(|path| path.is_dir())
        .expect("a folder of nbdkit.pc");
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["check", "--release", "--package=pause", "--message-format=json", "--target-dir"])
        .arg(build.path())
        .current_dir(PACKAGE)
        .env("PKG_CONFIG_PATH", pkgconfig)
        .env("PKG_CONFIG_SYSROOT_DIR", system.path("").display().to_string().trim_end_matches('/'));
    let Finished { stdout, .. } = run(command).succeeded();
    let message = |of: &[&str]| {
        let mut lines = stdout.lines().filter(|line| of.iter().all(|part| line.contains(part)));
        lines.next().unwrap_or_else(|| panic!("no {of:?} in {stdout}")).to_owned()
    };
    let filter = message(&[r#""reason":"compiler-artifact""#, r#""crate_types":["cdylib"]"#]);
    let script = message(&[r#""reason":"build-script-executed""#, "/build/pause-"]);
    let out = script.split_once(r#""out_dir":""#).unwrap().1.split('"').next().unwrap();
    Checked {
        anew: filter.contains(r#""fresh":false"#),
        bindings: fs::read_to_string(Path::new(out).join("nbdkit_sys.rs")).unwrap(),
    }
}

#[test]
fn after_an_upgrade_of_nbdkit_and_only_then_cargo_builds_anew() {
    let (Some(old), Some(new)) = (release("bookworm"), release("trixie")) else { return };
    let system = System::empty();
    let unpack = |release: &Release| {
        let package = release.package("nbdkit-plugin-dev");
        // Its dependencies are no matter here.
        system.dpkg(&["--unpack".as_ref(), package.as_os_str()] as &[&OsStr]).succeeded();
    };
    let is_for = |bindings: &str, release: &Release| {
        bindings.contains(&format!("\"{}\\0\"", release.nbdkit))
    };

    unpack(&old);
    let build = BuildFolder::lock();
    let first = SystemTime::now();
    let checked = check(&build, &system);
    assert!(checked.anew && is_for(&checked.bindings, &old));
    assert!(!check(&build, &system).anew);

    unpack(&new);
    // It is this that cargo alone would go by.
    let header = system.path("usr/include/nbdkit-filter.h");
    assert!(fs::metadata(header).unwrap().modified().unwrap() < first);
    let checked = check(&build, &system);
    assert!(checked.anew && is_for(&checked.bindings, &new));
    assert!(!check(&build, &system).anew);
}

/// The build script of this package, which cargo has built.
fn build_script() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debug/build");
    let scripts = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let ours =
        scripts.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("pause-"));
    let scripts = ours.map(|path| path.join("build-script-build")).filter(|path| path.exists());
    scripts
        .max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap())
        .expect("cargo built it")
}

fn make_bindings(out: &Path, environment: &[(&str, &Path)]) -> Finished {
    let mut command = Command::new(build_script());
    command.current_dir(PACKAGE).env("OUT_DIR", out).envs(environment.iter().copied());
    run(command)
}

#[test]
fn the_headers_are_those_that_pkg_config_names_whatever_a_compiler_finds_first() {
    let (out, others) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for name in ["nbdkit-filter.h", "nbdkit-common.h", "nbdkit-version.h"] {
        fs::write(others.path().join(name), "#error the wrong header\n").unwrap();
    }
    for variable in ["C_INCLUDE_PATH", "CPATH"] {
        let made = make_bindings(out.path(), &[(variable, others.path())]).succeeded();
        assert!(made.stdout.contains("cargo::rerun-if-changed="), "{made:#?}");
        let bindings = fs::read_to_string(out.path().join("nbdkit_sys.rs")).unwrap();
        assert!(bindings.contains(&format!("\"{}\\0\"", installed_nbdkit())));
    }
}

#[test]
fn headers_of_another_version_than_pkg_config_has_are_refused() {
    let (out, others) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let description = "includedir=/usr/include\nName: nbdkit\nDescription:\nVersion: 1.99.1\n";
    fs::write(others.path().join("nbdkit.pc"), description).unwrap();
    let refused = make_bindings(out.path(), &[("PKG_CONFIG_PATH", others.path())]);
    assert!(!refused.status.success());
    for words in ["pkg-config has nbdkit 1.99.1", "/usr/include/nbdkit-filter.h", "another version"]
    {
        assert!(refused.stderr.contains(words), "{refused:#?}");
    }
}
