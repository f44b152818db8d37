//! What `fid.json` says, in a few lines.

use crate::text::plain;
use serde_json::Value;

/// What `fid.json` says in one line, fields that are not there left out.
pub fn line(fid: &Value) -> String {
    let field = |name: &str| fid.get(name).and_then(plain);
    let sampled = |name: &str| fid.get("sample")?.get(name).and_then(plain);
    let value = |of: &Value| of.get("fid").and_then(Value::as_f64).map_or("unknown".into(), |fid| format!("{fid:.3}"));
    let reference = field("n_reference").zip(field("split")).map(|(n, split)| format!("against {n} {split} images"));
    let parts: Vec<String> = [
        field("n").map(|n| format!("{n} samples")),
        reference,
        field("resize").map(|resize| format!("{resize} resize")),
        features(fid),
        sampled("weights").map(|weights| format!("{weights} weights")),
        sampled("sampler").zip(sampled("steps")).map(|(sampler, steps)| format!("{sampler} {steps} steps")),
        sampled("nfe").map(|nfe| format!("NFE {nfe}")),
        sampled("seed").map(|seed| format!("seed {seed}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mark = match fid.get("rank_deficient").and_then(Value::as_bool) {
        Some(true) => ", NOT COMPARABLE: too few images for the covariance",
        _ => "",
    };
    let line = format!("FID {} ({}){mark}", value(fid), parts.join(", "));
    let Some(floor) = fid.get("floor").filter(|floor| floor.is_object()) else { return line };
    if floor.get("fid").is_none_or(Value::is_null) {
        let reason = floor.get("reason").and_then(plain).unwrap_or("not measured".into());
        return format!("{line}\nfloor: none, {reason}");
    }
    let images: String =
        [floor.get("n"), fid.get("split")].into_iter().flatten().filter_map(plain).map(|part| part + " ").collect();
    format!("{line}\nfloor: FID {} of {images}images against the same reference", value(floor))
}

/// What features are, where not of fp32; the stage's first version knows nothing else and does not say so.
pub fn features(fid: &Value) -> Option<String> {
    let kind = fid.get("feature_precision").and_then(plain)?;
    (kind != "fp32").then(|| format!("{kind} features"))
}

/// The metrics beside FID, a line each, what is not there left out.
pub fn others(fid: &Value) -> String {
    let number = |path: &str| fid.pointer(path).and_then(Value::as_f64);
    let mut out = String::new();
    for half in ["train", "test"] {
        let at = |name: &str| number(&format!("/against/{half}/{name}"));
        let parts = [
            ("FID", at("fid"), 3),
            ("KID", at("kid/mean"), 5),
            ("precision", at("precision"), 3),
            ("recall", at("recall"), 3),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter_map(|(name, value, digits)| Some(format!("{name} {:.digits$}", (*value)?, digits = *digits)))
            .collect();
        if !parts.is_empty() {
            out += &format!("against {half} images: {}\n", parts.join(", "));
        }
    }
    if let (Some(seeds), Some(mean), Some(std)) =
        (number("/spread/seeds"), number("/spread/fid/mean"), number("/spread/fid/std"))
    {
        out += &format!("over {seeds} seeds: FID {mean:.3} +- {std:.3}\n");
    }
    if let Some(near) = number("/memorisation/features/near") {
        out += &format!(
            "copies: {:.1} % of samples nearer to a training image than the nearest 1 % of test images\n",
            100.0 * near
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_metrics_have_a_line_each_where_they_are_known() {
        assert_eq!(others(&json!({ "fid": 1.0 })), "");
        let fid = json!({
            "against": {
                "train": { "fid": 12.5, "kid": { "mean": 0.03125 }, "precision": 0.5, "recall": null },
                "test": null,
            },
            "spread": { "seeds": 3, "fid": { "mean": 12.25, "std": 0.125 } },
            "memorisation": { "features": { "near": 0.015 } },
        });
        assert_eq!(
            others(&fid),
            "against train images: FID 12.500, KID 0.03125, precision 0.500\n\
             over 3 seeds: FID 12.250 +- 0.125\n\
             copies: 1.5 % of samples nearer to a training image than the nearest 1 % of test images\n"
        );
    }

    #[test]
    fn lines_name_what_is_known_and_leave_out_the_rest() {
        let fid = json!({ "fid": 12.3456, "n": 64, "n_reference": 128, "split": "train", "resize": "tf1",
            "floor": { "fid": 9.87, "n": 64, "seed": 0 },
            "sample": { "sampler": "euler", "steps": 20, "nfe": 20, "weights": "ema", "seed": 1 } });
        assert_eq!(
            line(&fid),
            "FID 12.346 (64 samples, against 128 train images, tf1 resize, ema weights, euler 20 steps, NFE 20, seed 1)\n\
             floor: FID 9.870 of 64 train images against the same reference"
        );
        assert_eq!(line(&json!({ "fid": 1.0, "floor": null })), "FID 1.000 ()");
        let none = json!({ "fid": 1.0, "split": "test", "floor": { "fid": null, "n": 64, "reason": "too few" } });
        assert_eq!(line(&none), "FID 1.000 ()\nfloor: none, too few");
        let test = json!({ "fid": 1.0, "split": "test", "floor": { "fid": 2.0, "n": 64 } });
        assert!(line(&test).ends_with("\nfloor: FID 2.000 of 64 test images against the same reference"));
        let precision = |name: &str| line(&json!({ "fid": 1.0, "resize": "tf1", "feature_precision": name }));
        assert_eq!(precision("fp16"), "FID 1.000 (tf1 resize, fp16 features)");
        assert_eq!(precision("fp32"), "FID 1.000 (tf1 resize)");
        let few = json!({ "fid": 1.0, "rank_deficient": true });
        assert_eq!(line(&few), "FID 1.000 (), NOT COMPARABLE: too few images for the covariance");
    }
}
