"""The schema of every configuration node, made from the constructors' signatures.

Each class gets a dataclass with its arguments, their types and defaults. A file in `conf/` uses it by `- /schema@vat: VAT` in its defaults
list. So each option is defined once, in Python. Hydra refuses a wrong key or type at composition, in a sweep before its first job.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union

import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from vat import attacks, models, regularizers
from vat.data.own.arrays import Arrays
from vat.data.own.datasets import Datasets
from vat.data.own.images import Images
from vat.data.own.text import Texts
from vat.data.sets.cifar import CIFAR10, CIFAR100
from vat.data.sets.digits import Digits
from vat.data.sets.mnist import MNIST
from vat.data.sets.norb import NORB
from vat.data.sets.svhn import SVHN
from vat.data.sets.synthetic import Circles, Moons
from vat.lightning import loggers
from vat.lightning.csv_logger import ResumableCSVLogger
from vat.runs import choices
from vat.schedule import LinearDecay, WarmedLinearDecay

TUNED = Path(__file__).parents[3] / "conf" / "tuned.yaml"

DATASETS = ("labeled", "unlabeled", "validation", "test", "class_names", "unit")
"""Arguments of `Datasets` that a user's function returns. The others are options."""

TOLD = ("input_shape", "num_classes", "counts", "vocabulary_size")
"""Arguments of a network's constructor that the data set gives."""

PRIMITIVES = (bool, int, float, str)

# A checkpoint may name only these classes (`vat.runs.targets`).
DATA = (Digits, Moons, Circles, MNIST, CIFAR10, CIFAR100, SVHN, NORB, Images, Arrays, Texts)
NETWORKS = (
    models.MLP,
    models.CNN,
    models.ConvSmall,
    models.ConvLarge,
    models.WhitenedCNN,
    models.WideResNet,
    models.TextCNN,
    models.TextMean,
    models.HuggingFace,
)
REGULARIZERS = tuple(
    term
    for term in map(vars(regularizers).get, regularizers.__all__)
    if isinstance(term, type) and issubclass(term, regularizers.Regularizer) and term is not regularizers.Regularizer
)


def register() -> None:
    """Register the schemas with Hydra, without the arguments that the data, the model or the run's folder set."""
    searches = (attacks.RandomNoise, attacks.FGM, attacks.PGD, attacks.APGD, attacks.Square, attacks.AutoAttack)
    schedules = (torch.optim.lr_scheduler.CosineAnnealingLR, torch.optim.lr_scheduler.ExponentialLR, LinearDecay, WarmedLinearDecay)
    optimizers = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    nodes: dict[Any, type] = {target: schema(target) for target in (*DATA, *REGULARIZERS)}
    nodes |= {target: schema(target, module="vat.attacks") for target in searches}  # the name that evaluations record
    nodes |= {target: schema(target, without=TOLD) for target in NETWORKS}
    nodes |= {target: schema(target, without=("params",), partial=True) for target in optimizers}
    nodes |= {target: schema(target, without=("optimizer",), partial=True) for target in schedules}
    nodes |= {target: schema(target, without=("save_dir",)) for target in (loggers.wandb_logger, ResumableCSVLogger, TensorBoardLogger)}
    nodes[pl.Trainer] = schema(pl.Trainer, without=("logger", "callbacks", "plugins", "default_root_dir"))
    choices.register()
    nodes[Datasets] = schema(Datasets, without=DATASETS)
    store = ConfigStore.instance().store
    for target, node in nodes.items():
        store(name=target.__name__, group="schema", node=node)
    for name, node in tuned().items():
        store(name=name, group="tuned", node=node, package="_global_")


def tuned() -> dict[str, Any]:
    """The values in `conf/tuned.yaml`, by `<experiment>_<data>_<regularizer>`: of Hydra's own files each would need one."""
    found = {}
    for experiment, of in _table().items():
        for several, node in of.items():
            found |= {f"{experiment}_{of['data']}_{one}": node for one in several.split(", ") if one != "data"}
    return found


def tuned_for() -> dict[str, str]:
    """The data that an experiment's values are tuned for."""
    return {experiment: of["data"] for experiment, of in _table().items()}


def _table() -> dict[str, Any]:
    table: Any = OmegaConf.to_container(OmegaConf.load(TUNED)) if TUNED.is_file() else {}
    assert isinstance(table, dict)
    return table


def schema(target: Any, *, without: Sequence[str] = (), partial: bool = False, module: str | None = None) -> type:
    """A dataclass with the arguments of a class or function. Hydra checks a node against it.

    Args:
        target: Class or function that the node calls.
        without: Arguments that are not set in the node.
        partial: Whether the node makes a `functools.partial`, which still needs the arguments `without`.
        module: Module in the node's `_target_`. None is the module that defines `target`.
    """
    fields: list[Any] = [("_target_", str, f"{module or target.__module__}.{target.__qualname__}")]
    if partial:
        fields.append(("_partial_", bool, True))
    for parameter, hint in arguments(target).values():
        if parameter.name not in without:
            fields.append((parameter.name, field_type(hint), _default(parameter)))
    return dataclasses.make_dataclass(target.__name__, fields)


def arguments(target: Any) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The named arguments of a class or function, and their hints. A constructor's `**options` are those of its base class."""
    constructors = [c.__init__ for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for constructor in constructors:
        parameters = [p for p in inspect.signature(constructor).parameters.values() if p.name != "self"]
        hints = typing.get_type_hints(constructor)
        named = {p.name: (p, hints.get(p.name, Any)) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = named | found
        # Other names, such as Lightning's **kwargs, are not passed to a base class.
        if not any(p.kind is p.VAR_KEYWORD and p.name == "options" for p in parameters):
            break
    return found


def field_type(hint: Any) -> Any:
    """The type that OmegaConf can check. A union loses the types that a configuration cannot contain, as in `float | Tensor`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in PRIMITIVES:
        return hint
    if origin is Literal and all(isinstance(a, str) for a in arguments):
        return str
    if origin in (Union, types.UnionType):
        optional = type(None) in arguments
        sayable = {t for t in map(field_type, arguments) if t is not Any}
        if len(sayable) != 1:
            return Any
        (only,) = sayable
        return only | None if optional else only
    if origin in (Sequence, list, tuple) and field_type(arguments[0]) in PRIMITIVES:
        return list[field_type(arguments[0])]
    return Any


def _default(parameter: inspect.Parameter) -> Any:
    value = parameter.default
    if value is parameter.empty:
        return "???"  # OmegaConf's mark of a required value
    if isinstance(value, list | tuple):
        return dataclasses.field(default_factory=lambda: list(value))
    return value if value is None or isinstance(value, PRIMITIVES) else None
