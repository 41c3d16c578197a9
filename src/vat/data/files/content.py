"""Reads a data file once, from start to end, and decompresses it. Allocates only what is read. Every fault is a ValueError."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

PIECE = 1 << 20  # bytes read at a time, so a false size in a header allocates nothing
COMPRESSED_PIECE = 1 << 14  # smaller, because the rest that is not yet decompressed is copied each time
GZIP_MAGIC = b"\x1f\x8b"


class Source(Protocol):
    """Anything with a method `read` that returns at most `size` bytes, and none only at the end."""

    def read(self, size: int, /) -> bytes: ...


class Content:
    """Bytes taken from a source in order.

    Args:
        source: Source of the bytes.
        name: Name in errors.
        digest: MD5 or SHA-256 of the published bytes, for `end`.
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
            raise self.fault(f"ends too early: must have {size} more bytes, got {len(taken)}")
        return taken

    def take_up_to(self, size: int) -> bytearray:
        """The next `size` bytes, or fewer at the end."""
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
        """Check that nothing follows, and that published content has its digest, if that is known.

        Raises:
            ValueError: If something follows, or the digest differs.
        """
        if self.take_up_to(1):
            raise self.fault("has more bytes after its last value")
        if published and self._hash is not None and self._hash.hexdigest() != self.digest:
            raise self.fault(f"has the published size but other content: its digest must be {self.digest}, got {self._hash.hexdigest()}")

    def fault(self, reason: str) -> ValueError:
        """The error for a fault of the file."""
        return ValueError(f"{self.name} {reason}. Delete the file to download it again, or replace it by a correct one.")

    def read(self, size: int, /) -> bytes:
        """As a source: one piece of at most `size` bytes."""
        try:
            piece = self.source.read(size)
        except (OSError, EOFError, zlib.error) as error:  # the errors of damaged compressed data
            raise self.fault(f"cannot be read: {error}") from error
        if self._hash is not None:
            self._hash.update(piece)
        return piece


class Window:
    """A source of the next `size` bytes of another source, which must have them. `left` is the number of bytes to come."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.left = source, size

    def read(self, size: int, /) -> bytes:
        """One piece of at most `size` bytes."""
        if not self.left:
            return b""
        piece = self.source.read(min(size, self.left))
        if not piece:
            raise EOFError(f"{self.left} more bytes must follow")
        self.left -= len(piece)
        return piece


class Inflated:
    """The decompressed bytes of a zlib stream."""

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
    """The algorithm of hexadecimal digests of this length: MD5, which most publishers use, or SHA-256."""
    return hashlib.new("md5" if len(digest) == 32 else "sha256", usedforsecurity=False)


@contextmanager
def opened(path: Path, digest: str | None = None) -> Iterator[Content]:
    """The content of a file, decompressed if its first bytes are those of gzip. The name does not matter."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        yield Content(gzip.GzipFile(fileobj=raw) if compressed else raw, str(path), digest)
