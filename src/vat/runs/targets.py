"""What a checkpoint may name to be made: classes from a list for each node, with plain values as arguments.

Hydra's `instantiate` calls whatever a configuration names. It is for the user's own configuration; a checkpoint comes from anywhere.
"""

import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from hydra.utils import get_object
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vat.data.datamodule import ResidentDataModule
from vat.regularizers import Regularizer
from vat.runs import schema
from vat.runs.text import brief

PLAIN = (bool, int, float, str, type(None))

RESERVED = ("_args_", "_partial_", "_convert_", "_recursive_")
"""Words of Hydra's that a checkpoint may not use."""

PACKAGES = ("vat", "vat.models", "vat.regularizers")
"""Short names, as `vat.VAT`, are of these."""

LIBRARIES = ("torch", "pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf", "numpy", "pandas", "matplotlib", "wandb")
"""These hold functions that delete, write and run: of them a class is allowed by its full name, never the package."""


class RefusedError(ValueError):
    """A checkpoint names what it may not."""


class Kind(NamedTuple):
    """What a node of a checkpoint's configuration makes.

    Attributes:
        what: In words.
        base: Class of all that it may make.
        classes: The project's own.
    """

    what: str
    base: type
    classes: Sequence[type]

    def named(self, name: Any) -> type | None:
        """The project's class of that name, or None."""
        return next((c for c in self.classes if name in (f"{package}.{c.__name__}" for package in (c.__module__, *PACKAGES))), None)


KINDS = {
    "model": Kind("network", nn.Module, schema.NETWORKS),
    "data": Kind("data set", ResidentDataModule, schema.DATA),
    "regularizers": Kind("regularizer", Regularizer, schema.REGULARIZERS),
}
"""The nodes of a checkpoint of which something is made; optimizer and scheduler are only compared."""


def make(node: Any, key: str, *, allowed: Sequence[str] = (), facts: Mapping[str, Any] | None = None) -> Any:
    """Make what a checkpoint's node names.

    Args:
        node: The class's name as `_target_`, and its arguments, in plain dictionaries and lists.
        key: Of the node, in `KINDS`. Of the regularizers, one is made at a time.
        allowed: Packages, classes or functions of your own that a checkpoint may name too.
        facts: Arguments that the data decide, given to constructors that take them.

    Raises:
        RefusedError: If the node names something else, or its arguments are not plain values of the declared types.
    """
    kind = KINDS[key]
    refuse_foreign(node, kind.what, allowed=allowed)
    if not isinstance(node, dict) or "_target_" not in node:
        raise RefusedError(f"{key}={brief(node)}: must name the class of a {kind.what} as _target_")
    name = node["_target_"]
    listed = kind.named(name)
    if listed is None:
        target = _own(name, allowed, kind.what)
        if inspect.isclass(target) and not issubclass(target, kind.base):
            raise RefusedError(f"_target_={name} is no {kind.what}")
        made = call_own(node, kind.what, allowed=allowed, facts=facts)
    else:
        takes = schema.arguments(listed)
        values = {k: _value(listed, k, value, takes, allowed) for k, value in node.items() if k != "_target_"}
        made = listed(**values | {k: value for k, value in (facts or {}).items() if k in takes})
    if not isinstance(made, kind.base):
        raise RefusedError(f"_target_={name} makes no {kind.what}")
    return made


def call_own(node: dict[str, Any], what: str, *, allowed: Sequence[str], facts: Mapping[str, Any] | None = None) -> Any:
    """What a class or function of an allowed package gives for a node's arguments, whatever that is.

    Raises:
        RefusedError: If it is in no allowed package, or its arguments name something that is in none.
    """
    refuse_foreign(node, what, allowed=allowed)
    target = _own(node["_target_"], allowed, what)
    takes = inspect.signature(target).parameters
    values = {k: _own_value(str(k), value, allowed) for k, value in node.items() if k != "_target_"}
    return target(**values | {k: value for k, value in (facts or {}).items() if k in takes})


def refuse_foreign(node: Any, what: str, *, allowed: Sequence[str] = ()) -> None:
    """Refuse a node in which something names neither a class of this project nor an allowed package; nothing is imported for that.

    Raises:
        RefusedError: names the first such name and the remedy, or an interpolation.
    """
    for word, value in _leaves(node):
        if word == "_target_" and not any(k.named(value) for k in KINDS.values()):
            _refuse_foreign(value, allowed, what)
        if isinstance(value, str) and "${" in value:
            raise RefusedError(f"{brief(value)} is not resolved: it could stand for any _target_")


def is_own(node: Any, key: str) -> bool:
    """Whether a checkpoint's node names something that is not this project's."""
    return KINDS[key].named(node.get("_target_") if isinstance(node, dict) else None) is None


@contextmanager
def few_parameters(most: int) -> Iterator[None]:
    """Within it no more parameters are made than `most`: a record may name billions of layers.

    Raises:
        RefusedError: If there are more.
    """
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise RefusedError(f"it names a network of more than the {most} weights that the checkpoint holds")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _value(target: type, key: str, value: Any, takes: Mapping[str, tuple[inspect.Parameter, Any]], allowed: Sequence[str]) -> Any:
    """An argument of one of the project's classes, which must be of the declared type."""
    if key not in takes:
        raise RefusedError(f"{target.__name__} takes no {brief(key)}")
    if isinstance(value, dict):  # as a direction of your own
        return _own_value(key, value, allowed)
    declared = schema.field_type(takes[key][1])
    if not (_plain(value) if declared is Any else _fits(value, declared)):
        raise RefusedError(f"{target.__name__}: {key}={brief(value)} is no {getattr(declared, '__name__', declared)}")
    return value


def _fits(value: Any, declared: Any) -> bool:
    if typing.get_origin(declared) is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(declared)[0]) for item in value)
    if options := typing.get_args(declared):  # of a union
        return any(_fits(value, option) for option in options)
    return type(value) in ((int, float) if declared is float else (declared,))


def _plain(value: Any) -> bool:
    return type(value) in PLAIN or (isinstance(value, list) and all(_plain(item) for item in value))


def _own_value(key: str, value: Any, allowed: Sequence[str]) -> Any:
    """An argument that may hold things of allowed packages, as `{_target_: my_package.MyNorm}`, or functions of them, not called here."""
    if key in RESERVED:
        raise RefusedError(f"{brief(key)}: a checkpoint gives arguments by name")
    if isinstance(value, list):
        return [_own_value("", item, allowed) for item in value]
    if not isinstance(value, dict):
        if not _plain(value):
            raise RefusedError(f"{key}={brief(value)} is no plain value")
        return value
    arguments = {k: _own_value(str(k), v, allowed) for k, v in value.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in value:
        return arguments
    later = value.get("_partial_") is True
    target = _own(value["_target_"], allowed, "argument")
    return target(**arguments) if not later else partial(target, **arguments) if arguments else target


def _refuse_foreign(name: Any, allowed: Sequence[str], what: str) -> None:
    """Refuse a name that is in no allowed package; nothing is imported for that."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        raise RefusedError(f"_target_={brief(name)} is the name of no class")
    if not _allowed(name, allowed):
        package = name.split(".")[0]
        entry = name if package in LIBRARIES else package
        no_remedy = package in ("vat", *sys.stdlib_module_names) or (package in LIBRARIES and not _is_layer(name))
        remedy = "" if no_remedy else f": if you know what it runs, add allow_targets=[{entry}]"
        raise RefusedError(f"_target_={name} is none of this project's {what}s{remedy}")


def _is_layer(name: str) -> bool:
    """Whether a library that is imported already has a class of networks of that name: of a library nothing else may be allowed."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    return inspect.isclass(found) and issubclass(found, nn.Module)


def _own(name: Any, allowed: Sequence[str], what: str) -> Any:
    """A class or function that an allowed package defines, or what is allowed by its full name."""
    _refuse_foreign(name, allowed, what)
    try:
        found = get_object(name)
    except Exception as error:  # an import raises what it likes
        raise RefusedError(f"_target_={name} cannot be found: {error}") from error
    closed = name.split(".")[0] in (*LIBRARIES, *sys.stdlib_module_names)
    if name in allowed and (_is_layer(name) if closed else callable(found)):
        return found
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    # A module hands out what it imports as well: my_package.os.system is no part of my_package.
    if closed or not _allowed(home, allowed) or not (inspect.isclass(found) or inspect.isfunction(found)):
        raise RefusedError(f"_target_={name} is {home}, which is in no allowed package: if you trust it, add allow_targets=[{name}]")
    return found


def _leaves(node: Any, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Every value that is no dictionary or list, and every `_target_` whatever it is, with its key."""
    if isinstance(node, dict):
        for inner, value in node.items():
            yield from ((inner, value),) if inner == "_target_" else _leaves(value, inner)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _allowed(name: str, allowed: Sequence[str]) -> bool:
    """Whether a name is allowed itself, or is in an allowed package of the user's own."""
    closed = name.split(".")[0] in ("vat", *LIBRARIES, *sys.stdlib_module_names)
    return any(name == entry or (name.startswith(f"{entry}.") and not closed) for entry in allowed)
