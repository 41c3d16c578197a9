"""The radius of a run that sets none, that of the published sets or one computed from the user's own data; and a perceptron's width."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from vat.data.datamodule import ResidentDataModule
from vat.data.neighbours import GROUP, Neighbours, neighbours
from vat.models.mlp import MLP, default_hidden
from vat.runs import report

FROM_DATA = -math.inf
"""Stands for a radius until the data are loaded. No regularizer accepts it, so it cannot be trained with by mistake."""
OURS = "vat.data.sets."
OF_WORDS = 2.0
"""Radius in normalised embeddings, of a whole text: docs/text.md."""
FACTORS = {"random_perturbation": 4.0}
"""Radii that are not VAT's, as multiples of it: most random directions change little."""


def default_eps(published: float, *, _root_: DictConfig) -> float:
    """`${default_eps:2.0}`: the given radius for the project's own sets, `FROM_DATA` for any other data."""
    target = OmegaConf.select(_root_, "data._target_")
    return published if str(target).startswith(OURS) else FROM_DATA


@dataclass(frozen=True)
class Computed:
    """What the data decided: radii by their keys, as `vat.eps`.

    Args:
        radii: The radii.
        found: The distances that they were computed from; None for words, whose radius is the same for all texts.
        prior: Whether the classes' shares are the labels'.
        none: Whether there is no regularizer, as classes touch.
    """

    radii: Mapping[str, float]
    found: Neighbours | None
    prior: bool
    none: bool


def filled_in(cfg: DictConfig, data: ResidentDataModule) -> tuple[DictConfig, Computed | None]:
    """The configuration with numbers for the radii that wait for the data, and what was computed; None if nothing was.

    Class balance, too, takes the classes' shares from the labels of a user's data, unless they are given.

    Args:
        cfg: The composed configuration; it is not changed.
        data: After `setup`.

    Raises:
        ValueError: If all inputs are equal.
    """
    waiting, prior = [key for key in map(str, cfg) if _waits(cfg, key)], _prior(cfg, data)
    if not waiting and not prior:
        return cfg, None
    cfg = cfg.copy()
    found = None  # the distance of two numbers of words is none of their texts
    if waiting and not data.holds_words:
        found = neighbours(data.x, data.y, labeled=data.split.labeled, pool=data.split.unlabeled)
    for key in waiting:
        if _waits(cfg, key):  # or it is a multiple of one that has its number by now
            eps = FACTORS.get(key, 1.0) * (OF_WORDS if found is None else found.default_eps)
            of_norm = 1.0 if found is None or cfg[key].get("norm", "l2") == "l2" else math.sqrt(math.prod(data.input_shape))
            cfg[key].eps = float(f"{eps / of_norm:.3g}")
    if prior:
        cfg.class_balance.prior = prior
    none = found is not None and found.classes_touch and "vat" in waiting and not cfg.vat_if_classes_touch
    if none:
        cfg.regularizers = []
    return cfg, Computed({f"{key}.eps": cfg[key].eps for key in waiting}, found, prior is not None, none)


def with_random_times(cfg: DictConfig, data: ResidentDataModule) -> DictConfig:
    """The configuration of `few_labels` with a smaller random perturbation for inputs of few numbers."""
    most = math.sqrt(math.prod(data.input_shape))
    if data.holds_words or cfg.get("random_times_vat", 0.0) <= most:
        return cfg
    cfg = cfg.copy()
    cfg.random_times_vat = float(f"{most:.3g}")
    return cfg


def with_hidden(cfg: DictConfig, data: ResidentDataModule) -> DictConfig:
    """The configuration with numbers for the hidden layers of a perceptron that sets none, so that a checkpoint says them."""
    if cfg.model._target_ != f"{MLP.__module__}.{MLP.__qualname__}" or cfg.model.hidden is not None:
        return cfg
    cfg = cfg.copy()
    cfg.model.hidden = default_hidden(data.input_shape)
    report.console.print(
        f"model.hidden={list(cfg.model.hidden)}: chosen for inputs of {math.prod(data.input_shape)} numbers; model.hidden=[...] sets others"
    )
    return cfg


def _waits(cfg: DictConfig, key: str) -> bool:
    eps = cfg[key].get("eps") if key != "hydra" and isinstance(cfg[key], DictConfig) else None
    return isinstance(eps, float) and eps == FROM_DATA


def _prior(cfg: DictConfig, data: ResidentDataModule) -> list[float] | None:
    """The share of each class among the labels of a user's data, if it is not given and every class has a label."""
    if "class_balance" not in cfg or cfg.class_balance.prior is not None or str(cfg.data._target_).startswith(OURS):
        return None
    counts = torch.bincount(data.y[data.split.labeled].cpu(), minlength=data.num_classes).double()
    return [float(f"{share:.4g}") for share in (counts / counts.sum()).tolist()] if counts.min() > 0 else None


@rank_zero_only
def tell(computed: Computed | None, unit: str) -> None:
    """Print the radii that were computed, and a warning if classes touch."""
    if computed is None:
        return
    found, said = computed.found, ", ".join(f"{key}={eps:g}" for key, eps in computed.radii.items())
    if computed.none and found is not None:
        report.console.print(
            f"{_touch(found)} No radius helps in such data: training without regularizers. vat_if_classes_touch=true trains with the "
            f"default, {said}; vat.eps=... with another radius",
            style="yellow",
        )
        return
    if said:
        why = "the same for all texts: see docs/text.md"
        if found is not None:
            why = f"computed from the data. Among {GROUP} examples the median distance to the nearest is {found.nearest:.3g}"
        report.console.print(f"{said} ({unit}): {why}. {next(iter(computed.radii))}=... sets another radius")
    if computed.prior:
        report.console.print("class_balance.prior: the shares of the classes among the labels; class_balance.prior=[...] sets others")
    if found is not None and found.classes_touch:
        report.console.print(touching(found), style="yellow")


def touching(found: Neighbours) -> str:
    """What it means for VAT that classes touch."""
    return f"{_touch(found)} VAT may do harm here: compare with regularizer=none, or take regularizer=few_labels, which then trains without"


def _touch(found: Neighbours) -> str:
    return (
        f"the nearest labelled example of another class is about as near ({found.other_class:.3g}) as that of any class "
        f"({found.labeled:.3g}). The latter has the same class in {100 * found.accuracy:.0f} % of the cases, by chance it would in "
        f"{100 * found.chance:.0f} %."
    )
