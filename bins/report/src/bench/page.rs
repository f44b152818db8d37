//! The page of `docs/bench`, in Markdown.

use super::{Bench, table};
use lcf_store::text;

const NOTE: &str = "\
Medians of repeated pieces of work on random weights, images and features of the config's shapes, by the code that the stages
run. The floor is the least time that the counted work takes at the rates above: operations of matrix products, and on a GPU
bytes of activations and parameters where every kernel of the fused design reads and writes each once (the formulas are in
`common/model/src/bench/work.rs` and the `bench.rs` of the stages). It is counted alike for every engine and for PyTorch. Peak
memory is what tensors took on a GPU, and the whole process on a CPU. All numbers, settings and commands are in the JSON file
beside this page.
";

/// The page.
pub fn page(bench: &Bench) -> String {
    let first = &bench.stages[0];
    let machine = &first.machine;
    let mut out = format!("# {}\n\n    {}\n\n", machine.name(), bench.command);
    let (revision, changed) = match first.revision.strip_suffix("-dirty") {
        Some(revision) => (revision, ", with local changes"),
        None => (first.revision.as_str(), ""),
    };
    let processor = machine.cpu.as_deref().unwrap_or("unknown");
    let mut facts = vec![
        ("date", text::date(first.started)),
        ("revision", format!("{}{changed}", text::head(revision))),
        ("processor", format!("{processor}, {} cores, {} threads", machine.cores, first.threads)),
        ("libtorch", machine.libtorch.clone()),
        ("rustc", machine.rustc.strip_prefix("rustc ").unwrap_or(&machine.rustc).to_owned()),
    ];
    facts.extend(machine.driver.iter().map(|driver| ("NVIDIA driver", driver.clone())));
    let rates = table::rates(bench);
    facts.extend(rates.iter().map(|(what, rate)| (what.as_str(), rate.clone())));
    if bench.torch.is_empty() {
        facts.push(("PyTorch", "not measured: no Python here that can import torch".into()));
    }
    out += &row(&["", ""]);
    out += &row(&["---", "---"]);
    for (what, value) in &facts {
        out += &row(&[what, value]);
    }
    out.push('\n');
    out += &row(&table::HEAD);
    let rules: Vec<&str> = table::ALIGN.chars().map(|side| if side == 'r' { "---:" } else { "---" }).collect();
    out += &row(&rules);
    for cells in table::rows(bench) {
        out += &row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out + "\n" + NOTE
}

fn row(cells: &[&str]) -> String {
    // What is in a cell must not end it.
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::bench, *};

    #[test]
    fn the_page_has_the_machine_the_command_and_all_rows() {
        let page = page(&bench());
        for part in [
            "# NVIDIA H100 80GB HBM3\n\n    make bench P=cifar10-lcf\n",
            "| date | 2026-11-23 01:02:03 UTC |\n| revision | 0123456789ab, with local changes |\n",
            "| processor | EPYC, 16 cores, 2 threads |\n| libtorch | 2.11.0 |\n| rustc | 1.95.0 (59807616e 2026-04-14) |\n",
            "| NVIDIA driver | 580.95.05 |\n| bf16 products | 200 GFLOP/s |\n",
            "| train | step | 1.00 s | 1.00 to 1.00 s | 1 | 10.0 images | 5.0 % (arithmetic) | 1.0 GiB |\n",
            "|  | PyTorch eager | 2.00 s |",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!page.contains("not measured"));
        let without = Bench { torch: Vec::new(), ..bench() };
        assert!(super::page(&without).contains("| PyTorch | not measured"));
        assert_eq!(row(&["a|b"]), "| a\\|b |\n");
    }
}
