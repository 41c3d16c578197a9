"""Compare each direction with the Hessian's top eigenvector, with the largest KL on the sphere, and with its own value in float64.

python scripts/fidelity.py --networks mlp                   # minutes; the others take three hours of one core, or a GPU
python scripts/fidelity.py --figure docs/fidelity.png

There are three networks on MNIST with 1,000 labels. Each is measured at initialisation, after a short supervised training, and after as
many updates with VAT. Each is in evaluation mode and in training mode (dropout, batch statistics), in float32, with bfloat16 autocast,
and on a GPU also in float16. `python src/train.py` trains them. Finished parts are in --folder and are not repeated.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from vat import VAT, Step
from vat.data.loader import as_input
from vat.data.sets.mnist import MNIST
from vat.directions import gradient, margin, options_of, takes
from vat.evaluation.diagnosis import maximum, root_of_hessian, top_eigenpair
from vat.functional import Categorical
from vat.norms import L2
from vat.runs import checkpoints, folders, records
from vat.runs.overrides import quoted
from vat.step import Key

KL, NORM = Categorical(), L2()
EPS = (0.3, 2.0)
SHORT = ["trainer.max_steps=300", "data.batch_size_labeled=16", "data.batch_size_unlabeled=16", "reestimate_batch_norm=true"]
TRAINING = {  # overrides of the training, and number of measured examples
    "mlp": (["model=mlp", "model.hidden=[1200,1200]", "model.dropout=0.3", "trainer.max_steps=500"], 256),
    "conv_large": (["model=conv_large", *SHORT], 16),
    "resnet": (["model=resnet", *SHORT], 16),
}
SHARED = ["data=mnist", "data.num_labeled=1000", "data.steps_per_epoch=100000", "logger=none", "test=none"]
STATES = {
    "initialisation": [],  # not trained
    "supervised": ["regularizer=none"],
    "VAT": ["vat.eps=2", "vat.direction=random_margin"],
}
COLOURS = ("#5e3c99", "#e66101")  # of the two ε; they differ for colour-blind readers
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Fixed(Step):
    """A step with the same random numbers in every precision. Torch's generator gives different numbers in float64."""

    def normal(self, purpose: str, *, one_row: bool = False) -> Tensor:
        generator = torch.Generator().manual_seed(self.key.shared(purpose))
        return torch.randn((1 if one_row else len(self.x), *self.x.shape[1:]), generator=generator).to(self.x)


@takes("eps")
def margin_and_ascent(step: Step, divergence: Any, norm: Any, *, eps: float, create_graph: bool = False) -> Tensor:
    """The margin direction, then one first-order step of length ε."""
    d = margin(step, divergence, norm)
    return norm.dual(d + norm.dual(gradient(step, divergence, eps * d), otherwise=d), otherwise=d)


def directions(length: float) -> dict[str, tuple[float, Callable[[float], VAT]]]:
    """Cost of a VAT step in F, and a function ε -> VAT, by name. The literature's `xi` is absolute; ours is a share of `length`.

    Args:
        length: Mean length of the examples.
    """
    return {
        "random": (4, partial(VAT, direction="random")),
        "finite differences, ξ = 1e-6": (6, partial(VAT, direction="finite_difference", xi=1e-6 / length)),
        "finite differences, ξ = 10": (6, partial(VAT, direction="finite_difference", xi=10 / length)),
        "finite differences": (6, partial(VAT, direction="finite_difference")),
        "exact": (7, partial(VAT, direction="exact")),
        "exact, 2 iterations": (10, partial(VAT, direction="exact", num_power_iterations=2)),
        "exact, 8 iterations": (28, partial(VAT, direction="exact", num_power_iterations=8)),
        "exact, better sign": (9, partial(VAT, direction="exact", choose_sign=True)),
        "ascent": (6, partial(VAT, direction="ascent")),
        "margin": (5, partial(VAT, direction="margin")),
        "random margin": (5, partial(VAT, direction="random_margin")),
        "margin, then ascent": (7, partial(VAT, direction=margin_and_ascent)),
    }


def costs() -> dict[str, float]:
    """Cost of a VAT step with each direction, in F."""
    return {name: cost for name, (cost, _) in directions(1.0).items()}


def main() -> None:
    """Train and measure what is missing, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=TRAINING, default=list(TRAINING))
    parser.add_argument("--folder", type=Path, default=Path("results/fidelity"))
    parser.add_argument("--figure", type=Path, help="file for the figure of the share of the largest KL")
    parser.add_argument("--show", action="store_true", help="run nothing: print and draw the finished parts")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        for state in STATES:
            done = arguments.folder / f"{name}-{state}.json"
            if not done.exists():
                if arguments.show:
                    continue
                found = list(measure(name, state, arguments.folder))
                done.write_text(json.dumps(found, indent=1) + "\n")
            rows += [{"network": name, "state": state, **row} for row in json.loads(done.read_text())]
    if not rows:
        parser.error(f"{arguments.folder} contains no finished part: remove --show to run them")
    show(rows, arguments.folder)
    if arguments.figure:
        figure(rows).savefig(arguments.figure, dpi=130)
        print(arguments.figure)


def trained(name: str, state: str, folder: Path) -> tuple[nn.Module, Path]:
    """Train a network to a state, if this is not yet done.

    Returns:
        The network, and the folder of the run from which it, or its architecture, comes.
    """
    kind = "supervised" if state == "initialisation" else state
    place = folder.resolve() / "runs" / f"{name}-{kind}"
    if not (place / folders.METRICS).exists():
        device = ["trainer=gpu"] if torch.cuda.is_available() else []
        command = [sys.executable, str(ROOT / "src" / "train.py"), *SHARED, *device, *TRAINING[name][0], *STATES[kind]]
        subprocess.run([*command, f"hydra.run.dir={quoted(place)}"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    checkpoint = place / "checkpoints" / "last.ckpt"
    if state != "initialisation":
        return records.load_network(checkpoint), place
    record = checkpoints.read_checkpoint(checkpoint)["record"]
    torch.manual_seed(0)
    return records.recorded_network(record["config"]["model"], record), place


def measure(name: str, state: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure a network: a row for each mode, precision, ε and direction, with means over the examples."""
    network, place = trained(name, state, folder)
    config = OmegaConf.load(place / "config.yaml")
    data = MNIST(data_dir=config.data.data_dir, num_labeled=config.data.num_labeled)
    data.setup()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, network = as_input(data.x[data.split.test[: TRAINING[name][1]]]).to(device), network.to(device)
    tried = directions(float(NORM.length(x).mean()))
    networks = {torch.float32: network, torch.float64: copy.deepcopy(network).double()}
    for training in (False, True):
        for one in networks.values():
            one.train(training)
        whole = step_in("float64", networks, x)
        root = None if training else root_of_hessian(whole, KL)  # in training mode batch statistics couple the rows
        hessian = None if root is None else (root, *top_eigenpair(root))
        found: dict[tuple[str, str], Tensor] = {}
        for eps in EPS:
            for precision in PRECISIONS:
                if precision == "float16" and device == "cpu":
                    continue
                for direction, (_, make) in tried.items():
                    vat = make(eps)
                    depends_on_eps = vat.choose_sign or "eps" in options_of(vat.direction)
                    if (direction, precision) in found and not depends_on_eps:
                        continue
                    step = step_in(precision, networks, x)
                    with torch.autocast(device, PRECISIONS[precision], enabled=precision in ("bfloat16", "float16")):
                        r = vat.virtual_adversarial_perturbation(step)
                    found[direction, precision] = r.double() / eps
            reached = {k: KL(whole.target, whole.network(whole.x + eps * d, constant=True)).detach() for k, d in found.items()}
            stacked = torch.stack(list(reached.values()))
            best = torch.stack(list(found.values()))[stacked.argmax(0), torch.arange(len(x))].float()
            searched = step_in("float32", networks, x)  # four times as fast as float64; the result is measured in float64
            _, worst = maximum(searched, KL, NORM, eps=eps, starts=[best, -best], steps=30)
            most = KL(whole.target, whole.network(whole.x + eps * worst, constant=True)).detach().maximum(stacked.max(0).values)
            for (direction, precision), d in found.items():
                row = {
                    "mode": "training" if training else "evaluation",
                    "eps": eps,
                    "precision": precision,
                    "direction": direction,
                    "n": len(x),
                    "kl_share": float(reached[direction, precision].sum() / most.sum()),
                    "kl_maximum": float(most.mean()),
                    "own_float64": float(cosine_similarity(d.flatten(1), found[direction, "float64"].flatten(1)).mean()),
                }
                if hessian is not None:
                    root, eigenvalue, eigenvector = hessian
                    curvature = (root @ d.flatten(1)[..., None]).square().sum((1, 2))
                    row["rayleigh_share"] = float(curvature.sum() / eigenvalue.sum())
                    row["cosine"] = float((d.flatten(1) * eigenvector).sum(1).abs().mean())
                yield row


def step_in(precision: str, networks: dict[torch.dtype, nn.Module], x: Tensor) -> Step:
    """Step in float64, or in float32, from which autocast makes half precisions. The key and so dropout's masks are always the same."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    return Fixed(networks[dtype], x.to(dtype), key=Key(0), live=True)


def show(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print and write the table: what each direction reaches in float32, and its cosine with its own float64 value."""
    cost, names = costs(), list(dict.fromkeys(row["direction"] for row in rows))
    precisions = [p for p in PRECISIONS if p != "float64" and any(row["precision"] == p for row in rows)]
    heads = ["direction", "cost, F", *(f"KL, ε {eps:g}" for eps in EPS), "KL, training mode", "Rayleigh", "cosine"]
    heads += [f"{p} to float64" for p in precisions]
    lines = []
    for name in names:
        of = [row for row in rows if row["direction"] == name]
        evaluated = [row for row in of if row["mode"] == "evaluation" and row["precision"] == "float32"]
        in_training = [row["kl_share"] for row in of if row["mode"] == "training" and row["precision"] == "float32"]
        cells = [name, f"{cost[name]}", *(spread(row["kl_share"] for row in evaluated if row["eps"] == eps) for eps in EPS)]
        cells += [spread(in_training), *(spread(row[key] for row in evaluated) for key in ("rayleigh_share", "cosine"))]
        lines.append(cells + [spread(row["own_float64"] for row in of if row["precision"] == p) for p in precisions])
    found = {(row["network"], row["state"]): row["n"] for row in rows}
    table = Table(*heads, title=f"mean over {len(found)} networks (lowest – highest)")
    for cells in lines:
        table.add_row(*cells)
    Console(width=200).print(table)
    text = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines)]
    (folder / "table.md").write_text("\n".join(text) + "\n")
    print(f"as Markdown: {folder / 'table.md'}; each network's in {folder}/*.json")


def spread(values: Iterable[float]) -> str:
    """Text of the mean, the lowest and the highest value."""
    found = list(values)
    return f"{mean(found):.2f} ({min(found):.2f} – {max(found):.2f})" if found else "–"


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Share of the largest KL that each direction reaches, a panel for each network and state, a mark for each ε."""
    networks, states = list(dict.fromkeys(row["network"] for row in rows)), list(STATES)
    drawn = Figure(figsize=(3.4 * len(states) + 2.6, 2.7 * len(networks) + 0.6), layout="constrained")
    axes = drawn.subplots(len(networks), len(states), squeeze=False, sharex=True, sharey=True)
    cost, names = costs(), list(dict.fromkeys(row["direction"] for row in rows))
    for i, network in enumerate(networks):
        for j, state in enumerate(states):
            panel = axes[i, j]
            for row in rows:
                chosen = (row["network"], row["state"], row["mode"], row["precision"]) == (network, state, "evaluation", "float32")
                if chosen:
                    at, small = names.index(row["direction"]), row["eps"] == min(EPS)
                    panel.plot(row["kl_share"], at, "o" if small else "s", color=COLOURS[not small], markersize=6)
            panel.set_title(f"{network}, {state}", fontsize=10)
            if not any((row["network"], row["state"]) == (network, state) for row in rows):
                panel.text(0.5, len(names) / 2, "not run", ha="center")
            panel.set_yticks(range(len(names)), [f"{name} ({cost[name]} F)" for name in names], fontsize=8)
            panel.grid(alpha=0.3)
            panel.set_xlim(-0.03, 1.05)
    axes[0, 0].invert_yaxis()  # all panels share this axis
    for panel in axes[-1]:
        panel.set_xlabel("share of the largest KL on the sphere")
    marks = [Line2D([], [], marker=m, color=c, linestyle="", label=f"ε = {e:g}") for m, c, e in zip("os", COLOURS, EPS, strict=True)]
    drawn.legend(handles=marks, loc="outside lower right", ncols=2)
    return drawn


if __name__ == "__main__":
    main()
