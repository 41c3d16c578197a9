"""The examples are short, they run, and VAT makes their error smaller."""

import re
import runpy
from pathlib import Path

import pytest

from vat import Regularizer

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
MOST = {  # the error (or RMSE) with VAT, and its share of the error without
    "bare_loop": (0.2, 0.85),
    "graph_nodes": (0.2, 0.75),
    "huggingface_trainer": (0.08, 0.9),
    "regression": (0.3, 0.7),
    "segmentation": (0.08, 0.97),
    "sequence_tagging": (0.04, 0.7),
    "text_classification": (0.08, 0.6),
    "time_series": (0.03, 0.4),
    "your_lightning_module": (0.2, 1.1),  # with only 100 labelled rows VAT helps less, and with this seed not at all
}


def run(path, capsys):
    """The error that an example printed."""
    if "from transformers" in path.read_text(encoding="utf-8"):
        pytest.importorskip("transformers")
    capsys.readouterr()
    names = runpy.run_path(str(path), run_name="__main__")
    return error(capsys.readouterr().out), names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_its_error_is_smaller_than_without_vat(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # for the files that it writes
    found, _ = run(path, capsys)
    with monkeypatch.context() as patch:
        patch.setattr(Regularizer, "current_weight", 0.0)  # the same loop without its term
        without, _ = run(path, capsys)
    most, share = MOST[path.stem]
    assert found < most
    assert found < share * without, f"{found} with VAT, {without} without"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_page(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_callback_works_with_lightnings_other_name(capsys, monkeypatch, tmp_path):
    (path,) = (example for example in EXAMPLES if example.stem == "your_lightning_module")
    other = tmp_path / path.name
    other.write_text(path.read_text().replace("import pytorch_lightning as pl", "import lightning.pytorch as pl"))
    monkeypatch.chdir(tmp_path)
    found, names = run(other, capsys)
    assert names["YourModule"].__mro__[1].__module__.startswith("lightning.pytorch")
    assert found < 0.3


def error(printed):
    """The one test error that an example printed, or its RMSE."""
    found = [float(n) / 100 for n in re.findall(r"test error ([\d.]+) %", printed)]
    found += [float(n) for n in re.findall(r"test/error\s*│\s*([\d.]+)|test RMSE ([\d.]+)", printed) for n in n if n]
    (one,) = found
    return one
