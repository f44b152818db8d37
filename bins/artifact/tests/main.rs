//! The program itself, on small stores built by the code that builds the real ones.

mod export;
mod pytorch;

use lcf_store::{
    Artifact,
    cli::StageArgs,
    stage::{Begin, Plan},
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Output},
};
use tempfile::TempDir;

/// A place with a store and runs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args(&self, link: Option<&str>) -> StageArgs {
        let link = link.map(|name| self.path("runs").join(name));
        StageArgs { store: self.path("store"), link, ..StageArgs::default() }
    }

    /// Publishes an artifact of `stage` that holds `files`, and links it.
    fn build(&self, stage: &str, inputs: &[&Artifact], files: &[(&str, &str)], link: Option<&str>) -> Artifact {
        let files: Vec<(&str, &[u8])> = files.iter().map(|&(name, text)| (name, text.as_bytes())).collect();
        self.build_bytes(stage, inputs, &files, link)
    }

    fn build_bytes(&self, stage: &str, inputs: &[&Artifact], files: &[(&str, &[u8])], link: Option<&str>) -> Artifact {
        let args = self.args(link);
        let mut plan = Plan::new(stage, 1, &json!({ "files": files }));
        for (i, input) in inputs.iter().enumerate() {
            plan = plan.input(&format!("input{i}"), input.digest());
        }
        let Begin::Build(work) = plan.begin(&args).unwrap() else { panic!("expected a build") };
        for (name, content) in files {
            fs::create_dir_all(work.path(name).parent().unwrap()).unwrap();
            fs::write(work.path(name), content).unwrap();
        }
        let artifact = work.publish().unwrap();
        args.link(&artifact).unwrap();
        artifact
    }

    fn run(&self, args: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_lcf-artifact"))
            .args(args)
            .current_dir(fs::canonicalize(self.0.path()).unwrap())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

const AT: [&str; 4] = ["--store", "store", "--runs", "runs"];

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &AT].concat()
}

fn key12(artifact: &Artifact) -> String {
    artifact.manifest().key[..12].to_owned()
}

#[test]
fn list_names_stage_key_size_and_runs() {
    let place = Place::new();
    assert!(place.run(&with(&["list"])).out.contains("no artifacts yet"));
    let data = place.build("prepare", &[], &[("a.txt", "alpha")], Some("one/prepare"));
    place.args(Some("two/prepare")).link(&data).unwrap();
    place.build("train", &[&data], &[("b.txt", "beta")], None);
    let ran = place.run(&with(&["list"]));
    let row = ran.out.lines().find(|line| line.starts_with("prepare")).unwrap();
    assert!(row.contains(&key12(&data)) && row.contains("5 B") && row.ends_with("one, two"), "{row}");
    assert!(ran.out.ends_with("2 artifacts, 9 B\n"), "{}", ran.out);
    let listed = place.run(&with(&["list", "--json"])).json();
    assert_eq!(listed["artifacts"][0]["runs"], json!(["one", "two"]));
    assert_eq!(listed["artifacts"][1]["stage"], "train");
}

#[test]
fn show_finds_the_inputs_in_the_store() {
    let place = Place::new();
    let data = place.build("prepare", &[], &[("a.txt", "alpha")], Some("one/prepare"));
    place.build("train", &[&data], &[("b.txt", "beta")], Some("one/train"));
    let ran = place.run(&["show", "runs/one/train"]);
    assert!(ran.out.contains(&format!("input0: store/prepare/{}", key12(&data))), "{}", ran.out);
    assert!(ran.out.contains("b.txt") && ran.out.contains("train (version 1)"));
    assert!(ran.out.contains("\nrepeats   to the bit\n"), "{}", ran.out);
    let shown = place.run(&["show", "runs/one/train", "--json"]).json();
    assert_eq!(shown["input_paths"]["input0"], format!("store/prepare/{}", key12(&data)));
    assert_eq!(shown["manifest"]["stage"], "train");
    fs::remove_dir_all(data.dir()).unwrap();
    assert!(place.run(&["show", "runs/one/train"]).out.contains("not in this store"));
    let ran = place.run(&["show", "nowhere"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("artifact: error: nowhere: no artifact here"), "{}", ran.err);
}

const CURVE: &str = "timestep,t,train_acc_raw,test_acc_raw,train_acc_std,test_acc_std\n\
                     0,0,0.5,0.25,0.5,0.3\n20,0.02,0.5,0.375,0.5,0.25\n";

#[test]
fn show_of_a_run_is_its_table() {
    let place = Place::new();
    let fid = r#"{"fid": 12.5, "n": 64, "split": "train", "n_reference": 128, "floor": null, "more": 1,
        "warnings": ["few images"]}"#;
    place.build("train", &[], &[("train.json", r#"{"objective": "fm", "final_loss": 0.5}"#)], Some("one/train"));
    let ran = place.run(&["show", "runs/one"]);
    assert!(ran.out.contains("training: fm, final loss 0.5000") && !ran.out.contains("FID"), "{}", ran.out);
    place.build("probe", &[], &[("probe.csv", CURVE)], Some("one/probe"));
    place.build("fid", &[], &[("fid.json", fid)], Some("one/fid"));
    let ran = place.run(&["show", "runs/one/"]);
    for line in [
        "20  0.02  37.50         25.00",
        "raw: peak 37.50 at t=0.02, at t=0 25.00, gap 12.50",
        "FID 12.500 (64 samples",
        "\nwarning: fid: few images\n",
    ] {
        assert!(ran.out.contains(line), "no {line} in\n{}", ran.out);
    }
    let shown = place.run(&["show", "runs/one", "--json"]).json();
    assert_eq!(shown["probe"]["standardised"]["peak"], 0.3);
    assert_eq!(shown["fid"]["more"], 1);
    place.build("probe", &[], &[("probe.csv", &CURVE.replace("0.375", "NaN"))], Some("two/probe"));
    let ran = place.run(&["show", "runs/two"]);
    assert!(ran.code == 1 && ran.err.contains("probe.csv: found [0.5, NaN, 0.5, 0.25] at T=20"), "{}", ran.err);
    // What has been removed since then is said, beside what is there.
    fs::remove_dir_all(fs::canonicalize(place.path("runs/one/train")).unwrap()).unwrap();
    let ran = place.run(&["show", "runs/one"]);
    assert!(ran.out.contains("train: the link leads nowhere; make train again\n"), "{}", ran.out);
    assert_eq!(place.run(&["show", "runs/one", "--json"]).json()["broken"], json!(["train"]));
}

#[test]
fn verify_names_every_bad_file() {
    let place = Place::new();
    let data = place.build("prepare", &[], &[("a.txt", "alpha"), ("c.txt", "gamma")], Some("one/prepare"));
    let model = place.build("train", &[&data], &[("b.txt", "beta")], Some("one/train"));
    let ran = place.run(&["verify", "store", "runs/one"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "2 artifacts, 3 files, 14 B: all verify\n"));
    fs::File::options().write(true).open(data.dir().join("a.txt")).unwrap().write_all_at(b"A", 0).unwrap();
    fs::remove_file(data.dir().join("c.txt")).unwrap();
    fs::write(model.dir().join("manifest.json"), "{}").unwrap();
    let ran = place.run(&["verify", "store"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "2 artifacts, 2 files, 0 B: 3 bad\n"));
    for bad in ["a.txt: found sha256", "c.txt: missing", "manifest.json: not a manifest"] {
        assert!(ran.err.contains(bad), "{}", ran.err);
    }
    fs::remove_dir_all(data.dir()).unwrap();
    assert!(place.run(&["verify", "runs/one"]).err.contains("runs/one/prepare: no artifact here"));
    assert_eq!(place.run(&["verify", "runs/two"]).code, 1);
    assert_eq!(place.run(&["verify"]).code, 2);
}

#[test]
fn gc_keeps_what_a_run_needs_and_nothing_else() {
    let place = Place::new();
    let data = place.build("prepare", &[], &[("a.txt", "alpha")], None);
    let model = place.build("train", &[&data], &[("b.txt", "beta")], None);
    let probe = place.build("probe", &[&model], &[("c.txt", "gamma")], Some("one/probe"));
    let old = place.build("train", &[&data], &[("b.txt", "old")], None);
    let half = place.path("store/train/.work-0123456789ab");
    fs::create_dir(&half).unwrap();
    fs::write(half.join(".checkpoint"), "12345").unwrap();
    let ran = place.run(&with(&["gc", "--dry-run"]));
    assert!(ran.out.contains(&format!("artifact store/train/{}", key12(&old))), "{}", ran.out);
    assert!(ran.out.contains("interrupted build store/train/.work-0123456789ab, 5 B"), "{}", ran.out);
    assert!(old.dir().exists() && half.exists());
    let ran = place.run(&with(&["gc"]));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!old.dir().exists() && !half.exists());
    assert!([&data, &model, &probe].iter().all(|artifact| Artifact::open_any(artifact.dir()).is_ok()));
    let left: Vec<_> = fs::read_dir(place.path("store/train")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [key12(&model).as_str()], "locks are gone too");
    assert!(place.run(&with(&["gc"])).out.contains("nothing to remove"));
}

#[test]
fn gc_leaves_what_is_locked_and_refuses_to_empty_the_store() {
    let place = Place::new();
    fs::create_dir(place.path("runs")).unwrap();
    let Begin::Build(work) = Plan::new("train", 1, &()).begin(&place.args(None)).unwrap() else { panic!() };
    fs::write(work.path("half"), "12345").unwrap();
    for args in [with(&["gc", "--dry-run"]), with(&["gc"])] {
        let ran = place.run(&args);
        assert!(ran.out.starts_with("kept, in use: store/train/.work-"), "{}", ran.out);
        assert!(work.path("half").exists());
    }
    drop(work);
    assert!(place.run(&with(&["gc"])).out.contains("interrupted build"));
    let ran = place.run(&["gc", "--store", "store", "--runs", "no-runs"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("no-runs: no runs here"), "{}", ran.err);
}
