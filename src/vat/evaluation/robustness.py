"""How robust is a network? Accuracy, smoothness and margins on clean inputs, accuracy under attacks and corruptions, and the checks that
tell robustness from an attack that failed.

`evaluate` goes through the examples batch by batch and writes what it measures of each as it comes; started again on the same file it goes
on with the very next part. All that is random follows from (seed, batch, part), so the result is that of an unbroken run.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat import files, local_distributional_smoothness
from vat.attacks import APGD, FGM, PGD, Attack, Threat, logit_difference, predictions
from vat.attacks import cross_entropy as cross_entropies
from vat.functional import L2, NORMS, LInf, as_classes, by_name, probabilities
from vat.seeds import stable_seed
from vat.step import Forward, Key, random_state

CALIBRATION_BINS = 15
LIPSCHITZ_POINTS = 8  # random points of the ball, beside its centre
PROBED = 200  # examples on which the sanity checks run attacks of their own
SEVERITIES = (1, 2, 3, 4, 5)
SURPRISE = 0.01  # of the examples; honest networks on digits had up to 0.0034 beside the attacks of conf/attack/standard.yaml

Result = dict[str, Any]
"""What one part of the evaluation found on one batch: plain values, for a line of JSON."""


class Batches(Protocol):
    """Batches (x, y) in an order that does not change."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def evaluate(
    network: Forward,
    batches: Batches,
    *,
    attacks: Sequence[Attack],
    eps: Mapping[str, Sequence[float]],
    bounds: tuple[float, float] | None = None,
    lds_eps: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    cascade: bool = False,
    path: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Measure a classifier on all examples of `batches`.

    An example that falls at one ε has fallen at every larger one, so attacks go from small to large and leave it alone.

    Args:
        network: x (N, …) -> logits (N, C), or (N,) for two classes; a module is put into evaluation mode for the time being.
        batches: inputs and their classes.
        attacks: of distinct names.
        eps: radii for each norm ("l2", "linf"), in the units of the inputs.
        bounds: least and greatest value of an input, from which no attack departs; None where any value is one.
        lds_eps: radius of LDS and of the ball in which the Lipschitz constant is estimated.
        seed: of all that is random.
        device: of the network.
        cascade: spare every attack what the white-box attacks before it have felled: their worst case for less, but no curve of each.
        path: a JSON-lines file to append each part to, and to go on from; None keeps nothing.
        settings: plain values that the file must have been begun with.
        progress: told after each part how many are done, of how many, and which is next.

    Returns:
        Plain values: `examples`, `clean` (accuracy and the like), `corruptions` (accuracy for each of `SEVERITIES`), `robust` (for each
        norm `eps`, and for each attack and their `worst` case the accuracy at each ε), `warnings` (texts by the name of the check).

    Raises:
        ValueError: there is no example, an argument is out of range, the inputs or outputs are not what they should be, or the file was
            begun with other settings.
        RuntimeError: an attack left its ball.
    """
    grid = {name: _checked_radii(name, radii) for name, radii in eps.items()}
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks must have distinct names, got {', '.join(names)}")
    if len(batches) == 0:
        raise ValueError("there is no example to evaluate: the test part is empty")
    device = torch.device(device)
    total, summary = len(batches), Summary(attacks, grid)
    with _Ledger(path, settings or {}) as ledger, evaluating(network):
        known = ledger.read()
        line = next(known, None)
        for number, (x, y) in enumerate(batches):
            x, y = x.to(device), y.to(device)
            _check_inputs(x, bounds)
            parts = _parts(network, x, y, number, attacks=attacks, grid=grid, bounds=bounds, lds_eps=lds_eps, seed=seed, cascade=cascade)
            results: dict[str, Result] = {}
            while line is not None and line["batch"] == number:
                results[line["part"]] = line["result"]
                line = next(known, None)
            for place, (part, measure) in enumerate(parts.items()):
                progress(number * len(parts) + place, total * len(parts), part)
                if part not in results:
                    with random_state(stable_seed(seed, number, part, "network"), device):
                        results[part] = measure(results)
                    ledger.append({"batch": number, "part": part, "result": results[part]})
            summary.add(results)
        progress(1, 1, "")
    return summary.report()


@contextmanager
def evaluating(network: Forward) -> Iterator[None]:
    """A module in evaluation mode and with constant parameters, which it is given back as it was; a bare function as it is."""
    if not isinstance(network, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in network.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval()
    for parameter, _ in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, state in trainable:
            parameter.requires_grad_(state)


def _checked_radii(norm: str, radii: Sequence[float]) -> list[float]:
    by_name("norm", NORMS, norm)
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"eps.{norm} must be finite numbers >= 0, got {radius}")
    return sorted({float(radius) for radius in radii})


def _check_inputs(x: Tensor, bounds: tuple[float, float] | None) -> None:
    if not x.is_floating_point():
        raise ValueError(f"inputs must be of a floating dtype to be perturbed, got {x.dtype}: pass images / 255")
    if bounds is None:
        return
    low, high = float(x.min()), float(x.max())
    slack = 1e-5 * (bounds[1] - bounds[0])
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise ValueError(
            f"inputs reach from {low:g} to {high:g}, out of the declared range [{bounds[0]:g}, {bounds[1]:g}]: bring them, and eps, to "
            "the units the network was trained in, or declare another range"
        )


# ---------------------------------------------------------------------------------------------------------------------- parts


def _parts(
    network: Forward,
    x: Tensor,
    y: Tensor,
    number: int,
    *,
    attacks: Sequence[Attack],
    grid: Mapping[str, Sequence[float]],
    bounds: tuple[float, float] | None,
    lds_eps: float,
    seed: int,
    cascade: bool,
) -> dict[str, Callable[[Mapping[str, Result]], Result]]:
    """What is to be measured on a batch, by name; each function is told what the parts before it found."""

    def generator(*purpose: str | float) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(stable_seed(seed, number, *map(str, purpose)))

    def clean(_: Mapping[str, Result]) -> Result:
        return clean_measures(network, x, y, lds_eps=lds_eps, key=Key(seed, number), generator=generator("clean"))

    def corrupted(kind: str, _: Mapping[str, Result]) -> Result:
        right = [predictions(network, corrupt(kind, x, s, generator(kind, s), bounds)) == y for s in SEVERITIES]
        return {"correct": [int(r.sum()) for r in right]}

    def attacked(attack: Attack, norm: str, before: Mapping[str, Result]) -> Result:
        standing, found = _from_bits(before["clean"]["correct"], x.device), []
        earlier = [a for a in attacks[: attacks.index(attack)] if a.white_box] if cascade or attack.spared else []
        for place, radius in enumerate(grid[norm]):
            for other in earlier:
                standing &= _from_bits(before[f"{other.name} {norm}"]["standing"][place], x.device)
            rows, threat = torch.nonzero(standing)[:, 0], Threat(NORMS[norm], radius, bounds)
            if len(rows) and radius > 0:
                point = attack(network, x[rows], y[rows], threat, generator(attack.name, norm, radius))
                _refuse_outside(attack, threat, x[rows], point)
                standing[rows] = predictions(network, point) == y[rows]
            found.append(_bits(standing))
        return {"standing": found}

    parts: dict[str, Callable[[Mapping[str, Result]], Result]] = {"clean": clean}
    if number == 0:
        parts["sanity"] = lambda before: sanity_probe(
            network, *_probed(x, y, before["clean"]["correct"]), bounds=bounds, grid=grid, generator=generator("sanity")
        )
    for kind in corruptions(x):
        parts[f"corruption {kind}"] = lambda before, kind=kind: corrupted(kind, before)
    for norm in grid:
        for attack in attacks:
            parts[f"{attack.name} {norm}"] = lambda before, attack=attack, norm=norm: attacked(attack, norm, before)
    return parts


def _probed(x: Tensor, y: Tensor, correct: str) -> tuple[Tensor, Tensor]:
    rows = torch.nonzero(_from_bits(correct, x.device))[:PROBED, 0]
    return x[rows], y[rows]


def _refuse_outside(attack: Attack, threat: Threat, x: Tensor, point: Tensor) -> None:
    """An attack's success counts only within the ball, whoever wrote the attack."""
    length, slack = float(threat.norm.length(point - x).max()), 1e-5 * (threat.eps + float(x.abs().max()))
    outside = threat.bounds is not None and (float(point.min()) < threat.bounds[0] - slack or float(point.max()) > threat.bounds[1] + slack)
    if not length <= threat.eps + slack or outside:
        raise RuntimeError(f"attack {attack.name} left its ball of radius {threat.eps:g} or the range of inputs, by a length of {length:g}")


def clean_measures(network: Forward, x: Tensor, y: Tensor, *, lds_eps: float, key: Key, generator: torch.Generator) -> Result:
    """Sums over a batch of what is known without an attack.

    Returns:
        `correct` (a 0 or 1 for each example), `cross_entropy`, `lds` (radius `lds_eps`), `confidence` (for each calibration bin the number
        of examples, the sum of their confidences and the number that are right), and, over examples that are right and have a gradient,
        whose number is `measured`: `margin` (by how many logits the class leads), `distance` (the first-order L2 distance to the nearest
        boundary, margin over gradient) and `lipschitz` (the largest gradient of the margin, in L2, found in the ball of radius `lds_eps`:
        a lower bound of its local Lipschitz constant).

    Raises:
        ValueError: the outputs are not finite, or probabilities.
    """
    with torch.no_grad():
        logits = as_classes(network(x))
    _check_outputs(logits)
    correct = logits.argmax(1) == y
    margin = -logit_difference(logits, y)
    steepest = slope = _slope(network, x, y)
    for _ in range(LIPSCHITZ_POINTS):
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        radius = torch.rand((len(x), *[1] * (x.dim() - 1)), generator=generator, device=x.device, dtype=x.dtype)
        steepest = torch.maximum(steepest, _slope(network, x + lds_eps * radius * L2().sample(noise), y))
    measured = correct & (slope > 0)
    chance, chosen = probabilities(logits).max(1)
    in_bin = (chance * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    bins = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64, device=x.device)
    bins.index_add_(0, in_bin, torch.stack([torch.ones_like(chance), chance, (chosen == y).to(chance)], 1).double())
    return {
        "correct": _bits(correct),
        "cross_entropy": float(cross_entropies(logits.double(), y).sum()),
        "lds": float(local_distributional_smoothness(network, x, eps=lds_eps, key=key).double().sum()),
        "confidence": bins.tolist(),
        "measured": int(measured.sum()),
        "margin": float(margin[measured].double().sum()),
        "distance": float((margin[measured] / slope[measured]).double().sum()),
        "lipschitz": float(steepest[measured].double().sum()),
    }


def _check_outputs(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise ValueError("the network's outputs are not finite on clean inputs: there is nothing to attack")
    if len(logits) > 1 and (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-4).all():
        raise ValueError(
            "the network's outputs are probabilities, each >= 0 with a sum of 1, where logits are wanted: leave out its softmax, whose "
            "rounding hides gradients from attacks"
        )


def _gradient(network: Forward, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = loss(as_classes(network(leaf)).double(), y).sum()
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(x) if gradient is None else gradient


def _slope(network: Forward, x: Tensor, y: Tensor) -> Tensor:
    """L2 length (N,) of the gradient of the margin."""
    return L2().length(_gradient(network, x, y, logit_difference)).flatten()


# ---------------------------------------------------------------------------------------------------------------- corruptions


def corruptions(x: Tensor) -> tuple[str, ...]:
    """The kinds of corruption that inputs like `x` can have: noise, and those of images (N, C, H, W)."""
    return ("noise", "blur", "shift", "contrast") if x.dim() == 4 else ("noise",)


def corrupt(kind: str, x: Tensor, severity: int, generator: torch.Generator, bounds: tuple[float, float] | None = None) -> Tensor:
    """Inputs (N, …) as a bad sensor would deliver them, within the bounds.

    For each step of `severity` (from 1 to 5): `noise`, normal, of 8 % of the range of inputs, or 20 % of their standard deviation where no
    range is declared; `blur` by a Gaussian of 2 % of the width; `shift` by 4 % of the width in a random direction, the border repeated;
    `contrast` lowered by 18 %.

    Raises:
        ValueError: there is no such kind for these inputs.
    """
    if kind not in corruptions(x):
        raise ValueError(f"unknown corruption {kind!r} of inputs {tuple(x.shape)}: choose one of {', '.join(corruptions(x))}")
    if kind == "noise":
        unit = 0.2 * float(x.std(correction=0)) if bounds is None else 0.08 * (bounds[1] - bounds[0])
        changed = x + severity * unit * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    elif kind == "blur":
        changed = _blurred(x, sigma=0.02 * severity * x.shape[-1])
    elif kind == "shift":
        angle = 2 * math.pi * torch.rand(len(x), generator=generator, device=x.device)
        way = 2 * 0.04 * severity * torch.stack([angle.cos(), angle.sin()], 1)  # the grid is 2 wide
        identity = torch.eye(2, device=x.device).expand(len(x), 2, 2)
        grid = F.affine_grid(torch.cat([identity, way[:, :, None]], 2), list(x.shape), align_corners=False)
        changed = F.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)
    else:
        mean = x.mean((1, 2, 3), keepdim=True)
        changed = mean + (1 - 0.18 * severity) * (x - mean)
    return changed if bounds is None else changed.clamp(*bounds)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(3 * sigma))
    place = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weight = torch.exp(-0.5 * (place / sigma) ** 2)
    weight = (weight / weight.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, [reach] * 4, mode="replicate")
    across = F.conv2d(padded, weight, groups=x.shape[1])
    return F.conv2d(across, weight.transpose(2, 3), groups=x.shape[1])


# -------------------------------------------------------------------------------------------------------------- sanity checks


def sanity_probe(
    network: Forward,
    x: Tensor,
    y: Tensor,
    *,
    bounds: tuple[float, float] | None,
    grid: Mapping[str, Sequence[float]],
    generator: torch.Generator,
) -> Result:
    """What tells false robustness (Carlini et al., arXiv 1902.06705, section 4), measured on examples that are classified rightly.

    Args:
        network: x -> logits.
        x: some inputs (N, …).
        y: their classes.
        bounds: of inputs.
        grid: radii for each norm.
        generator: source of all that is random.

    Returns:
        `examples`; `noise`, the largest difference between two passes in standard deviations of the logits; `no_gradient`, the share of
        examples on which the gradient of the cross entropy is zero; `huge`, the largest ε there can be in L∞, and `standing_huge`, the
        share that stands there; `half`, an L∞ ε at which one step fells about half of them, and `standing_one` and `standing_many`, the
        shares that stand there after one step and after 40; the `spread` (largest minus least) and standard deviation `std` of the inputs,
        and their `size`.
    """
    if len(x) == 0:
        return {"examples": 0}
    with torch.no_grad():
        one, other = as_classes(network(x)), as_classes(network(x))
    spread = float(x.max() - x.min())
    huge = 10 * spread if bounds is None else bounds[1] - bounds[0]
    gradient = _gradient(network, x, y, cross_entropies)

    def share_standing(attack: Attack, rows: Tensor, radius: float) -> Tensor:
        point = attack(network, x[rows], y[rows], Threat(LInf(), radius, bounds), generator)
        return rows[predictions(network, point) == y[rows]]

    everyone = torch.arange(len(x), device=x.device)
    standing = everyone
    for loss in ("cross_entropy", "dlr"):
        if len(standing):
            standing = share_standing(APGD(steps=40, loss=loss), standing, huge)
    half, after_one = huge, everyone
    for halvings in range(12, -1, -1):
        half = huge / 2**halvings
        after_one = share_standing(FGM(), everyone, half)
        if len(after_one) <= len(x) / 2:
            break
    after_many = share_standing(PGD(steps=40), everyone, half)
    return {
        "examples": len(x),
        "noise": float((one - other).abs().max() / one.std().clamp(min=1e-30)),
        "no_gradient": float((L2().length(gradient).flatten() == 0).double().mean()),
        "huge": huge,
        "standing_huge": len(standing) / len(x),
        "half": half,
        "standing_one": len(after_one) / len(x),
        "standing_many": len(after_many) / len(x),
        "spread": spread,
        "std": float(x.std(correction=0)),
        "size": x[0].numel(),
    }


def warnings_of(probe: Mapping[str, Any], grid: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """In words what a `sanity_probe` found amiss, by the name of the check; empty where all is well."""
    if not probe["examples"]:
        return {"no_example_right": "no example of the first batch is classified rightly: attacks have nothing to do, and show nothing"}
    found = {}
    if probe["noise"] > 1e-3:
        found["randomness"] = (
            f"two passes over the same inputs differ by {probe['noise']:.2g} standard deviations of the logits: there is randomness left "
            "in the model, which hides gradients and fells examples by luck. Put it into eval(), or attack the mean of many passes"
        )
    if probe["no_gradient"] > 0.05:
        found["zero_gradients"] = (
            f"the gradient of the cross entropy is zero on {probe['no_gradient']:.0%} of the examples: it is masked (a saturated softmax, "
            "rounding, a step function), and attacks that follow it show nothing. Trust apgd_dlr and square alone"
        )
    if probe["standing_huge"] > 0.01:
        found["huge_eps"] = (
            f"{probe['standing_huge']:.0%} of the examples stand at ε = {probe['huge']:g} in L∞, where any input can be made of any other: "
            "the attack fails, not the examples stand"
        )
    if probe["standing_many"] > probe["standing_one"] + 0.02:
        found["more_steps"] = (
            f"more steps do not help: at ε = {probe['half']:.3g} in L∞ {probe['standing_many']:.0%} stand after 40 steps along the "
            f"gradient and {probe['standing_one']:.0%} after one: it does not lead to where the loss is high"
        )
    for norm, radii in grid.items():
        longest = 1.0 if norm == "linf" else probe["size"] ** 0.5
        if max(radii, default=0) >= longest * probe["spread"]:
            found[f"units_{norm}"] = (
                f"ε = {max(radii):g} in {norm} spans the whole spread of the inputs, {probe['spread']:.3g} from least to greatest: "
                "is it in other units than they are, grey levels of 255 say?"
            )
        elif 0 < max(radii, default=0) < 1e-3 * longest * probe["std"]:
            found[f"units_{norm}"] = (
                f"ε = {max(radii):g} in {norm} is less than a thousandth of the inputs' standard deviation, {probe['std']:.3g}: every "
                "network stands that. Is it in other units than they are?"
            )
    return found


# -------------------------------------------------------------------------------------------------------------------- summary


class Summary:
    """Sums over batches, in memory that does not grow with them.

    Args:
        attacks: that were run.
        grid: radii for each norm.
    """

    def __init__(self, attacks: Sequence[Attack], grid: Mapping[str, Sequence[float]]):
        self.attacks, self.grid = attacks, grid
        self.examples = self.right = self.measured = 0
        self.sums = dict.fromkeys(("cross_entropy", "lds", "margin", "distance", "lipschitz"), 0.0)
        self.bins = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64)
        self.corrupted: dict[str, Tensor] = {}
        self.standing: dict[tuple[str, str], Tensor] = {}
        self.surprises = {norm: torch.zeros(len(radii), dtype=torch.long) for norm, radii in grid.items()}
        self.probe: Result = {"examples": 0}

    def add(self, results: Mapping[str, Result]) -> None:
        """All parts of one batch."""
        clean = results["clean"]
        self.examples += len(clean["correct"])
        self.right += clean["correct"].count("1")
        self.measured += clean["measured"]
        for name in self.sums:
            self.sums[name] += clean[name]
        self.bins += torch.tensor(clean["confidence"], dtype=torch.float64)
        self.probe = results.get("sanity", self.probe)
        for part, result in results.items():
            if part.startswith("corruption "):
                counts = torch.tensor(result["correct"])
                self.corrupted[part.removeprefix("corruption ")] = counts + self.corrupted.get(part.removeprefix("corruption "), 0)
        for norm, radii in self.grid.items():
            start = _from_bits(clean["correct"]).expand(len(radii), -1)
            of_white = of_black = start
            worst = start
            for attack in self.attacks:
                standing = torch.stack([_from_bits(bits) for bits in results[f"{attack.name} {norm}"]["standing"]]) if radii else start
                worst = worst & standing
                of_white = of_white & standing if attack.white_box else of_white
                of_black = of_black & standing if attack.white_box is False else of_black
                self._count(norm, attack.name, standing)
            self._count(norm, "worst", worst)
            self.surprises[norm] += (of_white & ~of_black).sum(1)

    def _count(self, norm: str, name: str, standing: Tensor) -> None:
        self.standing[norm, name] = standing.sum(1) + self.standing.get((norm, name), 0)

    def report(self) -> dict[str, Any]:
        """See `evaluate`."""
        n = self.examples
        number, confidence, right = self.bins.unbind(1)
        clean = {
            "accuracy": self.right / n,
            "calibration_error": float(((confidence - right).abs()).sum() / number.sum()),
            "cross_entropy": self.sums["cross_entropy"] / n,
            "lds": self.sums["lds"] / n,
        }
        clean |= {name: self.sums[name] / self.measured if self.measured else None for name in ("margin", "distance", "lipschitz")}
        names = [*(attack.name for attack in self.attacks), "worst"]
        robust = {
            norm: {"eps": list(radii), "accuracy": {name: [c / n for c in self.standing[norm, name].tolist()] for name in names}}
            for norm, radii in self.grid.items()
        }
        return {
            "examples": n,
            "clean": clean,
            "corruptions": {kind: [c / n for c in counts.tolist()] for kind, counts in self.corrupted.items()},
            "robust": robust,
            "warnings": warnings_of(self.probe, self.grid) | self._surprises(),
        }

    def _surprises(self) -> dict[str, str]:
        """Where attacks that see no gradient fell what those that do cannot: then those failed."""
        if {True, False} - {attack.white_box for attack in self.attacks}:
            return {}
        found = {}
        for norm, radii in self.grid.items():
            for radius, count in zip(radii, self.surprises[norm].tolist(), strict=True):
                if count > max(2, SURPRISE * self.examples):
                    found[f"black_box_{norm}"] = (
                        f"black-box beats white-box: at ε = {radius:g} in {norm} attacks without gradients fell {count} of {self.examples} "
                        "examples that stand all attacks with gradients, which therefore fail: accuracies under them are not to be trusted"
                    )
                    break
        return found


def _bits(flags: Tensor) -> str:
    return "".join("01"[flag] for flag in flags.tolist())


def _from_bits(bits: str, device: torch.device | str = "cpu") -> Tensor:
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool, device=device)


# --------------------------------------------------------------------------------------------------------------------- ledger


class _Ledger:
    """A JSON-lines file: the settings, then a line for each part of each batch, in order. One process at a time writes it.

    Args:
        path: the file; None keeps nothing.
        settings: plain values.

    Raises:
        ValueError: on entering, where the file was begun with other settings.
        OSError: on entering, where another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path, self.settings = path, json.loads(json.dumps(settings))

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = files.regular(self.path).open("a+b")
        if not files.lock(self._file):
            self._file.close()
            raise OSError(f"another process is at work on {self.path}: wait for it")
        self._drop_broken_line()
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            self.append({"settings": self.settings})
        elif json.loads(first) != {"settings": self.settings}:
            self._file.close()
            raise ValueError(f"{self.path} was begun with other settings: remove it, or choose another folder")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.path is not None:
            self._file.close()

    def _drop_broken_line(self) -> None:
        """A process that was killed may have left half a line."""
        self._file.seek(0)
        whole = 0
        for line in self._file:
            whole += len(line) if line.endswith(b"\n") else 0
        os.truncate(self._file.fileno(), whole)

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines after the settings that are there already; to be read to their end before anything is appended."""
        if self.path is None:
            return
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, at once."""
        if self.path is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
