//! The program on small runs made by hand, errors included.

mod bench;
mod fixture;

use fixture::{Bench, Kind, stderr, stdout};
use lcf_store::Artifact;
use serde_json::Value;
use std::{fs, path::Path};

fn page(artifact: &Artifact) -> String {
    fs::read_to_string(artifact.file("index.html").unwrap()).unwrap()
}

/// The text of the table's row whose first cell is `label`, the first time it is there.
fn cells(page: &str, label: &str) -> Vec<String> {
    let row = page.split("<tr").find(|row| row.contains(&format!("<th>{label}</th>"))).unwrap_or_default();
    row.split("<td").skip(1).filter_map(|cell| Some(cell.split_once('>')?.1.split_once('<')?.0.to_owned())).collect()
}

#[test]
fn every_figure_and_number_of_complete_runs_is_there() {
    let bench = Bench::new();
    for (name, kind) in [("fm-0", Kind::fm(0)), ("fm-1", Kind::fm(1)), ("lcf", Kind::lcf()), ("lcf-few", Kind::few())] {
        bench.run(name, &kind);
    }
    let (artifact, out) = bench.report(&["fm-0", "fm-1", "lcf", "lcf-few"]);
    let page = page(&artifact);
    let names: Vec<&str> = artifact.manifest().outputs.iter().map(|output| output.path.as_str()).collect();
    for figure in [
        "probe-raw",
        "probe-std",
        "fid-epochs",
        "loss-end",
        "loss-fm-2-seeds",
        "loss-lcf",
        "probe-epochs-fm-2-seeds-raw",
        "probe-epochs-lcf-std",
        "probe-sizes-lcf-few-raw",
        "samples",
        "pull",
        "push",
        "nearest-fm-0-features",
        "nearest-fm-0-pixels",
    ] {
        for kind in ["svg", "png"] {
            assert!(names.contains(&format!("figures/{figure}.{kind}").as_str()), "{figure}.{kind} in {names:?}");
        }
        let png = image::open(artifact.file(&format!("figures/{figure}.png")).unwrap()).unwrap().to_rgb8();
        let colours: std::collections::BTreeSet<[u8; 3]> = png.pixels().map(|pixel| pixel.0).collect();
        assert!(colours.len() > 3, "{figure} is empty");
    }
    // FIDs of 40 and 42 at the end.
    assert_eq!(cells(&page, "FID"), ["40.00", "42.00", "30.00*", "30.00*", "41.00"]);
    assert_eq!(cells(&page, "KID x 1000"), ["2.500", "2.500", "-", "-", "2.500"]);
    assert_eq!(cells(&page, "peak minus t=0")[..4], ["10.00", "10.00", "10.00", "10.00"]);
    assert_eq!(cells(&page, "FID, other half")[..3], ["45.00", "45.00", "-"]);
    assert_eq!(cells(&page, "FID over sample seeds")[..3], ["41.50 ± 2.12 (2)", "41.50 ± 2.12 (2)", "-"]);
    assert_eq!(cells(&page, "copies, %")[..3], ["2.0", "2.0", "-"]);
    assert!(page.contains("Not shown for want of distances in the artifact of fid: lcf, lcf-few."));
    assert_eq!(cells(&page, "GPU hours, all stages")[0], "-");
    assert_eq!(cells(&page, "ms/step, median")[0], "20.0");
    assert!(page.contains("41.00<small>40.00 to 42.00</small>"));
    assert!(page.contains("Nothing: every run has all its stages"));
    assert!(page.contains("not comparable, they were measured in several ways"));
    assert!(out.starts_with("run") && out.contains("fm-1") && out.trim_end().ends_with("index.html"), "{out}");
    // All artifacts are named by their whole digest, and nothing is loaded from elsewhere.
    for role in ["fm-0/train", "lcf/epoch-1/fid"] {
        assert!(page.contains(&artifact.manifest().inputs[role]), "{role}");
    }
    for from in ["src=\"http", "href=\"http", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(from), "{from}");
    }
}

#[test]
fn seeds_are_one_line_with_a_band_and_other_settings_are_not() {
    let bench = Bench::new();
    for (name, kind) in [("fm-0", Kind::fm(0)), ("fm-1", Kind::fm(1)), ("lcf", Kind::lcf())] {
        bench.run(name, &kind);
    }
    let (artifact, _) = bench.report(&["fm-0", "fm-1", "lcf"]);
    let svg = fs::read_to_string(artifact.file("figures/probe-raw.svg").unwrap()).unwrap();
    assert!(svg.contains("fm (2 seeds)") && svg.contains("\nlcf\n"), "{svg}");
    assert_eq!(svg.matches("<polygon").count(), 1);
    let numbers: Value = artifact.json("report.json").unwrap();
    assert_eq!(numbers["groups"][0]["runs"], serde_json::json!(["fm-0", "fm-1"]));
    assert_eq!(numbers["runs"][1]["fid"], 42.0);
    assert_eq!(numbers["runs"][2]["kid"], Value::Null);
    let differ: Vec<&String> = numbers["settings"][0].as_object().unwrap().keys().collect();
    assert_eq!(differ, ["run", "train.objective", "train.seed", "train.t_min", "sample.num"]);
}

#[test]
fn further_samples_are_named_where_fid_was_given_them() {
    let bench = Bench::new();
    bench.run("fm-0", &Kind::fm(0));
    let (artifact, _) = bench.report(&["fm-0"]);
    assert!(page(&artifact).contains("fm-0/sample-seed-7"));
    // A link to samples that the fid linked beside it knows nothing of.
    bench.run("lcf", &Kind::lcf());
    let other = fs::read_link(bench.link("fm-0", "sample-seed-7")).unwrap();
    std::os::unix::fs::symlink(other, bench.link("lcf", "sample-seed-7")).unwrap();
    let (artifact, _) = bench.report(&["lcf"]);
    assert!(!page(&artifact).contains("sample-seed-7"));
}

#[test]
fn what_is_made_within_another_stage_or_serves_many_counts_once() {
    let bench = Bench::new();
    bench.run("fm-0", &Kind::fm(0));
    // Where and how long is in the manifest and in no digest.
    for (role, seconds) in [("reference", 7200.0), ("fid", 9000.0), ("epoch-1/fid", 1800.0)] {
        let path = bench.link("fm-0", role).join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest["provenance"]["device"] = "cuda:0 NVIDIA H100".into();
        manifest["provenance"]["seconds"] = seconds.into();
        fs::write(&path, manifest.to_string()).unwrap();
    }
    let (artifact, _) = bench.report(&["fm-0"]);
    assert_eq!(cells(&page(&artifact), "GPU hours, all stages"), ["3.000"]);
}

#[test]
fn names_with_odd_characters_have_figures_of_their_own() {
    let bench = Bench::new();
    let names =
        ["a.b", "a-b", "日本", "<b>&\"'", "a name of many words, and then more, and then still more of them, and more"];
    for (i, name) in names.iter().enumerate() {
        // Another objective keeps runs of other seeds apart.
        bench.run(name, &Kind::fm(i as u64).named(["fm", "lcf", "x", "y", "z"][i]));
    }
    let (artifact, out) = bench.report(&names);
    let files: Vec<&str> = artifact.manifest().outputs.iter().map(|output| output.path.as_str()).collect();
    for name in ["loss-a-b", "loss-a-b-2", "loss-run", "loss-b"] {
        assert!(files.contains(&format!("figures/{name}.svg").as_str()), "{name} in {files:?}");
    }
    let page = page(&artifact);
    assert!(page.contains("&lt;b&gt;&amp;&quot;") && !page.contains("<b>") && out.contains("日本"), "{out}");
    // The title of a figure is broken, not cut.
    let svg = fs::read_to_string(
        artifact
            .file("figures/loss-a-name-of-many-words-and-then-more-and-then-still-more-of-them-and-more.svg")
            .unwrap(),
    )
    .unwrap();
    assert!(
        svg.contains("\na name of many words, and then more, and then") && svg.contains("of them, and more\n"),
        "{svg}"
    );
}

#[test]
fn one_run_under_two_names_is_not_two_seeds_and_snapshots_make_no_other_training() {
    let bench = Bench::new();
    bench.run("a", &Kind::fm(0));
    bench.run("b", &Kind::fm(0));
    bench.run("c", &Kind::fm(1).without_snapshots());
    let (artifact, _) = bench.report(&["a", "b"]);
    assert!(!page(&artifact).contains("seeds)"));
    let (artifact, _) = bench.report(&["a", "c"]);
    assert!(page(&artifact).contains("a, c (2 seeds)"));
}

#[test]
fn what_is_missing_is_named_on_the_page_and_on_stdout() {
    let bench = Bench::new();
    bench.run("lcf", &Kind::lcf());
    fs::remove_file(bench.link("lcf", "fid")).unwrap();
    fs::remove_file(bench.link("lcf", "epoch-1/probe")).unwrap();
    let (artifact, out) = bench.report(&["lcf"]);
    let page = page(&artifact);
    for gap in ["lcf: no fid (make fid P=lcf)", "lcf: epoch 1 has no probe (make snapshots P=lcf)"] {
        assert!(out.contains(&format!("missing: {gap}")) && page.contains(gap), "{out}");
    }
    assert!(page.contains("Not shown for want of a FID: lcf."));
    assert!(page.contains("Not shown for want of probes at two epochs or more: lcf"));
    assert!(page.contains("no two of these runs that have a probe differ in the number of training images"));
    assert_eq!(cells(&page, "FID"), ["-"]);
    // A link that leads nowhere is as good as none, and named.
    fs::remove_dir_all(fs::canonicalize(bench.link("lcf", "sample")).unwrap()).unwrap();
    assert!(bench.report(&["lcf"]).1.contains("missing: lcf: the link sample leads nowhere"));
}

#[test]
fn results_of_another_training_are_left_out() {
    let bench = Bench::new();
    bench.run("lcf", &Kind::lcf());
    bench.run("fm-0", &Kind::fm(0));
    let other = fs::read_link(bench.link("fm-0", "train")).unwrap();
    fs::remove_file(bench.link("lcf", "train")).unwrap();
    std::os::unix::fs::symlink(other, bench.link("lcf", "train")).unwrap();
    let (artifact, out) = bench.report(&["lcf"]);
    assert!(out.contains("lcf: extract was made from another train than the one linked; left out"), "{out}");
    assert!(out.contains("lcf: fid was made from another sample than the one linked; left out"), "{out}");
    assert_eq!(cells(&page(&artifact), "FID"), ["-"]);
}

#[test]
fn results_on_images_that_a_training_is_not_of_are_left_out() {
    let bench = Bench::new();
    bench.run_elsewhere("lcf", &Kind::lcf());
    let (artifact, out) = bench.report(&["lcf"]);
    for stage in ["extract", "fid"] {
        assert!(out.contains(&format!("lcf: {stage} was made from other images than train; left out")), "{out}");
    }
    assert_eq!(cells(&page(&artifact), "FID"), ["-"]);
}

#[test]
fn the_same_runs_are_up_to_date_and_times_alone_change_no_digest() {
    let bench = Bench::new();
    bench.run("lcf", &Kind::lcf());
    let (first, _) = bench.report(&["lcf"]);
    assert!(bench.report(&["lcf"]).1.contains("(up to date)"));
    // The same training made again took another time.
    fs::remove_dir_all(fs::canonicalize(bench.link("lcf", "train")).unwrap()).unwrap();
    bench.run("lcf", &Kind::lcf().slower());
    let (second, _) = bench.report(&["lcf"]);
    assert_ne!(first.manifest().key, second.manifest().key);
    assert_eq!(first.digest(), second.digest());
    assert_eq!(cells(&page(&second), "ms/step, median"), ["30.0"]);
}

#[test]
fn damage_and_wrong_usage_are_refused_by_name() {
    let bench = Bench::new();
    bench.run("lcf", &Kind::lcf());
    let refused = |runs: &[&Path], code: i32, part: &str| {
        let output = bench.command(runs).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(part) && !stderr(&output).contains("panicked"), "{}", stderr(&output));
        assert!(stdout(&output).is_empty());
    };
    refused(&[], 2, "<RUN>");
    refused(&[Path::new("/no/such")], 2, "/no/such: no such run");
    refused(&[bench.dir.path()], 2, "no run here");
    let run = bench.runs().join("lcf");
    refused(&[&run, &run], 2, "a run called lcf is among the others already");
    for (stage, file) in [("sample", "images.npy"), ("train", "metrics.csv"), ("probe", "probe.csv")] {
        let path = fs::canonicalize(bench.link("lcf", stage)).unwrap().join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(&path, bad).unwrap();
        refused(&[&run], 1, file);
        fs::write(&path, good).unwrap();
    }
    bench.report(&["lcf"]);
}
