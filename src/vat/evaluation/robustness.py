"""Measure the robustness of a network.

The measures are accuracy, smoothness and margins on clean inputs, and accuracy under attacks and corruptions. Sanity checks tell a robust
network from an attack that failed.

`evaluate` takes the examples batch by batch and writes each result to a file immediately. If it is started again on the same file, it
resumes with the next part. All randomness follows from (seed, batch, part), so a resumed evaluation gives the same result as one without
interruption.
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

PROBED = 200  # examples for the attacks of the sanity checks


class Batches(Protocol):
    """Batches (x, y) in a fixed order."""

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

    Attacks run from the smallest ε to the largest. An example that is misclassified at one ε counts as misclassified at every larger ε,
    and is not attacked again.

    Args:
        network: Function from inputs (N, …) to logits (N, C), or (N,) for two classes. A module is in evaluation mode during the call.
        batches: Inputs and their classes.
        attacks: Attacks with distinct names.
        eps: Radii for each norm ("l2", "linf"), in the units of the inputs.
        bounds: Least and greatest value of an input; attacks stay within them. None: any value is allowed.
        lds_eps: Radius of LDS, and of the ball in which the Lipschitz constant is estimated, in the units of the inputs.
        seed: Seed of all randomness.
        device: Device of the network.
        cascade: Give each attack only the examples that the white-box attacks before it left robust. This costs less and gives the worst
            case, but no curve for each attack.
        path: JSON-lines file that gets each result and from which an evaluation resumes. None: nothing is written.
        settings: Plain values of this evaluation. A file that exists must have been started with the same ones.
        progress: Function that is called before each part with the number of finished parts, the number of all parts, and the name of the
            next part.

    Returns:
        Plain values:

            - `examples`: number of examples
            - `clean`: accuracy and the other measures without an attack
            - `corruptions`: accuracy for each of `SEVERITIES`
            - `robust`: for each norm `eps`, and the accuracy at each ε for each attack and for the `worst` case
            - `warnings`: texts by the name of the check

    Raises:
        ValueError: If there is no example, an argument is out of range, inputs or outputs are invalid, or the file was started with
            other settings.
        RuntimeError: If an attack left its ball.
    """
    grid = {name: _checked_radii(name, radii) for name, radii in eps.items()}
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks must have distinct names, got {', '.join(names)}")
    if len(batches) == 0:
        raise ValueError("the test part is empty: evaluate needs at least one example")
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
    """Within the block, put a module into evaluation mode and set its parameters' `requires_grad` to False. A function does not change."""
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
            raise ValueError(f"eps.{norm} must hold finite numbers >= 0, got {radius}")
    return sorted({float(radius) for radius in radii})


def _check_inputs(x: Tensor, bounds: tuple[float, float] | None) -> None:
    if not x.is_floating_point():
        raise ValueError(f"inputs must have a floating dtype, got {x.dtype}: pass images / 255")
    if bounds is None:
        return
    low, high = float(x.min()), float(x.max())
    slack = 1e-5 * (bounds[1] - bounds[0])
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise ValueError(
            f"inputs must be in the declared range [{bounds[0]:g}, {bounds[1]:g}], got values from {low:g} to {high:g}. Convert the inputs "
            "and eps to the units of the training inputs, or declare another range"
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
    """The measurements of a batch, by name. Each function gets the results of the parts before it."""

    def generator(*purpose: str | float) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(stable_seed(seed, number, *map(str, purpose)))

    def clean(_: Mapping[str, Result]) -> Result:
        return clean_measures(network, x, y, lds_eps=lds_eps, key=Key(seed, number), generator=generator("clean"))

    def corrupted(kind: str, _: Mapping[str, Result]) -> Result:
        right = [predictions(network, corrupt(kind, x, s, generator(kind, s), bounds)) == y for s in SEVERITIES]
        return {"correct": [int(r.sum()) for r in right]}

    def attacked(attack: Attack, norm: str, before: Mapping[str, Result]) -> Result:
        standing, found = from_bits(before["clean"]["correct"], x.device), []
        earlier = [a for a in attacks[: attacks.index(attack)] if a.white_box] if cascade or attack.on_the_rest else []
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
        return parts  # token numbers: a small change of them means nothing, so there are no attacks and corruptions
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
    """Raise an error if points of an attack are outside the ball or the range. The attack may be a user's own class."""
    length, slack = float(threat.norm.length(point - x).max()), 1e-5 * (threat.eps + float(x.abs().max()))
    outside = threat.bounds is not None and (float(point.min()) < threat.bounds[0] - slack or float(point.max()) > threat.bounds[1] + slack)
    if not length <= threat.eps + slack or outside:
        raise RuntimeError(
            f"attack {attack.name} must stay in the ball of radius {threat.eps:g} and in the range of inputs, got a perturbation of length "
            f"{length:g}"
        )
