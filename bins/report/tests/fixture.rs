//! Runs as the stages leave them, as far as a report reads them.

use lcf_store::{
    Artifact,
    cli::StageArgs,
    npy,
    stage::{Begin, Plan, Work},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A store and its runs.
pub struct Bench {
    /// Where both are.
    pub dir: TempDir,
}

/// What makes runs differ.
pub struct Kind {
    objective: &'static str,
    seed: u64,
    images: u64,
    fid: f64,
    num: usize,
    ms: f64,
    snapshots: bool,
}

impl Kind {
    /// Flow matching.
    pub fn fm(seed: u64) -> Self {
        Self { objective: "fm", seed, images: 500, fid: 40.0 + 2.0 * seed as f64, num: 9, ms: 20.0, snapshots: true }
    }

    /// LCF, with a FID of few samples and a FID stage that knows no KID.
    pub fn lcf() -> Self {
        Self { objective: "lcf", fid: 30.0, num: 4, ..Self::fm(0) }
    }

    /// The same on a slower machine.
    pub fn slower(self) -> Self {
        Self { ms: 30.0, ..self }
    }

    /// The same with another objective.
    pub fn named(self, objective: &'static str) -> Self {
        Self { objective, ..self }
    }

    /// The same without snapshots.
    pub fn without_snapshots(self) -> Self {
        Self { snapshots: false, ..self }
    }

    /// [`Kind::lcf`] on fewer images.
    pub fn few() -> Self {
        Self { images: 100, ..Self::lcf() }
    }
}

impl Bench {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// The directory of all runs.
    pub fn runs(&self) -> PathBuf {
        self.dir.path().join("runs")
    }

    /// A link of a run.
    pub fn link(&self, run: &str, stage: &str) -> PathBuf {
        self.runs().join(run).join(stage)
    }

    /// Publishes an artifact, or finds it, and links it.
    fn stage(
        &self,
        (run, role): (&str, &str),
        config: &Value,
        inputs: &[(&str, &Artifact)],
        fill: impl Fn(&mut Work),
    ) -> Artifact {
        let link = Some(self.link(run, role));
        let args = StageArgs { store: self.dir.path().join("store"), link, ..StageArgs::default() };
        let stage = role.rsplit('/').next().and_then(|role| role.split('-').next()).unwrap();
        let mut plan = Plan::new(stage, 1, config);
        for (role, artifact) in inputs {
            plan = plan.input(role, artifact.digest());
        }
        let artifact = match plan.begin(&args).unwrap() {
            Begin::UpToDate(artifact) => artifact,
            Begin::Build(mut work) => {
                fill(&mut work);
                work.publish().unwrap()
            }
        };
        args.link(&artifact).unwrap();
        artifact
    }

    /// A run of all stages, with a snapshot after epoch 1 of 4.
    pub fn run(&self, name: &str, kind: &Kind) {
        let data = self.prepare(name, kind.images);
        let train = self.train(name, kind, &data);
        for (weights, prefix, better) in [("ema", "", 0.0), ("epoch-1", "epoch-1/", 10.0)] {
            if weights == "ema" || kind.snapshots {
                self.evaluate((name, weights, prefix), kind, better, &data, &train);
            }
        }
    }

    /// A run whose final weights are evaluated on other images than it was trained on.
    pub fn run_elsewhere(&self, name: &str, kind: &Kind) {
        let train = self.train(name, kind, &self.prepare(name, kind.images));
        let other = self.prepare(name, kind.images + 1);
        self.evaluate((name, "ema", ""), kind, 0.0, &other, &train);
    }

    fn prepare(&self, name: &str, images: u64) -> Artifact {
        self.stage((name, "prepare"), &json!({"dataset": "tiny", "limit": images}), &[], |work| {
            write(work, "dataset.json", &json!({"train": {"count": images}}).to_string());
        })
    }

    fn train(&self, name: &str, kind: &Kind, data: &Artifact) -> Artifact {
        let t_min = if kind.objective == "lcf" { json!(0.1) } else { Value::Null };
        let snapshots = if kind.snapshots { json!([1]) } else { json!([]) };
        let config = json!({"objective": kind.objective, "t_min": t_min, "seed": kind.seed, "epochs": 4, "snapshots": snapshots});
        self.stage((name, "train"), &config, &[("data", data)], |work| {
            let meta = json!({"objective": kind.objective, "parameters": 1234567, "epochs": 4, "steps": 40, "skipped": 0,
                              "final_loss": 0.25, "dataset": "tiny", "data": data.digest()});
            write(work, "train.json", &meta.to_string());
            write(work, "weights/ema.safetensors", &format!("{} {}", kind.objective, kind.seed));
            write(work, "metrics.csv", &metrics(kind));
            work.log("metrics.csv");
        })
    }

    fn evaluate(
        &self,
        (name, weights, prefix): (&str, &str, &str),
        kind: &Kind,
        worse: f64,
        data: &Artifact,
        train: &Artifact,
    ) {
        let role = |stage: &str| format!("{prefix}{stage}");
        let config = json!({"weights": weights, "seed": 0});
        let extract = self.stage((name, &role("extract")), &config, &[("model", train), ("data", data)], |work| {
            write(work, "features.json", &format!("{weights} {}", train.digest()));
        });
        self.stage((name, &role("probe")), &json!({"seed": 0}), &[("features", &extract)], |work| {
            write(work, "probe.json", &json!({"model": train.digest()}).to_string());
            let base = 0.4 - worse / 100.0 + 0.01 * kind.seed as f64;
            let row = |t: u32, more: f64| format!("{t},{},1,{},1,{}\n", f64::from(t) / 1e3, base + more, base + 0.1);
            let head = "timestep,t,train_acc_raw,test_acc_raw,train_acc_std,test_acc_std\n";
            write(work, "probe.csv", &[head, &row(0, 0.0), &row(20, 0.1), &row(200, 0.05)].concat());
        });
        let sampled = |link: &str, seed: u64| {
            let config = json!({"weights": weights, "num": kind.num, "seed": seed});
            self.stage((name, &role(link)), &config, &[("model", train)], |work| {
                let pixels: Vec<u8> = (0..kind.num * 48).map(|i| ((i + seed as usize) * 37 % 251) as u8).collect();
                write(work, "sample.json", &json!({"model": train.digest()}).to_string());
                npy::write(&work.path("images.npy"), &[kind.num, 4, 4, 3], &pixels).unwrap();
            })
        };
        let sample = sampled("sample", 0);
        let mut inputs = vec![("samples", sample), ("data", data.clone())];
        if kind.objective == "fm" && weights == "ema" {
            inputs.push(("samples-1", sampled("sample-seed-7", 7)));
            self.stage((name, "reference"), &json!({}), &[("data", data)], |work| write(work, "stats", "1"));
        }
        let inputs: Vec<(&str, &Artifact)> = inputs.iter().map(|(role, artifact)| (*role, artifact)).collect();
        self.stage((name, &role("fid")), &json!({"split": "train"}), &inputs, |work| {
            let mut fid = json!({"fid": kind.fid + worse, "n": kind.num, "n_reference": 64, "split": "train",
                "resize": "tf1", "rank_deficient": kind.num < 9, "sample": {"model": train.digest()}});
            if kind.objective == "fm" {
                fid["against"] = json!({"train": {"kid": {"mean": 0.0025, "std": 1e-4}}, "test": {"fid": 45.0}});
                fid["spread"] = json!({"seeds": 2, "fid": {"mean": 41.5, "std": 2.1213}});
                let histogram = json!({"edges": [0.0, 1.0, 2.0], "samples": [2, 8], "test": [0, 5]});
                fid["memorisation"] = json!({"features": {"near": 0.02, "histogram": histogram},
                                             "pixels": {"near": 0.01, "histogram": histogram}});
            }
            write(work, "fid.json", &fid.to_string());
        });
    }

    /// The program on the directories `runs`.
    pub fn command(&self, runs: &[&Path]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-report"));
        command.arg("--store").arg(self.dir.path().join("store")).args(runs);
        command
    }

    /// The report of runs by name, and what was printed.
    pub fn report(&self, runs: &[&str]) -> (Artifact, String) {
        let dirs: Vec<PathBuf> = runs.iter().map(|run| self.runs().join(run)).collect();
        let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        let link = self.runs().join("report");
        let output = self.command(&dirs).arg("--link").arg(&link).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (Artifact::open(&link, "report").unwrap(), stdout(&output))
    }
}

/// Two rows an epoch, the lowest bin of t empty where the objective cuts it.
fn metrics(kind: &Kind) -> String {
    let bins: Vec<String> = (0..10).map(|bin| format!("flow_t0.{bin}")).collect();
    let mut text = format!("step,epoch,loss,flow,pull,push,{},ms_per_step\n", bins.join(","));
    for row in 1..=8 {
        let loss = 1.0 / f64::from(row) + 0.1 * kind.seed as f64;
        let contrast = if kind.objective == "lcf" { format!("{loss},{}", loss * 5.0) } else { ",".into() };
        let first = if kind.objective == "lcf" { String::new() } else { loss.to_string() };
        let rest: Vec<String> = (1..10).map(|bin| (loss / f64::from(bin)).to_string()).collect();
        let epoch = f64::from(row) / 2.0;
        text += &format!("{},{epoch},{loss},{loss},{contrast},{first},{},{}\n", row * 5, rest.join(","), kind.ms);
    }
    text
}

fn write(work: &Work, name: &str, text: &str) {
    let path = work.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What was printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What was said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
