//! Who made an artifact, where, when and with what: recorded, never hashed.

use crate::revision::revision;
use serde::{Deserialize, Serialize};
use std::{
    env,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// [`Provenance::reproducible`] of what is added up in a fixed order.
pub const TO_THE_BIT: &str = "to the bit";
/// [`Provenance::reproducible`] of what is not, or is computed by algorithms that are chosen anew by their speed.
pub const UP_TO_ROUNDING: &str = "up to rounding";

/// See the module. Filled by [`Provenance::start`] and [`Provenance::finish`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The commit that the program was built from, with `-dirty` where its sources are not that commit's: see
    /// [`revision`].
    pub revision: String,
    /// The command line, bytes that are not UTF-8 replaced.
    pub argv: Vec<String>,
    /// Host name.
    pub host: String,
    /// `cpu`, or the CUDA device and its name.
    pub device: String,
    /// Version of libtorch, where the stage uses it.
    pub libtorch: String,
    /// Whether the same command gives the same digest on a machine of the same kind; empty in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reproducible: String,
    /// Start of the build, seconds since 1970 (UTC).
    pub started: u64,
    /// Wall-clock seconds of the build.
    pub seconds: f64,
    #[serde(skip)]
    clock: Option<Instant>,
}

impl Provenance {
    /// Notes what is known when a build starts.
    pub fn start() -> Self {
        Self {
            revision: revision(),
            argv: env::args_os().map(|part| part.to_string_lossy().into_owned()).collect(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            device: "cpu".into(),
            reproducible: TO_THE_BIT.into(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            clock: Some(Instant::now()),
            ..Self::default()
        }
    }

    /// Notes how long the build took.
    pub fn finish(&mut self) {
        let seconds = self.clock.map_or(0.0, |clock| clock.elapsed().as_secs_f64());
        self.seconds = (seconds * 100.0).round() / 100.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_of_earlier_versions_are_read() {
        let old = r#"{"revision": "a", "argv": [], "host": "h", "device": "cpu", "libtorch": "", "started": 1, "seconds": 2}"#;
        let old: Provenance = serde_json::from_str(old).unwrap();
        assert_eq!((old.reproducible.as_str(), old.started), ("", 1));
        assert!(!serde_json::to_string(&old).unwrap().contains("reproducible"));
        let new = serde_json::to_string(&Provenance::start()).unwrap();
        assert!(new.contains(r#""reproducible":"to the bit""#), "{new}");
        assert_eq!(serde_json::from_str::<Provenance>(&new).unwrap().reproducible, TO_THE_BIT);
    }
}
