"""Schedules of regularizers: `${share:0.4}` of a run's optimizer steps, and those that are longer than it."""

import warnings
from collections.abc import Iterator

from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

SCHEDULES = ("ramp_up", "fade_out", "eps_steps")
"""Options in optimizer steps."""


def share(of_run: float, *, _root_: DictConfig) -> int:
    """`${share:0.4}`: so many of the run's optimizer steps, so that `trainer.max_steps` alone shortens a run; one at least if not 0.

    Raises:
        ValueError: If it is no share from 0 to 1, or the run has no length.
    """
    steps = OmegaConf.select(_root_, "trainer.max_steps")
    if isinstance(of_run, bool) or not isinstance(of_run, int | float) or not 0 <= of_run <= 1:
        raise ValueError(f"${{share:{of_run}}}: must be a number from 0 to 1, a share of the run")
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"${{share:{of_run}}} is a share of trainer.max_steps={steps}: give the run a length")
    return max(1, round(of_run * steps)) if of_run else 0


def schedules(cfg: DictConfig) -> Iterator[tuple[str, str, int]]:
    """Key of the node, option and optimizer steps of every schedule that is set."""
    for key in map(str, cfg):
        node = cfg[key]
        for option in SCHEDULES if key != "hydra" and isinstance(node, DictConfig) else ():
            if node.get(option):
                yield key, option, node[option]


@rank_zero_only
def warn_of_long_ones(cfg: DictConfig) -> None:
    """Warn of a schedule that does not come to its end."""
    for key, option, steps in schedules(cfg):
        if 0 < cfg.trainer.max_steps < steps:
            warnings.warn(
                f"{key}.{option}={steps}: the run ends before, after trainer.max_steps={cfg.trainer.max_steps}. A share of the run is "
                f"written as '{key}.{option}=${{share:0.4}}'",
                stacklevel=2,
            )
