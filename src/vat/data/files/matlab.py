"""Reads arrays of numbers from MATLAB 5 files, the format of SVHN.

The MathWorks, *MAT-File Format*, "Level 5 MAT-Files". Only real arrays of numbers, compressed or not, in little-endian files.
scipy reads the complete format, but trusts the sizes in a header, and raises various errors for a damaged file.
"""

import math
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from vat.data.files.content import Content, Inflated, Window, opened

HEADER_BYTES = 128
SIGNATURE = struct.pack("<H2s", 0x0100, b"IM")  # the version, and the mark of little-endian
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
NUMERIC_CLASSES = range(6, 16)  # double, single and the integers; not cells, structures, objects, text or sparse arrays
COMPLEX = 0x08
MOST_DIMENSIONS, MOST_NAME_BYTES = 8, 64


def read_matlab(path: Path, most: Mapping[str, int], *, digest: str | None = None) -> dict[str, np.ndarray]:
    """Read some variables of a MATLAB 5 file. The others are skipped.

    Args:
        path: The file.
        most: Names of the variables, with the largest number of values of each.
        digest: MD5 or SHA-256 of the published file. It is required of a file in which every variable has that many values.

    Returns:
        The arrays by name, indexed as in MATLAB.

    Raises:
        ValueError: If the file is anything else, or lacks a variable.
    """
    arrays: dict[str, np.ndarray] = {}
    with opened(path, digest) as content:
        if not content.take(HEADER_BYTES).endswith(SIGNATURE):
            raise content.fault("is no little-endian MATLAB 5 file")
        while start := content.take_up_to(1):
            kind, size = struct.unpack("<II", start + content.take(7))
            element = Window(content, size)
            if kind == COMPRESSED:
                inflated = Content(Inflated(element), content.name)
                kind, size = struct.unpack("<II", inflated.take(8))
                body = Window(inflated, size)
            else:
                inflated, body = None, element
            if kind != MATRIX:
                raise content.fault(f"must hold only variables, got an element of type {kind}")
            name, array = _variable(Content(body, content.name), most)
            if array is not None:
                if name in arrays:
                    raise content.fault(f"holds {name} twice")
                arrays[name] = array
                if inflated is not None:
                    inflated.end()
            content.skip(element.left)
        content.end(published=all(name in arrays and arrays[name].size == values for name, values in most.items()))
    if missing := [name for name in most if name not in arrays]:
        raise content.fault(f"lacks the variable {', '.join(missing)}")
    return arrays


def _variable(body: Content, most: Mapping[str, int]) -> tuple[str, np.ndarray | None]:
    """The name of a variable, and its array if it is in `most`."""
    flags = _element(body, (UINT32,), 8)
    dimensions = _element(body, (INT32,), 4 * MOST_DIMENSIONS).tolist()
    name = _element(body, (INT8,), MOST_NAME_BYTES).tobytes().decode("latin-1")
    if name not in most:
        return name, None
    if len(flags) != 2 or flags[0] & 0xFF not in NUMERIC_CLASSES or flags[0] >> 8 & COMPLEX:
        raise body.fault(f"must hold real numbers as {name}")
    count = math.prod(dimensions)
    if min(dimensions, default=0) < 1 or count > most[name]:
        raise body.fault(f"must hold 1 to {most[name]} values as {name}, got the shape {tuple(dimensions)} in its header")
    values = _element(body, DTYPES, 8 * count)
    if len(values) != count:
        raise body.fault(f"must hold {count} values as {name}, of shape {tuple(dimensions)}, got {len(values)}")
    body.end()
    return name, values.reshape(dimensions, order="F")


def _element(body: Content, kinds: Collection[int], most_bytes: int) -> np.ndarray:
    """The numbers of the next data element, which must have one of the types."""
    kind, size = struct.unpack("<II", tag := body.take(8))
    small = kind >> 16  # up to four bytes are in the tag itself, after the two halves of its first word
    if small:
        kind, size = kind & 0xFFFF, small
    if kind not in kinds or size > (4 if small else most_bytes):
        raise body.fault(f"holds an element of type {kind} and {size} bytes out of place")
    if small:
        taken = tag[4 : 4 + size]
    else:
        taken = body.take(size)
        body.skip(-size % 8)
    if size % np.dtype(DTYPES[kind]).itemsize:
        raise body.fault(f"holds an element of type {kind} in {size} bytes")
    return np.frombuffer(taken, DTYPES[kind])
