//! Installing it, with make or as a Debian package, and a build after an upgrade of
//! nbdkit. Each has a folder, or a small system, of its own. What the filter does
//! once it is loaded is a matter of the other files.

use super::*;

fn folder() -> TempDir {
    // Spaces, since a path can have them.
    tempfile::Builder::new().prefix("pause in stall-").tempdir().expect("a temporary folder")
}

/// A folder to install into, after `make`; None, and says so, if another nbdkit is
/// tested than the one that is installed here. To install it once is enough.
fn place() -> Option<TempDir> {
    static BUILT: Mutex<()> = Mutex::new(());
    if debian::other_nbdkit() {
        println!("SKIPPED: it is installed for the nbdkit of this machine only");
        return None;
    }
    let _alone = BUILT.lock().unwrap();
    Process::start(make("all", &[])).finish(GENEROUS * 10).succeeded();
    Some(folder())
}

/// make, by a user whose new files nobody else can read.
fn make(goal: &str, settings: &[(&str, &Path)]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"umask 077 && exec make "$@""#, "make", "-C", PACKAGE, goal]);
    command.env("CARGO_TARGET_DIR", debian::target());
    for variable in ["DESTDIR", "PREFIX", "BINDIR", "MANDIR", "ZSHDIR", "FILTERDIR", "MAKEFLAGS"] {
        command.env_remove(variable);
    }
    command.args(settings.iter().map(|(name, value)| format!("{name}={}", value.display())));
    command
}

fn make_well(goal: &str, settings: &[(&str, &Path)]) {
    run(make(goal, settings)).succeeded();
}

/// All files and links below a folder but dpkg's own: permissions and path of each,
/// and then what changes with it.
fn files(root: &Path) -> BTreeSet<String> {
    let mut find = Command::new("find");
    find.arg(root).args(["-path", "*/var/lib/dpkg", "-prune", "-o", "(", "-type", "f", "-o"]);
    find.args(["-type", "l", ")", "-printf", "%m %P\t%i %s %T@\n"]);
    run(find).succeeded().stdout.lines().map(str::to_owned).collect()
}

/// What has come to these files, as permissions and paths. They are as they were.
fn new_files(before: &BTreeSet<String>, root: &Path) -> Vec<String> {
    let after = files(root);
    assert!(after.is_superset(before), "{:#?}", before - &after);
    (&after - before).iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

/// The version of the nbdkit that is installed on this machine.
fn installed_nbdkit() -> String {
    let mut command = Command::new("pkg-config");
    command.args(["--modversion", "nbdkit"]);
    run(command).succeeded().stdout.trim().to_owned()
}

/// nbdkit's own folder of filters on this machine, below the root.
fn own_filters() -> PathBuf {
    filter::stock().parent().unwrap().strip_prefix("/").unwrap().to_path_buf()
}

/// Nothing but the manual page is there to look up in an emergency: no README is
/// installed.
fn expect_whole_page(page: &str) {
    assert!(page.contains("\n.TH NBDKIT-LIBPAUSE-FILTER 1 "), "{page}");
    for heading in ["PARAMETERS", "SECURITY", "LIMITS", "WHEN SOMETHING IS WRONG"] {
        let is_it = |line: &str| line.replace('"', "") == format!(".SH {heading}");
        assert!(page.lines().any(is_it), "no {heading} in {page}");
    }
}

/// What was built, with this change to the filter.
fn another_build(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut copy = Command::new("sh");
    copy.args(["-c", r#"mkdir "$2/release" && cp "$1"/release/nbdkit-* "$2/release""#, "sh"]);
    copy.arg(debian::target()).arg(folder);
    run(copy).succeeded();
    let mut filter = fs::read(debian::target().join("release/libpause.so")).unwrap();
    change(&mut filter);
    fs::write(folder.join("release/libpause.so"), filter).unwrap();
}

#[test]
fn uninstall_takes_away_just_what_was_installed() {
    let Some(dir) = place() else { return };
    let (root, filters) = (dir.path(), dir.path().join(own_filters()));
    let pages = root.join("usr/local/share/man/man1");
    fs::create_dir_all(&filters).unwrap();
    fs::create_dir_all(&pages).unwrap();
    fs::copy(filter::stock(), filters.join("nbdkit-pause-filter.so")).unwrap();
    fs::write(pages.join("nbdkit-pause-filter.1"), "nbdkit's own\n").unwrap();
    let before = files(root);

    // As a folder may well be given.
    let destination = root.join("");
    for _ in 0..2 {
        make_well("install", &[("DESTDIR", &destination)]);
        assert_eq!(
            new_files(&before, root),
            [
                &format!("644 {}/nbdkit-libpause-filter.so", own_filters().display()),
                "644 usr/local/share/bash-completion/completions/nbdkit-pause",
                "644 usr/local/share/fish/vendor_completions.d/nbdkit-pause.fish",
                "644 usr/local/share/man/man1/nbdkit-libpause-filter.1",
                "644 usr/local/share/man/man1/nbdkit-pause.1",
                "644 usr/local/share/zsh/site-functions/_nbdkit-pause",
                "755 usr/local/bin/nbdkit-pause",
            ]
        );
    }
    let page = fs::read_to_string(pages.join("nbdkit-libpause-filter.1")).unwrap();
    expect_whole_page(&page);
    for folder in ["bin", "share/fish/vendor_completions.d"] {
        let mode = fs::metadata(root.join("usr/local").join(folder)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o755, "{folder}");
    }

    make_well("uninstall", &[("DESTDIR", &destination)]);
    assert_eq!(files(root), before);
}

#[test]
fn a_server_that_runs_is_not_disturbed_by_an_install_over_its_filter() {
    let Some(dir) = place() else { return };
    let (prefix, filters) = (dir.path().join("prefix"), dir.path().join("filters"));
    let there: [(&str, &Path); 2] = [("PREFIX", &prefix), ("FILTERDIR", &filters)];
    make_well("install", &there);
    let installed = filters.join("nbdkit-libpause-filter.so");
    let mut stage = Stage::on(Setup::in_memory().filter(installed.clone()).holds());
    let mut command = Command::new(prefix.join("bin/nbdkit-pause"));
    command.arg("run").arg(stage.server.control_path()).args(["--", "echo", "the snapshot"]);
    assert_eq!(run(command).succeeded().stdout, "the snapshot\n");
    stage.play("A:p=P held");

    let new = folder();
    another_build(new.path(), |filter| filter.push(0));
    make_well("install", &[there[0], there[1], ("CARGO_TARGET_DIR", new.path())]);
    assert_eq!(look(&installed).6, look(&new.path().join("release/libpause.so")).6);

    // What it has mapped is the old file still.
    let maps = fs::read_to_string(format!("/proc/{}/maps", stage.server.pid())).unwrap();
    let mapped = maps.lines().filter(|line| line.contains("nbdkit-libpause-filter.so"));
    let mapped: Vec<&str> = mapped.collect();
    assert!(!mapped.is_empty(), "{maps}");
    assert!(mapped.iter().all(|line| line.ends_with("(deleted)")), "{mapped:#?}");
    stage.play("still A:r=R flow A:pr=PR");
    stage.end();
    play(Setup::in_memory().filter(installed), "A:p=P");

    make_well("uninstall", &there);
    assert_eq!(new_files(&BTreeSet::new(), dir.path()), [""; 0]);
}

#[test]
fn a_filter_that_is_replaced_is_there_and_whole_at_every_moment() {
    let (Some(dir), new) = (place(), folder()) else { return };
    another_build(new.path(), |filter| filter.push(0));
    let builds = [debian::target(), new.path()];
    let contents = builds.map(|build| fs::read(build.join("release/libpause.so")).unwrap());
    let install = |build| {
        make_well("install", &[("DESTDIR", dir.path()), ("CARGO_TARGET_DIR", build)]);
    };
    install(builds[0]);
    let installed = dir.path().join(own_filters()).join("nbdkit-libpause-filter.so");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let content = fs::read(&installed).expect("the filter is there");
                assert!(contents.contains(&content), "{} bytes", content.len());
            }
        });
        (1..=10).for_each(|round| install(builds[round % 2]));
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn install_builds_nothing_and_refuses_what_is_not_built_for_this_nbdkit() {
    let Some(dir) = place() else { return };
    let refused = |build: &Path, said: &[&str]| {
        let settings = [("CARGO_TARGET_DIR", build), ("DESTDIR", &dir.path().join("root"))];
        let refusal = run(make("install", &settings));
        assert!(!refusal.status.success(), "{refusal:#?}");
        for what in said {
            assert!(refusal.stderr.contains(what), "not {what:?}: {refusal:#?}");
        }
        assert!(!dir.path().join("root").exists(), "something was installed");
    };
    let nothing = folder();
    refused(nothing.path(), &["release/libpause.so is missing", "not as root: make"]);
    assert_eq!(fs::read_dir(nothing.path()).unwrap().count(), 0, "something was built");

    let other = folder();
    let version = installed_nbdkit();
    another_build(other.path(), |filter| {
        // Versions are strings in C.
        let wanted = format!("{version}\0").into_bytes();
        let places = |place: &usize| filter[*place..].starts_with(&wanted);
        let place = (0..filter.len()).find(places).expect("its version is in the filter");
        filter[place] = b'9';
    });
    refused(other.path(), &["another nbdkit than", &version, "not as root: make"]);
}

#[test]
fn a_file_that_belongs_to_a_package_is_left_to_it() {
    let Some(dir) = place() else { return };
    if !Path::new("/usr/bin/dpkg-query").exists() {
        println!("SKIPPED: it takes dpkg");
        return;
    }
    let there = [("PREFIX", dir.path()), ("FILTERDIR", dir.path())];
    make_well("install", &there);
    let before = files(dir.path());

    // What dpkg knows then.
    let known = folder();
    let filter = dir.path().join("nbdkit-libpause-filter.so").display().to_string();
    fs::create_dir(known.path().join("info")).unwrap();
    fs::write(known.path().join("info/format"), "1\n").unwrap();
    fs::write(known.path().join("info/other.list"), format!("{filter}\n")).unwrap();
    let status = "Package: other\nStatus: install ok installed\nVersion: 1\n\
                  Architecture: all\nMaintainer: nobody\nDescription: other\n";
    fs::write(known.path().join("status"), status).unwrap();
    for goal in ["install", "uninstall"] {
        let mut command = make(goal, &there);
        command.env("DPKG_ADMINDIR", known.path());
        let refusal = run(command);
        assert!(!refusal.status.success(), "{refusal:#?}");
        assert!(refusal.stdout.contains(&format!("other: {filter}")), "{refusal:#?}");
        assert_eq!(files(dir.path()), before);
    }
}

// --- the Debian package ----------------------------------------------------

/// Debian's own tools make it of a copy of the source, for the nbdkit of a release.
fn package(release: &Release) -> PathBuf {
    let build = BuildFolder::lock();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    let source = folder.join("source");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&source).unwrap();
    let mut copy = Command::new("cp");
    copy.args(["-a", "-t"]).arg(&source);
    for entry in fs::read_dir(PACKAGE).unwrap().map(|entry| entry.unwrap().path()) {
        // What was built here can be large.
        if ![".git", "target", "fuzz"].iter().any(|name| entry.ends_with(name)) {
            copy.arg(entry);
        }
    }
    run(copy).succeeded();
    let mut command = Command::new("dpkg-buildpackage");
    command.args(["-b", "-us", "-uc"]).current_dir(&source).env_remove("MAKEFLAGS");
    // cargo sets these for its tests; a shell need not have them.
    for (variable, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        let default = env::home_dir().map(|home| home.join(folder));
        if env::var_os(variable).map(PathBuf::from) == default {
            command.env_remove(variable);
        }
    }
    command.env("CARGO_TARGET_DIR", build.path());
    command.env("PKG_CONFIG_PATH", pkgconfig(&release.root));
    command.env("PKG_CONFIG_SYSROOT_DIR", &release.root);
    Process::start(command).finish(GENEROUS * 10).succeeded();
    let mut entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.extension() == Some("deb".as_ref())).expect("a package")
}

/// The folder of nbdkit.pc.
fn pkgconfig(root: &Path) -> PathBuf {
    let entries = fs::read_dir(root.join("usr/lib")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path().join("pkgconfig"));
    folders.into_iter().find(|path| path.is_dir()).expect("a folder of nbdkit.pc")
}

#[test]
fn a_package_is_installed_used_and_removed_beside_the_one_nbdkit_that_it_is_for() {
    // What is built on an older system runs there, too.
    let Some(release) = Release::get("trixie") else { return };
    let package = package(&release);
    let system = System::of(&release);
    system.has_installed(&release, &format!("{}-1", release.nbdkit));
    let root = system.path("");
    let before = files(&root);

    system.dpkg("--install", &package).succeeded();
    let filters = pkgconfig(&release.root).with_file_name("nbdkit/filters");
    let filters = filters.strip_prefix(&release.root).unwrap().display().to_string();
    assert_eq!(
        new_files(&before, &root),
        [
            &format!("644 {filters}/nbdkit-libpause-filter.so"),
            "644 usr/share/bash-completion/completions/nbdkit-pause",
            "644 usr/share/doc/nbdkit-libpause/changelog.Debian.gz",
            "644 usr/share/doc/nbdkit-libpause/changelog.gz",
            "644 usr/share/doc/nbdkit-libpause/copyright",
            "644 usr/share/fish/vendor_completions.d/nbdkit-pause.fish",
            "644 usr/share/man/man1/nbdkit-libpause-filter.1.gz",
            "644 usr/share/man/man1/nbdkit-pause.1.gz",
            "644 usr/share/zsh/vendor-completions/_nbdkit-pause",
            "755 usr/bin/nbdkit-pause",
        ]
    );
    let mut gunzip = Command::new("gzip");
    gunzip.arg("-dc").arg(system.path("usr/share/man/man1/nbdkit-libpause-filter.1.gz"));
    expect_whole_page(&run(gunzip).succeeded().stdout);
    let copyright = system.path("usr/share/doc/nbdkit-libpause/copyright");
    let copyright = fs::read_to_string(copyright).unwrap();
    for words in [["clap ", "Apache-2.0"], ["env_logger ", "MIT"], ["rustix ", "Apache-2.0"]] {
        expect_line(&copyright, &words);
    }
    // This one leaves no choice.
    assert!(copyright.contains("Permission is hereby granted, free of charge"), "{copyright}");
    assert!(!copyright.contains("bindgen "), "it is not linked in: {copyright}");

    for (name, other) in [("libpause", "pause"), ("pause", "libpause")] {
        // nbdkit's own filter crashes now and then if it is told to end when a
        // controller has just left, and so is killed.
        let server = system.serve(name);
        for action in ["pause", "resume"] {
            run(system.command(&["nbdkit-pause", action, "/control"])).succeeded();
        }
        let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
        assert!(maps.contains(&format!("/nbdkit-{name}-filter.so")), "{maps}");
        assert!(!maps.contains(&format!("/nbdkit-{other}-filter.so")), "{maps}");
        drop(server);
        for left in ["control", "nbd", "pid"] {
            fs::remove_file(system.path(left)).unwrap();
        }
    }

    system.dpkg("--purge", "nbdkit-libpause").succeeded();
    assert_eq!(files(&root), before);

    // As dpkg sees it: each of Debian's revisions of that nbdkit, and no other one.
    let (start, last) = release.nbdkit.rsplit_once('.').unwrap();
    let last: u32 = last.parse().unwrap();
    let others = [last - 1, last + 1].map(|last| format!("{start}.{last}"));
    let fits = |nbdkit: &str| {
        system.has_installed(&release, nbdkit);
        let installed = system.dpkg("--install", &package);
        installed.status.success() || {
            assert!(installed.stderr.contains("depends on nbdkit ("), "{installed:#?}");
            false
        }
    };
    for revision in ["-1", "-1+deb13u1", "-1~bpo12+1", "-2ubuntu3.1"] {
        assert!(fits(&format!("{}{revision}", release.nbdkit)), "{revision}");
    }
    for other in
        others.iter().flat_map(|other| ["-1", "~rc1-1"].map(|more| format!("{other}{more}")))
    {
        assert!(!fits(&other), "{other}");
    }
    let version = format!("{}-1+nbdkit{}_", env!("CARGO_PKG_VERSION"), release.nbdkit);
    assert!(package.display().to_string().contains(&version), "{package:?} {version}");
}

// --- the build -------------------------------------------------------------

/// Compiles the filter, but for its machine code, against the nbdkit of a system;
/// whether cargo had to, and the bindings that there are now.
fn check(build: &BuildFolder, system: &System) -> (bool, String) {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["check", "--release", "--package=pause", "--message-format=json", "--target-dir"])
        .arg(build.path())
        .current_dir(PACKAGE)
        .env("PKG_CONFIG_PATH", pkgconfig(&system.path("")))
        .env("PKG_CONFIG_SYSROOT_DIR", system.path("").display().to_string().trim_end_matches('/'));
    // It may have to build all that the filter needs.
    let Finished { stdout, .. } = Process::start(command).finish(GENEROUS * 10).succeeded();
    let message = |of: &[&str]| {
        let mut lines = stdout.lines().filter(|line| of.iter().all(|part| line.contains(part)));
        lines.next().unwrap_or_else(|| panic!("no {of:?} in {stdout}")).to_owned()
    };
    let filter = message(&[r#""reason":"compiler-artifact""#, r#""crate_types":["cdylib"]"#]);
    let script = message(&[r#""reason":"build-script-executed""#, "/build/pause-"]);
    let out = script.split_once(r#""out_dir":""#).unwrap().1.split('"').next().unwrap();
    let bindings = fs::read_to_string(Path::new(out).join("nbdkit_sys.rs")).unwrap();
    (filter.contains(r#""fresh":false"#), bindings)
}

#[test]
fn after_an_upgrade_of_nbdkit_and_only_then_cargo_builds_anew() {
    let (Some(old), Some(new)) = (Release::get("bookworm"), Release::get("trixie")) else { return };
    let (build, system) = (BuildFolder::lock(), System::empty());
    let start = SystemTime::now();
    for release in [old, new] {
        // Its dependencies are no matter here.
        system.dpkg("--unpack", release.package("nbdkit-plugin-dev")).succeeded();
        // It is this that cargo alone would go by.
        let header = system.path("usr/include/nbdkit-filter.h");
        assert!(fs::metadata(header).unwrap().modified().unwrap() < start);
        let (anew, bindings) = check(&build, &system);
        assert!(anew && bindings.contains(&format!("\"{}\\0\"", release.nbdkit)));
        assert!(!check(&build, &system).0);
    }
}

/// Runs the build script of this package, which cargo has built.
fn make_bindings(out: &Path, variable: &str, value: &Path) -> Finished {
    let scripts = fs::read_dir(debian::target().join("debug/build")).unwrap();
    let scripts = scripts.map(|entry| entry.unwrap().path().join("build-script-build"));
    let ours = scripts.filter(|path| path.display().to_string().contains("/build/pause-"));
    let newest = ours.max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok());
    let mut command = Command::new(newest.expect("cargo built it"));
    command.current_dir(PACKAGE).env("OUT_DIR", out).env(variable, value);
    run(command)
}

#[test]
fn the_headers_are_those_that_pkg_config_names_whatever_a_compiler_finds_first() {
    let (out, others) = (folder(), folder());
    for name in ["nbdkit-filter.h", "nbdkit-common.h", "nbdkit-version.h"] {
        fs::write(others.path().join(name), "#error the wrong header\n").unwrap();
    }
    for variable in ["C_INCLUDE_PATH", "CPATH"] {
        make_bindings(out.path(), variable, others.path()).succeeded();
        let bindings = fs::read_to_string(out.path().join("nbdkit_sys.rs")).unwrap();
        assert!(bindings.contains(&format!("\"{}\\0\"", installed_nbdkit())));
    }
}

#[test]
fn headers_of_another_version_than_pkg_config_has_are_refused() {
    let (out, others) = (folder(), folder());
    let description = "includedir=/usr/include\nName: nbdkit\nDescription:\nVersion: 1.99.1\n";
    fs::write(others.path().join("nbdkit.pc"), description).unwrap();
    let refused = make_bindings(out.path(), "PKG_CONFIG_PATH", others.path());
    assert!(!refused.status.success());
    for words in ["pkg-config has nbdkit 1.99.1", "/usr/include/nbdkit-filter.h", "another version"]
    {
        assert!(refused.stderr.contains(words), "{refused:#?}");
    }
}
