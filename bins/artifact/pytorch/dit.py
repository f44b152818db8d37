"""The DiT that `model.safetensors` holds, in plain PyTorch, and the noise that lcf-sample starts from.

Parameters have the names of facebookresearch/DiT. Time runs from t = 0, data, to t = 1, noise: the model gives the
velocity v of x_t = (1 - t) x_0 + t eps, images in [-1, 1]. Needs torch and safetensors.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


class DiT(nn.Module):
    """Velocity [B, C, H, W] of images [B, C, H, W] and times [B] in [0, 1]."""

    def __init__(self, depth, width, heads, mlp, patch, channels, side):
        super().__init__()
        self.image, self.patch = (channels, side, side), patch
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.pos_embed = nn.Parameter(positions(side // patch, width), requires_grad=False)
        self.t_embedder = TimeEmbed(width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    @classmethod
    def from_pretrained(cls, folder):
        """The model in an exported folder, in eval mode; every name has to fit. `config` is its config.json."""
        config = json.loads((Path(folder) / "config.json").read_text())
        model = cls(**config["model"])
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=True)
        model.config = config
        return model.eval()

    def features(self, x, t, layer):
        """Tokens [B, N, D] after block `layer`, counted from 1, and the time's embedding [B, D]."""
        c = self.t_embedder(t)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks[:layer]:
            x = block(x, c)
        return x, c

    def forward(self, x, t):
        tokens = self.final_layer(*self.features(x, t, len(self.blocks)))
        (channels, side, _), p = self.image, self.patch
        grid = tokens.unflatten(1, (side // p, side // p)).unflatten(3, (p, p, channels))
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, side, side)


class PatchEmbed(nn.Module):
    def __init__(self, channels, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        frequency = torch.exp(torch.arange(128, device=t.device) * (-math.log(10000) / 128))
        angle = (t * 1000)[:, None] * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x, shift, scale):
    """A layer norm whose shift and scale come from the time."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(x, shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(x, shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))


def positions(grid, width):
    """[1, grid^2, width]: sines then cosines of a token's column, then of its row."""
    frequency = torch.exp(torch.arange(width // 4).double() * (-math.log(10000) / (width // 4)))
    angle = torch.arange(grid).double()[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = axis.expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, width).float()


GAMMA, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(z):
    """The int64 that has the bits of `z` modulo 2^64."""
    z %= 1 << 64
    return z - (1 << 64) if z >> 63 else z


def mix(z):
    """The finaliser of SplitMix64 on int64, whose products wrap."""
    for shift, factor in ((30, MIX1), (27, MIX2), (31, 1)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * signed(factor)
    return z


def noise(seed, n, image):
    """The first `n` standard normal images that lcf-sample starts from under `seed`, [n, *image]; 8 stands for sampling."""
    size = math.prod(image)
    base = mix(mix(torch.tensor(signed(seed + GAMMA))) + signed(8 * GAMMA))
    rows = mix(torch.arange(n) * signed(GAMMA) + base)
    bits = mix(rows[:, None] + torch.arange((size + 1) // 2) * signed(GAMMA))
    high, low = ((bits >> 32) & 0xFFFFFFFF).float(), (bits & 0xFFFFFFFF).float()
    radius = (((high + 1) * 2.0**-32).log() * -2).sqrt()
    angle = low * (2.0**-32 * math.tau)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size].reshape(n, *image)
