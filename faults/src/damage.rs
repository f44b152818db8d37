//! Ways in which a file can be wrong.

use crate::cases::Random;
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Bytes that a lost page of a disk takes with it.
const PAGE: usize = 512;

/// One way. What is random in it follows from the case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Damage {
    /// One bit is another.
    Flip,
    /// A page reads as zeros.
    Zero,
    /// The end is missing.
    Truncate,
    /// Nothing is left.
    Empty,
    /// Bytes follow.
    Extend,
    /// The content is that of another file, which has this one's.
    Swap,
    /// It is gone.
    Delete,
    /// A directory is in its place.
    Directory,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Done {
    /// For people.
    pub text: String,
    /// The files that are wrong now.
    pub files: Vec<PathBuf>,
}

impl Damage {
    /// All of them; bits flip most often.
    pub const ALL: [Self; 10] = [
        Self::Flip,
        Self::Flip,
        Self::Flip,
        Self::Zero,
        Self::Truncate,
        Self::Empty,
        Self::Extend,
        Self::Swap,
        Self::Delete,
        Self::Directory,
    ];

    /// Damages `file`; `others` are what it may be swapped with. Files are replaced, never written to: their content may
    /// be shared. Returns what was done, or `None` when that would change nothing.
    ///
    /// # Errors
    /// When a file cannot be replaced.
    pub fn apply(self, file: &Path, others: &[PathBuf], random: &mut Random) -> Result<Option<Done>> {
        let mut files = vec![file.to_owned()];
        let text = self.damage(file, others, random, &mut files)?;
        Ok(text.map(|text| Done { text, files }))
    }

    fn damage(
        self,
        file: &Path,
        others: &[PathBuf],
        random: &mut Random,
        files: &mut Vec<PathBuf>,
    ) -> Result<Option<String>> {
        let old = fs::read(file)?;
        let mut new = old.clone();
        let done = match self {
            Self::Flip if old.is_empty() => return Ok(None),
            Self::Flip => {
                let at = place(old.len(), random);
                new[at] ^= 1 << random.below(8);
                format!("byte {at} of {} from {:#04x} to {:#04x}", old.len(), old[at], new[at])
            }
            Self::Zero => {
                let start = place(old.len(), random) / PAGE * PAGE;
                let end = (start + PAGE).min(old.len());
                new[start..end].fill(0);
                format!("bytes {start}..{end} of {} zeroed", old.len())
            }
            Self::Truncate => {
                new.truncate(random.below(old.len()));
                format!("cut from {} to {} bytes", old.len(), new.len())
            }
            Self::Empty => {
                new.clear();
                format!("cut from {} bytes to none", old.len())
            }
            Self::Extend => {
                let more = 1 + random.below(2 * PAGE);
                new.extend((0..more).map(|_| random.below(256) as u8));
                format!("{more} bytes more than {}", old.len())
            }
            Self::Swap => {
                let other = random.pick(others).clone();
                new = fs::read(&other)?;
                replace(&other, &old)?;
                files.push(other.clone());
                format!("swapped with {}", other.display())
            }
            Self::Delete => {
                fs::remove_file(file)?;
                return Ok(Some("deleted".into()));
            }
            Self::Directory => {
                fs::remove_file(file)?;
                fs::create_dir(file)?;
                return Ok(Some("a directory instead".into()));
            }
        };
        replace(file, &new)?;
        Ok((new != old).then_some(done))
    }
}

/// Any byte, but every second time one of the first 256, where formats have their headers.
fn place(length: usize, random: &mut Random) -> usize {
    let within = if random.below(2) == 0 { length.min(256) } else { length };
    random.below(within)
}

fn replace(file: &Path, content: &[u8]) -> Result<()> {
    fs::remove_file(file)?;
    Ok(fs::write(file, content)?)
}
