"""The notebook runs from top to bottom, and its results show what its text says about VAT."""

import json
from pathlib import Path

from matplotlib.image import imread

CELLS = json.loads((Path(__file__).parents[1] / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_runs_and_vat_makes_its_error_smaller(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, code in enumerate(CODE):
        exec(compile(code, f"cell {number}", "exec"), names)
    errors = names["errors"]
    assert errors["with VAT"] < 0.03 < 0.06 < errors["without VAT"]
    picture = imread(tmp_path / "moons.png")
    assert picture.shape == (360, 900, 4)
    assert picture.std() > 0.1


def test_no_output_is_kept_in_the_file():
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in CELLS)
