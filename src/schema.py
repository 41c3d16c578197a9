"""The schema of every configuration node, made from the constructors' signatures.

Each class gets a dataclass with its arguments, their types and defaults; a file in `conf/` builds on it by
`- /schema@vat: VAT` in its defaults list. So an option exists once, in Python, and Hydra refuses a wrong key or type at composition, in
a sweep before its first job.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union

import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import vat
from vat import attacks, loggers, models
from vat.data.arrays import Arrays
from vat.data.cifar import CIFAR10, CIFAR100
from vat.data.digits import Digits
from vat.data.images import Images
from vat.data.mnist import MNIST
from vat.data.norb import NORB
from vat.data.svhn import SVHN
from vat.data.synthetic import Circles, Moons
from vat.regularizers import PublishedVAT
from vat.schedule import LinearDecay, WarmedLinearDecay

PRIMITIVES = (bool, int, float, str)


def register() -> None:
    """Make the schemas known to Hydra, without the arguments that the data, the model or the run's folder decide."""
    data = (Digits, Moons, Circles, MNIST, CIFAR10, CIFAR100, SVHN, NORB, Images, Arrays)
    regularizers = (
        vat.VAT,
        PublishedVAT,
        vat.RandomPerturbation,
        vat.Adversarial,
        vat.Entropy,
        vat.ClassBalance,
        vat.PiModel,
        vat.MeanTeacher,
    )
    networks = (models.MLP, models.CNN, models.ConvSmall, models.ConvLarge, models.WideResNet, models.WhitenedCNN)
    searches = (attacks.RandomNoise, attacks.FGM, attacks.PGD, attacks.APGD, attacks.Square, attacks.AutoAttack)
    schedules = (torch.optim.lr_scheduler.CosineAnnealingLR, torch.optim.lr_scheduler.ExponentialLR, LinearDecay, WarmedLinearDecay)
    nodes: dict[Any, type] = {target: schema(target) for target in (*data, *regularizers, *searches)}
    nodes |= {target: schema(target, without=("input_shape", "num_classes")) for target in networks}
    nodes |= {
        target: schema(target, without=("params",), partial=True) for target in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    }
    nodes |= {target: schema(target, without=("optimizer",), partial=True) for target in schedules}
    nodes |= {target: schema(target, without=("save_dir",)) for target in (loggers.wandb_logger, CSVLogger, TensorBoardLogger)}
    nodes[pl.Trainer] = schema(pl.Trainer, without=("logger", "callbacks", "plugins", "default_root_dir"))
    store = ConfigStore.instance().store
    for target, node in nodes.items():
        store(name=target.__name__, group="schema", node=node)


def schema(target: Any, *, without: Sequence[str] = (), partial: bool = False) -> type:
    """A dataclass with the arguments of a class or function, for Hydra to check a node against.

    Args:
        target: what the node makes.
        without: arguments that come from elsewhere when it is made.
        partial: the node makes a function that still waits for those.
    """
    fields: list[Any] = [("_target_", str, f"{target.__module__}.{target.__qualname__}")]
    if partial:
        fields.append(("_partial_", bool, True))
    for parameter, hint in arguments(target).values():
        if parameter.name not in without:
            fields.append((parameter.name, field_type(hint), _default(parameter)))
    return dataclasses.make_dataclass(target.__name__, fields)


def arguments(target: Any) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The named arguments of a class or function, and their hints; a constructor's `**options` are those of its base class."""
    constructors = [c.__init__ for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for constructor in constructors:
        parameters = [p for p in inspect.signature(constructor).parameters.values() if p.name != "self"]
        hints = typing.get_type_hints(constructor)
        named = {p.name: (p, hints.get(p.name, Any)) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = named | found
        if not any(p.kind is p.VAR_KEYWORD and p.name == "options" for p in parameters):  # Lightning's **kwargs go elsewhere
            break
    return found


def field_type(hint: Any) -> Any:
    """The type OmegaConf can check: what a configuration cannot say (`float | Tensor`) is left out of a union."""
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
        return "???"  # OmegaConf's mark of a value that must be given
    if isinstance(value, list | tuple):
        return dataclasses.field(default_factory=lambda: list(value))
    return value if value is None or isinstance(value, PRIMITIVES) else None
