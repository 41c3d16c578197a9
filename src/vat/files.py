"""Files that are written whole or not at all, and locks; also on systems without `fcntl`."""

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
"""How the name of a file begins that is being written; one that is left over is of a process that was killed."""


def regular(path: Path) -> Path:
    """The file that `path` names, behind symbolic links; it need not exist yet.

    Raises:
        OSError: If something else is there, as a folder, a device or a pipe, or it may not be written.
    """
    if os.path.lexists(path) and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "This is no regular file, name another", str(path))
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return target


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Hand out a new file next to `path`, which replaces it at the end of the block; after an error `path` is as it was.

    Args:
        path: File to be written; a symbolic link is followed, and stays.
        keep: Name under which to keep the file that was there; None to drop it.

    Raises:
        OSError: If it cannot be written, or is no regular file.
    """
    target = regular(path)
    part = target.with_name(PART + target.name)
    try:
        part.unlink(missing_ok=True)
        part.open("xb").close()  # what cannot be written is noticed before anything is computed
        yield part
        if target.exists():
            shutil.copymode(target, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # the new name must not reach the disk before the bytes do
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
    """Write a file whole or not at all; text as UTF-8. Arguments and errors are those of `replacing`."""
    with replacing(path, keep=keep) as part:
        part.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, as `write` does."""
    write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The plain values in a JSON file; None if it is not there, empty or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def remove_parts(folder: Path) -> None:
    """Remove what killed processes have left half written in `folder`, in which no other process writes."""
    for path in folder.glob(f"{PART}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def open_lock(path: Path) -> IO[bytes]:
    """The file of a lock, made if absent. Nothing in it is changed.

    Raises:
        OSError: If it is no regular file, or cannot be opened.
    """
    return regular(path).open("ab")


def lock(file: IO[bytes], *, wait: bool = False) -> bool:
    """Lock an open file until it is closed; the system unlocks it if the process dies.

    Args:
        file: Open for writing.
        wait: Wait for another process that holds the lock.

    Returns:
        Whether the lock is held; False if another process holds it.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    import msvcrt  # Windows

    while True:
        file.seek(1 << 30)  # a byte behind the content, since Windows refuses to read locked bytes
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            if not wait:
                return False
            time.sleep(0.1)
        else:
            return True
