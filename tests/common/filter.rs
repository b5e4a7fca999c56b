//! Where the filter under test is, its helper program, and the filter it is
//! compared with. Builds the first two, so that what is tested is always what
//! is in `src/`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::nbdkit;
use super::process::run;

/// The package's root.
pub const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// The filter under test: `PAUSE_FILTER` if that is set, and otherwise a
/// release build, made once for each test crate.
pub fn ours() -> &'static Path {
    static OURS: OnceLock<PathBuf> = OnceLock::new();
    OURS.get_or_init(|| match env::var_os("PAUSE_FILTER") {
        Some(path) => Path::new(&path).canonicalize().expect("PAUSE_FILTER"),
        None => build("libpause.so"),
    })
}

/// The program `nbdkit-pause`: `PAUSE_HELPER` if that is set, and otherwise
/// from the same build.
pub fn helper() -> &'static Path {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    HELPER.get_or_init(|| match env::var_os("PAUSE_HELPER") {
        Some(path) => Path::new(&path).canonicalize().expect("PAUSE_HELPER"),
        None => build("nbdkit-pause"),
    })
}

fn build(what: &str) -> PathBuf {
    // The folder that cargo gives to tests lies in the target directory, by
    // whatever means that was chosen.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--workspace", "--quiet", "--target-dir"])
        .arg(target)
        .current_dir(PACKAGE);
    run(command).succeeded();
    target.join("release").join(what)
}

/// The filter that nbdkit ships.
pub fn stock() -> PathBuf {
    nbdkit::filter_file("pause")
}
