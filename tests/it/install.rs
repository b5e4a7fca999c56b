//! Installing it: `scripts/install` and `uninstall`, the Debian package that
//! `scripts/deb` builds, and a build after an upgrade of nbdkit. Each has a
//! folder, or a small system, of its own. What the filter does once it is
//! loaded is a matter of the other files.

use super::*;

/// One of the scripts, with settings.
struct Script(Command);

fn script(name: &str) -> Script {
    let mut command = Command::new(Path::new(PACKAGE).join("scripts").join(name));
    // All that they listen to in the environment.
    for setting in ["DESTDIR", "PREFIX", "FILTERDIR", "NBDKIT_VERSION", "PAUSE_FILTER"]
        .iter()
        .chain(&["PAUSE_HELPER", "CARGO_TARGET_DIR", "DEB_REVISION"])
    {
        command.env_remove(setting);
    }
    Script(command)
}

/// `scripts/install` with what was built here.
fn install() -> Script {
    script("install").with("PAUSE_FILTER", filter::ours()).with("PAUSE_HELPER", filter::helper())
}

fn uninstall() -> Script {
    script("uninstall")
}

impl Script {
    /// With one more setting; the last one of a name counts.
    fn with(mut self, setting: &str, value: impl AsRef<Path>) -> Self {
        self.0.arg(format!("{setting}={}", value.as_ref().display()));
        self
    }

    fn env(mut self, variable: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(variable, value);
        self
    }

    /// Without root's right to write everywhere, if this is root.
    fn with_rights_of_a_user(mut self) -> Self {
        const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
        // SAFETY: prctl(2) is a plain system call, which may be made between fork
        // and exec.
        unsafe {
            self.0.pre_exec(|| {
                // A user has no such right, and can't drop it either.
                libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
                Ok(())
            });
        }
        self
    }

    fn succeeds(self) -> Finished {
        run(self.0).succeeded()
    }

    /// It fails, says this, and touches nothing below `root`.
    fn refused(self, root: &Path, said: &[&str]) {
        let before = listing(root);
        let refusal = run(self.0);
        assert_eq!(refusal.status.code(), Some(1), "{refusal:#?}");
        for what in said {
            assert!(refusal.stderr.contains(what), "not {what:?}: {refusal:#?}");
        }
        assert_eq!(listing(root), before);
    }
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
type Listing = BTreeMap<PathBuf, String>;

fn listing(root: &Path) -> Listing {
    let mut all = Listing::new();
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
fn new_files(before: &Listing, after: &Listing) -> Vec<String> {
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

/// A copy of a file, and for nbdkit the same filter, with one more byte.
fn and_a_byte(original: &Path, folder: &Path) -> PathBuf {
    let path = folder.join("newer.so");
    fs::write(&path, [fs::read(original).unwrap(), vec![0]].concat()).unwrap();
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

    let said = install().with("DESTDIR", root).succeeds();
    let after = listing(root);
    let filter = own_filters().join("nbdkit-libpause-filter.so");
    let filter = filter.strip_prefix("/").unwrap();
    assert_eq!(
        new_files(&before, &after),
        [
            &format!("644 {}", filter.display()),
            "755 usr/local/bin/nbdkit-pause",
            "644 usr/local/share/bash-completion/completions/nbdkit-pause",
            "644 usr/local/share/fish/vendor_completions.d/nbdkit-pause.fish",
            "644 usr/local/share/man/man1/nbdkit-libpause-filter.1",
            "644 usr/local/share/man/man1/nbdkit-pause.1",
            "644 usr/local/share/nbdkit-libpause/folders-made",
            "644 usr/local/share/zsh/site-functions/_nbdkit-pause",
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
    install().with("DESTDIR", root).succeeds();
    assert_eq!(listing(root), after);

    uninstall().with("DESTDIR", root).succeeds();
    assert_eq!(listing(root), before);
    let said = uninstall().with("DESTDIR", root).succeeds();
    assert!(said.stdout.contains("nothing is installed"), "{said:#?}");
    assert_eq!(listing(root), before);
}

#[test]
fn settings_are_taken_from_the_environment_too() {
    let Some(dir) = place() else { return };
    let by_environment = |script: Script| {
        script.env("DESTDIR", dir.path()).env("PREFIX", "/opt").env("FILTERDIR", "/filters")
    };
    by_environment(install()).succeeds();
    for file in ["opt/bin/nbdkit-pause", "filters/nbdkit-libpause-filter.so"] {
        assert!(dir.path().join(file).is_file(), "{:#?}", listing(dir.path()));
    }
    by_environment(uninstall()).succeeds();
    assert_eq!(listing(dir.path()), Listing::new());
}

#[test]
fn a_folder_that_has_got_something_else_stays() {
    let Some(dir) = place() else { return };
    let root = dir.path();
    make(&root.join("usr/local/other/empty"));
    install().with("DESTDIR", root).succeeds();
    let theirs = "usr/local/share/zsh/site-functions/_of_another";
    fs::write(root.join(theirs), "theirs").unwrap();
    // The record has no power over folders where nothing of ours belongs.
    let record = root.join("usr/local/share/nbdkit-libpause/folders-made");
    let mut record = File::options().append(true).open(record).unwrap();
    record.write_all(b"/usr/local/other/empty\n/usr/local/other\n\n/\n").unwrap();

    uninstall().with("DESTDIR", root).succeeds();
    let mut expected: Vec<&Path> = ["usr/local/other/empty", theirs].map(Path::new).to_vec();
    expected = expected.iter().flat_map(|path| path.ancestors()).collect();
    expected.retain(|path| *path != Path::new(""));
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(listing(root).keys().collect::<Vec<_>>(), expected);
}

#[test]
fn in_folders_of_ones_own_it_is_used_by_path() {
    let Some(dir) = place() else { return };
    let (prefix, filters) = (dir.path().join("my prefix"), dir.path().join("my filters"));
    let there = |script: Script| script.with("PREFIX", &prefix).with("FILTERDIR", &filters);
    let said = there(install()).succeeds();
    let installed = filters.join("nbdkit-libpause-filter.so");
    // As a shell takes it.
    let quoted = installed.display().to_string().replace(' ', "\\ ");
    assert!(said.stdout.contains(&format!("--filter={quoted} ")), "{said:#?}");

    let mut stage = Stage::on(Setup::in_memory().filter(installed).holds());
    let mut command = Command::new(prefix.join("bin/nbdkit-pause"));
    command.arg("run").arg(stage.server.control_path()).args(["--", "echo", "the snapshot"]);
    assert_eq!(run(command).succeeded().stdout, "the snapshot\n");
    stage.play("A:p=P held A:r=R flow");
    stage.end();

    there(uninstall()).succeeds();
    assert_eq!(listing(dir.path()), Listing::new());
}

#[test]
fn without_the_helper_the_filter_and_its_page_are_installed() {
    let Some(dir) = place() else { return };
    let root = dir.path().join("root");
    let there = install().with("DESTDIR", &root).with("FILTERDIR", "/filters");
    let said = there.with("PAUSE_HELPER", dir.path().join("not-built")).succeeds();
    assert!(said.stdout.contains("without the helper"), "{said:#?}");
    assert_eq!(
        new_files(&Listing::new(), &listing(&root)),
        [
            "644 filters/nbdkit-libpause-filter.so",
            "644 usr/local/share/man/man1/nbdkit-libpause-filter.1",
            "644 usr/local/share/nbdkit-libpause/folders-made",
        ]
    );
}

#[test]
fn what_is_no_build_is_refused_with_the_command_that_makes_one() {
    let Some(dir) = place() else { return };
    let nothing = dir.path().join("nothing");
    let missing = nothing.join("release/libpause.so").display().to_string();
    script("install")
        .with("DESTDIR", dir.path())
        .with("CARGO_TARGET_DIR", nothing)
        .refused(dir.path(), &[&missing, "cargo build --release"]);

    let path = dir.path().join("libpause.so");
    fs::write(&path, "not a library").unwrap();
    let said = [&path.display().to_string(), "nbdkit does not load"];
    let command = script("install").with("DESTDIR", dir.path()).with("PAUSE_FILTER", path);
    command.refused(dir.path(), &said);
}

#[test]
fn a_setting_that_makes_no_sense_is_refused_by_name() {
    let Some(dir) = place() else { return };
    for (setting, value) in [("DESTIDR", "/x"), ("PREFIX", "usr"), ("FILTERDIR", "./filters")] {
        for script in [install(), uninstall()] {
            let script = script.with("DESTDIR", dir.path()).with(setting, value);
            script.refused(dir.path(), &[&format!("{setting}={value}")]);
        }
    }
}

#[test]
fn a_filter_for_another_nbdkit_is_refused() {
    let Some(dir) = place() else { return };
    let (version, other) = (installed_nbdkit(), "9.99.9");
    // Versions are strings in C.
    let mut content = fs::read(filter::ours()).unwrap();
    let wanted = format!("{version}\0").into_bytes();
    let is_it = |place: &usize| content[*place..].starts_with(&wanted);
    let places: Vec<usize> = (0..content.len()).filter(is_it).collect();
    assert_eq!(places.len(), 1, "{version} is not in the filter once");
    let other = format!("{other:.*}", version.len());
    content[places[0]..places[0] + other.len()].copy_from_slice(other.as_bytes());
    let path = dir.path().join("other.so");
    fs::write(&path, content).unwrap();

    let command = || script("install").with("DESTDIR", dir.path()).with("PAUSE_FILTER", &path);
    let said = [&path.display().to_string(), &other, &version, "cargo build --release"];
    command().refused(dir.path(), &said);
    // It is right for a package of that version, and then only for that.
    command().with("NBDKIT_VERSION", other).succeeds();
}

#[test]
fn a_file_that_belongs_to_a_package_is_left_to_it() {
    let Some(dir) = place() else { return };
    if !Path::new("/usr/bin/dpkg-query").exists() {
        println!("SKIPPED: it takes dpkg");
        return;
    }
    let (prefix, filters) = (dir.path().join("usr"), dir.path().join("filters"));
    let there = |script: Script| script.with("PREFIX", &prefix).with("FILTERDIR", &filters);
    there(install()).succeeds();

    // What dpkg(1) knows then.
    let known = folder();
    let info = make(&known.path().join("info")).to_path_buf();
    let status = "Package: other\nStatus: install ok installed\nVersion: 1\n\
                  Architecture: all\nMaintainer: nobody\nDescription: other\n";
    fs::write(known.path().join("status"), status).unwrap();
    fs::write(info.join("format"), "1\n").unwrap();
    let filter = filters.join("nbdkit-libpause-filter.so").display().to_string();
    fs::write(info.join("other.list"), format!("{filter}\n")).unwrap();

    let said = [&filter, "the package other", "remove the package"];
    for script in [install(), uninstall()] {
        there(script).env("DPKG_ADMINDIR", known.path()).refused(dir.path(), &said);
    }
    // It is not this system's where it goes into a package itself.
    let into_a_package = there(install()).with("DESTDIR", known.path().join("new"));
    into_a_package.env("DPKG_ADMINDIR", known.path()).succeeds();
    there(uninstall()).succeeds();
}

#[test]
fn a_folder_that_can_not_be_written_is_told_before_anything_is_touched() {
    let Some(dir) = place() else { return };
    let root = dir.path();
    tree(root);
    let bin = root.join("usr/local/bin");
    let named = bin.display().to_string();
    let by_a_user = |script: Script| script.with("DESTDIR", root).with_rights_of_a_user();
    set_mode(&bin, 0o555);
    by_a_user(install()).refused(root, &[&named, "DESTDIR"]);
    set_mode(&bin, 0o755);
    install().with("DESTDIR", root).succeeds();
    set_mode(&bin, 0o555);
    by_a_user(uninstall()).refused(root, &[&named]);
    by_a_user(install()).refused(root, &[&named]);
    set_mode(&bin, 0o755);
    by_a_user(uninstall()).succeeds();
}

#[test]
fn a_server_that_runs_is_not_disturbed_by_an_install_over_its_filter() {
    let Some(dir) = place() else { return };
    let filters = dir.path().join("filters");
    let there = || install().with("FILTERDIR", &filters).with("PREFIX", dir.path());
    there().with("DESTDIR", "").succeeds();
    let installed = filters.join("nbdkit-libpause-filter.so");
    let mut stage = Stage::on(Setup::in_memory().filter(installed.clone()));
    stage.play("A:p=P held");

    let new = and_a_byte(filter::ours(), dir.path());
    there().with("DESTDIR", "").with("PAUSE_FILTER", &new).succeeds();
    assert_eq!(fs::read(&installed).unwrap(), fs::read(&new).unwrap());

    // What it has mapped is the old file still.
    let maps = fs::read_to_string(format!("/proc/{}/maps", stage.server.pid())).unwrap();
    let name = installed.display().to_string();
    let mapped: Vec<&str> = maps.lines().filter(|line| line.contains(&name)).collect();
    assert!(!mapped.is_empty(), "{maps}");
    assert!(mapped.iter().all(|line| line.ends_with("(deleted)")), "{mapped:#?}");
    stage.play("still A:r=R flow");
    assert_eq!(stage.client().ask(READ), [0xaa; 512]);
    stage.play("A:pr=PR");
    stage.end();
    play(Setup::in_memory().filter(installed), "A:p=P");
}

#[test]
fn a_filter_that_is_replaced_is_there_and_whole_at_every_moment() {
    let Some(dir) = place() else { return };
    let new = and_a_byte(filter::ours(), dir.path());
    let contents = [filter::ours(), &new].map(|path| fs::read(path).unwrap());
    let root = dir.path().join("root");
    let there = || install().with("DESTDIR", &root).with("FILTERDIR", "/filters");
    there().succeeds();
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
            there().with("PAUSE_FILTER", path).succeeds();
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
    deb(release, filter, revision, into).succeeds();
    let mut packages = fs::read_dir(into).unwrap().map(|entry| entry.unwrap().path());
    packages.find(|path| path.extension() == Some("deb".as_ref())).expect("a package")
}

fn deb(release: &Release, filter: &Path, revision: u32, into: &Path) -> Script {
    script("deb")
        .with("CARGO_TARGET_DIR", into)
        .with("NBDKIT_VERSION", &release.nbdkit)
        .with("PAUSE_FILTER", filter)
        .with("PAUSE_HELPER", filter::helper())
        .with("DEB_REVISION", revision.to_string())
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
fn content(system: &System) -> Listing {
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
            "755 usr/bin/nbdkit-pause",
            &format!("644 {multiarch}/nbdkit-libpause-filter.so"),
            "644 usr/share/bash-completion/completions/nbdkit-pause",
            "644 usr/share/doc/nbdkit-libpause/changelog.Debian.gz",
            "644 usr/share/doc/nbdkit-libpause/changelog.gz",
            "644 usr/share/doc/nbdkit-libpause/copyright",
            "644 usr/share/fish/vendor_completions.d/nbdkit-pause.fish",
            "644 usr/share/man/man1/nbdkit-libpause-filter.1.gz",
            "644 usr/share/man/man1/nbdkit-pause.1.gz",
            "644 usr/share/zsh/vendor-completions/_nbdkit-pause",
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
    let newer = and_a_byte(&release.filter(), dir.path());
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
fn a_package_is_installed_used_upgraded_and_removed() {
    ["bookworm", "trixie"].into_iter().for_each(a_package_comes_and_goes);
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
    let again = deb(&release, &release.filter(), 1, dir.path());
    let mut command = again.env("TZ", "Asia/Tokyo").env("LC_ALL", "C").0;
    command.current_dir("/");
    if is_root() {
        command.gid(NOBODY);
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
    let there = |script: Script| script.with("DESTDIR", &root).with("FILTERDIR", &filters);
    there(install())
        .with("NBDKIT_VERSION", &release.nbdkit)
        .with("PAUSE_FILTER", release.filter())
        .succeeds();
    let server = system.serve("libpause");
    assert!(!server.mapped("nbdkit-libpause-filter.so").is_empty());
    pauses_a_copy(&server);
    server.stop();
    let own = system.serve("pause");
    assert!(own.mapped("libpause").is_empty());
    pauses_a_copy(&own);
    drop(own);
    there(uninstall()).succeeds();
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
