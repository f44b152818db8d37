"""Loads a trained model into a PyTorch DiT and compares what the two compute.

    python3 load_pytorch.py TRAIN_ARTIFACT IO.safetensors [--weights ema]

TRAIN_ARTIFACT is a folder with `train.json` and `weights/`, as lcf-train publishes it. IO holds images `x`, times `t`,
and the `velocity` that the Rust model gave for them. Exit 0: every name fits and the velocities agree; 1: they do not.
Needs torch and nothing else.
"""

import argparse
import json
import sys
from pathlib import Path

import tensors
import torch
from reference import DiT, Shape

# Largest difference of two fp32 computations of the same velocity.
ALLOWED = 1e-5


def load(artifact, weights):
    """The DiT of `artifact`, strictly: every name of the state dict is in the file, and no other."""
    meta = json.loads((artifact / "train.json").read_text())
    model = DiT(Shape(**meta["model"], **meta["input"]))
    model.load_state_dict(tensors.read(artifact / "weights" / f"{weights}.safetensors"), strict=True)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("io", type=Path)
    parser.add_argument("--weights", default="ema")
    args = parser.parse_args()
    try:
        model = load(args.artifact, args.weights)
    except RuntimeError as error:
        print(f"{args.artifact}: {error}", file=sys.stderr)
        return 1
    io = tensors.read(args.io)
    with torch.no_grad():
        difference = (model(io["x"], io["t"]) - io["velocity"]).abs().max().item()
    count = len(model.state_dict())
    print(f"{count} tensors loaded by name; largest difference of the velocity {difference:.2e}, allowed {ALLOWED:.0e}")
    # Written so that NaN fails.
    return 0 if difference < ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
