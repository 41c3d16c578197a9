"""The data set of a `data` node, made by a class of this project or by a user's function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from vat.data.datamodule import ResidentDataModule
from vat.data.own.datasets import Datasets
from vat.runs.schema import DATASETS, arguments


def make_data(node: DictConfig, *, call: Callable[[dict[str, Any]], Any] | None = None) -> ResidentDataModule:
    """Make the data set of a node. Datasets that a function returns become a DataModule with the node's options.

    Args:
        node: Node of the user's configuration, or of a checkpoint whose names have been checked.
        call: Function that calls the user's function with the arguments of a node. None is Hydra's `instantiate`.

    Raises:
        ValueError: If the target cannot be imported or returns something else, or an option would have no effect.
    """
    try:
        target = get_object(node["_target_"])
    except Exception as error:  # a user's module can raise anything
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"data._target_={node['_target_']} cannot be imported: {reason}") from error
    if target is Datasets:
        raise ValueError("data=custom needs data._target_=my_package.make_data, a function of yours that returns a dict of Datasets")
    if inspect.isclass(target) and target.__module__.startswith("vat."):
        return instantiate(node, _convert_="all")
    given: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # pyright: ignore[reportAssignmentType]
    options = {name: p.default for name, (p, _) in arguments(Datasets).items() if name not in DATASETS}
    takes = arguments(target).keys()
    passed = {name: value for name, value in given.items() if name in takes or name not in options}
    made = call(passed) if call else instantiate(DictConfig(passed, flags={"allow_objects": True}), _convert_="all")
    if isinstance(made, Mapping):
        if unknown := sorted(made.keys() - {*DATASETS} - options.keys()):
            raise ValueError(f"data._target_={node['_target_']} returned {unknown[0]!r}. It may return {', '.join(DATASETS)}")
        if "labeled" not in made:
            has = ", ".join(made) or "nothing"
            raise ValueError(f"data._target_={node['_target_']} must return a dict with a Dataset as labeled, got {has}")
        return Datasets(**{name: value for name, value in given.items() if name in options} | dict(made))
    if not isinstance(made, ResidentDataModule):
        raise ValueError(
            f"data._target_={node['_target_']} must return a dict of Datasets, with labeled and, if you have them, unlabeled, validation "
            f"and test; or a vat.data.own.datasets.Datasets, got {type(made).__name__}"
        )
    for name, default in options.items():
        if name not in takes and name != "seed" and given.get(name, default) != default:
            raise ValueError(f"data.{name}={given[name]} has no effect: {node['_target_']} takes no such argument")
    return made
