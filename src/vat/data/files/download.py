"""Downloads the files of a published data set. Checks them, writes them completely or not at all, one process at a time."""

import http.client
import os
import queue
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial as partial_call
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vat import files
from vat.data.files.content import PIECE, new_hash, opened

TIMEOUT = 30.0  # seconds without an answer from a server, after which the next one is tried
LEAST_BYTES = 100_000  # in TIMEOUT seconds; a slower server is also abandoned, but no slow modem
MOST_BYTES = 2 << 30  # so an endless answer does not fill the disk; our largest file, SVHN's extra set, has 1.33 GB


_only_reading = ContextVar("only_reading", default=False)


class DownloadError(OSError):
    """A file could not be downloaded. The message says where it is published and where to put it."""


class _MirrorFaultError(Exception):
    """A fault of one address, after which the next is tried."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of a data set.

    Attributes:
        name: Name of the stored file. A decompressed file without `.gz` is also accepted.
        urls: Addresses of the file, in the order of attempts.
        digest: MD5 or SHA-256 of the file as published, in hexadecimal.
        content: Digest of the decompressed content, if known. It is the same for every compression.
    """

    name: str
    urls: Sequence[str]
    digest: str
    content: str | None = None


def fetch(file: PublishedFile, folder: Path) -> Path:
    """The path of a file, which is downloaded if it is absent.

    A present file is not checked. Downloads have been checked, and the readers check a user's file.

    Args:
        file: The published file.
        folder: Folder of the file. It is created if absent.

    Returns:
        The path of the file, or of the decompressed file.

    Raises:
        DownloadError: If no address gives the file, or it cannot be written.
    """
    path = _present(file, folder)
    if path is not None:
        return path
    if _only_reading.get():
        raise DownloadError(
            f"{folder} lacks {file.name}, and nothing is downloaded into a folder that a checkpoint names. Name the data by data=..."
        )
    try:
        with _alone(folder):
            return _present(file, folder) or _download(file, folder / file.name)
    except DownloadError:
        raise
    except OSError as error:  # read-only folder, full disk
        raise DownloadError(_instructions(file, folder, [f"it cannot be written: {error}"])) from error


@contextmanager
def only_reading() -> Iterator[None]:
    """Within this context, `fetch` downloads nothing. A folder that a checkpoint names must not be written to."""
    token = _only_reading.set(True)
    try:
        yield
    finally:
        _only_reading.reset(token)


def _present(file: PublishedFile, folder: Path) -> Path | None:
    paths = (folder / file.name, folder / file.name.removesuffix(".gz"))
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Allow one process at a time in a folder. If a process dies, the system frees its lock, and the lock's file can be used again."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.open_lock(folder / ".download.lock") as lock:
        files.lock(lock, wait=True)
        yield


def _download(file: PublishedFile, path: Path) -> Path:
    partial = path.with_name(f"{path.name}.part")
    faults = []
    try:
        for url in file.urls:
            try:
                _transfer(url, partial)
                _check(file, partial)
            except _MirrorFaultError as fault:
                faults.append(f"{url}: {fault}")
            else:
                os.replace(partial, path)
                return path
    finally:
        partial.unlink(missing_ok=True)
    raise DownloadError(_instructions(file, path.parent, faults))


def _transfer(url: str, partial: Path) -> None:
    response = _of_the_network(_within_timeout, partial_call(urllib.request.urlopen, url, timeout=TIMEOUT))
    with response, partial.open("wb") as out, _progress() as progress:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        bar = progress.add_task(partial.name.removesuffix(".part"), total=total)
        since, before = time.monotonic(), 0
        while piece := _of_the_network(response.read1, PIECE):  # the bytes that have arrived, without waiting for a full piece
            out.write(piece)
            progress.advance(bar, len(piece))
            if time.monotonic() - since > TIMEOUT:
                if out.tell() - before < LEAST_BYTES:
                    raise _MirrorFaultError(f"sends {out.tell() - before} bytes in {TIMEOUT:g} seconds, too slow to wait for")
                since, before = time.monotonic(), out.tell()
            if out.tell() > MOST_BYTES:
                raise _MirrorFaultError(f"sends more than {MOST_BYTES} bytes")
        # http.client does not report a broken transfer that is read in pieces.
        if total is not None and out.tell() != total:
            raise _MirrorFaultError(f"the transfer broke off after {out.tell()} of {total} bytes")
        out.flush()
        os.fsync(out.fileno())  # the new name must not reach the disk before the bytes do


def _within_timeout(call: Callable[[], Any]) -> Any:
    """The result of `call`. A server could delay it without end by sending single bytes of the header.

    Raises:
        TimeoutError: If it takes longer than `TIMEOUT`.
    """
    found: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            found.put((call(), None))
        except Exception as error:
            found.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = found.get(timeout=2 * TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {2 * TIMEOUT:g} seconds") from None
    if error is not None:
        raise error
    return result


def _of_the_network(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Errors of this call are faults of the address. Other OSErrors are faults of the disk."""
    try:
        return call(*args, **options)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _MirrorFaultError(getattr(error, "reason", None) or error) from error


def _check(file: PublishedFile, partial: Path) -> None:
    hash_ = new_hash(file.digest)
    with partial.open("rb") as raw:
        while piece := raw.read(PIECE):
            hash_.update(piece)
    if hash_.hexdigest() != file.digest and not _same_content(file, partial):
        raise _MirrorFaultError(f"the file's digest must be {file.digest}, got {hash_.hexdigest()}")


def _same_content(file: PublishedFile, partial: Path) -> bool:
    """Whether the file is another compression of the published content."""
    if file.content is None:
        return False
    hash_, size = new_hash(file.content), 0
    try:
        with opened(partial) as content:
            while size <= MOST_BYTES and (piece := content.take_up_to(PIECE)):
                hash_.update(piece)
                size += len(piece)
    except ValueError:
        return False
    return hash_.hexdigest() == file.content


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _instructions(file: PublishedFile, folder: Path, faults: Sequence[str]) -> str:
    tried = "\n".join(f"  {fault}" for fault in faults)
    addresses = " or ".join(file.urls)
    return (
        f"{file.name} is not in {folder.absolute()}, and was not downloaded:\n{tried}\n"
        f"Put the file there yourself, from {addresses} (digest {file.digest}). data.data_dir, or VAT_DATA_DIR, sets another folder."
    )
