"""Sums over the batches of an evaluation, and its report."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vat.attacks import Attack
from vat.evaluation.clean import CALIBRATION_BINS
from vat.evaluation.results import Result, from_bits
from vat.evaluation.sanity import warnings_of

SURPRISE = 0.01
"""Share of the examples above which black-box success is suspicious.

Networks without a masked gradient had up to 0.0034 on digits, under the attacks of `conf/attack/standard.yaml`.
"""


class Summary:
    """Sums over batches. Memory does not grow with the number of batches.

    Args:
        attacks: Attacks of the evaluation.
        grid: Radii for each norm, in the units of the inputs.
    """

    def __init__(self, attacks: Sequence[Attack], grid: Mapping[str, Sequence[float]]):
        self.attacks, self.grid = attacks, grid
        self.examples = self.right = self.measured = 0
        self.sums = dict.fromkeys(("cross_entropy", "lds", "margin", "distance", "lipschitz"), 0.0)
        self.bins = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64)
        self.corrupted: dict[str, Tensor] = {}
        self.standing: dict[tuple[str, str], Tensor] = {}
        self.surprises = {norm: torch.zeros(len(radii), dtype=torch.long) for norm, radii in grid.items()}
        self.probe: Result = {}  # stays empty for token numbers

    def add(self, results: Mapping[str, Result]) -> None:
        """Add the results of all parts of one batch."""
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
            start = from_bits(clean["correct"]).expand(len(radii), -1)
            of_white = of_black = start
            worst = start
            for attack in self.attacks:
                standing = torch.stack([from_bits(bits) for bits in results[f"{attack.name} {norm}"]["standing"]]) if radii else start
                worst = worst & standing
                of_white = of_white & standing if attack.white_box else of_white
                of_black = of_black & standing if attack.white_box is False else of_black
                self._count(norm, attack.name, standing)
            self._count(norm, "worst", worst)
            self.surprises[norm] += (of_white & ~of_black).sum(1)

    def _count(self, norm: str, name: str, standing: Tensor) -> None:
        self.standing[norm, name] = standing.sum(1) + self.standing.get((norm, name), 0)

    def report(self) -> dict[str, Any]:
        """The report that `evaluate` returns."""
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
            "warnings": (warnings_of(self.probe, self.grid) if self.probe else {}) | self._surprises(),
        }

    def _surprises(self) -> dict[str, str]:
        """Warnings for norms in which attacks without gradients beat those with gradients: then the gradients are not reliable."""
        if {True, False} - {attack.white_box for attack in self.attacks}:
            return {}
        found = {}
        for norm, radii in self.grid.items():
            for radius, count in zip(radii, self.surprises[norm].tolist(), strict=True):
                if count > max(2, SURPRISE * self.examples):
                    found[f"black_box_{norm}"] = (
                        f"black-box beats white-box: at ε = {radius:g} in {norm}, {count} of {self.examples} examples are robust to all "
                        "attacks with gradients, but not to attacks without. The attacks with gradients have failed: do not trust the "
                        "accuracies under them"
                    )
                    break
        return found
