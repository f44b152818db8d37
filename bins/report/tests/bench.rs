//! `lcf-report bench` on what stages and PyTorch have printed.

use super::fixture::{stderr, stdout};
use lcf_store::{
    bench::{Measurement, Outcome, Rates, Times, Work},
    machine::Machine,
    provenance::Provenance,
};
use serde_json::{Value, json};
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A training of a tiny model, as `lcf-train --bench --json` prints it.
fn train() -> Outcome {
    let rates = Rates { precision: "fp32".into(), flop_per_s: 1e11, bytes_per_s: 1e10 };
    let work = Work { flop_per_item: Some(1e9), bytes_per_item: None };
    let machine = Machine { device: "cpu".into(), cores: 2, ..Machine::of(&Provenance::default()) };
    Outcome {
        stage: "train".into(),
        measurements: vec![Measurement::new("step of 8", Times::of(&[160.0], 1), (8.0, "images"), work, &rates)],
        settings: json!({
            "run": {
                "model": {"depth": 2, "width": 16, "heads": 2, "mlp": 32, "patch": 2}, "objective": "lcf", "t_min": 0.3,
                "contrast": {"lambda": 1, "tau": 0.5, "layer": 1}, "precision": "fp32", "batch": 8,
                "optim": {"lr": 1e-3, "weight_decay": 0.01, "clip": 1}, "ema": {"decay": 0.99}
            },
            "images": {"channels": 3, "side": 8, "count": 40}, "anchors": 2.4
        }),
        rates,
        peak_bytes: Some(1 << 20),
        threads: 1,
        machine,
        revision: "abc".into(),
        argv: vec!["lcf-train".into()],
        started: 0,
    }
}

fn report(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lcf-report")).arg("bench").args(args).current_dir(dir).output().unwrap()
}

#[test]
fn the_table_is_printed_and_kept_by_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("train.json"), json!(train()).to_string()).unwrap();
    fs::write(
        dir.join("torch.jsonl"),
        r#"{"what": "PyTorch eager", "n": 3, "pieces": 1, "median_ms": 320, "p5_ms": 310, "p95_ms": 330, "batch": 8, "peak_bytes": 1048576}"#,
    )
    .unwrap();
    let output = report(dir, &["train.json", "--torch", "torch.jsonl", "--out", "docs/bench", "--command", "make it"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains("160 ms") && text.contains("50 % (arithmetic)") && text.contains("25 % (arithmetic)"),
        "{text}"
    );
    let page = fs::read_to_string(dir.join("docs/bench/cpu-2-cores.md")).unwrap();
    assert!(
        page.starts_with("# CPU, 2 cores\n\n    make it\n") && page.contains("| PyTorch eager | 320 ms |"),
        "{page}"
    );
    let numbers = fs::read(dir.join("docs/bench/cpu-2-cores.json")).unwrap();
    let numbers: Value = serde_json::from_slice(&numbers).unwrap();
    assert_eq!((&numbers["stages"][0]["stage"], &numbers["torch"][0]["n"]), (&json!("train"), &json!(3)));
}

#[test]
fn what_is_no_bench_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |args: &[&str], code: i32, part: &str| {
        let output = report(dir.path(), args);
        assert_eq!(output.status.code(), Some(code));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    };
    fails(&[], 2, "<FILE>");
    fails(&["none.json"], 1, "none.json: cannot read");
    fs::write(dir.path().join("x.json"), "{}").unwrap();
    fails(&["x.json"], 1, "x.json: not what --bench --json prints: missing field");
}

/// The first Python that can import torch of `$LCF_PYTHON`, `.venv` and `python3`; or a visible note that the test is skipped.
fn python() -> Option<PathBuf> {
    let venv = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.venv/bin/python3");
    let mut all = env::var_os("LCF_PYTHON").map(PathBuf::from).into_iter().chain([venv.into(), "python3".into()]);
    let can_import = |python: &PathBuf| {
        let found = Command::new(python).args(["-c", "import torch"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let python = all.find(can_import);
    if python.is_none() {
        // Straight to the file descriptor: the test harness hides what eprintln! says in tests that pass.
        let note = b"skipped: torch_step.py: no Python here can import torch (LCF_PYTHON=...)\n";
        let _ = std::io::stderr().write_all(note);
    }
    python
}

#[test]
fn pytorch_steps_are_lines_of_the_table() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines/bench/torch_step.py");
    for objective in ["lcf", "fm"] {
        let mut like = train();
        like.settings["run"]["objective"] = objective.into();
        if objective == "fm" {
            like.settings["anchors"] = 0.into();
        }
        fs::write(dir.path().join("train.json"), json!(like).to_string()).unwrap();
        let mut command = Command::new(&python);
        command.args(["-B", script, "--seconds", "0.02", "--like", "train.json"]).current_dir(dir.path());
        // PyTorch warns where NumPy is not beside it.
        command.env("PYTHONWARNINGS", "ignore");
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
        fs::write(dir.path().join("torch.jsonl"), &output.stdout).unwrap();
        let output = report(dir.path(), &["train.json", "--torch", "torch.jsonl", "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let bench: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [line] = bench["torch"].as_array().unwrap().as_slice() else { panic!("{bench}") };
        assert!(
            line["what"].as_str().unwrap().ends_with("eager") && line["median_ms"].as_f64().unwrap() > 0.0,
            "{line}"
        );
    }
}
