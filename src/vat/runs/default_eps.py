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
    """Radii by their keys, as `vat.eps`, the distances that they were computed from, and whether the classes' shares are the labels'."""

    radii: Mapping[str, float]
    found: Neighbours
    prior: bool


def filled_in(cfg: DictConfig, data: ResidentDataModule) -> tuple[DictConfig, Computed | None]:
    """The configuration with numbers for the radii that wait for the data, and what was computed; None if none waits.

    Class balance, too, takes the classes' shares from the labels of a user's data, unless they are given.

    Args:
        cfg: The composed configuration; it is not changed.
        data: After `setup`.

    Raises:
        ValueError: If all inputs are equal.
    """
    waiting = [str(key) for key in cfg if key != "hydra" and isinstance(cfg[key], DictConfig) and _waits(cfg[key])]
    if not waiting:
        return cfg, None
    cfg, prior = cfg.copy(), _prior(cfg, data)
    if data.holds_words:  # the distance of two numbers of words is none of their texts
        for key in waiting:
            cfg[key].eps = FACTORS.get(key, 1.0) * OF_WORDS
        if prior:
            cfg.class_balance.prior = prior
        return cfg, None
    found = neighbours(data.x, data.y, labeled=data.split.labeled, pool=data.split.unlabeled)
    for key in waiting:
        eps = FACTORS.get(key, 1.0) * found.default_eps
        cfg[key].eps = float(f"{eps if cfg[key].get('norm', 'l2') == 'l2' else eps / math.sqrt(math.prod(data.input_shape)):.3g}")
    if prior:
        cfg.class_balance.prior = prior
    return cfg, Computed({f"{key}.eps": cfg[key].eps for key in waiting}, found, prior is not None)


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


def _waits(node: DictConfig) -> bool:
    eps = node.get("eps")
    return isinstance(eps, float) and eps == FROM_DATA


def _prior(cfg: DictConfig, data: ResidentDataModule) -> list[float] | None:
    """The share of each class among the labels, if class balance waits for it and every class has a label."""
    if "class_balance" not in cfg or cfg.class_balance.prior is not None:
        return None
    counts = torch.bincount(data.y[data.split.labeled].cpu(), minlength=data.num_classes).double()
    return [float(f"{share:.4g}") for share in (counts / counts.sum()).tolist()] if counts.min() > 0 else None


@rank_zero_only
def tell(computed: Computed | None, unit: str) -> None:
    """Print the radii that were computed, and a warning if classes touch."""
    if computed is None:
        return
    radii, found = computed.radii, computed.found
    report.console.print(
        f"{', '.join(f'{key}={eps:g}' for key, eps in radii.items())}: computed from the data ({unit}). Among {GROUP} "
        f"examples the median distance to the nearest is {found.nearest:.3g}. {next(iter(radii))}=... sets another radius"
    )
    if computed.prior:
        report.console.print("class_balance.prior: the shares of the classes among the labels; class_balance.prior=[...] sets others")
    if found.classes_touch:
        report.console.print(touching(found), style="yellow")


def touching(found: Neighbours) -> str:
    """What it means that classes touch."""
    return (
        f"the nearest labelled example of another class is about as near ({found.other_class:.3g}) as that of any class "
        f"({found.labeled:.3g}). The latter has the same class in {100 * found.accuracy:.0f} % of the cases, by chance it would in "
        f"{100 * found.chance:.0f} %. VAT may do harm here: compare with regularizer=none"
    )
