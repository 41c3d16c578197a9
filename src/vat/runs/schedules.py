"""Schedules of regularizers: `${share:0.4}` of a run's steps, and a warning if a schedule is longer than the run."""

import warnings
from collections.abc import Iterator

from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

SCHEDULES = ("ramp_up", "fade_out", "eps_steps")
"""Options in optimizer steps."""


def share(of_run: float, *, _root_: DictConfig) -> int:
    """`${share:0.4}`: this share of the run's optimizer steps, at least 1 if not 0. So `trainer.max_steps` alone shortens a run.

    Raises:
        ValueError: If it is no number from 0 to 1, or the run has no length.
    """
    steps = OmegaConf.select(_root_, "trainer.max_steps")
    if isinstance(of_run, bool) or not isinstance(of_run, int | float) or not 0 <= of_run <= 1:
        raise ValueError(f"${{share:{of_run}}}: must be a number from 0 to 1, the share of the run")
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"${{share:{of_run}}} is a share of trainer.max_steps, which must be an integer >= 0, got {steps}")
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
    """Warn of schedules that are longer than the run."""
    for key, option, steps in schedules(cfg):
        if 0 < cfg.trainer.max_steps < steps:
            warnings.warn(
                f"{key}.{option}={steps}: the run ends earlier, after trainer.max_steps={cfg.trainer.max_steps}. To give a "
                f"share of the run, write '{key}.{option}=${{share:0.4}}'",
                stacklevel=2,
            )
