"""Write metrics.csv: a row for each call of a logger, in one file even if the run is resumed."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from vat import files

LOGGED = "metrics.csv"


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, but it keeps the rows of an earlier attempt and appends to them. Lightning's own deletes them."""

    _experiment: "_Writer | None"

    @property
    @rank_zero_experiment
    def experiment(self) -> "_Writer":  # pyright: ignore[reportIncompatibleVariableOverride]  # Lightning's is a property too
        """Writer of the file."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @property
    def num_rows(self) -> int:
        """Number of rows in the file. Waiting rows are written first. For rank 0 only."""
        self.save()
        return self.experiment.num_rows


class _Writer(ExperimentWriter):
    """Append complete rows to `metrics.csv`. If there are new columns, write the file again."""

    def _check_log_dir_exists(self) -> None:  # Lightning's version deletes the file
        self.path = Path(self.log_dir) / self.NAME_METRICS_FILE
        self.metrics_keys, rows = read(self.path)
        self.num_rows = len(rows)

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)
        with files.replacing(Path(self.log_dir) / self.NAME_HPARAMS_FILE) as part:
            save_hparams_to_yaml(str(part), self.hparams)

    def save(self) -> None:
        if not self.metrics:
            return
        if self._record_new_keys() or not self.path.is_file():
            _, rows = read(self.path)
            write(self.path, self.metrics_keys, [*rows, *self.metrics])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(_text(self.metrics_keys, self.metrics, header=False))
                file.flush()
                os.fsync(file.fileno())
        self.num_rows += len(self.metrics)
        self.metrics = []


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and rows of a file. An incomplete last line, left by a killed process, is cut off the file.

    Args:
        path: Path of the file. If it does not exist, there are no columns and rows.
    """
    if not path.is_file():
        return [], []
    text = path.read_bytes().decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    columns, rows = list(reader.fieldnames or []), list(reader)
    if len(whole) < len(text):
        write(path, columns, rows)
    return columns, rows


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the complete file in one atomic step."""
    files.write(path, _text(columns, rows, header=True))


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
