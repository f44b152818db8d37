"""Holds the numbers of `lcf-fid compare` against torch-fidelity's own functions on the same features.

    lcf-fid compare --real A --fake B --features-out features.safetensors --json > lcf.json
    pip install torch-fidelity==0.4.0 safetensors
    python3 check_peer.py features.safetensors lcf.json

torch-fidelity takes fp32 features and multiplies them in fp32; --precision fp64, the default, gives it the same numbers
as fp64, so that what is compared is the method and not the rounding. FID is in fp64 either way. Precision and recall use
CUDA where there is some, and 4 GB for 50,000 images in fp64. Exit 0: FID and KID agree to 1e-6 (KID to 1e-3 in fp32), and
precision and recall to 1e-3; 1: they do not. Below 2,049 images a covariance is rank-deficient, and torch-fidelity's
eigenvalues of the product of two such lose digits: FID is then held to 1e-6 of what singular values give without the
covariances, and to 1e-4 of torch-fidelity's.
"""

import argparse
import json
import sys
import time

import torch
from safetensors.torch import load_file
from torch_fidelity import metric_fid, metric_kid, metric_prc


def exact_fid(real, fake):
    """FID of few images: the trace of the square root is the sum of the singular values of the centred features' product."""
    real, fake = real.double(), fake.double()
    parts = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (real, fake)]
    spread = sum(x.square().sum() for x in parts) - 2 * torch.linalg.svdvals(parts[0] @ parts[1].T).sum()
    return ((real.mean(0) - fake.mean(0)).square().sum() + spread).item()


def peer(real, fake, ours, skip):
    """torch-fidelity's numbers with the settings that `ours` was made with."""
    kid = ours["kid"]
    options = {"kid_subsets": kid["subsets"], "kid_subset_size": kid["subset_size"], "rng_seed": kid["seed"]}
    stats = [metric_fid.fid_features_to_statistics(x.double()) for x in (real, fake)]
    yield "fid", ours["fid"], metric_fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    found = metric_kid.kid_features_to_metric(fake, real, verbose=False, **options)
    yield "kid", kid["mean"], found["kernel_inception_distance_mean"]
    yield "kid std", kid["std"], found["kernel_inception_distance_std"]
    if not skip:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = metric_prc.prc_features_to_metric(
            fake.to(device), real.to(device), prc_neighborhood=ours["k"], save_cpu_ram=True, verbose=False
        )
        yield "precision", ours["precision"], found["precision"]
        yield "recall", ours["recall"], found["recall"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("features")
    parser.add_argument("json")
    parser.add_argument("--precision", choices=["fp64", "fp32"], default="fp64")
    parser.add_argument("--skip-prc", action="store_true", help="leave precision and recall out")
    args = parser.parse_args()
    features = load_file(args.features)
    kind = torch.float64 if args.precision == "fp64" else torch.float32
    real, fake = (features[name].to(kind) for name in ("real", "fake"))
    with open(args.json) as file:
        ours = json.load(file)
    print(f"{len(fake)} against {len(real)} images, {args.precision}, torch {torch.__version__}")
    good, start = True, time.time()
    few = min(len(real), len(fake)) <= real.shape[1]
    if few:
        exact = exact_fid(real, fake)
        off = abs(ours["fid"] - exact) / max(abs(exact), 1e-9)
        good = off <= 1e-6
        print(f"{'fid':10} lcf {ours['fid']:.10g}  singular values {exact:.10g}  relative difference {off:.1e}"
              f"  {'ok' if good else 'TOO FAR'}")
    for name, found, expected in peer(real, fake, ours, args.skip_prc):
        # Subsets that are the whole set have no spread to be relative to.
        scale = max(abs(expected), abs(ours["kid"]["mean"]) if name == "kid std" else 0.0)
        off = abs(found - expected) / scale if scale else abs(found - expected)
        allowed = 1e-3 if name in ("precision", "recall") or args.precision == "fp32" else 1e-6
        if name == "fid" and few:
            allowed = max(allowed, 1e-4)
        close = off <= allowed  # so that NaN fails
        good = good and close
        print(f"{name:10} lcf {found:.10g}  torch-fidelity {expected:.10g}  relative difference {off:.1e}"
              f"  {'ok' if close else 'TOO FAR'}  ({time.time() - start:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
