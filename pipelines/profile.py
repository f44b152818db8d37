#!/usr/bin/env python3
"""Where a training step spends its time, kernel by kernel, as Nvidia's ncu measures each alone.

    pipelines/profile.py [--config FILE] [--set A.B=C ...]

Runs `lcf-train --bench` under ncu and takes one of the steps that are made before one is recorded: they are the same kernels
as in the graph, one after the other, with the positives of all anchor slots. Prints a table: launches, time, share, bytes to
and from memory and their rate.
"""
import argparse
import csv
import io
import re
import subprocess
import sys

METRICS = {"gpu__time_duration.sum": "ns", "dram__bytes.sum": "bytes"}
UNITS = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
# Each step begins with it.
FIRST = "draw_order"
# Seconds. ncu does not end in the recorded graph, which holds alternatives.
TIMEOUT = 180


def short(name):
    """A kernel's name without namespaces, parameters and return type."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|^void ", "", name)
    return re.sub(r"\(.*", "", name)[:70]


def read(text):
    """(name, grid, ns, bytes) of every launch."""
    start = text.index('"ID"')
    rows = csv.DictReader(io.StringIO(text[start:]))
    launches = {}
    for row in rows:
        launch = launches.setdefault(row["ID"], {"name": short(row["Kernel Name"]), "grid": row["Grid Size"]})
        value = float(row["Metric Value"].replace(",", ""))
        launch[METRICS[row["Metric Name"]]] = value * UNITS[row["Metric Unit"]]
    return list(launches.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pipelines/cifar10-lcf.json")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a value of the config")
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--skip", type=int, default=300, help="launches that are not measured [300]")
    parser.add_argument("--launches", type=int, default=600, help="measured after them: two steps have fewer, and the five before one is recorded more [600]")
    options = parser.parse_args()
    words = ["ncu", "--csv", "--print-units", "auto", "--clock-control", "none", "--cache-control", "none"]
    words += ["--metrics", ",".join(METRICS), "--kill", "yes"]
    words += ["--launch-skip", str(options.skip), "--launch-count", str(options.launches)]
    words += [f"{options.bin}/lcf-train", "--bench", "--bench-seconds", "3600", "--device", "cuda", "--config", options.config]
    words += [word for value in options.set for word in ("--set", value)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        sys.exit(f"profile: error: ncu has not measured {options.launches} launches after {options.skip} in {TIMEOUT} s: fewer --launches")
    if '"ID"' not in done.stdout:
        sys.exit(f"profile: error: ncu measured nothing:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    launches = read(done.stdout)
    steps = [i for i, launch in enumerate(launches) if launch["name"].split("<")[0] == FIRST]
    if len(steps) < 2:
        sys.exit(f"profile: error: no whole step in {len(launches)} launches after {options.skip}: another --skip")
    groups = {}
    for launch in launches[steps[0]:steps[1]]:
        group = groups.setdefault((launch["name"], launch["grid"]), [0, 0.0, 0.0])
        for i, value in enumerate((1, launch["ns"], launch["bytes"])):
            group[i] += value
    total = [sum(group[i] for group in groups.values()) for i in range(3)]
    print("| kernel | grid | launches | ms | share | GB | TB/s |\n|---|---|---|---|---|---|---|")
    line = lambda name, grid, n, ns, size: f"| {name} | {grid} | {n} | {ns / 1e6:.3f} | {100 * ns / total[1]:.1f} % | {size / 1e9:.2f} | {size / ns / 1e3:.2f} |"
    for (name, grid), group in sorted(groups.items(), key=lambda item: -item[1][1]):
        print(line(f"`{name}`", grid.replace(" ", ""), *group))
    print(line("all", "", *total))


if __name__ == "__main__":
    main()
