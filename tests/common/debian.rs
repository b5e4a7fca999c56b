//! Small systems of Debian in folders of their own, to install packages into with
//! the real dpkg and to run nbdkit in, with that folder as its root. It takes root,
//! or a user who may be root in a namespace.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::GENEROUS;
use super::filter::PACKAGE;
use super::process::{Finished, Process, run};
use super::server::{is_root, wait_until_ready};

/// The target directory.
pub fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory")
}

/// Where `scripts/nbdkit-of` builds. Who has this builds alone.
pub struct BuildFolder(#[expect(dead_code)] MutexGuard<'static, ()>);

impl BuildFolder {
    pub fn lock() -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        BuildFolder(LOCK.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn path(&self) -> PathBuf {
        target().join("nbdkit/build")
    }
}

/// A release of Debian: what `scripts/nbdkit-of` keeps of it.
pub struct Release {
    /// All that it takes to run its nbdkit.
    pub root: PathBuf,
    /// The version of its nbdkit.
    pub nbdkit: String,
    packages: Vec<PathBuf>,
}

impl Release {
    /// Fetched, if it is not here yet; None, and says why, where it can't be had.
    pub fn get(name: &str) -> Option<Self> {
        Self::find(name).map_err(|why| println!("SKIPPED: no {name} here: {}", why.trim())).ok()
    }

    fn find(name: &str) -> Result<Self, String> {
        if other_nbdkit() {
            return Err("another nbdkit is tested than the installed one".to_owned());
        }
        let mut tools = unshare();
        tools.args(["--root=/", "sh", "-c", "dpkg --version && command -v dh"]);
        let tools = run(tools);
        if !tools.status.success() {
            return Err(format!("it takes debhelper, and root or a namespace: {}", tools.stderr));
        }
        let _alone = BuildFolder::lock();
        let folder = target().join("nbdkit").join(name);
        if !folder.join("version").exists() {
            let mut fetch = Command::new(Path::new(PACKAGE).join("scripts/nbdkit-of"));
            fetch.arg(name).env("CARGO_TARGET_DIR", target());
            // It may have to download it all.
            let fetched = Process::start(fetch).finish(GENEROUS * 10);
            if fetched.status.code() == Some(3) {
                return Err(fetched.stderr);
            }
            fetched.succeeded();
        }
        let nbdkit = fs::read_to_string(folder.join("version")).expect("its version");
        let packages = fs::read_dir(folder.join("debs")).expect("its packages");
        let packages = packages.map(|entry| entry.expect("an entry").path());
        Ok(Release {
            root: folder.join("root"),
            nbdkit: nbdkit.trim().to_owned(),
            packages: packages.filter(|path| path.extension() == Some("deb".as_ref())).collect(),
        })
    }

    /// The one of its packages with this name, as a file.
    pub fn package(&self, name: &str) -> &Path {
        let is_it = |path: &&PathBuf| path.display().to_string().contains(&format!("/{name}_"));
        self.packages.iter().find(is_it).unwrap_or_else(|| panic!("no {name}"))
    }
}

/// Whether the tests are run on another nbdkit than the installed one.
pub fn other_nbdkit() -> bool {
    env::var_os("PAUSE_NBDKIT_ROOT").is_some()
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

/// A system in a folder, which goes with it.
pub struct System(TempDir);

impl System {
    /// Without a package.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("system-").tempdir_in(target());
        let system = System(folder.expect("a folder"));
        for folder in ["dev", "var/lib/dpkg/info", "var/lib/dpkg/updates"] {
            fs::create_dir_all(system.path(folder)).expect("a folder");
        }
        // nbdkit opens the first one. To make a device takes more than a namespace.
        for file in ["dev/null", "var/lib/dpkg/status"] {
            fs::write(system.path(file), "").expect("a file");
        }
        system
    }

    /// With the files of all packages of this release, of which dpkg knows nothing.
    pub fn of(release: &Release) -> Self {
        let system = System::empty();
        let mut copy = Command::new("cp");
        copy.args(["-a", "--link"]).arg(release.root.join(".")).arg(system.path(""));
        run(copy).succeeded();
        system
    }

    /// From now on dpkg takes these for installed, and nothing else: all packages of
    /// this release, with its nbdkit in that version.
    pub fn has_installed(&self, release: &Release, nbdkit: &str) {
        let mut status = String::new();
        for package in &release.packages {
            let mut command = Command::new("dpkg-deb");
            command.arg("--field").arg(package);
            let mut fields = run(command).succeeded().stdout;
            if package == release.package("nbdkit") {
                let (before, rest) = fields.split_once("\nVersion: ").expect("its version");
                let (_, after) = rest.split_once('\n').expect("more fields");
                fields = format!("{before}\nVersion: {nbdkit}\n{after}");
            }
            status += &format!("Status: install ok installed\n{fields}\n");
        }
        fs::write(self.path("var/lib/dpkg/status"), status).expect("a file");
    }

    /// A path in it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    /// dpkg, on this system alone: not even its log is this machine's.
    pub fn dpkg(&self, action: &str, what: impl AsRef<OsStr>) -> Finished {
        let mut command = unshare();
        command.arg("dpkg").arg("--root").arg(self.0.path());
        command.arg("--log").arg(self.path("var/lib/dpkg/log"));
        // Images for containers have manual pages left out.
        command.args(["--path-include=*", "--force-unsafe-io", action]).arg(what);
        run(command)
    }

    /// A program in it, which sees nothing but this system.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = unshare();
        command.arg("--root").arg(self.0.path()).args(words);
        command
    }

    /// nbdkit with this filter; the control socket is `/control`.
    pub fn serve(&self, filter: &str) -> Process {
        let filter = format!("--filter={filter}");
        let options = ["nbdkit", "--foreground", "--pidfile=/pid", "--unix=/nbd", &filter];
        let plugin = ["memory", "1M", "pause-control=/control"];
        let mut process = Process::start(self.command(&[&options[..], &plugin].concat()));
        let pid = wait_until_ready(&mut process, &self.path("pid"));
        assert!(pid.is_some(), "nbdkit has ended: {}", process.stderr());
        process
    }
}
