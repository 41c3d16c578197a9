import contextlib
import gzip
import hashlib
import multiprocessing
import os
import socket
import stat
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from vat.data.files import download
from vat.data.files.download import DownloadError, PublishedFile, fetch

DATA = b"published content" * 100_000
PACKED = gzip.compress(DATA)


def md5(data):
    return hashlib.md5(data).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """What each address sends; `requests` are the requested paths."""

    requests: ClassVar[list] = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/absent":
            return self.send_error(404)
        body = {"/wrong": b"something else", "/recompressed": gzip.compress(DATA, 1)}.get(self.path, PACKED)
        if self.path == "/slow_header":
            return self.trickle(b"HTTP/1.0 200 OK\r\nX: " + bytes(1000))
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path in ("/broken", "/unsized", "/stalled"):
            body = body[: len(body) // 2]
        if self.path == "/trickle":
            return self.trickle(body)
        if self.path == "/slow":
            time.sleep(0.5)
        self.wfile.write(body)
        if self.path == "/stalled":
            time.sleep(5)

    def trickle(self, body):
        """Send single bytes at intervals, until the client disconnects."""
        with contextlib.suppress(OSError):
            for number in range(len(body)):
                self.wfile.write(body[number : number + 1])
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Mirror, "requests", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def published(mirror, *paths, content=None):
    return PublishedFile("data.gz", [f"{mirror}/{path}" for path in paths], md5(PACKED), content)


def whole_or_absent(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".download.lock")


def test_a_file_is_downloaded_once_checked_and_kept(mirror, tmp_path):
    folder = tmp_path / "new" / "folder"
    file = published(mirror, "right")
    assert fetch(file, folder) == folder / "data.gz"
    assert (folder / "data.gz").read_bytes() == PACKED
    assert fetch(file, folder) == folder / "data.gz"
    assert Mirror.requests == ["/right"]
    assert whole_or_absent(folder) == ["data.gz"]


@pytest.mark.parametrize("name", ["data.gz", "data"])
def test_a_file_that_is_there_is_taken_as_it_is(mirror, tmp_path, name):
    (tmp_path / name).write_bytes(b"the user's")
    assert fetch(published(mirror, "right"), tmp_path) == tmp_path / name
    assert Mirror.requests == []


def test_mirrors_are_tried_in_turn_until_one_is_right(mirror, tmp_path):
    paths = ("absent", "wrong", "broken", "unsized", "right", "never")
    fetch(published(mirror, *paths), tmp_path)
    assert Mirror.requests == [f"/{path}" for path in paths[:-1]]
    assert (tmp_path / "data.gz").read_bytes() == PACKED


@pytest.mark.parametrize("path", ["trickle", "slow_header"])
def test_a_mirror_that_sends_single_bytes_is_abandoned_for_the_next(mirror, tmp_path, monkeypatch, path):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    began = time.monotonic()
    fetch(published(mirror, path, "right"), tmp_path)
    assert time.monotonic() - began < 20
    assert Mirror.requests == [f"/{path}", "/right"]
    assert (tmp_path / "data.gz").read_bytes() == PACKED
    with pytest.raises(DownloadError, match=r"too slow|no answer within"):
        fetch(published(mirror, path), tmp_path / "other")


def test_when_no_mirror_is_right_one_error_says_why_and_what_to_do(mirror, tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch(published(mirror, "absent", "wrong", "broken", "unsized"), tmp_path)
    message = str(caught.value)
    for part in (
        f"data.gz is not in {tmp_path}, and was not downloaded",
        f"{mirror}/absent: Not Found",
        f"{mirror}/wrong: the file's digest must be {md5(PACKED)}, got {md5(b'something else')}",
        f"{mirror}/broken: the transfer broke off after {len(PACKED) // 2} of {len(PACKED)} bytes",
        f"{mirror}/unsized: the file's digest must be",
        f"Put the file there yourself, from {mirror}/absent or {mirror}/wrong",
        "data.data_dir, or VAT_DATA_DIR, sets another folder",
    ):
        assert part in message
    assert whole_or_absent(tmp_path) == []


def test_another_compression_of_the_published_content_is_right(mirror, tmp_path):
    content = hashlib.sha256(DATA).hexdigest()
    path = fetch(published(mirror, "wrong", "recompressed", content=content), tmp_path)
    assert gzip.decompress(path.read_bytes()) == DATA
    with pytest.raises(DownloadError, match="the file's digest must be"):
        fetch(published(mirror, "recompressed", content=md5(b"other")), tmp_path / "other")


def test_what_an_earlier_process_left_half_written_is_not_taken(mirror, tmp_path):
    (tmp_path / "data.gz.part").write_bytes(PACKED + b"longer")
    assert fetch(published(mirror, "right"), tmp_path).read_bytes() == PACKED
    assert whole_or_absent(tmp_path) == ["data.gz"]


def test_without_a_network_the_error_says_which_file_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DownloadError, match=f"(?s)data.gz is not in {tmp_path}.*Connection refused.*Put the file there yourself"):
        fetch(published(address, "right"), tmp_path)


def test_a_silent_server_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="timed out"):
        fetch(published(f"http://127.0.0.1:{silent.getsockname()[1]}", "right"), tmp_path)


def test_a_server_that_falls_silent_in_the_middle_is_given_up(mirror, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with pytest.raises(DownloadError, match=r"stalled: .*timed out"):
        fetch(published(mirror, "stalled"), tmp_path)
    assert whole_or_absent(tmp_path) == []


def test_a_network_that_fails_in_the_middle_is_told_from_other_contents(mirror, tmp_path):
    with pytest.raises(DownloadError, match="unsized: the file's digest must be"):  # half a file, though the content is known
        fetch(published(mirror, "unsized", content=md5(DATA)), tmp_path)


def test_a_server_that_never_ends_does_not_fill_the_disk(mirror, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "MOST_BYTES", 1000)
    with pytest.raises(DownloadError, match="sends more than 1000 bytes"):
        fetch(published(mirror, "right"), tmp_path)
    assert whole_or_absent(tmp_path) == []


def test_two_processes_that_start_together_download_once(mirror, tmp_path):
    context = multiprocessing.get_context("fork")
    file, results = published(mirror, "slow"), context.Queue()
    workers = [context.Process(target=lambda: results.put(fetch(file, tmp_path).read_bytes() == PACKED), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in workers] == [True, True]
    for worker in workers:
        worker.join(timeout=20)
    assert Mirror.requests == ["/slow"]


def test_a_folder_that_cannot_be_written_is_named(mirror, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(DownloadError, match=r"(?s)data\.gz is not in .*it cannot be written: .*No space left on device"):
        fetch(published(mirror, "right"), tmp_path)
    assert whole_or_absent(tmp_path) == []
    if os.geteuid() != 0:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(DownloadError, match="Permission denied"):
            fetch(published(mirror, "right"), tmp_path / "new")
