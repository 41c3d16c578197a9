"""Choose VAT's radius without validation labels: what simple rules lose on nine data sets. Makes the table of docs/choosing_eps.md.

python scripts/choosing_eps.py                        # everything: about 12 minutes of one CPU core
python scripts/choosing_eps.py digits,wine --splits 2

Each set and split is trained with every radius and two initialisations. All networks of a split are one module, whose networks share no
weights. So each trains as it would alone, and one CPU core is enough. Finished runs are kept in `choosing_eps/` and not repeated. The
tables show `regret`: the test error of the radius that a rule chooses, minus that of the best radius.
"""

# This file is longer than 350 lines because it is one study, to be read from top to bottom: networks, sets, training, rules, tables.

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat import VAT, RandomPerturbation
from vat.batch_norm import reestimate_batch_norm
from vat.data.neighbours import GROUP, SHARE, distances, neighbours
from vat.data.sets.cifar import CIFAR10
from vat.data.sets.mnist import MNIST
from vat.data.sets.shipped import read_digits
from vat.data.sets.synthetic import circles, embedding, moons
from vat.evaluation.diagnosis import FAR, FLAT
from vat.functional import DIVERGENCES
from vat.norms import L2
from vat.step import Step

STEPS = {"cifar10_4_classes": 240}  # all others 320
SETS = ("moons", "digits", "wine", "circles", "breast_cancer", "iris", "mnist_100", "mnist_1000", "cifar10_4_classes")
CHOSEN_ON = ("moons", "digits", "wine", "mnist_100")
"""Sets on which thresholds are chosen. The results are those of the others."""

VAT_FACTORS, RECIPE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (0.5, 1.0, 2.0)
INITIALISATIONS = 2
LENGTHS = {"full": 1, "quarter": 4}


# ----------------------------------------------------------------------------------------------------- many networks as one


class Linears(nn.Module):
    """A linear layer for each network: (M, N, A) -> (M, N, B)."""

    def __init__(self, many: int, inputs: int, outputs: int, *, bias: bool = True):
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(many, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(many, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x, self.weight)
        return y if self.bias is None else y + self.bias


class Norms(nn.Module):
    """Batch norm for each network: (M, N, H) -> (M, N, H)."""

    def __init__(self, many: int, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(many * width)

    def forward(self, x: Tensor) -> Tensor:
        many, number, width = x.shape
        return self.norm(x.transpose(0, 1).reshape(number, many * width)).view(number, many, width).transpose(0, 1)


class MLPs(nn.Module):
    """M perceptrons with batch norm. Inputs (M N, D), sorted by network, to logits (M N, C)."""

    def __init__(self, many: int, shape: Sequence[int], classes: int, hidden: Sequence[int] = (64, 64)):
        super().__init__()
        self.many = many
        layers, width = [], math.prod(shape)
        for units in hidden:
            layers += [Linears(many, width, units, bias=False), Norms(many, units), nn.ReLU()]
            width = units
        self.layers = nn.Sequential(*layers, Linears(many, width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.view(self.many, -1, x[0].numel())).flatten(0, 1)


class CNNs(nn.Module):
    """M small convolutional networks, whose first layer standardises channels. Images (M N, C, H, W) to logits (M N, C)."""

    def __init__(self, many: int, shape: Sequence[int], classes: int, mean: Tensor, std: Tensor, channels: Sequence[int] = (8, 16)):
        super().__init__()
        self.many, self.mean, self.std = many, mean, std
        layers, width = [], shape[0]
        for c in channels:
            convolution = nn.Conv2d(many * width, many * c, 3, padding=1, bias=False, groups=many)
            layers += [convolution, nn.BatchNorm2d(many * c), nn.ReLU(), nn.AvgPool2d(2)]
            width = c
        self.layers = nn.Sequential(*layers)
        self.last = Linears(many, width * (shape[1] // 4) * (shape[2] // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        number = len(x) // self.many
        x = ((x - self.mean) / self.std).view(self.many, number, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        z = self.layers(x).view(number, self.many, -1).transpose(0, 1)
        return self.last(z).flatten(0, 1)


def alike(network: nn.Module, many: int, settings: int) -> None:
    """Give all settings the same initial weights. The networks are sorted by setting, then by initialisation."""
    for p in network.parameters():
        of_each = p.data.view(many, -1)
        p.data.copy_(of_each[:INITIALISATIONS].repeat(settings, 1).view_as(p))


# --------------------------------------------------------------------------------------------------------------------- sets


@lru_cache
def images(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    """MNIST's even rows as bytes, or four classes of CIFAR-10 at 16 × 16 pixels in [0, 1]."""
    if name == "mnist":
        data = MNIST(data_dir=str(folder), num_labeled=100)
        data.setup()
        even = torch.arange(0, 60000, 2)
        return data.x[even], data.y[even]
    data = CIFAR10(data_dir=str(folder))
    data.setup()
    keep = torch.nonzero(data.y < 4).flatten()[:16000]
    return F.avg_pool2d(data.x[keep].float() / 255, 2), data.y[keep]


def load(name: str, split: int, folder: Path) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs, labels, and the rows of each part: labeled, validation, pool (with the labelled ones), test."""
    g = torch.Generator().manual_seed(1000 + split)
    if name in ("moons", "circles"):
        z, y = {"moons": moons, "circles": circles}[name](1000, g)
        x, sizes = z @ embedding(g), (4, 2, 500)
    elif name == "digits":
        x, y = read_digits()
        x, y, sizes = x.flatten(1).float(), y.long(), (5, 10, 1000)
        x = (x - x.mean()) / x.std(correction=0)
    elif name.startswith("mnist"):
        x, y = images("mnist", folder)
        keep, labels = torch.randperm(len(x), generator=g)[:7000], int(name.split("_")[1])
        x, y, sizes = x[keep].flatten(1).float() / 255, y[keep], (labels // 10, labels // 5, 5000)
    elif name == "cifar10_4_classes":
        x, y = images("cifar", folder)
        keep = torch.randperm(len(x), generator=g)[:6000]
        x, y, sizes = x[keep], y[keep], (50, 20, 4000)
    else:
        from sklearn import datasets  # a development dependency

        bunch: Any = getattr(datasets, f"load_{name}")()
        x, y = torch.tensor(bunch.data).float(), torch.tensor(bunch.target).long()
        x = (x - x.mean(0)) / x.std(0, correction=0)
        sizes = {"breast_cancer": (20, 8, 350), "wine": (6, 4, 110), "iris": (4, 3, 90)}[name]
    per_class, num_validation, num_pool = sizes
    order = torch.randperm(len(y), generator=g)
    x, y = x[order].contiguous(), y[order]
    labeled = []
    for c in range(int(y.max()) + 1):
        of_class = torch.nonzero(y[:num_pool] == c).flatten()
        labeled.append(of_class[torch.randperm(len(of_class), generator=g)[:per_class]])
    labeled, unused = torch.cat(labeled), torch.ones(num_pool, dtype=torch.bool)
    unused[labeled] = False
    others = torch.nonzero(unused).flatten()
    validation = others[torch.randperm(len(others), generator=g)[:num_validation]]
    unused[validation] = False
    pool = torch.cat([labeled, torch.nonzero(unused).flatten()])
    return x, y, {"labeled": labeled, "validation": validation, "pool": pool, "test": torch.arange(num_pool, len(y))[:1000]}


def neighbour(x: Tensor, pool: Tensor, g: torch.Generator) -> tuple[float, float]:
    """Median distance to the nearest of 500 examples of the pool, which determines the grid, and of `GROUP` examples."""
    rows = pool if len(pool) <= 500 else pool[torch.randperm(len(pool), generator=g)[:500]]
    between = distances(x[rows])
    groups = [torch.randperm(len(rows), generator=torch.Generator().manual_seed(k))[:GROUP] for k in range(25)]
    return between.amin(1).median().item(), mean(between[some][:, some].amin(1).median().item() for some in groups)


# --------------------------------------------------------------------------------------------------------- a split's training


def train(name: str, split: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train every setting on one split. Return the results as plain numbers."""
    began = time.process_time()
    x, y, parts = load(name, split, folder)
    labeled, pool = parts["labeled"], parts["pool"]
    g = torch.Generator().manual_seed(split)
    nearest, nearest_of_group = neighbour(x, pool, g)
    unit = 0.25 if name in ("moons", "circles") else 0.4 * nearest
    default = SHARE * nearest_of_group
    settings = [("none", 0.0), *(("vat", f * unit) for f in VAT_FACTORS), *(("recipe", f * unit) for f in RECIPE_FACTORS)]
    settings += [("vat, default", default), ("recipe, default", default)]
    many, classes = len(settings) * INITIALISATIONS, int(y.max()) + 1
    torch.manual_seed(split)
    if x.ndim == 4:
        pixels = x[pool].transpose(0, 1).flatten(1)
        network: Any = CNNs(many, x.shape[1:], classes, pixels.mean(1).view(-1, 1, 1), pixels.std(1).view(-1, 1, 1))
    else:
        network = MLPs(many, x.shape[1:], classes)
    alike(network, many, len(settings))
    eps, eps_random, balance = (
        torch.tensor(values).repeat_interleave(INITIALISATIONS)
        for values in (
            [e for _, e in settings],
            [min(4.0, math.sqrt(x[0].numel())) * e if method.startswith("recipe") else 0.0 for method, e in settings],
            [float(method.startswith("recipe")) for method, _ in settings],
        )
    )
    prior = torch.bincount(y[labeled], minlength=classes).double()
    fit(
        network,
        x,
        y,
        labeled,
        pool,
        steps=steps,
        g=g,
        eps=eps,
        eps_random=eps_random,
        balance=balance,
        log_prior=(prior / prior.sum()).log(),
    )
    found = judge(network, x, y, parts, g, eps=eps, prior=prior / prior.sum())
    rows = [{"method": m, "factor": e / unit, **{k: v[i] for k, v in found.items()}} for i, (m, e) in enumerate(settings)]
    return {
        **{"set": name, "split": split, "steps": steps, "unit": unit, "nearest_of_group": nearest_of_group, "rows": rows},
        "classes_touch": neighbours(x, y, labeled=labeled, pool=pool).classes_touch,
        **{"validation": len(parts["validation"]), "labels": len(labeled), "cpu_seconds": time.process_time() - began},
    }


def repeated(x: Tensor, many: int) -> Tensor:
    """The same rows for each network."""
    return x.repeat(many, *[1] * (x.ndim - 1))


def of_each(values: Tensor, number: int, x: Tensor) -> Tensor:
    """The value of each network, repeated for its rows, with the dimensions of an input."""
    return values.repeat_interleave(number).view(-1, *[1] * (x.ndim - 1))


def fit(
    network: Any,
    x: Tensor,
    y: Tensor,
    labeled: Tensor,
    pool: Tensor,
    *,
    steps: int,
    g: torch.Generator,
    eps: Tensor,
    eps_random: Tensor,
    balance: Tensor,
    log_prior: Tensor,
) -> None:
    """Train all networks on the same batches. The loss is the sum of their losses."""
    many, unlabeled, labels = network.many, min(48, len(pool)), min(32, len(labeled))
    vat, random = VAT(1.0), RandomPerturbation(1.0)
    vat.eps, random.eps = (of_each(values, unlabeled, x) for values in (eps, eps_random))  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for number in range(steps):
        known = labeled[torch.randint(len(labeled), (labels,), generator=g)] if len(labeled) > labels else labeled
        rows = pool[torch.randint(len(pool), (unlabeled,), generator=g)]
        loss = many * F.cross_entropy(network(repeated(x[known], many)), y[known].repeat(many))
        step = Step(network, repeated(x[rows], many), live=True)
        loss = loss + many * (vat.penalty(step) + random.penalty(step))
        log_p = step.clean.logits.log_softmax(1).view(many, unlabeled, -1).logsumexp(1) - math.log(unlabeled)
        fading = max(0.0, 1 - 2 * number / steps)  # class balance ends after half of the run
        loss = loss + fading * (balance * (log_p.exp() * (log_p - log_prior.float())).sum(1)).sum()  # `vat.ClassBalance` of each network
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def judge(
    network: Any, x: Tensor, y: Tensor, parts: dict[str, Tensor], g: torch.Generator, *, eps: Tensor, prior: Tensor
) -> dict[str, list[float]]:
    """The test error, and the quantities that rules may use: a number for each setting."""
    many = network.many
    sample = parts["pool"][torch.randperm(len(parts["pool"]), generator=g)[:600]]
    reestimate_batch_norm(network, (repeated(x[rows], many) for rows in sample.split(150) if len(rows) > 20))
    network.eval()

    @torch.no_grad()
    def predicted(rows: Tensor) -> Tensor:
        return torch.cat([network(repeated(x[some], many)).view(many, len(some), -1).argmax(2) for some in rows.split(250)], 1)

    def per_setting(values: Tensor) -> list[float]:
        return values.double().view(-1, INITIALISATIONS).mean(1).tolist()

    on_sample = predicted(sample)
    counts = F.one_hot(on_sample, len(prior)).double().mean(1)
    disagree = on_sample.view(-1, INITIALISATIONS, len(sample))
    found = {
        "test_error": per_setting((predicted(parts["test"]) != y[parts["test"]]).double().mean(1)),
        "val_error": per_setting((predicted(parts["validation"]) != y[parts["validation"]]).double().mean(1)),
        "disagreement": (disagree[:, 0] != disagree[:, 1]).double().mean(1).tolist(),
        "smallest_share": per_setting((counts / prior).amin(1)),
    }
    some = sample[:128]
    divergence, norm, vat = DIVERGENCES["categorical"], L2(), VAT(1.0)
    radii = vat.eps = of_each(eps, len(some), x)  # pyright: ignore[reportAttributeAccessIssue]
    step = Step(network, repeated(x[some], many), live=True)
    top = step.clean.logits.topk(2, 1).values
    margin = top[:, 0] - top[:, 1]
    (slope,) = torch.autograd.grad(margin.sum(), step.clean.x, retain_graph=True)
    r = vat.virtual_adversarial_perturbation(step).detach()
    noise = norm.sample(torch.randn_like(step.x))
    along = r.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(divergence(step.target, network(step.x + along)).sum(), along)
    safe = radii.clamp(min=1e-12)
    further = norm.project(r / safe + norm.dual(ascent, otherwise=r / safe), 1.0)
    with torch.no_grad():
        perturbed = network(step.x + r)
        kl = {"lds": perturbed, "kl_random": network(step.x + radii * noise), "kl_ascent": network(step.x + radii * further)}
    found |= {name: per_setting(divergence(step.target, z).view(many, -1).mean(1)) for name, z in kl.items()}
    found["flip_rate"] = per_setting((perturbed.argmax(1) != step.target.argmax(1)).double().view(many, -1).mean(1))
    distance = (margin / norm.length(slope).flatten()).detach().view(-1, INITIALISATIONS * len(some))
    return found | {"distance": distance.median(1).values.tolist()}


# -------------------------------------------------------------------------------------------------------------------- rules

Rows = Sequence[dict[str, Any]]
Rule = Callable[[Rows], int]


def largest(key: str, most: float) -> Rule:
    """The largest radius at which a value is at most `most`, or the smallest radius if there is none."""
    return lambda rows: max((i for i in range(1, len(rows)) if rows[i][key] <= most), default=1)


def nearest_to(factor: float) -> Rule:
    """The radius closest to a multiple of the distance to the nearest neighbour."""
    return lambda rows: min(range(1, len(rows)), key=lambda i: abs(math.log(rows[i]["eps"] / (factor * rows[i]["nearest_of_group"]))))


def least(key: str, *, most_kl: float = math.inf, none: bool = True) -> Rule:
    """The radius with the least value, or the larger of equal ones, among those with a small KL at a random r. `none` allows no VAT."""

    def rule(rows: Rows) -> int:
        allowed = [i for i in range(1, len(rows)) if rows[i]["kl_random"] <= most_kl] or [1]
        return min([0, *allowed] if none else allowed, key=lambda i: (rows[i][key], -i))

    return rule


def farthest(rows: Rows) -> int:
    """The radius with the largest median distance to the decision boundary."""
    return max(range(1, len(rows)), key=lambda i: rows[i]["distance"])


def unless_more(rule: Rule) -> Rule:
    """The radius of a rule, or none if two networks disagree more often there than without VAT."""
    return lambda rows: i if rows[i := rule(rows)]["disagreement"] <= rows[0]["disagreement"] else 0


def unless_merged(rule: Rule, least_share: float = 0.5) -> Rule:
    """The radius of a rule, or none if a class is predicted there less than half as often as without VAT."""
    return lambda rows: i if rows[i := rule(rows)]["smallest_share"] >= least_share * rows[0]["smallest_share"] else 0


def unless_touching(rule: Rule) -> Rule:
    """None, if classes touch, as the commands do."""
    return lambda rows: 0 if rows[0]["classes_touch"] else rule(rows)


THRESHOLDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03)
RULES: dict[str, Rule] = {
    "0.3 × distance to the nearest of 16 (default)": nearest_to(SHARE),
    "the same, none if classes touch (the default for own data)": unless_touching(nearest_to(SHARE)),
    "least validation error": least("val_error"),
    "least disagreement": least("disagreement"),
    "least disagreement, KL at a random r ≤ 0.03": least("disagreement", most_kl=0.03),
    "largest distance to the boundary": farthest,
    "largest ε with ≤ 10 % flips": largest("flip_rate", 0.1),
    **{f"largest ε with KL at a random r ≤ {most:g}": largest("kl_random", most) for most in THRESHOLDS},
    "the same ≤ 0.003, none if a class is left out": unless_merged(largest("kl_random", 0.003)),
    "the same, and none if classes touch (choose_eps=true)": unless_touching(unless_merged(largest("kl_random", 0.003))),
    "the same ≤ 0.003, none if networks disagree more": unless_more(largest("kl_random", 0.003)),
}


def rows_of(record: dict[str, Any], method: str) -> Rows:
    """The rows of a method by radius, after that of none."""
    shared = {key: record[key] for key in ("unit", "nearest_of_group", "classes_touch")}
    return [row | shared | {"eps": row["factor"] * record["unit"]} for row in record["rows"] if row["method"] in ("none", method)]


def regrets(records: Sequence[dict[str, Any]], method: str, pilot: str) -> dict[str, dict[str, list[float]]]:
    """Regret in points by rule and set, a number for each split. `none` is also a rule.

    Args:
        records: Records of both lengths.
        method: "vat" or "recipe".
        pilot: Length of the runs that the rules use. Errors are of full runs.
    """
    by_key = {(record["set"], record["split"], record["length"]): record for record in records}
    found: dict[str, dict[str, list[float]]] = {}
    for name, split, length in by_key:
        if length != "full" or (name, split, pilot) not in by_key:
            continue
        full, seen = (rows_of(by_key[name, split, which], method) for which in ("full", pilot))
        best = min(row["test_error"] for row in full)
        for rule, choose in {"none": lambda _: 0, **RULES}.items():
            found.setdefault(rule, {}).setdefault(name, []).append(100 * (full[choose(seen)]["test_error"] - best))
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: mean regret of each rule on each set, over all sets, and over the sets that did not choose thresholds."""
    names = [name for name in SETS if name in found["none"]]
    reporting = [name for name in names if name not in CHOSEN_ON]
    lines = [f"| rule | {' | '.join(names)} | mean | sets that report |", f"| --- |{' --- |' * (len(names) + 2)}"]
    lines.append(f"| splits | {' | '.join(str(len(found['none'][name])) for name in names)} | | |")
    for rule, of in found.items():
        means = {name: mean(of[name]) for name in names}
        worse = [name for name in names if means[name] > mean(found["none"][name]) + 1e-9]
        cells = [f"**{value:.2f}**" if name in worse else f"{value:.2f}" for name, value in means.items()]
        over = [f"{mean(means[n] for n in some):.2f}" if some else "–" for some in (names, reporting)]
        lines.append(f"| {rule} | {' | '.join([*cells, *over])} |")
    return "\n".join(lines)


def errors(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean test error of each setting on each set."""
    full = [record for record in records if record["length"] == "full"]
    names = [name for name in SETS if any(record["set"] == name for record in full)]
    heads = [*(f"VAT {f:g}" for f in VAT_FACTORS), *(f"recipe {f:g}" for f in RECIPE_FACTORS), "VAT, default", "recipe, default"]
    columns = ["set", "splits", "classes touch", "unit", "default ÷ unit", "none", *heads]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name in names:
        of = [record for record in full if record["set"] == name]
        cells = [f"{100 * mean(record['rows'][i]['test_error'] for record in of):.1f}" for i in range(len(of[0]["rows"]))]
        default = mean(SHARE * record["nearest_of_group"] / record["unit"] for record in of)
        first = f"{name} | {len(of)} | {sum(r['classes_touch'] for r in of)} | {mean(r['unit'] for r in of):.2f} | {default:.2f}"
        lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join(lines)


SENTENCES: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "eps is too small, or the network is flat": lambda row, none: row["lds"] < FLAT,
    "eps reaches into other classes": lambda row, none: row["kl_random"] > FAR,
    "before: r flips more than 50 % of the decisions": lambda row, none: row["flip_rate"] > 0.5,
    "the direction is hardly better than noise": lambda row, none: row["lds"] < 1.5 * row["kl_random"],
    "the direction is far from the worst one": lambda row, none: row["lds"] < 0.1 * row["kl_ascent"],
    "a class is almost never predicted": lambda row, none: row["smallest_share"] < 0.1,
    "a class has less than half of its share without VAT": lambda row, none: row["smallest_share"] < 0.5 * none["smallest_share"],
}
"""Sentences of `vat.evaluation.diagnosis` and `few_examples`, with the condition under which each is printed."""


def alarms(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: for how many settings of VAT each sentence is printed, and the regret of these settings and of the others."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in SENTENCES}
    for record in (record for record in records if record["length"] == "full"):
        none, *others = rows_of(record, "vat")
        best = min(row["test_error"] for row in (none, *others))
        for row in others:
            for name, says in SENTENCES.items():
                found[name][0 if says(row, none) else 1].append(100 * (row["test_error"] - best))
    lines = ["| sentence | said | regret | within 1 point of the best | silent | regret | 5 points or more off |", f"| --- |{' --- |' * 6}"]
    for name, (said, silent) in found.items():
        cells = [str(len(said)), f"{mean(said):.1f}" if said else "–", str(sum(r <= 1 for r in said))]
        cells += [str(len(silent)), f"{mean(silent):.1f}" if silent else "–", str(sum(r >= 5 for r in silent))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="?", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("choosing_eps"))
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of MNIST and CIFAR-10")
    arguments = parser.parse_args()
    names = arguments.sets.split(",")
    if unknown := set(names) - set(SETS):
        parser.error(f"unknown sets {', '.join(sorted(unknown))}: choose of {', '.join(SETS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for split in range(arguments.splits):
        for name in names:
            for length, part in LENGTHS.items():
                path = arguments.folder / f"{name}-{split}-{length}.json"
                if path.is_file():
                    continue
                record = train(name, split, STEPS.get(name, 320) // part, arguments.data) | {"length": length}
                path.with_suffix(".part").write_text(json.dumps(record))
                path.with_suffix(".part").replace(path)
                print(f"{path}: {record['cpu_seconds']:.0f} s of CPU")
    show([json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))])


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    print("\nTest error in %, full runs, radius in units of the grid\n")
    print(errors(records))
    print(f"\nSentences at the end of a run, over all settings of VAT\n\n{alarms(records)}")
    for method, pilot in (("vat", "full"), ("vat", "quarter"), ("recipe", "full"), ("recipe", "quarter")):
        if found := regrets(records, method, pilot):
            print(f"\nRegret of {method}, rules use {pilot} runs; bold: worse than none\n\n{table(found)}")


if __name__ == "__main__":
    main()
