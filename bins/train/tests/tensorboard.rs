//! The event files as TensorBoard reads them, of a training that was killed and went on. Needs a Python with TensorBoard:
//! `$LCF_PYTHON`, else that of `.venv/tensorboard`, where `make unit` installs it, else `python3`.

use super::{Bench, wait_for_checkpoint};
use serde_json::Value;
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// The Python to ask, where it has TensorBoard.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates lie two folders deep");
    let in_venv = root.join(".venv/tensorboard/bin/python3");
    let default = || if in_venv.exists() { in_venv.clone() } else { "python3".into() };
    let python = env::var_os("LCF_PYTHON").map_or_else(default, PathBuf::from);
    let found = Command::new(&python).args(["-c", "import tensorboard"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    // The test harness keeps back what `println!` prints.
    let _ = writeln!(std::io::stderr(), "skipped: TensorBoard is not importable by {}", python.display());
    None
}

/// What TensorBoard makes of the event files in `dir`.
fn read(python: &Path, dir: &Path) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_events.py");
    let output = Command::new(python).arg("-B").arg(script).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `(step, value)` of a column of `metrics.csv`, empty cells left out.
fn column(metrics: &str, name: &str) -> Vec<(u64, f64)> {
    let at = metrics.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    let row = |row: &str| {
        let cells: Vec<&str> = row.split(',').collect();
        Some((cells[0].parse().ok()?, cells[at].parse().ok()?))
    };
    metrics.lines().skip(1).filter_map(row).collect()
}

#[test]
fn tensorboard_reads_every_row_once_after_a_kill() {
    let Some(python) = python() else { return };
    let bench = Bench::new();
    let snapshots = "train.snapshots=[1,2,300]";
    let more = ["--set", "train.epochs=400", "--set", snapshots, "--checkpoint-steps", "50", "--log-steps", "3"];
    let mut child = bench.command("store", &more).stderr(Stdio::null()).spawn().unwrap();
    wait_for_checkpoint(&bench.dir.path().join("store/train"));
    sleep(Duration::from_millis(50));
    child.kill().unwrap();
    child.wait().unwrap();
    let trained = bench.train("store", &more);
    let outputs = &trained.artifact.manifest().outputs;
    let events: Vec<_> = outputs.iter().filter(|output| output.path.starts_with("events.out.tfevents.")).collect();
    assert!(events.len() == 2 && events.iter().all(|output| output.log), "{events:?}");

    let found = read(&python, trained.artifact.dir());
    let metrics = fs::read_to_string(trained.artifact.file("metrics.csv").unwrap()).unwrap();
    for (tag, name) in [("loss/flow", "flow"), ("contrast/pull", "pull"), ("flow loss by t/flow_t0.7", "flow_t0.7")] {
        let expected = column(&metrics, name);
        let scalars: Vec<(u64, f64)> = serde_json::from_value(found["scalars"][tag].clone()).unwrap();
        assert_eq!(scalars.len(), expected.len(), "{tag}");
        for ((step, value), (at, expected)) in scalars.iter().zip(&expected) {
            assert!(step == at && (value - expected).abs() <= 1e-6 * expected.abs(), "{tag} at {step}");
        }
    }
    let images: Vec<(u64, u64, u64, String)> = serde_json::from_value(found["images"]["samples"].clone()).unwrap();
    assert_eq!(images.iter().map(|image| image.0).collect::<Vec<_>>(), [5, 10, 1500, 2000]);
    assert!(images.iter().all(|image| image.1 == image.2 && image.1 >= 6 * 64 && image.3 == "PNG"));
    let histograms = found["histograms"]["flow loss by t"].as_array().unwrap();
    assert_eq!(histograms.len(), metrics.lines().count() - 1);
    let (limits, weights) = (&histograms[0][1], &histograms[0][2]);
    assert_eq!((limits[0].as_f64(), limits[9].as_f64()), (Some(0.1), Some(1.0)));
    assert_eq!(weights[7].as_f64(), column(&metrics, "flow_t0.7").first().map(|(_, loss)| *loss));
}
