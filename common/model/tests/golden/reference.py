"""What the Rust code is held against: a DiT, the losses of the paper and a training loop, in plain PyTorch.

Written from the architecture (Peebles and Xie 2023, arXiv 2212.09748) and the paper (arXiv 2509.20952, Equations 12-15
and Algorithm 1), with torch.nn's own layers, so that it shares nothing with the Rust code but the formulas. Parameters
are named as facebookresearch/DiT names them. `Wrong` holds the mistakes that a golden test must be able to see.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Wrong:
    """How a faulty DiT differs from the right one; the defaults are the right one."""

    norm_eps: float = 1e-6
    gelu: str = "tanh"
    shift_scale_swapped: bool = False
    time_flipped: bool = False
    time_scale: float = 1000.0
    sines_first: bool = False
    rows_first: bool = False
    channels_first: bool = False


RIGHT = Wrong()


@dataclass(frozen=True)
class Shape:
    """Shape of a DiT and of its images."""

    depth: int
    width: int
    heads: int
    mlp: int
    patch: int
    channels: int
    side: int


def position_table(grid, width, rows_first=False):
    """[1, grid^2, width]: half of the width for the column of a token, half for its row, sines before cosines."""
    quarter = width // 4
    frequency = torch.tensor([10000.0 ** (-k / quarter) for k in range(quarter)], dtype=torch.float64)

    def encode(place):
        angle = place.reshape(-1, 1) * frequency
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)

    row, column = torch.meshgrid(torch.arange(grid).double(), torch.arange(grid).double(), indexing="ij")
    halves = [encode(row), encode(column)] if rows_first else [encode(column), encode(row)]
    return torch.cat(halves, dim=1).unsqueeze(0)


def sinusoid(steps, width=256, max_period=10000, sines_first=False):
    """[B, width]: cosines then sines of `steps` [B] at geometrically falling frequencies.

    Frequencies and angles are rounded to fp32 whatever the type of `steps`, because DiT rounds them so and the angles
    go up to 1000: there the rounding is 3e-5.
    """
    half = width // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32) / half
    frequency = torch.exp(exponent)
    angle = (steps.float()[:, None] * frequency[None]).to(steps.dtype)
    parts = [torch.sin(angle), torch.cos(angle)] if sines_first else [torch.cos(angle), torch.sin(angle)]
    return torch.cat(parts, dim=1)


class PatchEmbed(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.proj = nn.Conv2d(shape.channels, shape.width, kernel_size=shape.patch, stride=shape.patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    def __init__(self, width, wrong):
        super().__init__()
        self.wrong = wrong
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(sinusoid(t * self.wrong.time_scale, sines_first=self.wrong.sines_first))


class Attention(nn.Module):
    """Multi-head self-attention, written out: softmax(q k / sqrt(d)) v."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        weight = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]), dim=-1)
        return self.proj((weight @ value).transpose(1, 2).flatten(2))

    def _split(self, part):
        return part.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, width, hidden, wrong):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=wrong.gelu)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Modulated(nn.Module):
    """A layer norm without weights whose shift and scale come from the time embedding."""

    def __init__(self, width, wrong):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=wrong.norm_eps, elementwise_affine=False)
        self.swapped = wrong.shift_scale_swapped

    def forward(self, x, shift, scale):
        if self.swapped:
            shift, scale = scale, shift
        return self.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    def __init__(self, shape, wrong):
        super().__init__()
        self.norm1 = Modulated(shape.width, wrong)
        self.attn = Attention(shape.width, shape.heads)
        self.norm2 = Modulated(shape.width, wrong)
        self.mlp = Mlp(shape.width, shape.mlp, wrong)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(shape.width, 6 * shape.width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(self.norm1(x, shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(self.norm2(x, shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, shape, wrong):
        super().__init__()
        self.norm_final = Modulated(shape.width, wrong)
        self.linear = nn.Linear(shape.width, shape.patch**2 * shape.channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(shape.width, 2 * shape.width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(self.norm_final(x, shift, scale))


class DiT(nn.Module):
    """The unconditional DiT: velocity [B, C, H, W] of images [B, C, H, W] and times [B] in [0, 1]."""

    def __init__(self, shape, wrong=RIGHT):
        super().__init__()
        self.shape, self.wrong = shape, wrong
        self.x_embedder = PatchEmbed(shape)
        positions = position_table(shape.side // shape.patch, shape.width, wrong.rows_first)
        self.pos_embed = nn.Parameter(positions.to(torch.get_default_dtype()), requires_grad=False)
        self.t_embedder = TimeEmbed(shape.width, wrong)
        self.blocks = nn.ModuleList(Block(shape, wrong) for _ in range(shape.depth))
        self.final_layer = FinalLayer(shape, wrong)

    def layers(self, images, t):
        """Every intermediate result: tokens `embed` and `block.i`, `velocity`, and `time`: what the output layer makes
        of the time embedding alone, of tokens that are zero."""
        if self.wrong.time_flipped:
            t = 1 - t
        c = self.t_embedder(t)
        x = self.x_embedder(images) + self.pos_embed
        out = {"embed": x, "time": self.unpatchify(self.final_layer(torch.zeros_like(x), c))}
        for i, block in enumerate(self.blocks):
            x = block(x, c)
            out[f"block.{i}"] = x
        out["velocity"] = self.unpatchify(self.final_layer(x, c))
        return out

    def forward(self, images, t):
        return self.layers(images, t)["velocity"]

    def unpatchify(self, x):
        """Each token is one patch, its numbers ordered (row, column, channel)."""
        s = self.shape
        grid = s.side // s.patch
        if self.wrong.channels_first:
            x = x.reshape(len(x), grid, grid, s.channels, s.patch, s.patch)
            return torch.einsum("nhwcpq->nchpwq", x).reshape(len(x), s.channels, s.side, s.side)
        x = x.reshape(len(x), grid, grid, s.patch, s.patch, s.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), s.channels, s.side, s.side)


def flow_loss(velocity, target, reduction):
    """Equation 12, per sample [B]: the squared 2-norm (`sum`), or that divided by the number of dimensions (`mean`)."""
    squares = (velocity - target) ** 2
    return {"sum": torch.sum, "mean": torch.mean}[reduction](squares.flatten(1), dim=1)


@dataclass(frozen=True)
class Reading:
    """One way to read Equation 14."""

    denominator: str  # algorithm1 or infonce
    norm: str  # none or l2
    tau: float = 0.5

    def name(self):
        return f"{self.denominator}.{self.norm}"


def squared_distance(a, b, reading):
    if reading.norm == "l2":
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return ((a - b) ** 2).sum()


def contrast(anchor_tokens, positive_tokens, batch_tokens, reading):
    """Equation 14, anchor by anchor and pair by pair, of tokens [n, N, D]. Anchor i is sample i of the batch.

    Returns the loss, the mean squared distance to the positive, and that to the batch's other samples.
    """
    tokens = (anchor_tokens, positive_tokens.detach(), batch_tokens.detach())
    anchors, positives, batch = (x.mean(dim=1) for x in tokens)
    losses, pulls, pushes = [], [], []
    for i, z in enumerate(anchors):
        pull = squared_distance(z, positives[i], reading)
        others = [squared_distance(z, batch[j], reading) for j in range(len(batch)) if j != i]
        terms = others + [squared_distance(z, batch[i], reading) if reading.denominator == "algorithm1" else pull]
        losses.append(pull / reading.tau + torch.logsumexp(torch.stack([-d / reading.tau for d in terms]), dim=0))
        pulls.append(pull)
        pushes += others
    return torch.stack(losses).mean(), torch.stack(pulls).mean(), torch.stack(pushes).mean()


@dataclass(frozen=True)
class Recipe:
    """Table 2's training, and the ways to get it wrong; the defaults are right."""

    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    decay: float = 0.99
    coupled: bool = False
    eps_inside: bool = False


def train(parameters, gradients_of, rates, recipe):
    """One optimiser step a learning rate in `rates`, with clipping and an EMA. Changes `parameters` in place.

    `gradients_of(step)` sets the gradients. Returns the norms before clipping, the moments and the EMA.
    """
    parameters = list(parameters)
    kind = torch.optim.Adam if recipe.coupled else torch.optim.AdamW
    optimiser = kind(parameters, lr=rates[0], betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay)
    averages = [p.detach().clone() for p in parameters]
    norms = []
    for step, rate in enumerate(rates):
        optimiser.zero_grad()
        gradients_of(step)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip if recipe.clip else math.inf))
        if recipe.eps_inside:
            _step_with_eps_inside(optimiser, parameters, rate, step + 1, recipe)
        else:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
        for average, p in zip(averages, parameters):
            average.lerp_(p.detach(), 1 - recipe.decay)
    moments = [(optimiser.state[p]["exp_avg"], optimiser.state[p]["exp_avg_sq"]) for p in parameters]
    return torch.stack(norms), moments, averages


@torch.no_grad()
def _step_with_eps_inside(optimiser, parameters, rate, count, recipe):
    """AdamW with sqrt(v + eps) where it has sqrt(v) + eps."""
    first, second = recipe.betas
    for p in parameters:
        state = optimiser.state[p]
        m = state.setdefault("exp_avg", torch.zeros_like(p)).lerp_(p.grad, 1 - first)
        v = state.setdefault("exp_avg_sq", torch.zeros_like(p)).lerp_(p.grad**2, 1 - second)
        root = torch.sqrt(v / (1 - second**count) + recipe.eps)
        p.mul_(1 - rate * recipe.weight_decay).sub_(rate * (m / (1 - first**count)) / root)
