"""What a job prints: its settings, its progress, its result and where everything lies."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table

# Wide enough that a path is not broken where nobody looks at a terminal.
console = Console(width=None if os.environ.get("COLUMNS") or Console().is_terminal else 160, highlight=False)


class Progress(RichProgressBar):
    """Lightning's bar, which would count towards epoch -2 where a run's length is given in steps."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1:<{len(self.validation_description)}}"


def settings(cfg: DictConfig) -> None:
    """Print the resolved configuration, a node a line; of torch's and Lightning's own arguments only those that are set."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key in cfg:
        value = cfg[key]
        if isinstance(value, DictConfig):
            value = _call(value) if value._target_ else "none"
        elif key == "regularizers":
            value = " + ".join(["cross entropy", *(_call(node) for node in value)])
        table.add_row(str(key), str(value))
    console.print(table, "")


def closing(metrics: dict[str, Any], folder: Path, *, lds: str) -> None:
    """Print the closing table of a run.

    Args:
        metrics: of validation and test, and the seconds.
        folder: of the run.
        lds: at which radius, in which unit, the LDS was measured.
    """
    table = Table(show_header=False, title="Result", title_justify="left")
    for stage in ("val", "test"):
        if f"{stage}/accuracy" in metrics:
            accuracy = metrics[f"{stage}/accuracy"]
            table.add_row(f"{stage} accuracy", f"{100 * accuracy:.2f} %  (error {100 * (1 - accuracy):.2f} %)")
    if "test/lds" in metrics:
        table.add_row("test LDS", f"{metrics['test/lds']:.4f} {lds}")
        table.add_row("test calibration error", f"{metrics['test/calibration_error']:.4f}")
    table.add_row("wall time", f"{metrics['seconds']:.0f} s")
    files = {"checkpoint": "checkpoints/last.ckpt", "configuration": "config.yaml", "metrics": "metrics.json"}
    for name, file in files.items():
        table.add_row(name, str(folder / file))
    runs = sorted(folder.glob("wandb/*run-*"))
    if runs:
        table.add_row("W&B run", str(runs[-1]))
        command = Path(sys.executable).parent / "wandb"  # on no PATH where the environment is not activated
        table.add_row("look at it by", f"{shown(command)} leet {runs[-1]}")
    console.print("", table)


def shown(path: Path) -> Path:
    """A path as short as it can be typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _call(node: DictConfig) -> str:
    """A node as the call it stands for."""
    target = str(node.get("_target_"))
    values = {str(k): v for k, v in OmegaConf.to_container(node, resolve=True).items() if not str(k).startswith("_")}  # pyright: ignore
    if not target.startswith("vat."):
        defaults = _defaults(node)
        values = {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
    return f"{target.rsplit('.', 1)[-1]}({', '.join(f'{name}={value}' for name, value in values.items())})"


def _defaults(node: DictConfig) -> dict[str, Any]:
    kind = OmegaConf.get_type(node)
    return OmegaConf.to_container(OmegaConf.structured(kind)) if dataclasses.is_dataclass(kind) else {}  # pyright: ignore
