"""A sweeper of Hydra over a list of grids. One cross product is not enough: `regularizer=none` has no `vat.eps`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException


class Grids(BasicSweeper):
    """Run the jobs of each grid, one grid after the other.

    Overrides of the command line are crossed with every grid. If only some grids have the key of an override, the override applies only
    to them and replaces their values. Write a single value as `mean_teacher.weight=choice(3)`. As a plain override, Hydra would look for
    its key in every regularizer.

    Args:
        grids: Grids. Each maps keys to values as in a sweep on the command line, such as `{vat.eps: "0.5,1,2"}`.
        max_batch_size: Largest number of jobs to launch together. None: all.
    """

    def __init__(self, grids: Sequence[Mapping[str, Any]], max_batch_size: int | None = None) -> None:
        super().__init__(max_batch_size)
        self.grids = grids

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Batches of jobs. Each job is a list of overrides."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = {override.get_key_element() for override in overrides}
        jobs = []
        for grid in self.grids:
            elsewhere = {key for other in self.grids for key in other} - grid.keys()
            own = parser.parse_overrides([f"{key}={values}" for key, values in grid.items() if key not in given])
            shared = [override for override in overrides if override.get_key_element() not in elsewhere]
            jobs += BasicSweeper.split_arguments([*own, *shared], None)[0]
        if not jobs:
            raise HydraException("the sweep is empty: hydra.sweeper.grids needs a grid that has a value for each of its keys")
        return list(self.split_overrides_to_chunks(jobs, max_batch_size or -1))


@dataclass
class GridsConf:
    """The node `hydra.sweeper` of `hydra/sweeper=grids`."""

    _target_: str = "hydra_plugins.grids.Grids"
    max_batch_size: int | None = None
    grids: list[dict[str, Any]] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsConf, provider="vat")
