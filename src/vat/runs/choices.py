"""The choices of configuration groups, for `--help`. Hydra's list has groups that are not for users."""

import textwrap
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

WIDTH = 80


def register() -> None:
    """Register the resolver `${choices:group,…}`."""
    OmegaConf.register_new_resolver("choices", lambda *groups, _root_: choices(groups, _root_), replace=True)


def choices(groups: tuple[str, ...], cfg: DictConfig) -> str:
    """A line for each group, with the names of its files in all folders that Hydra searches."""
    places = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
    lines = []
    for group in groups:
        names = sorted({path.stem for place in places for path in (place / group).glob("*.yaml")})
        lines.append(textwrap.fill(f"{group}: {', '.join(names)}", WIDTH, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)
