//! Which nbdkit is tested: the installed one, or one that was unpacked into a
//! folder and is named by `PAUSE_NBDKIT_ROOT`, as `scripts/test-versions` does. One for
//! another architecture is run by the program that `PAUSE_EMULATOR` names.
//! What it is started with is decided elsewhere.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::process::run;

/// An nbdkit that is not installed. It needs no root to run: its own dynamic
/// linker loads it, and all of it comes from one folder.
struct Unpacked {
    root: PathBuf,
    /// Its libraries, and the folder `nbdkit` with its plugins and filters.
    libraries: PathBuf,
}

fn unpacked() -> Option<&'static Unpacked> {
    static UNPACKED: OnceLock<Option<Unpacked>> = OnceLock::new();
    let unpacked = UNPACKED.get_or_init(|| {
        let root = PathBuf::from(env::var_os("PAUSE_NBDKIT_ROOT")?);
        let libraries = only_entry(&root.join("usr/lib"), |entry| entry.join("nbdkit").is_dir());
        Some(Unpacked { root, libraries })
    });
    unpacked.as_ref()
}

fn only_entry(folder: &Path, is_it: impl Fn(&Path) -> bool) -> PathBuf {
    fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("PAUSE_NBDKIT_ROOT: {}: {e}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .find(|entry| is_it(entry))
        .unwrap_or_else(|| panic!("PAUSE_NBDKIT_ROOT: no nbdkit in {}", folder.display()))
}

/// The words that run nbdkit.
pub fn words() -> Vec<String> {
    let Some(Unpacked { root, libraries }) = unpacked() else {
        return vec!["nbdkit".to_owned()];
    };
    let name = |path: &Path| path.file_name().and_then(OsStr::to_str).unwrap_or("").to_owned();
    let linker = only_entry(libraries, |entry| name(entry).starts_with("ld-linux"));
    let programs = ["usr/bin/nbdkit", "usr/sbin/nbdkit"].map(|program| root.join(program));
    let program = programs.iter().find(|program| program.exists()).expect("nbdkit in its root");
    let [linker, libraries, program] =
        [&linker, libraries, program].map(|path| path.display().to_string());
    let words = [&linker, "--argv0", "nbdkit", "--library-path", &libraries, &program];
    emulator().into_iter().chain(words.map(str::to_owned)).collect()
}

/// What runs the programs of another architecture.
pub fn emulator() -> Option<String> {
    env::var("PAUSE_EMULATOR").ok()
}

/// What nbdkit needs in its environment: the python plugin looks for Python's
/// library where it would be installed.
pub fn environment() -> Option<(&'static str, PathBuf)> {
    unpacked().map(|unpacked| ("PYTHONHOME", unpacked.root.join("usr")))
}

/// nbdkit, to be given arguments.
pub fn command() -> Command {
    let words = words();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(environment());
    command
}

/// 32, for nbdkit 1.32.5.
pub fn minor_version() -> u32 {
    static MINOR: OnceLock<u32> = OnceLock::new();
    *MINOR.get_or_init(|| {
        let mut command = command();
        command.arg("--version");
        let version = run(command).succeeded().stdout;
        let minor = version.trim().split('.').nth(1).expect("a version").parse();
        minor.expect("a number")
    })
}

/// Whether the connection of a request that is dropped is cut: the client gets no
/// reply. Older ones answer it with ESHUTDOWN.
pub fn cuts_connections() -> bool {
    minor_version() >= 34
}

/// How nbdkit is told to use this plugin of its own. A path stays what it is.
pub fn plugin(name: &str) -> String {
    own("plugin", name)
}

/// How nbdkit is told to use this filter of its own. A path stays what it is.
pub fn filter(name: &str) -> String {
    own("filter", name)
}

/// The filter of that name which nbdkit ships, as a file.
pub fn filter_file(name: &str) -> PathBuf {
    match unpacked() {
        Some(unpacked) => module(unpacked, "filter", name),
        None => {
            let mut command = Command::new("pkg-config");
            command.args(["--variable=filterdir", "nbdkit"]);
            let folder = run(command).succeeded().stdout;
            Path::new(folder.trim()).join(format!("nbdkit-{name}-filter.so"))
        }
    }
}

/// By its short name an nbdkit that is not installed would load the module of
/// the one that is.
fn own(kind: &str, name: &str) -> String {
    match unpacked() {
        Some(unpacked) if !name.contains('/') => module(unpacked, kind, name).display().to_string(),
        _ => name.to_owned(),
    }
}

fn module(unpacked: &Unpacked, kind: &str, name: &str) -> PathBuf {
    unpacked.libraries.join(format!("nbdkit/{kind}s/nbdkit-{name}-{kind}.so"))
}
