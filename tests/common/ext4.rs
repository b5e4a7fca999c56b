//! What must be true of the image of an ext4 that somebody was writing to: the rule for
//! a snapshot. Who writes, and takes the snapshots, is up to the tests.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::clients;
use super::process::{Finished, run};

fn on(image: &Path, program: &str, arguments: &[&str]) -> Finished {
    let mut command = clients::system_program(program);
    command.args(arguments).arg(image);
    run(command)
}

/// What a power cut may leave is what replaying the journal mends.
pub fn replay(image: &Path) -> Result<(), String> {
    let replayed = on(image, "e2fsck", &["-fy", "-E", "journal_only"]);
    match replayed.status.code() {
        Some(0 | 1) => Ok(()),
        _ => Err(format!("{replayed:#?}")),
    }
}

/// e2fsck finds nothing to mend.
pub fn is_sound(image: &Path) -> Result<(), String> {
    let checked = on(image, "e2fsck", &["-fn"]);
    if checked.status.success() { Ok(()) } else { Err(format!("{checked:#?}")) }
}

/// What has to be true after a power cut: e2fsck is content once the journal is
/// replayed, and all acknowledged files are there. File n is `number-N`, N being n
/// modulo 20, until n + 20 takes its place. `number_in` tells n from its content;
/// None if that is torn.
pub fn rule(
    image: &Path,
    acknowledged: u64,
    number_in: impl Fn(&[u8]) -> Option<u64>,
) -> Result<(), String> {
    replay(image)?;
    is_sound(image)?;
    let folder = image.with_extension("files");
    fs::create_dir(&folder).expect("a folder");
    on(image, "debugfs", &["-R", &format!("rdump / {}", folder.display())]).succeeded();
    let mut files = HashMap::new();
    for place in 0..20 {
        let path = folder.join(format!("number-{place}"));
        let Ok(content) = fs::read(&path) else { continue };
        let number = number_in(&content).ok_or_else(|| format!("{} is torn", path.display()))?;
        if number % 20 != place {
            return Err(format!("{} has what belongs to file {number}", path.display()));
        }
        files.insert(place, number);
    }
    for n in acknowledged.saturating_sub(19).max(1)..=acknowledged {
        let found = files.get(&(n % 20));
        if found.is_none_or(|&found| found < n) {
            return Err(format!("{acknowledged} was acknowledged, file {n} is {found:?}"));
        }
    }
    Ok(())
}
