"""Which classes a configuration may name to be made: a file from elsewhere must not choose what code is run."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.utils import get_object

KNOWN = (
    "vat",
    "torch.nn",
    "torch.optim",
    *(f"pytorch_lightning.{name}" for name in ("Trainer", "trainer.trainer", "callbacks", "loggers", "plugins", "profilers", "strategies")),
)
"""Where targets may come from without a word of the user."""


def refuse_foreign(node: Any, *, allowed: Sequence[str] = (), typed: Sequence[str] = ()) -> None:
    """Refuse a target that is neither known, nor in an allowed package, nor typed by the user.

    Args:
        node: a configuration in plain dictionaries and lists, resolved: an interpolation could still become any target.
        allowed: packages of the user's own.
        typed: the overrides on the command line, whose targets are the user's word.

    Raises:
        ValueError: names the first such target and the remedy, or an interpolation.
    """
    for key, value in _leaves(node):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{value} is not resolved: it could stand for any _target_")
        if key != "_target_" or value is None:
            continue
        target = str(value)
        if any(_within(target, package) for package in allowed) or any(target in override for override in typed):
            continue
        if not _known(target):
            package = target.split(".")[0]
            raise ValueError(
                f"_target_={target} is none of this project's: if you trust the code, allow_targets=[{package}] lets configurations name it"
            )


def names_any(node: Any, packages: Sequence[str]) -> bool:
    """Whether some target of a configuration, as in `refuse_foreign`, is in one of the packages."""
    return any(key == "_target_" and _within(str(value), package) for key, value in _leaves(node) for package in packages)


def _leaves(node: Any, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Every value that is no dictionary or list, with the key it stands under."""
    if isinstance(node, dict):
        for inner, value in node.items():
            yield from _leaves(value, inner)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value)
    else:
        yield key, node


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _known(target: str) -> bool:
    if not any(_within(target, package) for package in KNOWN):
        return False  # not even imported
    try:
        home = getattr(get_object(target), "__module__", None)
    except Exception:  # whatever is wrong with it, Hydra says it better when it is made
        return True
    # A module hands out what it imports as well: vat.data.files.download.os.system is no part of vat.
    return isinstance(home, str) and any(_within(home, package) for package in KNOWN)
