//! The commit that a program was built from.
//!
//! It is found when the program runs: one that was compiled in would be that of the last compilation of whatever holds
//! it, and would have to be compiled again at each commit. Cargo lists the sources of a program beside it (`PROGRAM.d`).
//! As long as none of them is newer than the program, it is what they say now, and git knows where they are from.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// What else decides what is built; such files are not among the sources.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "Cargo.lock"];

/// `LCF_REVISION` where that is set. Else the commit of this program's sources, with `-dirty` where they have changed since,
/// or since the program was built; `unknown` where there are no sources or no git.
pub fn revision() -> String {
    let own = || of_program(&env::current_exe().ok()?);
    env::var("LCF_REVISION").ok().or_else(own).unwrap_or_else(|| "unknown".into())
}

fn of_program(program: &Path) -> Option<String> {
    let listed = listed(&fs::read_to_string(program.with_extension("d")).ok()?);
    // Beside sources there are libraries from elsewhere.
    let entry = listed.iter().find(|path| path.ends_with("src/main.rs"))?;
    let root = PathBuf::from(git(entry.parent()?, &["rev-parse", "--show-toplevel"])?);
    let target = program.parent()?.parent()?;
    let sources: Vec<&PathBuf> =
        listed.iter().filter(|path| path.starts_with(&root) && !path.starts_with(target)).collect();
    let head = git(&root, &["rev-parse", "HEAD"])?;
    let built = fs::metadata(program).and_then(|meta| meta.modified()).ok()?;
    let is_current = sources.iter().all(|path| newest(path).is_ok_and(|changed| changed <= built));
    let sources = sources.into_iter().filter_map(|path| path.to_str());
    let asked = ["status", "--porcelain", "--"].into_iter().chain(MANIFESTS).chain(sources);
    let changes = git(&root, &asked.collect::<Vec<_>>())?;
    Some(if is_current && changes.is_empty() { head } else { head + "-dirty" })
}

/// The files that a rule of make, `PROGRAM: FILE FILE...`, depends on; a space in a name has a backslash before it.
fn listed(rule: &str) -> Vec<PathBuf> {
    let files = rule.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, files)| files);
    let marked = files.replace("\\ ", "\0");
    marked.split_whitespace().map(|name| PathBuf::from(name.replace('\0', " "))).collect()
}

/// When the file, or the last of those in the directory, was written.
fn newest(path: &Path) -> io::Result<SystemTime> {
    let meta = fs::metadata(path)?;
    let mut newest = meta.modified()?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(self::newest(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // Git sets these for its hooks, and they are about another repository than the one meant here.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    let output = command.arg("--no-optional-locks").args(args).current_dir(dir).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, time::Duration};

    /// A repository in a directory with a space, with a program whose sources are `bin/src/main.rs` and those in `lib`.
    struct Project {
        dir: tempfile::TempDir,
    }

    impl Project {
        fn new() -> Self {
            let project = Self { dir: tempfile::tempdir().unwrap() };
            for name in ["bin/src", "lib/deep", "target/release"] {
                fs::create_dir_all(project.path(name)).unwrap();
            }
            git(&project.root(), &["init", "-q"]).unwrap();
            for name in ["bin/src/main.rs", "lib/deep/a.rs", "Cargo.toml", "README.md"] {
                project.write(name, "one");
            }
            project.write(".gitignore", "/target/\n");
            project.commit();
            project.build();
            project
        }

        fn root(&self) -> PathBuf {
            self.dir.path().join("a b")
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root().join(name)
        }

        /// Two minutes ago: before any [`Project::build`].
        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
            self.age(name, 120);
        }

        fn age(&self, name: &str, seconds: u64) {
            let then = SystemTime::now() - Duration::from_secs(seconds);
            File::options().append(true).open(self.path(name)).unwrap().set_modified(then).unwrap();
        }

        fn commit(&self) {
            git(&self.root(), &["add", "-A"]).unwrap();
            let author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"];
            git(&self.root(), &[&author[..], &["commit", "-qm", "x"]].concat()).unwrap();
        }

        /// A minute ago.
        fn build(&self) {
            let quoted = |name: &str| self.path(name).to_str().unwrap().replace(' ', "\\ ");
            let files = ["bin/src/main.rs", "lib", "target/release/x.so"].map(quoted).join(" ");
            fs::write(self.path("target/release/x.so"), "").unwrap();
            fs::write(self.path("target/release/p.d"), format!("{}: /usr/lib {files}\n", quoted("target/release/p")))
                .unwrap();
            fs::write(self.path("target/release/p"), "").unwrap();
            self.age("target/release/p", 60);
            for name in ["lib", "lib/deep"] {
                let dir = File::open(self.path(name)).unwrap();
                dir.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
            }
        }

        /// The first 40 digits of the revision, and what follows them.
        fn revision(&self) -> (String, String) {
            let found = of_program(&self.path("target/release/p")).unwrap();
            let (head, rest) = found.split_at(40);
            (head.to_owned(), rest.to_owned())
        }

        fn head(&self) -> String {
            git(&self.root(), &["rev-parse", "HEAD"]).unwrap()
        }
    }

    fn clean(project: &Project) -> (String, String) {
        (project.head(), String::new())
    }

    fn dirty(project: &Project) -> (String, String) {
        (project.head(), "-dirty".to_owned())
    }

    #[test]
    fn a_commit_of_what_the_program_was_built_from_is_its_revision() {
        let project = Project::new();
        assert_eq!(project.revision(), clean(&project));
        // Edited, built, and committed afterwards: no compilation since, and the new commit is right.
        project.write("lib/deep/a.rs", "a change");
        project.build();
        assert_eq!(project.revision(), dirty(&project));
        let before = project.head();
        project.commit();
        assert_eq!(project.revision(), clean(&project));
        assert_ne!(before, project.head());
    }

    #[test]
    fn sources_that_are_newer_than_the_program_are_not_what_it_was_built_from() {
        let project = Project::new();
        project.write("lib/deep/a.rs", "a change");
        project.commit();
        // As a checkout of another commit leaves it.
        project.age("lib/deep/a.rs", 0);
        assert_eq!(project.revision(), dirty(&project));
        project.age("lib/deep/a.rs", 120);
        assert_eq!(project.revision(), clean(&project));
        fs::remove_file(project.path("bin/src/main.rs")).unwrap();
        project.commit();
        assert_eq!(project.revision(), dirty(&project));
    }

    #[test]
    fn what_is_not_built_changes_nothing() {
        let project = Project::new();
        project.write("README.md", "a change");
        project.write("new.json", "{}");
        assert_eq!(project.revision(), clean(&project));
        project.write("Cargo.lock", "x");
        assert_eq!(project.revision(), dirty(&project));
    }

    #[test]
    fn a_program_without_its_sources_has_no_revision() {
        let project = Project::new();
        fs::remove_file(project.path("target/release/p.d")).unwrap();
        assert_eq!(of_program(&project.path("target/release/p")), None);
    }
}
