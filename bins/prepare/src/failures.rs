//! Many things wrong with one input, told in one line: the first five and how many there are.

use lcf_store::{Error, Result, text::visible};
use std::path::Path;

/// How many are named.
const NAMED: usize = 5;

/// A collection of failures.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    named: Vec<String>,
    count: usize,
}

impl Failures {
    /// Adds the failure of `name`: what was found and what was expected.
    pub fn add(&mut self, name: &str, reason: &str) {
        if self.named.len() < NAMED {
            self.named.push(format!("{} ({reason})", visible(name)));
        }
        self.count += 1;
    }

    /// An error about the input at `path` when anything failed. `what` says of what the failures are some, like
    /// `images`.
    ///
    /// # Errors
    /// [`Error::Bad`] with the first five and the count.
    pub fn check(&self, path: &Path, what: &str, hint: &str) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let first = if self.count > NAMED { format!(", the first {NAMED}") } else { String::new() };
        let message = format!("found {} bad {what}{first}: {}", self.count, self.named.join("; "));
        Err(Error::bad(path, message).with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_five_and_counts_all() {
        let mut failures = Failures::default();
        let check = |failures: &Failures| failures.check(Path::new("d"), "images", "replace them");
        assert!(check(&failures).is_ok());
        failures.add("a.png", "empty");
        assert_eq!(check(&failures).unwrap_err().to_string(), "d: found 1 bad images: a.png (empty)");
        (0..6).for_each(|i| failures.add(&format!("{i}.png"), "cut off"));
        let error = check(&failures).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("d: found 7 bad images, the first 5: a.png (empty); 0.png (cut off); "), "{text}");
        assert!(text.ends_with("3.png (cut off)"), "{text}");
        assert_eq!(error.hint().unwrap(), "replace them");
    }
}
