//! Several processes against one: the same training, whoever starts them and however they end.

use super::{
    Bench,
    golden::compare::{assert_same, clearly_differ},
    stderr, wait_for_checkpoint, work_dir,
};
use lcf_model::{trained::weights_file, weights};
use lcf_store::digest;
use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tch::Tensor;

/// A training that does not end by itself, with checkpoints.
const LONG: [&str; 6] = ["--set", "train.epochs=100000", "--checkpoint-steps", "3", "--rank-timeout", "3"];

impl Bench {
    /// Starts the ranks by hand, as srun or a person with two machines does: rank 0 keeps the store.
    fn ranks(&self, store: &str, size: usize, more: &[&str]) -> Vec<Child> {
        let port = free_port();
        (0..size).map(|rank| self.rank(store, (rank, size), port, more)).collect()
    }

    fn rank(&self, store: &str, (rank, size): (usize, usize), port: u16, more: &[&str]) -> Child {
        let mut command = self.command(store, more);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Trains by that many ranks.
    fn train_by(&self, store: &str, size: usize, more: &[&str]) {
        let outputs = wait(self.ranks(store, size, more));
        for output in &outputs {
            assert!(output.status.success(), "{}", stderr(output));
        }
        // Rank 0 alone says what came out.
        assert!(outputs[1..].iter().all(|output| output.stdout.is_empty()));
    }

    /// The final weights, without the bias of keys: its gradient is rounding alone, see `golden.rs`.
    fn weights(&self, store: &str) -> BTreeMap<String, Tensor> {
        let mut all = BTreeMap::new();
        for name in ["raw", "ema"] {
            for (key, tensor) in weights::read(&self.link(store).join(weights_file(name))).unwrap() {
                let tensor = match key.ends_with("qkv.bias") {
                    true => Tensor::cat(&[tensor.view([3, -1]).get(0), tensor.view([3, -1]).get(2)], 0),
                    false => tensor,
                };
                all.insert(format!("{name} {key}"), tensor);
            }
        }
        all
    }

    /// Whether the manifest says that it can be had again.
    fn repeats(&self, store: &str) -> String {
        let manifest = self.link(store).join("manifest.json");
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        manifest["provenance"]["reproducible"].as_str().unwrap().to_owned()
    }

    fn assert_same_weights(&self, one: &str, other: &str) {
        let (one, other) = (self.weights(one), self.weights(other));
        assert_eq!(one.len(), other.len());
        one.iter().for_each(|(name, tensor)| assert_same(name, &other[name], tensor));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn kill(signal: &str, child: &Child) {
    Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
}

/// The checkpoint of the training under way is what its pointer says.
fn assert_checkpoint(stage: &Path) {
    let dir = work_dir(stage).expect("a training under way");
    let text = std::fs::read_to_string(dir.join(".checkpoint.json")).unwrap();
    let pointer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pointer = &pointer["pointer"]["tensors"];
    let (bytes, sha256) = digest::of_file(&dir.join(pointer["file"].as_str().unwrap())).unwrap();
    assert_eq!((pointer["bytes"].as_u64(), pointer["sha256"].as_str()), (Some(bytes), Some(sha256.as_str())));
}

#[test]
fn two_ranks_train_as_one_process_does() {
    let bench = Bench::new();
    for objective in ["fm", "fm_truncated", "lcf", "fm_contrastive"] {
        let set = format!("train.objective={objective}");
        let (one, two) = (format!("{objective}-1"), format!("{objective}-2"));
        bench.train(&one, &["--set", &set]);
        bench.train_by(&two, 2, &["--set", &set]);
        bench.assert_same_weights(&one, &two);
        assert_eq!([bench.repeats(&one), bench.repeats(&two)], ["to the bit", "up to rounding"]);
    }
}

/// What would pass as rounding does not: the comparison sees a contrast that is stronger by a hundredth.
#[test]
fn twin_another_weight_of_the_contrast_is_told_apart() {
    let bench = Bench::new();
    bench.train("one", &[]);
    bench.train_by("two", 2, &["--set", "train.contrast.lambda=1.01"]);
    let (one, two) = (bench.weights("one"), bench.weights("two"));
    assert!(one.iter().any(|(name, tensor)| clearly_differ(&two[name], tensor)));
}

/// Five ranks have one or two samples of a batch of eight each, and some have no anchor.
#[test]
fn a_training_goes_on_with_another_number_of_ranks() {
    let bench = Bench::new();
    let more = ["--set", "train.epochs=20", "--checkpoint-steps", "3"];
    bench.train("whole", &more);
    let stage = bench.dir.path().join("split/train");
    for launch in [&["--ranks", "2"][..], &["--ranks=5"], &[]] {
        let checkpoint = || std::fs::read_to_string(work_dir(&stage)?.join(".checkpoint.json")).ok();
        let before = checkpoint();
        let mut child = bench.command("split", &[&more, launch].concat()).stderr(Stdio::piped()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && checkpoint().is_none_or(|now| Some(now) == before) {
            sleep(Duration::from_millis(2));
        }
        kill("TERM", &child);
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        // It may have come to its end meanwhile.
        assert!(output.status.success() || output.status.code() == Some(75), "{text}");
        assert!(output.status.success() || text.matches("stopped by a signal after step").count() == 1, "{text}");
    }
    bench.train("split", &more);
    bench.assert_same_weights("whole", "split");
    // One process has ended it, and cannot repeat what two began.
    assert_eq!([bench.repeats("whole"), bench.repeats("split")], ["to the bit", "up to rounding"]);
    let again = bench.command("split", &[&more[..], &["--ranks", "2", "--json"]].concat()).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("\"built\":false"), "{}", stderr(&again));
}

#[test]
fn a_signal_to_any_rank_stops_all_after_the_same_step() {
    let bench = Bench::new();
    let ranks = bench.ranks("store", 3, &LONG);
    let stage = bench.dir.path().join("store/train");
    wait_for_checkpoint(&stage);
    kill("TERM", &ranks[2]);
    let outputs = wait(ranks);
    assert!(outputs.iter().all(|output| output.status.code() == Some(75)));
    let text = stderr(&outputs[0]);
    let step = text.split("stopped by a signal after step ").nth(1).and_then(|rest| rest.split(';').next());
    let step = step.unwrap_or_else(|| panic!("no step in {text}"));
    assert!(work_dir(&stage).unwrap().join(format!(".checkpoint-{step}.safetensors")).exists(), "{text}");
    assert_checkpoint(&stage);
    assert_eq!(outputs[1..].iter().map(stderr).collect::<String>(), "", "rank 0 alone says so");
}

#[test]
fn a_signal_to_the_launcher_stops_ranks_that_are_about_to_start() {
    let bench = Bench::new();
    for pause in [0, 50, 200, 500] {
        let mut command = bench.command("store", &[&LONG[..], &["--ranks", "2"]].concat());
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        while children(child.id()).len() < 2 {
            sleep(Duration::from_millis(2));
        }
        sleep(Duration::from_millis(pause));
        kill("TERM", &child);
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(75), "{text}");
        assert!(text.contains("train: ") && text.contains("stopped by a signal "), "{text}");
    }
}

/// Dead, or alive and stopped, which no connection tells: the others end by the time-out, and name it.
#[test]
fn a_rank_that_dies_or_hangs_ends_the_others() {
    for (signal, lost) in [("KILL", 0), ("KILL", 1), ("STOP", 0), ("STOP", 2)] {
        let bench = Bench::new();
        let mut ranks = bench.ranks("store", 3, &LONG);
        let stage = bench.dir.path().join("store/train");
        wait_for_checkpoint(&stage);
        kill(signal, &ranks[lost]);
        let start = Instant::now();
        let mut lost_one = ranks.remove(lost);
        for output in wait(ranks) {
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(&format!("error: rank {lost}")), "{signal} {lost}: {text}");
        }
        // Three seconds, and what a busy machine takes.
        assert!(start.elapsed() < Duration::from_secs(30), "{signal} {lost}: {:?}", start.elapsed());
        kill("KILL", &lost_one);
        lost_one.wait().unwrap();
        assert_checkpoint(&stage);
    }
}

/// Started by `--ranks`, and then by what is left of them.
#[test]
fn the_launcher_ends_what_it_started_and_names_who_was_lost() {
    let bench = Bench::new();
    let child =
        bench.command("store", &[&LONG[..], &["--ranks", "3"]].concat()).stderr(Stdio::piped()).spawn().unwrap();
    let stage = bench.dir.path().join("store/train");
    wait_for_checkpoint(&stage);
    let ranks = children(child.id());
    assert_eq!(ranks.len(), 3);
    Command::new("kill").args(["-KILL", &ranks[1].to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("train: error: rank 1 ended: signal: 9"), "{text}");
    assert!(ranks.iter().all(|rank| !Path::new(&format!("/proc/{rank}")).exists()), "{text}");
    assert_checkpoint(&stage);
}

/// The processes that process `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let mut found: Vec<u32> = pids.filter(|pid| parent_of(*pid) == Some(parent)).collect();
    found.sort_unstable();
    found
}

#[test]
fn a_failure_of_one_rank_is_what_all_end_with() {
    let bench = Bench::new();
    // Rank 0 cannot write there.
    std::fs::write(bench.dir.path().join("file"), "").unwrap();
    let outputs = wait(bench.ranks("file", 2, &[]));
    assert!(outputs.iter().all(|output| output.status.code() == Some(1)));
    assert!(stderr(&outputs[0]).starts_with("train: error: "), "{}", stderr(&outputs[0]));
    assert!(stderr(&outputs[1]).starts_with("train[1]: error: rank 0 failed: "), "{}", stderr(&outputs[1]));
}

#[test]
fn ranks_that_were_not_asked_for_the_same_are_refused() {
    let bench = Bench::new();
    let port = free_port();
    let rates = ["train.optim.lr=1e-3", "train.optim.lr=1e-4"];
    let start = |rank: usize| bench.rank("store", (rank, 2), port, &["--set", rates[rank]]);
    let outputs = wait(vec![start(0), start(1)]);
    assert_eq!(outputs[1].status.code(), Some(2), "{}", stderr(&outputs[1]));
    assert!(stderr(&outputs[1]).contains("rank 1 was given another config or other data than rank 0"));
    assert!(stderr(&outputs[0]).contains("rank 1 failed: "), "{}", stderr(&outputs[0]));
}

#[test]
fn places_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    let refused = |variables: &[(&str, &str)], more: &[&str], message: &str| {
        let output = bench.command("store", more).envs(variables.iter().copied()).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(message), "{text}");
    };
    let place = [("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "127.0.0.1")];
    refused(&place, &[], "MASTER_PORT is not set");
    refused(&[("WORLD_SIZE", "2"), ("RANK", "2"), ("LOCAL_RANK", "1")], &[], "RANK=2 is not in 0..2");
    refused(&place, &["--ranks", "2"], "--ranks: this process was started as one of several ranks already");
    refused(&[], &["--ranks", "9"], "train.batch: 8 is not enough for 9 ranks");
    refused(&[], &["--ranks", "0"], "--ranks");
}

/// Run on a machine with at least two GPUs with `--features cuda-tests`: numbers of ranks that divide neither the batch nor
/// the slots, too. Rows of metrics.csv tell; `Ranks::same` has compared the ranks' weights at each checkpoint.
#[cfg(feature = "cuda-tests")]
#[test]
fn gpus_make_the_captured_step_of_one_gpu() {
    lcf_native::open_cuda().unwrap();
    let count = tch::Cuda::device_count();
    assert!(count >= 2, "{count} GPUs found, expected at least 2");
    let bench = Bench::new();
    for objective in ["fm", "fm_truncated", "lcf", "fm_contrastive"] {
        let one = bench.captured(objective, 1);
        for size in 2..=count.min(4) {
            for (row, (found, expected)) in bench.captured(objective, size).iter().zip(&one).enumerate() {
                // The first step has the same weights; later ones have what rounding made of them.
                let most = if row == 0 { 1e-2 } else { 5e-2 };
                for (cell, (found, expected)) in found.iter().zip(expected).enumerate() {
                    let same =
                        (found.is_nan() && expected.is_nan()) || (found - expected).abs() <= most * expected.abs();
                    assert!(same, "{objective}, {size} ranks, row {row}, cell {cell}: {found}, expected {expected}");
                }
            }
        }
    }
}

#[cfg(feature = "cuda-tests")]
impl Bench {
    /// Rows of the metrics of a training by `size` GPUs, without those about time; NaN where there is nothing.
    fn captured(&self, objective: &str, size: i64) -> Vec<Vec<f64>> {
        let model = ["width=128", "heads=2", "mlp=256"].map(|value| format!("train.model.{value}"));
        let objective = format!("train.objective={objective}");
        let ranks = size.to_string();
        let mut more = vec!["--device", "cuda", "--ranks", &ranks, "--log-steps", "1", "--checkpoint-steps", "3"];
        let sets = [&model[0], &model[1], &model[2], &objective, "train.precision=bf16", "train.t_min=0.1"];
        more.extend(sets.iter().flat_map(|set| ["--set", set]));
        let trained = self.train(&format!("{}-{size}", objective.replace('=', "-")), &more);
        let text = std::fs::read_to_string(trained.artifact.file("metrics.csv").unwrap()).unwrap();
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(rows.len(), 15);
        let numbers = |row: &&str| row.split(',').map(|cell| cell.parse().unwrap_or(f64::NAN)).collect::<Vec<f64>>();
        rows.iter().map(numbers).map(|row| row[..row.len() - 2].to_vec()).collect()
    }
}
