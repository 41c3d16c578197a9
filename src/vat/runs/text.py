"""Escaping of text from class names, file names and checkpoints, for terminals and spreadsheets."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor

HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, which a terminal may execute, and marks that change the direction of writing."""

FORMULA = re.compile(r"\s*[=+\-@]\s*\S")  # a sign alone is none


def visible(text: str, *, keep: str = "") -> str:
    r"""Replace control characters by escapes, such as ESC by `\x1b`, except those in `keep`."""
    return HIDDEN.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def cell(text: str) -> str:
    """Make text safe as a cell of a CSV file. An apostrophe goes before text that looks like a formula, but not before numbers."""
    shown = visible(text)
    return f"'{shown}" if FORMULA.match(shown) and not _is_number(shown) else shown


def brief(value: Any) -> str:
    """Show a value in at most 100 visible characters."""
    shown = visible(str(value) if not isinstance(value, dict | list | tuple | Tensor) else _few(value))
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def _few(value: Any, depth: int = 0) -> str:
    """The first values of a container and of those in it, without the numbers of tensors, for which torch imports more of itself."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if not isinstance(value, dict | list | tuple):
        return repr(value)
    left, right = "{}" if isinstance(value, dict) else "[]" if isinstance(value, list) else "()"
    if depth > 3:
        return f"{left}…{right}"
    first = list(islice(value.items() if isinstance(value, dict) else value, 10))
    parts = [f"{k!r}: {_few(v, depth + 1)}" for k, v in first] if isinstance(value, dict) else [_few(v, depth + 1) for v in first]
    return left + ", ".join([*parts, *["…"] * (len(value) > len(first))]) + right


@contextmanager
def visible_warnings() -> Iterator[None]:
    """Print warnings through `visible` inside the context."""
    before = warnings.formatwarning

    def shown(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        return before(visible(str(message), keep="\n"), category, filename, lineno, line)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
