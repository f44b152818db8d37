"""Makes metrics.safetensors: small features and what torch-fidelity's own functions say about them.

    pip install torch-fidelity==0.4.0 safetensors && python3 gen.py

Features are fp32; torch-fidelity gets them as fp64, so that its sums carry no rounding that a test would have to allow
for. `wrong.*` are the same numbers by mistakes that the test must be able to see. torch-fidelity has no authenticity;
that is written out here as dgm-eval defines it.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch_fidelity import metric_fid, metric_kid, metric_prc

D, REAL, FAKE = 16, 150, 120
SUBSETS = {"kid_subsets": 10, "kid_subset_size": 40, "rng_seed": 2020, "verbose": False}
K = 3


def features(rng, n, shift):
    """Like Inception's: not negative, correlated, of unequal size."""
    mixed = rng.normal(size=(n, D)) @ (np.eye(D) + 0.3 * rng.normal(size=(D, D))) + shift
    return np.maximum(mixed * np.linspace(0.2, 1.5, D), 0).astype(np.float32)


def fid(real, fake):
    stats = [metric_fid.fid_features_to_statistics(x) for x in (real, fake)]
    return metric_fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]


def kid(fake, real, **changed):
    found = metric_kid.kid_features_to_metric(fake, real, **{**SUBSETS, **changed})
    return [found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]]


def prc(fake, real, k=K):
    found = metric_prc.prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
    return [found["precision"], found["recall"]]


def biased_kid(fake, real):
    right, metric_kid.mmd2 = metric_kid.mmd2, lambda *k: right(*k, mmd_est="biased")
    try:
        return kid(fake, real)
    finally:
        metric_kid.mmd2 = right


def authenticity(points, real):
    between = torch.cdist(points, real)
    within = torch.cdist(real, real).fill_diagonal_(float("inf")).min(dim=1).values
    nearest = between.min(dim=1)
    return [(within[nearest.indices] < nearest.values).double().mean().item()]


def main():
    rng = np.random.default_rng(0)
    stored = {"real": features(rng, REAL, 0.4), "fake": features(rng, FAKE, 0.6)}
    real, fake = (torch.from_numpy(stored[name]).double() for name in ("real", "fake"))
    numbers = {
        "fid": [fid(real, fake)],
        "kid": kid(fake, real),
        "prc": prc(fake, real),
        "authenticity": authenticity(fake, real),
        "wrong.fid": [fid(real[:-1], fake)],
        "wrong.kid.biased": biased_kid(fake, real),
        "wrong.kid.seed": kid(fake, real, rng_seed=2021),
        "wrong.kid.sides": kid(real, fake),
        "wrong.kid.degree": kid(fake, real, kid_kernel_poly_degree=2),
        "wrong.prc.sides": prc(real, fake),
        "wrong.prc.k": prc(fake, real, k=5),
        "wrong.authenticity": authenticity(real, fake),
    }
    for name, values in numbers.items():
        print(f"{name:20}", *(f"{value:.10g}" for value in values))
    stored |= {name: np.array(values, dtype=np.float64) for name, values in numbers.items()}
    save_file(stored, Path(__file__).with_name("metrics.safetensors"))


if __name__ == "__main__":
    main()
