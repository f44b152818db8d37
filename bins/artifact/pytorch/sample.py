"""Draws the images of lcf-sample (Euler) into a grid: python sample.py [FILE.png] [IMAGES] [STEPS] [SEED]"""

import sys
from pathlib import Path

import torch
from dit import DiT, noise
from PIL import Image

file, n, steps, seed = (sys.argv[1:] + ["samples.png", "64", "50", "0"][len(sys.argv) - 1 :])[:4]
n, steps, columns = int(n), int(steps), max(1, int(int(n) ** 0.5))
torch.set_grad_enabled(False)
model = DiT.from_pretrained(Path(__file__).parent)
x, stop = noise(int(seed), n, model.image), model.config["velocity_from"]
uniform = max(1, steps - (stop > 0))  # the velocity was not trained below `stop`: one step from there to the image
times = [1 + (stop - 1) * i / uniform for i in range(uniform + 1)]
for t, following in zip(times, times[1:]):
    x = x + (following - t) * model(x, torch.full((n,), t))
if stop > 0:
    x = x - stop * model(x, torch.full((n,), stop))
images = ((x + 1) * 127.5).round().clamp(0, 255).byte()
rows = [torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns]
Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(file)
print(f"{len(rows) * columns} images in {file}")
