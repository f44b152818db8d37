"""Writes the golden files beside it: `python3 gen.py`. Needs torch. The same bytes every time, on every machine.

Inputs are fp32 numbers from a generator of integers. What follows from them is computed in double precision and then
rounded to fp32, so that a golden tensor is the truth and not one machine's rounding of it.
"""

import random
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import reference
import tensors
import torch
from reference import DiT, Reading, Recipe, Shape, Wrong

HERE = Path(__file__).resolve().parent

# Mistakes that the tests must see; the first four are those that are easiest to make.
WRONG = {
    "norm_eps_1e-5": Wrong(norm_eps=1e-5),
    "erf_gelu": Wrong(gelu="none"),
    "shift_scale_swapped": Wrong(shift_scale_swapped=True),
    "time_flipped": Wrong(time_flipped=True),
    "time_not_times_1000": Wrong(time_scale=1.0),
    "sines_before_cosines": Wrong(sines_first=True),
    "positions_row_first": Wrong(rows_first=True),
    "channels_before_pixels": Wrong(channels_first=True),
}
# Gradients kept of a faulty model: one for each kind of layer.
WRONG_GRADIENTS = ["t_embedder.mlp.2.bias", "blocks.0.attn.qkv.bias", "blocks.1.mlp.fc1.bias", "x_embedder.proj.weight"]


class Draws:
    """Numbers spread evenly over an interval around zero, exact in fp32."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def __call__(self, *shape, std=1.0):
        """Uniform with standard deviation `std`, double precision, values that fp32 holds."""
        count = torch.Size(shape).numel()
        values = [(self.random.getrandbits(16) + 0.5) / 2**15 - 1 for _ in range(count)]
        return fp32(torch.tensor(values, dtype=torch.float64) * (3**0.5 * std)).reshape(shape)


def fp32(x):
    return x.to(torch.float32).to(torch.float64)


def without_dust(x):
    """Zero where only rounding is left, which differs from machine to machine: the bias of keys has no gradient."""
    return torch.where(x.abs() > 1e-13 * x.abs().max(), x, 0.0)


def randomise(model, draws):
    """Every parameter away from zero, so that no path through the network is closed."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "pos_embed":
                p.copy_(fp32(p))
            elif name.endswith("bias"):
                p.copy_(draws(*p.shape, std=0.3))
            else:
                p.copy_(draws(*p.shape, std=p[0].numel() ** -0.5))


def load(shape, right, wrong):
    """A faulty model with the parameters of the right one."""
    model = DiT(shape, wrong)
    mine = {k: v for k, v in right.state_dict().items() if k != "pos_embed"}
    model.load_state_dict(mine, strict=False)
    return model


def scalar_loss(layers, inputs, layer):
    """Depends on the velocity, as Equation 12 does, and on features of one layer, as Equation 14 does."""
    flow = reference.flow_loss(layers["velocity"], inputs["target"], "mean").mean()
    return flow + (layers[f"block.{layer - 1}"] * inputs["cotangent"]).mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def dit(name, shape, batch, layer, seed, quiet):
    """A model, its inputs, every layer's output and every gradient; and the same of the faulty models.

    `quiet`: the patch embedding takes the positions of the first token away again, and images are faint, so that some
    tokens vary little and the epsilon of the layer norm shows.
    """
    draws = Draws(seed)
    right = DiT(shape)
    randomise(right, draws)
    grid = shape.side // shape.patch
    inputs = {
        "x": draws(batch, shape.channels, shape.side, shape.side, std=0.05 if quiet else 1.0),
        "t": torch.tensor([0.0, 0.02, 0.35, 0.9, 1.0][:batch], dtype=torch.float32).double(),
        "target": draws(batch, shape.channels, shape.side, shape.side),
        "cotangent": draws(batch, grid**2, shape.width),
    }
    if quiet:
        right.x_embedder.proj.bias.data = draws(shape.width, std=0.01) - right.pos_embed.data[0, 0]
        right.x_embedder.proj.bias.data = fp32(right.x_embedder.proj.bias.data)

    out = {f"in.{key}": value for key, value in inputs.items()}
    out |= {f"param.{key}": p for key, p in right.named_parameters() if p.requires_grad}
    layers = right.layers(inputs["x"], inputs["t"])
    loss = scalar_loss(layers, inputs, layer)
    out |= {f"out.{key}": value for key, value in layers.items()} | {"out.loss": loss}
    out["out.sinusoid"] = reference.sinusoid(inputs["t"] * 1000)
    out |= {f"grad.{key}": value for key, value in gradients(right, loss).items()}
    for key, wrong in WRONG.items():
        model = load(shape, right, wrong)
        layers = model.layers(inputs["x"], inputs["t"])
        grad = gradients(model, scalar_loss(layers, inputs, layer))
        out[f"wrong.{key}.velocity"] = layers["velocity"]
        out[f"wrong.{key}.features"] = layers[f"block.{layer - 1}"]
        out |= {f"wrong.{key}.grad.{p}": grad[p] for p in WRONG_GRADIENTS}
    tensors.write(HERE / f"{name}.safetensors", {key: without_dust(x) for key, x in out.items()})


def losses():
    """Equation 12 in both reductions, and the contrastive loss in every reading, with gradients."""
    draws = Draws(3)
    velocity, target = draws(5, 3, 4, 4), draws(5, 3, 4, 4)
    out = {"flow.velocity": velocity, "flow.target": target}
    for reduction in ("mean", "sum"):
        leaf = velocity.clone().requires_grad_()
        loss = reference.flow_loss(leaf, target, reduction)
        loss.mean().backward()
        out |= {f"flow.{reduction}.loss": loss, f"flow.{reduction}.grad": leaf.grad}

    # Features of a sample are like its positive's and unlike the others', as they are at low noise.
    batch = draws(6, 4, 8, std=0.2)
    positives = fp32(batch[:3] + draws(3, 4, 8, std=0.1))
    out |= {"contrast.batch": batch, "contrast.positives": positives}
    for choice in product(("algorithm1", "infonce"), ("none", "l2")):
        reading = Reading(*choice)
        out |= {f"{reading.name()}.{k}": v for k, v in contrast(batch, positives, reading).items()}
    # Mistakes that are no reading.
    plain = Reading("infonce", "none")
    out |= {f"tau_doubled.{k}": v for k, v in contrast(batch, positives, replace(plain, tau=1.0)).items()}
    out |= {f"positives_shuffled.{k}": v for k, v in contrast(batch, positives.roll(1, 0), plain).items()}
    # Distances at which exp(-d / tau) is zero in fp32, and in double precision too; to right positives the loss is zero.
    out |= {f"far.{k}": v for k, v in contrast(128 * batch, 128 * positives.roll(1, 0), plain).items()}
    tensors.write(HERE / "losses.safetensors", out)


def contrast(batch, positives, reading):
    """Loss, distances, and the gradient of the loss by the anchors."""
    anchors = batch[: len(positives)].clone().requires_grad_()
    loss, pull, push = reference.contrast(anchors, positives, batch, reading)
    loss.backward()
    return {"loss": loss, "pull": pull, "push": push, "grad": anchors.grad}


RATES = [0.002 * (step + 1) for step in range(5)] + [0.01] * 5
RECIPES = {
    "right": Recipe(),
    "coupled_decay": Recipe(coupled=True),
    "no_clip": Recipe(clip=None),
    "decay_0.999": Recipe(decay=0.999),
    "eps_inside_root": Recipe(eps_inside=True),
}


def optimiser():
    """Ten steps from stored gradients, long and short ones in turn, with entries from 1 down to 1e-8."""
    draws = Draws(4)
    size = 96
    start = draws(size)
    spread = torch.tensor([10.0 ** -(8 * i / (size - 1)) for i in range(size)], dtype=torch.float64)
    steps = fp32(draws(10, size) * spread * torch.tensor([3.0, 0.1] * 5, dtype=torch.float64)[:, None])
    out = {"start": start, "gradients": steps, "rates": torch.tensor(RATES, dtype=torch.float64)}
    for name, recipe in RECIPES.items():
        p = torch.nn.Parameter(start.clone())

        def gradients_of(step):
            p.grad = steps[step].clone()

        norms, [(first, second)], [average] = reference.train([p], gradients_of, RATES, recipe)
        out |= {f"{name}.norms": norms, f"{name}.parameters": p, f"{name}.average": average}
        out |= {f"{name}.first": first, f"{name}.second": second}
    tensors.write(HERE / "optimiser.safetensors", out)


@dataclass(frozen=True)
class Objective:
    """Which samples are regressed and whether there is a contrast; T_min is 0.1 and the layer the first."""

    cuts: bool
    contrasts: bool
    reading: Reading = Reading("infonce", "none")
    weight: float = 0.7


# The four of Figure 6, then LCF in another reading.
OBJECTIVES = {
    "fm": Objective(cuts=False, contrasts=False),
    "fm_truncated": Objective(cuts=True, contrasts=False),
    "lcf": Objective(cuts=True, contrasts=True),
    "fm_contrastive": Objective(cuts=False, contrasts=True),
    "lcf.algorithm1_l2": Objective(cuts=True, contrasts=True, reading=Reading("algorithm1", "l2")),
}


def total_loss(model, x0, noise, t, objective, t_min=0.1, layer=1):
    """Equation 15 for a batch whose first samples are the anchors, t < T_min, in Algorithm 1's one forward pass."""
    low = int((t < t_min).sum())
    times = torch.cat([t, torch.full([low], t_min, dtype=torch.float32).to(t)])
    x0, noise = torch.cat([x0, x0[:low]]), torch.cat([noise, noise[:low]])
    at = times.reshape(-1, 1, 1, 1)
    layers = model.layers((1 - at) * x0 + at * noise, times)
    regressed = slice(low if objective.cuts else 0, len(t))
    total = reference.flow_loss(layers["velocity"][regressed], (noise - x0)[regressed], "mean").mean()
    if objective.contrasts:
        features = layers[f"block.{layer - 1}"]
        batch, positives = features[: len(t)], features[len(t) :]
        total = total + objective.weight * reference.contrast(batch[:low], positives, batch, objective.reading)[0]
    return total


def training():
    """A whole tiny model: the loss and its gradients in each objective, and ten steps of LCF."""
    draws = Draws(5)
    shape = Shape(depth=2, width=8, heads=2, mlp=12, patch=2, channels=1, side=4)
    start = DiT(shape)
    randomise(start, draws)
    t = torch.tensor([0.01, 0.05, 0.3, 0.5, 0.7, 0.95], dtype=torch.float32).double()
    inputs = {"x0": draws(10, 6, 1, 4, 4), "noise": draws(10, 6, 1, 4, 4), "t": t}
    rates = [rate / 5 for rate in RATES]
    names = [name for name, p in start.named_parameters() if p.requires_grad]
    out = {f"in.{key}": value for key, value in inputs.items()} | {"in.rates": torch.tensor(rates, dtype=torch.float64)}
    out |= {f"start.{name}": start.get_parameter(name) for name in names}
    for key, objective in OBJECTIVES.items():
        loss = total_loss(start, inputs["x0"][0], inputs["noise"][0], t, objective)
        out[f"{key}.loss"] = loss
        grad = gradients(start, loss)
        # Not the one large matrix: it would be two thirds of the file.
        kept = {name: torch.zeros_like(start.get_parameter(name)) if g is None else g for name, g in grad.items()}
        out |= {f"{key}.grad.{name}": without_dust(g) for name, g in kept.items() if name != "t_embedder.mlp.0.weight"}

    for key in ("right", "coupled_decay", "no_clip"):
        model = load(shape, start, Wrong())
        model.pos_embed.data.copy_(fp32(model.pos_embed.data))
        losses = []

        def gradients_of(step):
            loss = total_loss(model, inputs["x0"][step], inputs["noise"][step], t, OBJECTIVES["lcf"])
            loss.backward()
            losses.append(loss.detach())

        parameters = [model.get_parameter(name) for name in names]
        norms, _, averages = reference.train(parameters, gradients_of, rates, RECIPES[key])
        out |= {f"{key}.losses": torch.stack(losses), f"{key}.norms": norms}
        if key == "right":
            out |= {f"{key}.parameters.{name}": p for name, p in zip(names, parameters)}
            out |= {f"{key}.average.{name}": p for name, p in zip(names, averages)}
    tensors.write(HERE / "training.safetensors", out)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    plain = Shape(depth=3, width=16, heads=2, mlp=40, patch=2, channels=3, side=8)
    dit("dit-plain", plain, batch=4, layer=2, seed=1, quiet=False)
    quiet = Shape(depth=2, width=12, heads=3, mlp=20, patch=2, channels=2, side=8)
    dit("dit-quiet", quiet, batch=5, layer=2, seed=2, quiet=True)
    losses()
    optimiser()
    training()
