//! Which rank this process is, and where the others meet: from the variables that torchrun, `lcf-train --ranks` and srun
//! set.

use super::Error;
use std::env;

/// One process among several.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes, at least 2.
    pub size: usize,
    /// Number of this process on its machine: that of its CUDA device.
    pub local: usize,
    /// Where the store is that the ranks meet at.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether whoever started the ranks keeps the store, rather than rank 0.
    pub kept: bool,
    /// How often the launcher has started the ranks over at the same store.
    pub restart: u64,
}

impl Place {
    /// The place of this process, or `None` where it is alone. `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and
    /// `MASTER_PORT` come first; without them, those of srun.
    ///
    /// # Errors
    /// A variable that is missing or not a number, by its name.
    pub fn from_env() -> Result<Option<Self>, Error> {
        Self::from_variables(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let number = |name: &str| match get(name) {
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| Error(format!("{name}={text}: not a number"))),
            None => Ok(None),
        };
        let needed = |name: &str, value: Option<usize>| value.ok_or_else(|| Error(format!("{name} is not set")));
        // A batch script has SLURM_NTASKS and SLURM_PROCID too, and is one process: only srun sets those of the step.
        let slurm = get("RANK").is_none() && get("WORLD_SIZE").is_none();
        let names = if slurm {
            ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"]
        } else {
            ["WORLD_SIZE", "RANK", "LOCAL_RANK"]
        };
        let size = number(names[0])?.unwrap_or(1);
        if size <= 1 {
            return Ok(None);
        }
        let rank = needed(names[1], number(names[1])?)?;
        let local = needed(names[2], number(names[2])?)?;
        if rank >= size {
            return Err(Error(format!("{}={rank} is not in 0..{size}", names[1])));
        }
        let host = get("MASTER_ADDR").or_else(|| first_host(&get("SLURM_STEP_NODELIST").filter(|_| slurm)?));
        let host = host.ok_or_else(|| Error("MASTER_ADDR is not set".into()))?;
        let port = match number("MASTER_PORT")? {
            Some(port) => port,
            None if slurm => slurm_port(number("SLURM_JOB_ID")?, number("SLURM_STEP_ID")?),
            None => return Err(Error("MASTER_PORT is not set".into())),
        };
        let port = u16::try_from(port).map_err(|_| Error(format!("MASTER_PORT={port} is not in 1..=65535")))?;
        let kept = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let restart = number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0) as u64;
        Ok(Some(Self { rank, size, local, host, port, kept, restart }))
    }

    /// Who keeps the store, in words.
    pub(super) fn keeper(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if self.kept {
            format!("the launcher, which keeps the store at {host}:{port},")
        } else {
            format!("rank 0, which keeps the store at {host}:{port},")
        }
    }
}

/// The same port on every node of a job, and another for the next job or step.
fn slurm_port(job: Option<usize>, step: Option<usize>) -> usize {
    20_000 + (job.unwrap_or(0) * 16 + step.unwrap_or(0) % 16) % 10_000
}

/// The first name of a Slurm host list, like `node[03-07,9],other`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (prefix, rest) = list.split_at(end);
    let first = rest.strip_prefix('[').and_then(|rest| rest.split([',', '-', ']']).next()).unwrap_or("");
    Some(format!("{prefix}{first}")).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>, String> {
        let find = |name: &str| Some(variables.iter().find(|(n, _)| *n == name)?.1.to_owned());
        Place::from_variables(find).map_err(|error| error.to_string())
    }

    const TORCHRUN: [(&str, &str); 5] =
        [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a.b"), ("MASTER_PORT", "29500")];

    #[test]
    fn torchrun_and_by_hand() {
        let expected = Place { rank: 3, size: 4, local: 1, host: "a.b".into(), port: 29500, kept: false, restart: 0 };
        assert_eq!(place(&TORCHRUN), Ok(Some(expected.clone())));
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")];
        let kept = Place { kept: true, restart: 2, ..expected };
        assert_eq!(place(&[&TORCHRUN[..], &agent[..]].concat()), Ok(Some(kept)));
    }

    #[test]
    fn one_process_is_alone() {
        assert_eq!(place(&[]), Ok(None));
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(place(&[("RANK", "0")]), Ok(None));
        // A batch script of a job with four tasks.
        assert_eq!(place(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")]), Ok(None));
    }

    #[test]
    fn srun() {
        let step = [
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "node[03-04]"),
            ("SLURM_JOB_ID", "123456"),
            ("SLURM_STEP_ID", "1"),
        ];
        let found = place(&step).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.local, found.host.as_str()), (5, 8, 1, "node03"));
        assert_eq!(found.port, 25_297);
        let given = [&step[..], &[("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "4000")]].concat();
        let found = place(&given).unwrap().unwrap();
        assert_eq!((found.host.as_str(), found.port), ("10.0.0.1", 4000));
    }

    #[test]
    fn host_lists() {
        for (list, first) in [("n1", "n1"), ("n1,n2", "n1"), ("n[007-009,12]", "n007"), ("a-b[5],c", "a-b5")] {
            assert_eq!(first_host(list).as_deref(), Some(first));
        }
        assert_eq!(first_host(""), None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let without = |name: &str| {
            let rest: Vec<_> = TORCHRUN.into_iter().filter(|(n, _)| *n != name).collect();
            place(&rest).unwrap_err()
        };
        for name in ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
            assert_eq!(without(name), format!("{name} is not set"));
        }
        let with = |name, value| place(&[&[(name, value)], &TORCHRUN[..]].concat()).unwrap_err();
        assert_eq!(with("RANK", "x"), "RANK=x: not a number");
        assert_eq!(with("RANK", "4"), "RANK=4 is not in 0..4");
        assert_eq!(with("MASTER_PORT", "65536"), "MASTER_PORT=65536 is not in 1..=65535");
    }
}
