"""A file of results to which an evaluation that is started again returns."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vat import files


class Ledger:
    """A JSON-lines file: the settings, then a line for each part of each batch, in order. One process at a time writes it.

    Args:
        path: the file; None keeps nothing.
        settings: plain values.

    Raises:
        ValueError: on entering, where the file was begun with other settings.
        OSError: on entering, where another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path, self.settings = path, json.loads(json.dumps(settings))

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = files.regular(self.path).open("a+b")
        if not files.lock(self._file):
            self._file.close()
            raise OSError(f"another process is at work on {self.path}: wait for it")
        self._drop_broken_line()
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            self.append({"settings": self.settings})
        elif json.loads(first) != {"settings": self.settings}:
            self._file.close()
            raise ValueError(f"{self.path} was begun with other settings: remove it, or choose another folder")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.path is not None:
            self._file.close()

    def _drop_broken_line(self) -> None:
        """A process that was killed may have left half a line."""
        self._file.seek(0)
        whole = 0
        for line in self._file:
            whole += len(line) if line.endswith(b"\n") else 0
        os.truncate(self._file.fileno(), whole)

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines after the settings that are there already; to be read to their end before anything is appended."""
        if self.path is None:
            return
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, at once."""
        if self.path is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
