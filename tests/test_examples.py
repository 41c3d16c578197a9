"""The examples run, and learn."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_beats_chance_by_far(path, capsys, monkeypatch, tmp_path):
    if "from transformers" in path.read_text():
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)  # whatever it writes
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    shares = [float(n) / 100 for n in re.findall(r"test error ([\d.]+) %", printed)]
    shares += [float(n) for n in re.findall(r"test/error\s*│\s*([\d.]+)", printed)]
    assert len(shares) == 1
    assert shares[0] < 0.3  # chance is 0.9
