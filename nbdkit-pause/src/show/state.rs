//! What a server tells of its state: the answer to `s`. The manual page of the filter
//! describes it; members that are not needed here are left out.

use serde::Deserialize;

/// See the file's text. Times are in seconds.
#[derive(Debug, Deserialize)]
pub struct State {
    pub state: Stage,
    /// By the clock of the server, since 1970.
    pub since: f64,
    #[serde(rename = "for")]
    pub lasts: f64,
    pub in_flight: u64,
    pub held: u64,
    pub oldest_held: Option<f64>,
    pub paused_by: Option<Asked>,
    pub holds: Vec<Asked>,
    pub timeout_left: Option<f64>,
    /// The last one first.
    pub ended: Vec<Ended>,
    /// Whom the server takes this program for.
    pub you: Person,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Running,
    Draining,
    Flushing,
    Paused,
}

/// Nothing where the server does not know.
#[derive(Debug, Deserialize)]
pub struct Person {
    pub pid: Option<i32>,
    pub uid: Option<u32>,
}

/// Somebody who has asked for a pause or a hold.
#[derive(Debug, Deserialize)]
pub struct Asked {
    #[serde(flatten)]
    pub who: Person,
    pub age: f64,
}

/// A pause that has ended.
#[derive(Debug, Deserialize)]
pub struct Ended {
    #[serde(flatten)]
    pub who: Person,
    /// What has ended it.
    pub by: String,
    pub ago: f64,
    pub length: f64,
    pub held: u64,
    pub reached: Stage,
}

impl Stage {
    /// Whether requests flow.
    pub fn flows(self) -> bool {
        self == Stage::Running
    }
}
