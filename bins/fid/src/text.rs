//! The result as people read it.

use crate::{
    kid::Kid,
    memorisation::Distances,
    metrics::Metrics,
    neighbours::Memorisation,
    report::{Range, Report, Seed, Spread},
};

/// What stands before or after a FID of too few images.
pub const MARK: &str = "NOT COMPARABLE, rank-deficient";

/// All metrics in one line.
pub fn line(metrics: &Metrics) -> String {
    let mark = if metrics.rank_deficient { format!(" ({MARK})") } else { String::new() };
    format!("FID {:.4}{mark}, {}", metrics.fid, beside_fid(metrics))
}

/// The metrics but FID.
pub fn beside_fid(metrics: &Metrics) -> String {
    let Metrics { kid, precision, recall, k, .. } = metrics;
    let Kid { mean, std, subsets, subset_size, .. } = kid;
    let share = |value: &Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.4}"));
    format!(
        "KID {mean:.6} (std {std:.6}, {subsets} subsets of {subset_size}), precision {}, recall {} (k {k})",
        share(precision),
        share(recall)
    )
}

/// The result as people read it, without the path of the artifact.
pub fn report(report: &Report) -> String {
    let Report {
        fid, n, n_reference, dataset, split, resize, feature_precision, floor, sample, rank_deficient, ..
    } = report;
    let of = |name: &str| sample[name].as_str().map_or_else(|| sample[name].to_string(), str::to_owned);
    let mark = if *rank_deficient { format!("{MARK}: ") } else { String::new() };
    let mut text = format!(
        "FID {fid:.2}  ({mark}n {n} vs {dataset} {} {n_reference}, resize {}{}, weights {}, {} {} steps, NFE {}, seed {})\n",
        split.name(),
        resize.name(),
        feature_precision.note(),
        of("weights"),
        of("sampler"),
        of("steps"),
        of("nfe"),
        of("seed")
    );
    match (floor.fid, &floor.reason) {
        (Some(fid), _) => text += &format!("bias floor at n {}: {fid:.2}\n", floor.n),
        (None, reason) => text += &format!("bias floor: none, {}\n", reason.as_deref().unwrap_or("not measured")),
    }
    for (split, half) in report.against.each() {
        text += &format!("against {} {}: {}\n", half.n_reference, split.name(), line(&half.metrics));
    }
    if let Some(spread) = &report.spread {
        text += &spread_text(spread, &report.seeds);
    }
    match &report.memorisation {
        Some(memorisation) => text += &memorisation_text(memorisation),
        None => text += "memorisation: not measured, there are not two test images to compare with\n",
    }
    report.warnings.iter().for_each(|warning| text += &format!("warning: {warning}\n"));
    text
}

fn spread_text(spread: &Spread, seeds: &[Seed]) -> String {
    let names: Vec<String> = seeds.iter().map(|seed| seed.seed.to_string()).collect();
    let Range { mean, std, min, max } = spread.fid;
    let range = |name: &str, range: &Range| format!(", {name} {:.4} +- {:.4}", range.mean, range.std);
    let shares = [("precision", &spread.precision), ("recall", &spread.recall)];
    let shares: String = shares.iter().filter_map(|(name, value)| Some(range(name, value.as_ref()?))).collect();
    format!(
        "over seeds {}: FID {mean:.2} +- {std:.2} ({min:.2} to {max:.2}), KID {:.6} +- {:.6}{shares}\n",
        names.join(", "),
        spread.kid.mean,
        spread.kid.std
    )
}

fn memorisation_text(memorisation: &Memorisation) -> String {
    let line = |name: &str, distances: &Distances| {
        let Distances { n_train, samples, test, near, .. } = distances;
        format!(
            "nearest of {n_train} training images, {name}: samples median {:.2}, least {:.2}; test images {:.2}, {:.2}; \
             {:.1} % of samples nearer than the nearest 1 % of test images\n",
            samples.median,
            samples.min,
            test.median,
            test.min,
            100.0 * near
        )
    };
    let Memorisation { features, pixels, authenticity, authenticity_test, .. } = memorisation;
    let mut text = line("features", features);
    if let Some(pixels) = pixels {
        text += &line("pixels (RMS)", pixels);
    }
    text + &format!(
        "authentic: {:.1} % of samples, {:.1} % of test images\n",
        100.0 * authenticity,
        100.0 * authenticity_test
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{metrics, seed};

    #[test]
    fn the_spread_names_its_seeds() {
        let seeds = [seed(1.0, None), seed(3.0, None)];
        let text = spread_text(&Spread::of(&seeds).unwrap(), &seeds);
        assert_eq!(text, "over seeds 1, 3: FID 2.00 +- 1.41 (1.00 to 3.00), KID 0.020000 +- 0.014142\n");
    }

    #[test]
    fn numbers_that_mislead_say_so() {
        let small = metrics(1.0, Some(0.25));
        assert!(line(&small).starts_with("FID 1.0000 (NOT COMPARABLE, rank-deficient), KID 0.010000 (std"));
        assert!(line(&small).ends_with("precision 0.2500, recall none (k 3)"));
    }
}
