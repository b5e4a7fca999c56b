//! Small systems of Debian in folders of their own: nbdkit put there by the real
//! dpkg from Debian's own package, and run with that folder as its root. It
//! takes root, or a user who may be root in a namespace.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::control::Controller;
use super::filter::{self, PACKAGE};
use super::process::{Finished, Process, run};
use super::server::is_root;
use super::{GENEROUS, eventually};

/// A release of Debian: what `scripts/nbdkit-of` keeps of it.
#[derive(Clone)]
pub struct Release {
    folder: PathBuf,
    /// The version of its nbdkit.
    pub nbdkit: String,
}

type Releases = BTreeMap<&'static str, Result<Release, String>>;

static RELEASES: Mutex<Releases> = Mutex::new(BTreeMap::new());

/// Where `scripts/nbdkit-of` builds. Who has this builds alone.
pub struct BuildFolder(MutexGuard<'static, Releases>);

impl BuildFolder {
    pub fn lock() -> Self {
        BuildFolder(RELEASES.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn path(&self) -> PathBuf {
        target().join("nbdkit/build")
    }
}

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory")
}

impl Release {
    /// Fetched, if it is not here yet. An error says why it can't be had.
    pub fn get(name: &'static str) -> Result<Self, String> {
        let BuildFolder(mut releases) = BuildFolder::lock();
        releases.entry(name).or_insert_with(|| Self::find(name)).clone()
    }

    fn find(name: &str) -> Result<Self, String> {
        let folder = target().join("nbdkit").join(name);
        let version = || {
            let version = fs::read_to_string(folder.join("version")).ok()?;
            Some(version.trim().to_owned())
        };
        // For the installed nbdkit there is a build already.
        if version().is_none_or(|version| version != installed_nbdkit()) {
            let mut fetch = Command::new(Path::new(PACKAGE).join("scripts/nbdkit-of"));
            fetch.arg(name).env("CARGO_TARGET_DIR", target());
            // It may have to download it all.
            let fetched = Process::start(fetch).finish(GENEROUS * 10);
            if fetched.status.code() == Some(3) {
                return Err(fetched.stderr);
            }
            fetched.succeeded();
        }
        let nbdkit = version().expect("its version");
        Ok(Release { folder, nbdkit })
    }

    /// The filter, built for this release's nbdkit.
    pub fn filter(&self) -> PathBuf {
        if self.nbdkit == installed_nbdkit() {
            filter::ours().to_path_buf()
        } else {
            self.folder.join("libpause.so")
        }
    }

    /// The one of its packages with this name, as a file.
    pub fn package(&self, name: &str) -> PathBuf {
        let start = format!("{name}_");
        let package = self.packages().find(|path| file_name(path).starts_with(&start));
        package.unwrap_or_else(|| panic!("no {name} in {}", self.folder.display()))
    }

    fn packages(&self) -> impl Iterator<Item = PathBuf> + use<> {
        entries(&self.folder.join("debs")).filter(|path| path.extension() == Some("deb".as_ref()))
    }

    /// Where its libraries are, below its root.
    fn libraries(&self) -> PathBuf {
        let lib = self.folder.join("root/usr/lib");
        let libraries = entries(&lib).find(|entry| entry.join("nbdkit").is_dir());
        let libraries = libraries.unwrap_or_else(|| panic!("no nbdkit in {}", lib.display()));
        libraries.strip_prefix(self.folder.join("root")).expect("below the root").to_path_buf()
    }
}

/// The version of the nbdkit that is installed on this machine.
pub fn installed_nbdkit() -> String {
    let mut command = Command::new("nbdkit");
    command.arg("--dump-config");
    let config = run(command).succeeded().stdout;
    let version = config.lines().find_map(|line| line.strip_prefix("version="));
    version.expect("nbdkit says its version").to_owned()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or("")
}

/// Starts with options of its own, to be given a program.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.arg("--map-root-user");
    }
    // dpkg looks for programs there that it may need.
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Whether the tests are run on another nbdkit than the installed one.
pub fn other_nbdkit() -> bool {
    env::var_os("PAUSE_NBDKIT_ROOT").is_some()
}

/// Why there can be no such system here, if there can be none.
pub fn why_not() -> Option<String> {
    if other_nbdkit() {
        return Some("another nbdkit is tested than the installed one".to_owned());
    }
    let mut command = unshare();
    command.args(["--root=/", "dpkg", "--version"]);
    let tried = run(command);
    (!tried.status.success())
        .then(|| format!("it takes dpkg, and root or a namespace: {}", tried.stderr))
}

/// A system in a folder, which goes with it.
pub struct System(TempDir);

impl System {
    /// Without a package.
    pub fn empty() -> Self {
        let system =
            System(tempfile::Builder::new().prefix("system-").tempdir().expect("a folder"));
        let folders = ["dev", "srv", "var/lib/dpkg/info", "var/lib/dpkg/updates"];
        for folder in folders {
            fs::create_dir_all(system.path(folder)).expect("a folder");
        }
        for folder in ["bin", "lib", "lib64", "sbin"] {
            fs::create_dir_all(system.path("usr").join(folder)).expect("a folder");
            symlink(Path::new("usr").join(folder), system.path(folder)).expect("a link");
        }
        // nbdkit opens it. To make a device takes more than a namespace.
        fs::write(system.path("dev/null"), "").expect("a file");
        fs::write(system.path("var/lib/dpkg/status"), "").expect("a file");
        system
    }

    /// With nbdkit. The packages that it needs are unpacked and entered as
    /// installed; their scripts would want a whole system.
    pub fn with_nbdkit(release: &Release) -> Self {
        let system = System::empty();
        let mut status = String::new();
        for package in release.packages().filter(|path| !file_name(path).starts_with("nbdkit")) {
            let mut command = Command::new("dpkg-deb");
            command.arg("--field").arg(package);
            let fields = run(command).succeeded().stdout;
            status.push_str(&format!("Status: install ok installed\n{fields}\n"));
        }
        fs::write(system.path("var/lib/dpkg/status"), status).expect("a file");

        let libraries = release.libraries();
        let root = release.folder.join("root");
        fs::create_dir_all(system.path(&libraries)).expect("a folder");
        for folder in [Path::new("usr/lib64"), &libraries] {
            let found = entries(&root.join(folder));
            for file in found.filter(|path| file_name(path).contains(".so")) {
                copy(&file, &system.path(folder).join(file_name(&file)));
            }
        }
        system.install(&release.package("nbdkit")).succeeded();
        system
    }

    /// A path in it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.path().join(path.strip_prefix("/").unwrap_or(path))
    }

    /// dpkg, on this system alone: not even its log is this machine's.
    pub fn dpkg(&self, arguments: &[&OsStr]) -> Finished {
        let mut command = unshare();
        command.arg("dpkg").arg("--root").arg(self.0.path());
        command.arg("--log").arg(self.path("var/lib/dpkg/log"));
        // Images for containers have manual pages left out.
        command.args(["--path-include=*", "--force-unsafe-io"]).args(arguments);
        run(command)
    }

    /// Installs, or upgrades to, a package that is in a file.
    pub fn install(&self, package: &Path) -> Finished {
        self.dpkg(&["--install".as_ref(), package.as_os_str()])
    }

    /// The state and the version of a package, such as `installed 1.32.5-1`.
    pub fn state_of(&self, package: &str) -> String {
        let mut command = Command::new("dpkg-query");
        command.arg("--admindir").arg(self.path("var/lib/dpkg"));
        command.args(["--show", "--showformat=${db:Status-Status} ${Version}", package]);
        run(command).stdout
    }

    /// The nbdkit in it, to be given arguments. It sees nothing but this system.
    pub fn nbdkit(&self) -> Command {
        let mut command = unshare();
        command.arg("--root").arg(self.0.path()).arg("nbdkit");
        command
    }

    /// nbdkit's own folder of filters.
    pub fn filters(&self) -> PathBuf {
        let mut command = self.nbdkit();
        command.arg("--dump-config");
        let config = run(command).succeeded().stdout;
        let folder = config.lines().find_map(|line| line.strip_prefix("filterdir="));
        PathBuf::from(folder.expect("nbdkit says where its filters are"))
    }

    /// A server in it with this filter, over nbdkit-log-filter and a disk of
    /// 1 MiB.
    pub fn serve(&self, filter: &str) -> Served {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let inside = format!("/srv/{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = self.path(&inside);
        fs::create_dir(&folder).expect("a folder");
        let mut command = self.nbdkit();
        command
            .args(["--foreground", &format!("--pidfile={inside}/pid")])
            .arg(format!("--unix={inside}/nbd"))
            .args([&format!("--filter={filter}"), "--filter=log", "pattern", "1M"])
            .args([format!("pause-control={inside}/control"), format!("logfile={inside}/log")]);
        let mut process = Process::start(command);
        eventually("nbdkit is ready", GENEROUS, || {
            assert!(process.is_running(), "nbdkit has ended: {}", process.stderr());
            fs::read_to_string(folder.join("pid")).is_ok_and(|text| text.ends_with('\n'))
        });
        Served { process, folder }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = match fs::read_link(from) {
        Ok(link) => symlink(link, to),
        Err(_) => fs::copy(from, to).map(|_| ()),
    };
    copied.unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
}

/// A server in a system. It is killed when this is dropped.
pub struct Served {
    process: Process,
    folder: PathBuf,
}

impl Served {
    pub fn controller(&self) -> Controller {
        Controller::connect(&self.folder.join("control"))
    }

    /// How an NBD client finds it.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.folder.join("nbd").display())
    }

    /// What nbdkit-log-filter has written.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.folder.join("log")).expect("the log")
    }

    /// What the kernel has mapped for it from files with this in their names.
    pub fn mapped(&self, name: &str) -> Vec<String> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process.pid())).expect("maps");
        maps.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
    }

    /// SIGTERM, and waits until it has ended, as it must, well.
    pub fn stop(self) {
        self.process.signal(libc::SIGTERM);
        self.process.finish(GENEROUS).succeeded();
        assert!(!self.folder.join("control").exists(), "the control socket is left");
    }
}
