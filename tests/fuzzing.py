"""Damaged files for every reader; `tests/conftest.py` has the fixture."""

import resource
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def spoilt(draw, good):
    """Damage good bytes in one to three places, most of them near the start, which has the headers."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, 255) | st.integers(0, len(good))) % (len(data) + 1)
        match draw(st.sampled_from(("write", "write", "insert", "delete", "cut", "repeat"))):
            case "write":
                new = draw(st.binary(min_size=1, max_size=4) | st.sampled_from((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")))
                data[position : position + len(new)] = new
            case "insert":
                data[position:position] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[position : position + draw(st.integers(1, 600))]
            case "cut":
                del data[position:]
            case "repeat":
                data[position:position] = data[position : position + draw(st.integers(1, 600))]
    return bytes(data)


@pytest.fixture(params=[150, pytest.param(10_000, marks=pytest.mark.long)])
def fuzz(request, record_property):
    """Give a reader hundreds of damaged copies of a good file. It must read each, or refuse it with an error that names the file.

    Each may take at most two seconds of processor time (the clock also measures how busy the machine is). All together may take at most
    512 MiB more memory than the process had.
    """

    def hung(*_):
        pytest.fail("the reader hangs")

    def run(read, good, path, kind):
        outcomes = []

        @settings(max_examples=request.param)
        @given(spoilt(good))
        def check(data):
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, 2)
            try:
                read(path)
                outcomes.append("read")
            except ValueError as error:
                refusal = str(error)
                assert str(path) in refusal
                outcomes.append("refused")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)

        path.write_bytes(good)
        read(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        handler = signal.signal(signal.SIGPROF, hung)
        try:
            check()
        finally:
            signal.signal(signal.SIGPROF, handler)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10  # KiB
        assert len(outcomes) >= request.param
        assert "refused" in outcomes
        record_property(f"spoilt files, {kind}", len(outcomes))

    return run
