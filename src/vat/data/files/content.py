"""What a file of data holds, decompressed and read once from front to back: no more memory than asked for, and every fault one error."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

PIECE = 1 << 20  # bytes read at a time: a size that a header merely claims allocates nothing
COMPRESSED_PIECE = 1 << 14  # what of it is not yet decompressed is copied each time
GZIP_MAGIC = b"\x1f\x8b"


class Source(Protocol):
    """Anything that hands out at most the bytes asked for, and none only at its end."""

    def read(self, size: int, /) -> bytes: ...


class Content:
    """Bytes taken from a source in order.

    Args:
        source: Where the bytes come from.
        name: What errors call it.
        digest: MD5 or SHA-256 of all the bytes as published, for `end`.
    """

    def __init__(self, source: Source, name: str, digest: str | None = None) -> None:
        self.source, self.name, self.digest = source, name, digest
        self._hash = None if digest is None else new_hash(digest)

    def take(self, size: int) -> bytearray:
        """The next `size` bytes.

        Raises:
            ValueError: If there are fewer.
        """
        taken = self.take_up_to(size)
        if len(taken) < size:
            raise self.fault(f"ends too early: {size} bytes should follow, {len(taken)} do")
        return taken

    def take_up_to(self, size: int) -> bytearray:
        """The next `size` bytes, or all there are."""
        taken = bytearray()
        while len(taken) < size and (piece := self.read(min(size - len(taken), PIECE))):
            taken += piece
        return taken

    def skip(self, size: int) -> None:
        """Take `size` bytes and keep none."""
        while size > 0:
            self.take(min(size, PIECE))
            size -= PIECE

    def end(self, *, published: bool = False) -> None:
        """Nothing may follow; content that passes for the published one must have its digest, where that is known.

        Raises:
            ValueError: Otherwise.
        """
        if self.take_up_to(1):
            raise self.fault("goes on after its last value")
        if published and self._hash is not None and self._hash.hexdigest() != self.digest:
            raise self.fault(
                f"has the published size but other content, of digest {self._hash.hexdigest()} where {self.digest} is published"
            )

    def fault(self, reason: str) -> ValueError:
        """The error to raise for what is wrong with the file."""
        return ValueError(f"{self.name} {reason}. Delete the file to have it downloaded anew, or put a right one in its place.")

    def read(self, size: int, /) -> bytes:
        """As a source: one piece of at most `size` bytes."""
        try:
            piece = self.source.read(size)
        except (OSError, EOFError, zlib.error) as error:  # the three ways to say that compressed data are broken
            raise self.fault(f"cannot be read: {error}") from error
        if self._hash is not None:
            self._hash.update(piece)
        return piece


class Window:
    """The next `size` bytes of a source, which must have them, as a source of its own; `left` of them are still to come."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.left = source, size

    def read(self, size: int, /) -> bytes:
        """One piece of at most `size` bytes."""
        if not self.left:
            return b""
        piece = self.source.read(min(size, self.left))
        if not piece:
            raise EOFError(f"{self.left} more bytes should follow")
        self.left -= len(piece)
        return piece


class Inflated:
    """The bytes that a zlib stream stands for."""

    def __init__(self, source: Source) -> None:
        self.source, self._zlib = source, zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        """One piece of at most `size` bytes."""
        while not self._zlib.eof:
            compressed = self._zlib.unconsumed_tail or self.source.read(COMPRESSED_PIECE)
            if piece := self._zlib.decompress(compressed, size):
                return piece
            if not compressed:
                raise EOFError("the compressed data end too early")
        return b""


def new_hash(digest: str) -> "hashlib._Hash":
    """The algorithm that hexadecimal digests of this length come from: MD5, in which most sets are published, or SHA-256."""
    return hashlib.new("md5" if len(digest) == 32 else "sha256", usedforsecurity=False)


@contextmanager
def opened(path: Path, digest: str | None = None) -> Iterator[Content]:
    """The content of a file, decompressed where it is gzip, which its first bytes say and not its name."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        yield Content(gzip.GzipFile(fileobj=raw) if compressed else raw, str(path), digest)
