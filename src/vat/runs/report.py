"""The output of a job: its settings, progress, result and files."""

import csv
import dataclasses
import io
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from torch import Tensor

from vat import files
from vat.evaluation.few_examples import counted
from vat.lightning.figures import CAPTIONS
from vat.lightning.history import HISTORY
from vat.runs import page
from vat.runs.text import cell, visible

CONFUSION = "confusion.csv"
PAGE = "index.html"
FILES = {
    "checkpoint": "checkpoints/last.ckpt",
    "configuration": "config.yaml",
    "metrics": "metrics.json",
    "confusion matrix": CONFUSION,
}


for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run


class VisibleConsole(Console):
    """A console that escapes control characters in class names, file names and checkpoints."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            shown = visible(segment.text, keep="\n").encode(self.encoding, "backslashreplace").decode(self.encoding)
            yield segment if segment.control else segment._replace(text=shown)


# 160 columns if the output is not a terminal, so that paths are not broken.
console = VisibleConsole(width=None if os.environ.get("COLUMNS") or Console().is_terminal else 160, highlight=False, markup=False)


EVALUATIONS = "<!-- evaluations -->"
"""Mark before and after the part of a run's page that evaluations write."""
LOSS_EVERY = 10  # batches, because reading the loss makes a GPU wait


class Progress(RichProgressBar):
    """Lightning's progress bar, with two changes. The number of epochs follows from `max_steps`; Lightning would show -2.

    The bar fits into one line of a narrow terminal.
    """

    loss: float | None = None

    def _get_train_description(self, current_epoch: int) -> str:
        """`Epoch 2/10`, with the number of epochs that `max_steps` gives."""
        batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        epochs = f"/{math.ceil(batches / self.trainer.num_training_batches)}" if batches > 0 else ""
        return f"Epoch {f'{current_epoch + 1}{epochs}':<{len(self.validation_description)}}"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % LOSS_EVERY == 0:
            self.loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The error of the last validation and the loss. The logger's version, a long digest, would not fit into 80 columns."""
        accuracy = trainer.callback_metrics.get("val/accuracy")
        found = {} if accuracy is None else {"val error": f"{100 * (1 - float(accuracy)):.1f} %"}
        return found if self.loss is None else found | {"loss": f"{self.loss:.3g}"}


@rank_zero_only
def clear(folder: Path) -> None:
    """Remove the results of an earlier job from `folder`. They would look like those of the new job.

    `bring_best` handles the best checkpoint of a resumed job.
    """
    figures = [folder / "figures" / f"{name}.png" for name in CAPTIONS]
    results = (folder / FILES["metrics"], folder / PAGE, folder / CONFUSION)  # metrics first: this file marks a job as done
    for path in (*results, folder / HISTORY, *figures):
        path.unlink(missing_ok=True)


def settings(cfg: DictConfig) -> None:
    """Print the resolved configuration, a line for each node. Arguments of torch and Lightning appear only if not default."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key in cfg:
        value = cfg[key]
        if isinstance(value, DictConfig):
            value = _call(value) if value._target_ else "none"
        elif key == "regularizers":
            value = " + ".join(["cross entropy", *(_call(node) for node in value)])
        table.add_row(str(key), str(value))
    console.print(table, "")


def note(text: str) -> None:
    """Print a sentence, unless it is empty."""
    if text:
        console.print(text, "")


def confusion(counts: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Write the confusion matrix of the test as CSV: rows are classes, columns are predictions."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = [cell(name) for name in class_names]
    writer.writerow(["class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    files.write(path, text.getvalue())


def closing(
    metrics: dict[str, Any], folder: Path, record: dict[str, Any], *, lds: str, counts: Tensor | None, notes: Sequence[str] = ()
) -> None:
    """Print the closing table of a run, its notes and its files.

    Args:
        metrics: Metrics of validation and test, and the seconds.
        folder: Folder of the run.
        record: Settings, data and environment of the run.
        lds: Radius of the measured LDS, with its unit, in words.
        counts: Confusion matrix of the test, or None without a test.
        notes: Sentences on abnormal values.
    """
    table = Table(show_header=False, title="Result", title_justify="left")
    for row in _results(metrics, lds):
        table.add_row(*row)
    if counts is not None:
        table.add_row("most often mistaken", _mistakes(counts, record["class_names"]))
    table.add_row("examples", _examples(record))
    table.add_row("wall time", f"{metrics['seconds']:.0f} s")
    console.print("", table)
    for note in notes:
        console.print(note, style="yellow")
    lines = {
        name: str(folder / file)
        for name, file in {"page": PAGE, **_files(record)}.items()
        if name != "confusion matrix" or counts is not None
    }
    if runs := sorted(folder.glob("wandb/*run-*")):
        command = Path(sys.executable).parent / "wandb"  # not on the PATH if the environment is not activated
        lines |= {"W&B run": str(runs[-1]), "view it with": f"{shown(command)} leet {runs[-1]}"}
    for name, line in lines.items():  # not in the table, which would break paths in a narrow terminal
        console.print(f"{name}: {line}", soft_wrap=True)


def write_page(metrics: dict[str, Any], folder: Path, record: dict[str, Any], *, lds: str, notes: Sequence[str] = ()) -> None:
    """Write `index.html` of a run, a single file with its results, figures, settings and origin.

    Args:
        metrics: Metrics of validation and test, and the seconds.
        folder: Folder of the run, with its figures and files.
        record: Settings, data and environment of the run.
        lds: Radius of the measured LDS, with its unit, in words.
        notes: Sentences on abnormal values.
    """
    environment = {key: str(value) for key, value in record["environment"].items()}
    data = {
        "examples": _examples(record),
        "split": record["split"],
        "classes": ", ".join(record["class_names"]),
        "input shape": str(tuple(record["input_shape"])),
    }
    figures = [page.image(path, caption) for name, caption in CAPTIONS.items() if (path := folder / "figures" / f"{name}.png").is_file()]
    # Metrics are written last.
    present = [(name, file) for name, file in _files(record).items() if name == "metrics" or (folder / file).is_file()]
    sections = [
        page.table((), [*_results(metrics, lds), ("wall time", f"{metrics['seconds']:.0f} s")]),
        *([page.heading("Notes"), *map(page.paragraph, notes)] if notes else []),
        page.heading("Figures"),
        *(figures or [page.paragraph("None: figures=null.")]),
        page.heading("Data"),
        page.table((), [*data.items(), ("unit of ε", record["unit"])]),
        page.heading("Origin"),
        page.table((), list(environment.items())),
        page.heading("Files"),
        page.table((), [(name, page.link(file, file)) for name, file in present]),
        page.Raw(2 * EVALUATIONS),
        page.heading("Configuration"),
        page.preformatted((folder / "config.yaml").read_text(encoding="utf-8")),
    ]
    files.write(folder / PAGE, page.page(f"Run {folder.name}", environment["command"], sections))


def link_evaluations(run: Path) -> None:
    """Add links to the figures and tables of all evaluations to a run's page, if it has one."""
    path = run / PAGE
    parts = path.read_text(encoding="utf-8").split(EVALUATIONS) if path.is_file() else []
    if len(parts) != 3:  # no page, or one of an earlier version
        return
    found = sorted(file for kind in ("*.png", "*.json") for file in (run / "evaluation").rglob(kind))
    links = [page.link(name := str(file.relative_to(run)), name) for file in found]
    section = [page.heading("Evaluations"), page.table((), [[link] for link in links])] if links else []
    files.write(path, EVALUATIONS.join([parts[0], "\n".join(section), parts[2]]))


def _files(record: dict[str, Any]) -> dict[str, str]:
    """The files of a run, with the checkpoint that was tested."""
    return FILES | ({"checkpoint": "checkpoints/best.ckpt"} if record["config"].get("test") == "best" else {})


def _results(metrics: dict[str, Any], lds: str) -> list[tuple[str, str]]:
    rows = []
    for stage in ("val", "test"):
        if f"{stage}/accuracy" in metrics:
            accuracy = metrics[f"{stage}/accuracy"]
            few = counted(accuracy, metrics.get(f"{stage}/examples"))
            folds = f", {metrics['val/folds']:.0f} folds" if stage == "val" and "val/folds" in metrics else ""
            rows.append(
                (f"{stage} accuracy{folds}", f"{100 * accuracy:.2f} %  (error {100 * (1 - accuracy):.2f} %)" + (few and f"; {few}"))
            )
    if "test/lds" in metrics:
        rows.append(("test LDS", f"{metrics['test/lds']:.4f} {lds}"))
        rows.append(("test calibration error", f"{metrics['test/calibration_error']:.4f}"))
    return rows


def other_radii(lds_eps: float, regularizers: Mapping[str, Any]) -> str:
    """A text that lists the training radii. Empty if one of them is the LDS radius."""
    radii = {name: r.eps for name, r in regularizers.items() if hasattr(r, "eps")}
    if not radii or lds_eps in radii.values():
        return ""
    return f"; lds_eps sets this radius, training used {', '.join(f'{name}.eps={eps:g}' for name, eps in radii.items())}"


def _examples(record: dict[str, Any]) -> str:
    """Number of examples in each part, as text."""
    labeled, pool, validation, test = (f"{record['parts'][part]:,}" for part in ("labeled", "unlabeled", "validation", "test"))
    return f"{pool} for training, {labeled} of them labelled; {validation} for validation, {test} for the test"


def _mistakes(counts: Tensor, class_names: Sequence[str]) -> str:
    """The three most frequent mistakes, each as a share of the true class."""
    wrong = counts.clone().fill_diagonal_(0)
    number, place = wrong.flatten().topk(min(3, wrong.numel()))
    pairs = [(n, *divmod(p, len(counts))) for n, p in zip(number.tolist(), place.tolist(), strict=True) if n]
    return ", ".join(f"{class_names[a]} for {class_names[b]} {100 * n / int(counts[a].sum()):.1f} %" for n, a, b in pairs) or "none"


def shown(path: Path) -> Path:
    """The path relative to the working directory if it is inside, otherwise unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _call(node: DictConfig) -> str:
    """A node as the text of the call that it makes."""
    target = str(node.get("_target_"))
    values = {str(k): v for k, v in OmegaConf.to_container(node, resolve=True).items() if not str(k).startswith("_")}  # pyright: ignore
    if not target.startswith("vat."):
        defaults = _defaults(node)
        values = {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
    return f"{target.rsplit('.', 1)[-1]}({', '.join(f'{name}={value}' for name, value in values.items())})"


def _defaults(node: DictConfig) -> dict[str, Any]:
    kind = OmegaConf.get_type(node)
    return OmegaConf.to_container(OmegaConf.structured(kind)) if dataclasses.is_dataclass(kind) else {}  # pyright: ignore
