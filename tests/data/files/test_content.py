import gzip
import hashlib
import io
import tracemalloc
import zlib

import pytest

from vat.data.files.content import COMPRESSED_PIECE, PIECE, Content, Inflated, Window, opened

DATA = bytes(range(256)) * 20_000  # five pieces


def content(data, digest=None):
    return Content(io.BytesIO(data), "here", digest)


def whole(path, size):
    with opened(path) as found:
        found.take(size)
        found.end()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_is_read_from_front_to_back_whether_compressed_or_not(tmp_path, pack):
    path = tmp_path / "a"
    path.write_bytes(pack(DATA))
    for digest in (hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()):
        with opened(path, digest) as found:
            assert found.take(7) == DATA[:7]
            found.skip(2 * PIECE)
            assert found.take_up_to(len(DATA)) == DATA[7 + 2 * PIECE :]
            found.end(published=True)


def test_other_content_of_the_published_size_is_refused():
    found = content(DATA, hashlib.md5(b"other").hexdigest())
    found.skip(len(DATA))
    found.end()
    with pytest.raises(
        ValueError, match=f"here has the published size but other content: its digest must be .*, got {hashlib.md5(DATA).hexdigest()}"
    ):
        found.end(published=True)


def test_too_little_and_too_much_are_refused():
    with pytest.raises(ValueError, match=r"here ends too early: must have 6 more bytes, got 5\. Delete the file to download it again"):
        content(b"12345").take(6)
    found = content(b"12345")
    found.take(4)
    with pytest.raises(ValueError, match="here has more bytes after its last value"):
        found.end()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-1],  # truncated
        lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:],  # wrong sum
        lambda packed: packed[:100] + b"\xff" * 100 + packed[200:],
        lambda packed: packed + b"more",
        lambda packed: packed[:2],
    ],
)
def test_broken_compression_is_refused(tmp_path, spoil):
    path = tmp_path / "a.gz"
    path.write_bytes(spoil(gzip.compress(DATA)))
    with pytest.raises(ValueError, match=r"a\.gz (cannot be read|has more bytes after)"):
        whole(path, len(DATA))


def test_a_bomb_costs_no_more_memory_than_was_asked_for(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bytes(100 * PIECE), compresslevel=1))
    bomb = zlib.compress(bytes(100 * PIECE), level=1)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="has more bytes after"):
            whole(path, 10)
        inflated = Content(Inflated(io.BytesIO(bomb)), "here")
        inflated.take(10)
        with pytest.raises(ValueError, match="has more bytes after"):
            inflated.end()
        assert tracemalloc.get_traced_memory()[1] < 4 * PIECE
    finally:
        tracemalloc.stop()


def test_a_window_ends_where_it_should():
    source = content(DATA)
    window = Window(source, 10)
    assert Content(window, "window").take_up_to(100) == DATA[:10]
    assert (window.left, source.take(5)) == (0, DATA[10:15])


@pytest.mark.parametrize("size", [1, 1000, 3 * PIECE])
def test_a_zlib_stream_is_inflated_completely(size):
    source = io.BytesIO(zlib.compress(DATA) + b"behind")
    inflated = Inflated(source)
    assert b"".join(iter(lambda: inflated.read(size), b"")) == DATA if size > 1 else inflated.read(1) == DATA[:1]
    nothing = b"\0\0\0\xff\xff"  # an empty block; there may be more of these than are read at a time
    long = b"\x78\x9c" + 2 * COMPRESSED_PIECE * nothing + zlib.compress(b"at last")[2:]
    assert Inflated(io.BytesIO(long)).read(7) == b"at last"
    with pytest.raises(ValueError, match="cannot be read: the compressed data end too early"):
        Content(Inflated(io.BytesIO(zlib.compress(DATA)[:-3])), "here").take_up_to(len(DATA) + 1)
