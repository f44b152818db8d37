#!/usr/bin/env python3
"""PyTorch's time for the training step that lcf-train --bench has measured, to be run beside it on the same machine.

    lcf-train --bench --json --config pipelines/cifar10-lcf.json > train.json
    python3 pipelines/bench/torch_step.py --like train.json [--seconds 10] [--modes eager,compile] > torch.jsonl

One step: images, noise and times drawn on the device, forward pass of batch and anchors, flow matching and contrast,
backward pass, clip, AdamW, moving average; model, batch and anchors are those of train.json. On CUDA with autocast where
the config says bf16, on the CPU in fp32. The modes:

    eager                 as it is written here
    compile               the loss by torch.compile
    compile-graph         the same, the whole step as one CUDA graph
    lean-compile-graph    the same, with the residual stream in bf16 too: the fastest PyTorch we could write

On the CPU there is eager alone. Prints one JSON object a mode, times in milliseconds.
"""

import argparse
import gc
import json
import math
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

FREQUENCIES = 256
LOOK = 0.05  # Least seconds between two looks at the clock.
MODES = ["eager", "compile", "compile-graph", "lean-compile-graph"]
NAMES = {
    "eager": "eager",
    "compile": "torch.compile",
    "compile-graph": "torch.compile, CUDA graph",
    "lean-compile-graph": "torch.compile, CUDA graph, bf16 residual stream",
}


class Block(nn.Module):
    def __init__(self, width, heads, mlp, lean):
        super().__init__()
        self.heads, self.lean = heads, lean
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(condition).unsqueeze(1).chunk(6, -1)
        b, n, d = x.shape
        qkv = self.qkv(norm(x, shift1, scale1)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + gate1 * self.proj(attended)
        x = x + gate2 * self.fc2(F.gelu(self.fc1(norm(x, shift2, scale2)), approximate="tanh"))
        return x.to(torch.bfloat16) if self.lean else x


class DiT(nn.Module):
    def __init__(self, model, images, layer, lean):
        super().__init__()
        width, self.patch, self.layer, self.lean = model["width"], model["patch"], layer, lean
        self.tokens = (images["side"] // self.patch) ** 2
        numbers = images["channels"] * self.patch**2
        self.embed = nn.Linear(numbers, width)
        self.register_buffer("positions", torch.randn(1, self.tokens, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        blocks = (Block(width, model["heads"], model["mlp"], lean) for _ in range(model["depth"]))
        self.blocks = nn.ModuleList(blocks)
        self.ada, self.out = nn.Linear(width, 2 * width), nn.Linear(width, numbers)

    def forward(self, x, t):
        x = self.embed(patchify(x, self.patch)) + self.positions
        x = x.to(torch.bfloat16) if self.lean else x.float()
        half = FREQUENCIES // 2
        angles = t[:, None] * 1000 * torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        condition = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], -1)))
        features = None
        for i, block in enumerate(self.blocks, start=1):
            x = block(x, condition)
            if i == self.layer:
                features = x.float().mean(1)
        shift, scale = self.ada(condition).unsqueeze(1).chunk(2, -1)
        return self.out(norm(x, shift, scale)).float(), features


def norm(x, shift, scale):
    y = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return y.to(torch.bfloat16) if torch.is_autocast_enabled(x.device.type) else y


def patchify(x, patch):
    b, c, h, w = x.shape
    x = x.view(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, -1, c * patch**2)


class Loss:
    """Flow matching, and the contrast where there are anchors: those with the smallest times, at most `anchors`."""

    def __init__(self, run, anchors):
        objective, contrast = run["objective"], run.get("contrast") or {}
        self.anchors, self.t_min = anchors, run.get("t_min") or 0.0
        self.cut = self.t_min if objective in ("fm_truncated", "lcf") else 0.0
        self.weight, self.tau = contrast.get("lambda", 0.0), contrast.get("tau", 1.0)

    def __call__(self, model, x0, eps, t):
        b, k = len(x0), self.anchors
        tt = t.view(-1, 1, 1, 1)
        x, times = (1 - tt) * x0 + tt * eps, t
        if k:
            low = t.argsort()[:k]
            x = torch.cat([x, (1 - self.t_min) * x0[low] + self.t_min * eps[low]])
            times = torch.cat([t, torch.full_like(t[:k], self.t_min)])
        v, h = model(x, times)
        kept = (t >= self.cut).view(-1, 1, 1)
        error = torch.where(kept, v[:b] - patchify(eps - x0, model.patch), 0.0)
        loss = (error**2).mean((1, 2)).sum() / kept.sum()
        if not k:
            return loss
        anchors, positives, negatives = h[:b][low], h[b:].detach(), h[:b].detach()
        present = (t[low] < self.t_min).float()
        pull = ((anchors - positives) ** 2).sum(-1) / self.tau
        push = ((anchors[:, None] - negatives[None]) ** 2).sum(-1) / self.tau
        itself = low[:, None] == torch.arange(b, device=low.device)
        push = torch.cat([push.masked_fill(itself, math.inf), pull[:, None]], 1)
        contrast = ((pull + torch.logsumexp(-push, 1)) * present).sum() / present.sum().clamp(min=1)
        return loss + self.weight * contrast


def training_step(like, mode, device):
    """The step of a fresh model, to be called again and again."""
    run, images = like["run"], like["images"]
    anchors = math.ceil(like["anchors"])
    layer = run["contrast"]["layer"] if anchors else 0
    torch.manual_seed(0)
    make = lambda: DiT(run["model"], images, layer, "lean" in mode).to(device)
    model, average = make(), make()
    params, averages = list(model.parameters()), list(average.parameters())
    cuda = device.type == "cuda"
    optim = run["optim"]
    adamw = torch.optim.AdamW(params, lr=optim["lr"], weight_decay=optim["weight_decay"], fused=True, capturable=cuda)
    loss_of = Loss(run, anchors)
    loss_of = torch.compile(loss_of.__call__) if "compile" in mode else loss_of
    shape = (images["count"], images["channels"], images["side"], images["side"])
    data = torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
    half = cuda and run["precision"] == "bf16"

    def step():
        chosen = torch.randint(0, len(data), (run["batch"],), device=device)
        x0 = data[chosen].float() / 127.5 - 1
        eps, t = torch.randn_like(x0), torch.rand(run["batch"], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_of(model, x0, eps, t)
        loss.backward()
        nn.utils.clip_grad_norm_(params, optim["clip"], foreach=True)
        adamw.step()
        adamw.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1 - run["ema"]["decay"])

    return step


def captured(step):
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(step, seconds, device):
    """Milliseconds of steps, taken as lcf-train --bench takes them: (times, steps between two looks at the clock)."""

    def look(steps):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    look(6)
    steps = 1
    while (last := look(steps)) < min(LOOK, seconds / 10):
        steps *= 2
    times = [last]
    while (sum(times) < seconds or len(times) < 3) and sum(times) < 3 * seconds:
        times.append(look(steps))
    return [1e3 * taken / steps for taken in times], steps


def quantile(values, share):
    values = sorted(values)
    place = share * (len(values) - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return low + (high - low) * (place % 1)


def run_mode(like, mode, seconds, device):
    cuda = device.type == "cuda"
    torch._dynamo.reset()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = training_step(like, mode, device)
    times, steps = measure(captured(step) if "graph" in mode else step, seconds, device)
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "what": f"PyTorch {torch.__version__} {NAMES[mode]}",
        "n": len(times), "pieces": steps,
        "median_ms": quantile(times, 0.5), "p5_ms": quantile(times, 0.05), "p95_ms": quantile(times, 0.95),
        "batch": like["run"]["batch"], "anchors": math.ceil(like["anchors"]), "peak_bytes": peak,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", required=True, metavar="FILE", help="what lcf-train --bench --json printed")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="time for each mode [10]")
    parser.add_argument("--modes", metavar="NAMES", help=f"some of {','.join(MODES)} [all; on the CPU eager]")
    args = parser.parse_args()
    with open(args.like, encoding="utf-8") as file:
        outcome = json.load(file)
    device = torch.device("cpu" if outcome["machine"]["device"].endswith("cpu") else "cuda")
    modes = args.modes.split(",") if args.modes else MODES if device.type == "cuda" else ["eager"]
    if unknown := [mode for mode in modes if mode not in MODES]:
        parser.error(f"--modes: {unknown[0]} is none of {','.join(MODES)}")
    torch.set_num_threads(outcome["threads"])
    torch.backends.cuda.matmul.allow_tf32 = True
    for mode in modes:
        try:
            print(json.dumps(run_mode(outcome["settings"], mode, args.seconds, device)), flush=True)
        except Exception as error:  # One mode less: torch.compile needs a compiler, for example.
            print(f"PyTorch: {mode}: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)


if __name__ == "__main__":
    main()
