"""Reads arrays of a .npz file. Checks their sizes before it allocates memory, and unpickles nothing."""

import math
import os
import zipfile

import numpy as np

LARGEST_DEFLATION = 1032  # most bytes that one compressed byte can stand for; a zip that claims more is forged
SMALLEST_DEFLATED = 64  # bytes; of fewer, the end of the stream is too large a share


def refuse_beyond_memory(size: int, name: str) -> None:
    """Refuse `size` bytes if this machine has less memory.

    Raises:
        ValueError: If it has.
    """
    if not hasattr(os, "sysconf"):  # on Windows, Python raises a MemoryError later
        return
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{name} needs {size} bytes, but this machine has a memory of {memory}")


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array. Its sizes in the zip's directory, in its header and in the file must agree before memory is allocated.

    Raises:
        ValueError: If they do not agree, or the array's type or compression is not allowed.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that np.savez does not know")
    if info.file_size > LARGEST_DEFLATION * max(info.compress_size, SMALLEST_DEFLATED):
        raise ValueError(f"{name} claims {info.file_size} bytes, which {info.compress_size} compressed bytes cannot hold")
    refuse_beyond_memory(info.file_size, name)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has the format {version}, which is for structured types")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which would have to be unpickled: save numbers or strings")
        if min(shape, default=0) < 0 or stream.tell() + size != info.file_size:
            raise ValueError(f"{name} claims the shape {shape} of {dtype}, which its {info.file_size} bytes do not hold")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
