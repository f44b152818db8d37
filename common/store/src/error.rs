//! Errors a user can cause, each with what was found, what was expected, and the command that helps.

use crate::text::visible;
use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit code of [`Error::Stopped`]: `EX_TEMPFAIL` of `sysexits.h`, to be tried again.
pub const STOPPED: u8 = 75;

/// One failure. `Display` is a single lowercase line; the cause chain is in `source`, the way out in [`Error::hint`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or the configuration is wrong. Exit code 2.
    #[error("{message}")]
    Usage {
        /// What is wrong, starting with the flag, file or JSON path.
        message: String,
        /// The command or change that helps.
        hint: Option<String>,
    },
    /// A file or directory is not what it has to be. Exit code 1.
    #[error("{}: {message}", shown(path))]
    Bad {
        /// The file or directory.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
        /// The command that helps.
        hint: Option<String>,
    },
    /// A signal ended it and nothing is lost. Exit code [`STOPPED`], so that a batch system knows to start it again.
    #[error("{}: {message}", shown(path))]
    Stopped {
        /// Where it goes on from.
        path: PathBuf,
        /// How far it came.
        message: String,
    },
    /// The operating system refused. Exit code 1.
    #[error("{}: cannot {action}", shown(path))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried: `read`, `create`, ...
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// A wrong flag or configuration value.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    /// A file that is not what it has to be: `message` says what was found and what was expected.
    pub fn bad(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Bad { path: path.as_ref().to_owned(), message: message.into(), hint: None }
    }

    /// For `map_err`: the operating system refused to `action` the file at `path`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// Adds the command that helps.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Usage { hint, .. } | Self::Bad { hint, .. } => *hint = Some(text.into()),
            Self::Stopped { .. } | Self::Io { .. } => {}
        }
        self
    }

    /// [`Error::with_hint`] where there is none yet.
    #[must_use]
    pub fn or_hint(self, text: impl Into<String>) -> Self {
        if self.hint().is_some() { self } else { self.with_hint(text) }
    }

    /// The command that helps, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } | Self::Bad { hint, .. } => hint.clone(),
            Self::Stopped { .. } => Some("run the same command again to go on".into()),
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC) => Some("free some disk space and run the same command again".into()),
                Some(libc::ENOMEM) => Some("free memory, or raise its limit (ulimit -v)".into()),
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                    Some("name a place where you may do that, or change its permissions".into())
                }
                Some(libc::ENOTDIR | libc::EEXIST | libc::ELOOP) => Some(
                    "a part of this path is a file or a link that leads nowhere: name another, or remove it".into(),
                ),
                Some(libc::ENAMETOOLONG) => Some("name a shorter path".into()),
                _ => None,
            },
        }
    }

    /// 2 for usage and configuration, [`STOPPED`] for what a signal ended, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Stopped { .. } => STOPPED,
            Self::Bad { .. } | Self::Io { .. } => 1,
        }
    }
}

/// A path as an error shows it, on one line.
fn shown(path: &Path) -> String {
    visible(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn an_error_is_one_line_whatever_the_file_is_called() {
        let error = Error::bad("a\nb\x1b[2J", "found nothing");
        assert_eq!(error.to_string(), "a\\nb\\u{1b}[2J: found nothing");
    }

    #[test]
    fn what_the_system_refuses_has_a_way_out() {
        let hint = |code| Error::io("x", "create")(io::Error::from_raw_os_error(code)).hint();
        assert!(hint(libc::EACCES).unwrap().contains("permissions"));
        assert!(hint(libc::ENOTDIR).unwrap().contains("a part of this path is a file"));
        assert_eq!(hint(libc::EIO), None);
    }

    #[test]
    fn the_first_hint_stays() {
        let error = Error::bad("x", "y").or_hint("one").or_hint("two");
        assert_eq!(error.hint().unwrap(), "one");
    }
}
