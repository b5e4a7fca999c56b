//! Generates the Rust bindings of nbdkit's filter API from the installed header.
//! Filters have no stable ABI, so nothing of the header is copied into this tree.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// `nbdkit_next`, which every data callback takes, came with this release.
const OLDEST_NBDKIT: &str = "1.26";

/// What bindgen reads, with filter API 6 (nbdkit 1.16) and the nbdkit_next of 1.26.
const HEADER: &str = r#"
#include <nbdkit-filter.h>
#if !defined (NBDKIT_FILTER_API_VERSION) || NBDKIT_FILTER_API_VERSION != 6
#error "libpause needs nbdkit's filter API 6"
#endif
"#;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_SYSROOT_DIR");
    // parking_lot's table and the threads' local data outlive unload(); the
    // code and statics they point at must stay mapped after dlclose(3). The fuzz
    // target is no library.
    if env::var_os("CARGO_FEATURE_FUZZING").is_none() {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }

    let out = env::var_os("OUT_DIR").unwrap_or_else(|| stop("cargo did not set OUT_DIR"));
    let out = PathBuf::from(out);
    let (header, version) = find_nbdkit_filter_h().unwrap_or_else(|why| stop(&why));
    println!("cargo::rerun-if-changed={}", header.display());
    if let Some(folder) = folder_that_an_upgrade_changes() {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    let headers = set_apart(&header, &out).unwrap_or_else(|why| stop(&why));
    let bindings = make_bindings(&headers).unwrap_or_else(|why| stop(&why));
    if !bindings.contains(&format!("b\"{version}\\0\"")) {
        stop(&format!(
            "pkg-config has nbdkit {version}, but {} is from another version: nbdkit would refuse \
             the filter.\n  Remove whichever is left over from another installation, \
             or set PKG_CONFIG_PATH.",
            header.display()
        ));
    }
    // Came with nbdkit 1.28.
    println!("cargo::rustc-check-cfg=cfg(has_cleanup)");
    if bindings.contains("pub cleanup:") {
        println!("cargo::rustc-cfg=has_cleanup");
    }
    let out = out.join("nbdkit_sys.rs");
    if let Err(e) = fs::write(&out, bindings) {
        stop(&format!("cannot write {}: {e}", out.display()));
    }
}

/// Ends the build with a message a person can act on.
fn stop(why: &str) -> ! {
    eprintln!("\nlibpause: {why}\n");
    process::exit(1);
}

/// The header, and the version that pkg-config says it has.
fn find_nbdkit_filter_h() -> Result<(PathBuf, String), String> {
    let advice = format!(
        "to build the filter, install the headers of nbdkit {OLDEST_NBDKIT} or newer.\n  \
         Debian, Ubuntu:  apt-get install nbdkit-plugin-dev pkg-config\n  \
         Fedora, RHEL:    dnf install nbdkit-devel pkgconf-pkg-config"
    );
    let found = pkg_config::Config::new()
        .atleast_version(OLDEST_NBDKIT)
        .cargo_metadata(false)
        .probe("nbdkit");
    let library = found.map_err(|e| {
        let reason = match &e {
            // pkg-config's own words name the version that it found.
            pkg_config::Error::ProbeFailure { output, .. } => {
                String::from_utf8_lossy(&output.stderr).trim().to_string()
            }
            other => other.to_string(),
        };
        format!("{advice}\n  (pkg-config says: {reason})")
    })?;
    let dir = pkg_config::get_variable("nbdkit", "includedir").map_err(|e| e.to_string())?;
    let mut dir = PathBuf::from(dir);
    // pkg-config puts the system root before its flags, pkgconf before its
    // variables too.
    if let Some(root) = system_root() {
        if !dir.starts_with(&root) {
            dir = root.join(dir.strip_prefix("/").unwrap_or(&dir));
        }
    }
    let header = dir.join("nbdkit-filter.h");
    if header.is_file() {
        Ok((header, library.version))
    } else {
        Err(format!("{advice}\n  ({} is missing)", header.display()))
    }
}

/// The folder of nbdkit.pc. A packaged header is as old as its package, so that
/// after an upgrade it may well be older than the last build here. A package
/// manager moves its files into place, though, which the folder's own time
/// shows, and cargo looks at that too. The header's folder would do as well,
/// but cargo would search all of /usr/include.
fn folder_that_an_upgrade_changes() -> Option<PathBuf> {
    let folder = PathBuf::from(pkg_config::get_variable("nbdkit", "pcfiledir").ok()?);
    // It is where the file was found, including the system root. pkgconf puts
    // the root before it even so, if it does not know it by that name.
    let root = system_root().unwrap_or_default();
    let without_root = folder.strip_prefix(&root).map(|rest| Path::new("/").join(rest));
    // Cargo would always count a missing folder as changed.
    [Ok(folder.clone()), without_root].into_iter().flatten().find(|path| path.is_dir())
}

fn system_root() -> Option<PathBuf> {
    env::var_os("PKG_CONFIG_SYSROOT_DIR").map(PathBuf::from)
}

/// A folder with nothing in it but nbdkit's headers, the one named and those beside
/// it. In their own folder, which mostly is one that a compiler searches anyway,
/// others in C_INCLUDE_PATH or /usr/local/include would be found first.
fn set_apart(header: &Path, out: &Path) -> Result<PathBuf, String> {
    let folder = out.join("include");
    let copy = || {
        fs::create_dir_all(&folder)?;
        for name in ["nbdkit-filter.h", "nbdkit-common.h", "nbdkit-version.h"] {
            // Its permissions stay behind: it may have to be written again.
            fs::write(folder.join(name), fs::read(header.with_file_name(name))?)?;
        }
        Ok(())
    };
    copy().map_err(|e: std::io::Error| format!("cannot copy nbdkit's headers: {e}"))?;
    Ok(folder)
}

/// Reads the headers in this folder.
fn make_bindings(headers: &Path) -> Result<String, String> {
    let advice = "cannot generate the bindings of nbdkit-filter.h; bindgen needs libclang.\n  \
                  Debian, Ubuntu:  apt-get install libclang-dev\n  \
                  Fedora, RHEL:    dnf install clang-devel";
    let builder = bindgen::Builder::default()
        .header_contents("nbdkit.h", HEADER)
        .clang_arg(format!("-I{}", headers.display()))
        .allowlist_type("nbdkit_filter")
        .allowlist_function("nbdkit_(absolute_path|debug|error|nanosleep|parse_bool|stdio_safe)")
        .allowlist_var("NBDKIT_(FILTER_API_VERSION|VERSION_STRING|FLAG_FUA|THREAD_MODEL_PARALLEL|THREAD_MODEL_SERIALIZE_REQUESTS)")
        .generate_comments(false)
        .layout_tests(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024);
    // Without libclang bindgen panics; its message is for Rust programmers.
    std::panic::set_hook(Box::new(|_| {}));
    let generate = std::panic::AssertUnwindSafe(|| builder.generate());
    let bindings = std::panic::catch_unwind(generate);
    let _ = std::panic::take_hook();
    match bindings {
        Ok(Ok(bindings)) => Ok(bindings.to_string()),
        Ok(Err(e)) => Err(format!("{advice}\n  (bindgen says: {e})")),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map_or("nothing", |s| s.as_str());
            Err(format!("{advice}\n  (bindgen says: {said})"))
        }
    }
}
