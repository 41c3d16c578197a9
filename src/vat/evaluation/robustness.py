"""How robust is a network? Accuracy, smoothness and margins on clean inputs, accuracy under attacks and corruptions, and the checks that
tell robustness from an attack that failed.

`evaluate` goes through the examples batch by batch and writes what it measures of each as it comes; started again on the same file it goes
on with the very next part. All that is random follows from (seed, batch, part), so the result is that of an unbroken run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vat.attacks import Attack, Threat, predictions
from vat.evaluation.clean import clean_measures
from vat.evaluation.corruptions import SEVERITIES, corrupt, corruptions
from vat.evaluation.ledger import Ledger
from vat.evaluation.results import Result, from_bits, to_bits
from vat.evaluation.sanity import sanity_probe
from vat.evaluation.summary import Summary
from vat.functional import by_name
from vat.network import Forward
from vat.norms import NORMS
from vat.random_state import random_state
from vat.seeds import stable_seed
from vat.step import Key

PROBED = 200  # examples on which the sanity checks run attacks of their own


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
    with Ledger(path, settings or {}) as ledger, evaluating(network):
        known = ledger.read()
        line = next(known, None)
        for number, (x, y) in enumerate(batches):
            x, y = x.to(device), y.to(device)
            if x.is_floating_point() or grid:
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
        standing, found = from_bits(before["clean"]["correct"], x.device), []
        earlier = [a for a in attacks[: attacks.index(attack)] if a.white_box] if cascade or attack.spared else []
        for place, radius in enumerate(grid[norm]):
            for other in earlier:
                standing &= from_bits(before[f"{other.name} {norm}"]["standing"][place], x.device)
            rows, threat = torch.nonzero(standing)[:, 0], Threat(NORMS[norm], radius, bounds)
            if len(rows) and radius > 0:
                point = attack(network, x[rows], y[rows], threat, generator(attack.name, norm, radius))
                _refuse_outside(attack, threat, x[rows], point)
                standing[rows] = predictions(network, point) == y[rows]
            found.append(to_bits(standing))
        return {"standing": found}

    parts: dict[str, Callable[[Mapping[str, Result]], Result]] = {"clean": clean}
    if not x.is_floating_point():
        return parts  # words, whose numbers no attack or sensor can move
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
    rows = torch.nonzero(from_bits(correct, x.device))[:PROBED, 0]
    return x[rows], y[rows]


def _refuse_outside(attack: Attack, threat: Threat, x: Tensor, point: Tensor) -> None:
    """An attack's success counts only within the ball, whoever wrote the attack."""
    length, slack = float(threat.norm.length(point - x).max()), 1e-5 * (threat.eps + float(x.abs().max()))
    outside = threat.bounds is not None and (float(point.min()) < threat.bounds[0] - slack or float(point.max()) > threat.bounds[1] + slack)
    if not length <= threat.eps + slack or outside:
        raise RuntimeError(f"attack {attack.name} left its ball of radius {threat.eps:g} or the range of inputs, by a length of {length:g}")
