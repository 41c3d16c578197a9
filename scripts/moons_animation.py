"""Draw the decision boundary on two moons while three networks train: none, random perturbation, VAT.

python scripts/moons_animation.py docs/moons.gif

There are 8 labelled and 1,000 unlabelled points in the plane, ε = 0.3, one draw of the data and one initialisation (seed 0). It takes
about a minute.
"""

import argparse
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch
import torch.nn.functional as F
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from torch import Tensor, nn

from vat import VAT, RandomPerturbation
from vat.models import MLP

UPDATES, EVERY, SIDE, LABELS, POINTS, EPS = 600, 15, 70, 4, 1000, 0.3
TERMS = {"none": None, "random perturbation": RandomPerturbation(EPS), "VAT": VAT(EPS)}


def moons(count: int) -> tuple[Tensor, Tensor]:
    """Draw points (count, 2) on two half circles with noise of standard deviation 0.1, and their classes (count,)."""
    y = torch.arange(count) % 2
    angle = math.pi * torch.rand(count) + math.pi * y
    centre = torch.stack([y - 0.5, 0.5 * y - 0.25], 1)
    return centre + torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(count, 2), y


def panel(axes, network: nn.Module, x: Tensor, y: Tensor, plane: Tensor, title: str) -> None:
    """Draw p(class 1) over the plane, the boundary, the unlabelled points in grey and the labelled ones in white."""
    with torch.no_grad():
        chance = network(plane).softmax(1)[:, 1].view(SIDE, SIDE).T.numpy()
        error = (network(x).argmax(1) != y).float().mean().item()
    horizontal, vertical = plane[::SIDE, 0].numpy(), plane[:SIDE, 1].numpy()
    axes.clear()
    axes.contourf(horizontal, vertical, chance, levels=[i / 10 for i in range(11)], cmap="PuOr_r")
    axes.contour(horizontal, vertical, chance, levels=[0.5], colors="black", linewidths=1.5)
    axes.scatter(*x[:300].T.numpy(), s=3, c="0.45", linewidths=0)
    for label, marker in ((0, "o"), (1, "^")):
        axes.scatter(*x[: 2 * LABELS][y[: 2 * LABELS] == label].T.numpy(), s=40, c="white", marker=marker, edgecolors="black")
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{title}\nerror {100 * error:.1f} %", fontsize=9)


def main() -> None:
    """Train the three networks in turn, and draw them every 15 updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    path = parser.parse_args().figure
    torch.manual_seed(0)
    x, y = moons(POINTS)
    few = slice(2 * LABELS)
    low, high = x.amin(0) - 0.3, x.amax(0) + 0.3
    plane = torch.cartesian_prod(*(torch.linspace(float(low[i]), float(high[i]), SIDE) for i in (0, 1)))
    networks, optimizers = {}, {}
    for name in TERMS:
        torch.manual_seed(0)  # all three start from the same weights
        networks[name] = MLP(input_shape=(2,), num_classes=2, hidden=[100, 100], batch_norm=False)
        optimizers[name] = torch.optim.Adam(networks[name].parameters(), lr=3e-3)
    figure = Figure(figsize=(8.0, 2.8), layout="constrained")
    axes = figure.subplots(1, len(TERMS))
    writer = PillowWriter(fps=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writer.saving(figure, str(path), dpi=80):
        for update in range(UPDATES + 1):
            if update % EVERY == 0:
                for axis, (name, network) in zip(axes, networks.items(), strict=True):
                    panel(axis, network, x, y, plane, name)
                figure.suptitle(f"{2 * LABELS} labelled and {POINTS:,} unlabelled points, update {update}", fontsize=9)
                writer.grab_frame()
            for (name, network), term in zip(networks.items(), TERMS.values(), strict=True):
                loss = F.cross_entropy(network(x[few]), y[few]) + (0 if term is None else term(network, x))
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
        for _ in range(12):  # the last picture stays for two seconds
            writer.grab_frame()
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
