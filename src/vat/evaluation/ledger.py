"""The file of results from which an evaluation resumes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vat import files


class Ledger:
    """A JSON-lines file: the settings, then a line for each part of each batch, in order. Only one process at a time can write it.

    Args:
        path: Path of the file. None: nothing is written.
        settings: Plain values that must be the same if the file exists.

    Raises:
        ValueError: If the file was started with other settings (raised on entering).
        OSError: If another process is writing the file, or the file cannot be written (raised on entering).
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
            raise OSError(f"another process is writing {self.path}: wait until it ends")
        self._drop_broken_line()
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            self.append({"settings": self.settings})
        elif json.loads(first) != {"settings": self.settings}:
            self._file.close()
            raise ValueError(f"{self.path} was started with other settings: remove it, or choose another folder")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.path is not None:
            self._file.close()

    def _drop_broken_line(self) -> None:
        """Cut off an incomplete last line, which a killed process can leave."""
        self._file.seek(0)
        whole = 0
        for line in self._file:
            whole += len(line) if line.endswith(b"\n") else 0
        os.truncate(self._file.fileno(), whole)

    def read(self) -> Iterator[dict[str, Any]]:
        """Existing lines after the settings. Read them all before you append."""
        if self.path is None:
            return
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line to the file immediately."""
        if self.path is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
