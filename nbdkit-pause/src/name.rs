//! The name that a person gives to a pause which outlives the program, as `begin` does.

use std::fmt;

const LONGEST_NAME: usize = 64;

/// The name of a pause that outlives the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name in this text.
    ///
    /// # Errors
    /// It would make a poor name for a file.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        // One that begins with a hyphen could not be typed as advised.
        let is_word = !text.is_empty() && !text.starts_with('-');
        match is_word && text.len() <= LONGEST_NAME && text.chars().all(is_plain) {
            true => Ok(Name(text.to_owned())),
            false => Err(NameError),
        }
    }

    /// The name of its file in the directory of the state.
    pub fn file(&self) -> String {
        format!("{self}.state")
    }

    /// The name of its socket there.
    pub fn socket(&self) -> String {
        format!("{self}.socket")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// This text is no name.
#[derive(Debug, PartialEq, Eq)]
pub struct NameError;

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "give 1 to {LONGEST_NAME} letters, digits, '.', '_' or '-', but no '-' first")
    }
}

impl std::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_a_file_can_have() {
        for good in ["a", "nightly-2", "disk_1.img", "..", &"x".repeat(64)] {
            assert_eq!(Name::parse(good), Ok(Name(good.to_owned())));
        }
        for bad in ["", "-x", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(Name::parse(bad), Err(NameError), "{bad:?}");
        }
    }
}
