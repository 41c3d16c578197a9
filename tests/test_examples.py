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
    assert error(capsys.readouterr().out) < 0.3  # chance is 0.9


def test_the_callback_serves_lightning_by_its_other_name(capsys, monkeypatch, tmp_path):
    (path,) = (example for example in EXAMPLES if example.stem == "your_lightning_module")
    other = tmp_path / path.name
    other.write_text(path.read_text().replace("import pytorch_lightning as pl", "import lightning.pytorch as pl"))
    monkeypatch.chdir(tmp_path)
    module = runpy.run_path(str(other), run_name="__main__")["YourModule"]
    assert module.__mro__[1].__module__.startswith("lightning.pytorch")
    assert error(capsys.readouterr().out) < 0.3


def error(printed):
    """The one test error that an example printed."""
    shares = [float(n) / 100 for n in re.findall(r"test error ([\d.]+) %", printed)]
    shares += [float(n) for n in re.findall(r"test/error\s*│\s*([\d.]+)", printed)]
    (share,) = shares
    return share
