"""Paths of settings, atomic writes of files, and locks. All work on systems without `fcntl`."""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PART = ".part-"
"""Prefix of the name of an unfinished file. A killed process leaves such a file."""


def as_path(value: object, key: str) -> Path:
    """The path that the setting `key` holds.

    Raises:
        ValueError: If it holds none, is empty, as a shell variable without a value, or is an address.
    """
    if not isinstance(value, str | Path):
        raise ValueError(f"{key}={'null' if value is None else value}: must be a path")
    if not str(value).strip():
        raise ValueError(f"{key}= is empty. Name a file or a folder")
    if "://" in str(value):
        raise ValueError(f"{key}={value} is an address. Download it first")
    return Path(value).expanduser()


def regular(path: Path) -> Path:
    """Resolve the symbolic links of `path`. The file need not exist.

    Raises:
        OSError: If `path` is a folder, a device or a pipe, or the file is write-protected.
    """
    if os.path.lexists(path) and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file, choose another path", str(path))
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return target


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield a new file next to `path` that replaces it at the end of the block. After an error, `path` is unchanged.

    Args:
        path: File to write. A symbolic link is followed and kept.
        keep: New path for the old file. None: the old file is deleted.

    Raises:
        OSError: If the file cannot be written, or is not a regular file.
    """
    target = regular(path)
    part = target.with_name(PART + target.name)
    try:
        part.unlink(missing_ok=True)
        part.open("xb").close()  # fail before the block computes anything, if the file cannot be written
        yield part
        if target.exists():
            shutil.copymode(target, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # the content must be on the disk before the new name is
        if keep is not None and target.is_file():
            os.replace(target, keep)
        os.replace(part, target)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, content: str | bytes | memoryview, *, keep: Path | None = None) -> None:
    """Write a file atomically. Text is encoded as UTF-8. `replacing` documents the arguments and errors."""
    with replacing(path, keep=keep) as part:
        part.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, atomically."""
    write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read plain values from a JSON file. If the file is missing, empty or incomplete, return None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files of killed processes from `folder`. No other process may be writing there."""
    for path in folder.glob(f"{PART}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def open_lock(path: Path) -> IO[bytes]:
    """Open the file of a lock. It is created if it does not exist; its content never changes.

    Raises:
        OSError: If it is not a regular file, or cannot be opened.
    """
    return regular(path).open("ab")


def lock(file: IO[bytes], *, wait: bool = False) -> bool:
    """Lock an open file until it is closed. If the process dies, the system releases the lock.

    Args:
        file: File that is open for writing.
        wait: Whether to wait for another process that has the lock.

    Returns:
        True if this process has the lock now, False if another process has it.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    import msvcrt  # Windows

    while True:
        file.seek(1 << 30)  # a byte after the content, because Windows refuses to read locked bytes
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            if not wait:
                return False
            time.sleep(0.1)
        else:
            return True
