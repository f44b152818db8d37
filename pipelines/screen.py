#!/usr/bin/env python3
"""Chooses the reading of the contrast by the rules of docs/decisions.md, on the GPUs of this machine.

    pipelines/screen.py --gpus 0,1,2 --set train.epochs=200

Each run is the config pipelines/cifar10.json with a patch of 4 and what its question changes: a training, its features and
its probe, and FID where the rules ask for it. Runs are in DATA/runs/screen-*; a run that is there is not made again, so
what was interrupted goes on. Questions are asked one after the other, then come variants of the best reading. The result is
DATA/runs/screen.json, and a table.
"""
import argparse
import csv
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time

LCF = {"train.objective": "lcf"}
FM = {"train.objective": "fm"}


def contrast(**values):
    return {f"train.contrast.{name}": value for name, value in values.items()}


# Two seeds of plain flow matching say what a difference means.
BASELINES = {"fm": FM, "fm-seed-1": {**FM, "train.seed": 1}}
# What tells by name what helps. The second are variants of the reading that all answers make.
CONTROLS = {
    "fm-truncated": {"train.objective": "fm_truncated"},
    "fm-logit-normal": {**FM, "train.times": '{"logit_normal":{"mean":0,"std":1}}'},
}
CONTROLS_OF_BEST = {
    "fm-contrastive": {"train.objective": "fm_contrastive"},
    "pull": contrast(terms="pull"),
    "push": contrast(terms="push"),
    "best-seed-1": {"train.seed": 1},
}
QUESTIONS = [
    ("balance", {
        **{f"lambda-{weight}": contrast(**{"lambda": weight}) for weight in (1, 10, 100)},
        "mean": {"train.reduction": "mean"},
    }),
    ("norm", {"norm-l2": contrast(norm="l2")}),
    ("denominator", {"algorithm1": contrast(denominator="algorithm1")}),
    ("t_min", {f"t-min-{t}": {"train.t_min": t} for t in (0.01, 0.05, 0.1)}),
]


class Screen:
    def __init__(self, options):
        self.options = options
        self.started = time.monotonic()
        self.gpus = queue.Queue()
        for gpu in options.gpus.split(","):
            self.gpus.put(gpu)
        self.lock = threading.Lock()
        self.results = {}
        self.answers = []

    def command(self, name, stage, values, gpu, *flags):
        o = self.options
        run = o.data / "runs" / f"screen-{name}"
        run.mkdir(parents=True, exist_ok=True)
        words = [o.bin / f"lcf-{stage}", "--config", o.config, "--store", o.data / "artifacts", "--link", run / stage]
        for key, value in values.items():
            words += ["--set", f"{key}={value}"]
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=gpu)
        with open(run / "log.txt", "a") as log:
            print(*words, *flags, file=log, flush=True)
            code = subprocess.run([*map(str, words), *map(str, flags)], stdout=log, stderr=log, env=environment).returncode
        if code != 0:
            raise RuntimeError(f"{name}: lcf-{stage} ended with {code}: see {run}/log.txt")
        return run / stage

    def on_gpu(self, work, *arguments):
        """A thread that does `work` on a GPU once one is free."""
        def go():
            gpu = self.gpus.get()
            try:
                if time.monotonic() - self.started < self.options.start_for:
                    work(*arguments, gpu)
            except RuntimeError as error:
                print(f"screen: error: {error}", file=sys.stderr, flush=True)
            finally:
                self.gpus.put(gpu)
        thread = threading.Thread(target=go)
        thread.start()
        return thread

    def make(self, name, values, gpu):
        values = {**values, **dict(pair.split("=", 1) for pair in self.options.set)}
        run = self.options.data / "runs" / f"screen-{name}"
        train = self.command(name, "train", values, gpu, "--data", self.prepared, "--device", self.options.device)
        extract = self.command(name, "extract", values, gpu, "--model", train, "--data", self.prepared, "--device", self.options.device)
        probe = self.command(name, "probe", values, gpu, "--features", extract, "--device", self.options.device)
        with open(train / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        result = {
            "values": values,
            "skipped": sum(int(row["skipped"]) for row in rows),
            **json.loads((probe / "probe.json").read_text())["std"],
            "digests": {stage: json.loads((run / stage / "manifest.json").read_text())["digest"] for stage in ("train", "extract", "probe")},
        }
        with self.lock:
            self.results[name] = result
            self.save()
        print(f"screen: {name}: gap {100 * result['gap']:.2f}, peak {100 * result['peak']:.2f} at T={result['peak_timestep']}", flush=True)

    def fid(self, name, gpu):
        run, values = self.options.data / "runs" / f"screen-{name}", self.results[name]["values"]
        samples = self.command(name, "sample", values, gpu, "--model", run / "train", "--device", self.options.device)
        fid = self.command(name, "fid", values, gpu, "--samples", samples, "--data", self.prepared, "--device", self.options.device)
        with self.lock:
            self.results[name]["fid"] = json.loads((fid / "fid.json").read_text())["fid"]
            self.save()

    def save(self):
        text = json.dumps({"answers": self.answers, "runs": self.results}, indent=2)
        (self.options.data / "runs" / "screen.json").write_text(text + "\n")

    def spread(self, what):
        return abs(self.results["fm"][what] - self.results["fm-seed-1"][what])

    def fids(self, names):
        threads = [self.on_gpu(self.fid, name) for name in names if "fid" not in self.results[name]]
        for thread in threads:
            thread.join()

    def best(self, names):
        """Rules 1 to 3; the first of `names` is the reading held so far."""
        floor = self.results["fm"]["peak"] - 0.01
        left = [n for n in names if n in self.results and self.results[n]["skipped"] == 0 and self.results[n]["peak"] >= floor]
        if not left:
            return names[0]
        for what, sign in (("gap", 1), ("peak", -1), ("fid", 1)):
            if len(left) == 1:
                break
            if what == "fid":
                self.fids([*left, "fm", "fm-seed-1"])
                left = [n for n in left if "fid" in self.results[n]] or left[:1]
                if "fid" not in self.results[left[0]]:
                    break
            first = min(sign * self.results[n][what] for n in left)
            left = [n for n in left if sign * self.results[n][what] - first < 2 * self.spread(what)] or left[:1]
        return left[0]

    def run(self):
        o = self.options
        self.prepared = self.command("data", "prepare", {}, "", *(["--data", o.cifar10] if o.cifar10 else []))
        best, values = "default", dict(LCF)
        first = [self.on_gpu(self.make, name, own) for name, own in {**BASELINES, best: values}.items()]
        controls = [self.on_gpu(self.make, name, own) for name, own in CONTROLS.items()]
        for question, answers in QUESTIONS:
            threads = [self.on_gpu(self.make, name, {**values, **own}) for name, own in answers.items()]
            for thread in [*first, *threads]:
                thread.join()
            if not all(name in self.results for name in (*BASELINES, best)):
                break
            chosen = self.best([best, *answers])
            if chosen != best:
                best, values = chosen, {**values, **answers[chosen]}
            self.answers.append({"question": question, "among": list(answers), "best": best})
            print(f"screen: {question}: {best}", flush=True)
        controls += [self.on_gpu(self.make, name, {**values, **own}) for name, own in CONTROLS_OF_BEST.items()]
        for thread in controls:
            thread.join()
        self.fids(list(self.results))
        self.save()
        print(f"{'run':<18}{'T=0':>8}{'peak':>8}{'at T':>6}{'gap':>7}{'FID':>8}{'skipped':>9}")
        for name, r in self.results.items():
            fid = f"{r['fid']:.2f}" if "fid" in r else "-"
            print(f"{name:<18}{100 * r['t0']:>8.2f}{100 * r['peak']:>8.2f}{r['peak_timestep']:>6}{100 * r['gap']:>7.2f}{fid:>8}{r['skipped']:>9}")


def main():
    path = pathlib.Path
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="0", help="numbers of the GPUs, like 0,1,2 [0]")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it out [cuda]")
    parser.add_argument("--config", type=path, default=path("pipelines/screen.json"))
    parser.add_argument("--data", type=path, default=path("data"))
    parser.add_argument("--bin", type=path, default=path("target/release"))
    parser.add_argument("--cifar10", help="local copy of CIFAR-10 [downloaded]")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a value in every run")
    parser.add_argument("--start-for", type=float, default=1e9, metavar="SECONDS", help="start nothing after that long")
    Screen(parser.parse_args()).run()


if __name__ == "__main__":
    main()
