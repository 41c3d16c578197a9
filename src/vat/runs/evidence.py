"""Comparison of a sweep's settings: which differences in validation error are significant, and otherwise which setting unlabelled examples
prefer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from vat.evaluation.choosing import LEFT_OUT, MOST_KL
from vat.evaluation.few_examples import FEW, interval


@dataclass(frozen=True)
class Group:
    """The jobs of one setting: its name, and the metrics of each seed."""

    name: str
    of_seed: Mapping[str, Mapping[str, float]]

    @property
    def error(self) -> float:
        """Mean validation error, from 0 to 1."""
        return 1 - mean(m["val/accuracy"] for m in self.of_seed.values())

    @property
    def number(self) -> int | None:
        """Number of validation examples of a job. None if no job recorded it."""
        return min((int(m["val/examples"]) for m in self.of_seed.values() if "val/examples" in m), default=None)

    def pool(self, key: str) -> float | None:
        """Mean over the seeds of a metric of the unlabelled examples."""
        values = [m[f"pool/{key}"] for m in self.of_seed.values() if f"pool/{key}" in m]
        return mean(values) if values else None

    @property
    def allowed(self) -> bool:
        """Whether a random r changes little and no class is left out. See `vat.evaluation.choosing`."""
        kl, share = self.pool("kl_random"), self.pool("smallest_share")
        return kl is not None and share is not None and kl <= MOST_KL and share >= LEFT_OUT


def groups(jobs: Iterable[tuple[Mapping[str, str], Mapping[str, float] | None]]) -> list[Group]:
    """The settings of a sweep that have a result, sorted by validation error.

    Args:
        jobs: Settings by key, and the metrics of a finished job or None, for each job.
    """
    jobs = [(settings, metrics) for settings, metrics in jobs if metrics is not None and "val/accuracy" in metrics]
    keys = {key: None for settings, _ in jobs for key in settings}
    swept = [key for key in keys if key != "seed" and len({settings.get(key) for settings, _ in jobs}) > 1]
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for settings, metrics in jobs:
        name = " ".join(f"{key}={settings[key]}" for key in swept if key in settings) or "all"
        found.setdefault(name, {})[settings.get("seed", "")] = metrics
    return sorted((Group(name, of_seed) for name, of_seed in found.items()), key=lambda group: group.error)


def difference(one: Group, other: Group) -> tuple[float, float]:
    """Validation error of `one` minus that of `other`, paired by seed, and its standard error.

    The standard error is that of the seeds or that of the validation examples, whichever is larger. All seeds have the same examples, so
    more seeds do not make the error of the examples smaller. Two errors on the same n examples differ by at most (e₁ + e₂) n of them.
    """
    seeds = [seed for seed in one.of_seed if seed in other.of_seed]
    pairs = [other.of_seed[seed]["val/accuracy"] - one.of_seed[seed]["val/accuracy"] for seed in seeds]
    value = mean(pairs) if pairs else one.error - other.error
    of_seeds = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
    number = min((n for n in (one.number, other.number) if n), default=None)
    of_examples = math.sqrt(max(one.error + other.error, 1 / number) / number) if number else 0.0
    return value, max(of_seeds, of_examples)


def tied(found: Sequence[Group]) -> list[Group]:
    """The settings that validation cannot tell from the best: allowed ones first, then those with the largest KL at a random r."""
    best = found[0]
    near = [group for group in found if group is best or (d := difference(group, best))[0] <= 2 * d[1]]
    return sorted(near, key=lambda group: (not group.allowed, -(group.pool("kl_random") or 0.0), group.error))


HEADS = ("setting", "validation error, %", "minus the best, %", "KL at a random r", "rarest class")


def rows(found: Sequence[Group]) -> list[list[str]]:
    """The table: a row for each setting, with the columns `HEADS`."""
    table = []
    for group in found:
        of = f"{100 * group.error:.2f}"
        if group.number and group.number < FEW:
            of += f" of {group.number}, {interval(group.error * group.number, group.number)}"
        value, error = difference(group, found[0])
        paired = "–" if group is found[0] else f"{100 * value:+.2f} ± {100 * error:.2f}"
        kl, share = group.pool("kl_random"), group.pool("smallest_share")
        table.append([group.name, of, paired, "–" if kl is None else f"{kl:.2g}", "–" if share is None else f"{share:.2f}"])
    return table


def words(found: Sequence[Group]) -> list[str]:
    """A sentence on settings that validation cannot tell apart, with the one that unlabelled examples prefer."""
    if len(found) < 2 or len(near := tied(found)) < 2:
        return []
    number = found[0].number
    said = f"validation{f' of {number} examples' if number else ''} cannot tell {len(near)} of {len(found)} settings from the best"
    if not (near[0].allowed and any(".eps=" in group.name for group in near)):
        return [f"{said}. Compare more seeds, or label more."]
    return [
        f"{said}. Unlabelled examples prefer {near[0].name}, the largest of these radii at which a random r changes predictions by at "
        f"most {MOST_KL:g} nats and no class is left out."
    ]
