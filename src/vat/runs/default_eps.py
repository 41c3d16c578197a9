"""The radius of a run that sets none: that of the published sets, or one computed from the user's own data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from vat.data.datamodule import ResidentDataModule
from vat.data.neighbours import SAMPLE, Neighbours, neighbours
from vat.runs import report

FROM_DATA = -math.inf
"""Stands for a radius until the data are loaded. No regularizer accepts it, so it cannot be trained with by mistake."""
OURS = "vat.data.sets."


def default_eps(published: float, *, _root_: DictConfig) -> float:
    """`${default_eps:2.0}`: the given radius for the project's own sets, `FROM_DATA` for any other data."""
    target = OmegaConf.select(_root_, "data._target_")
    return published if str(target).startswith(OURS) else FROM_DATA


@dataclass(frozen=True)
class Computed:
    """Radii by their keys, as `vat.eps`, and the distances that they were computed from."""

    radii: Mapping[str, float]
    found: Neighbours


def filled_in(cfg: DictConfig, data: ResidentDataModule) -> tuple[DictConfig, Computed | None]:
    """The configuration with numbers for the radii that wait for the data, and what was computed; None if none waits.

    Args:
        cfg: The composed configuration; it is not changed.
        data: After `setup`.

    Raises:
        ValueError: If all inputs are equal.
    """
    waiting = [str(key) for key in cfg if key != "hydra" and isinstance(cfg[key], DictConfig) and _waits(cfg[key])]
    if not waiting:
        return cfg, None
    cfg = cfg.copy()
    found = neighbours(data.x, data.y, labeled=data.split.labeled, pool=data.split.unlabeled)
    for key in waiting:
        cfg[key].eps = found.default_eps if cfg[key].get("norm", "l2") == "l2" else _linf(found.default_eps, data)
    return cfg, Computed({f"{key}.eps": cfg[key].eps for key in waiting}, found)


def _waits(node: DictConfig) -> bool:
    eps = node.get("eps")
    return isinstance(eps, float) and eps == FROM_DATA


def _linf(eps: float, data: ResidentDataModule) -> float:
    """The radius ‖r‖∞ of the cube whose typical r is as long as ε."""
    return float(f"{eps / math.sqrt(math.prod(data.input_shape)):.3g}")


@rank_zero_only
def tell(computed: Computed | None, unit: str) -> None:
    """Print the radii that were computed, and a warning if classes touch."""
    if computed is None:
        return
    radii, found = computed.radii, computed.found
    report.console.print(
        f"{', '.join(f'{key}={eps:g}' for key, eps in radii.items())}: computed from the data ({unit}). The median distance to the "
        f"nearest of {SAMPLE} neighbours is {found.nearest:.3g}. {next(iter(radii))}=... sets another radius"
    )
    if found.classes_touch:
        report.console.print(
            f"the nearest labelled example of another class is about as far ({found.other_class:.3g}) as that of any class "
            f"({found.labeled:.3g}): no radius separates such classes, and VAT may do harm. Compare with regularizer=none",
            style="yellow",
        )
