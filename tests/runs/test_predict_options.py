"""Options of predictions: the probability of each class, and a column that names the row. No file is replaced silently."""

import csv

import numpy as np
import pytest
import torch

from vat.runs import predicting
from vat.runs.records import load_network


@pytest.fixture
def trained(job, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    lines = ["a,b,c,y", *(f"{r[0]},{r[1]},{r[2]},{['red', 'green', 'blue'][k]}" for r, k in zip(x, y, strict=True))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    return job("data=arrays", f"data.train={tmp_path / 'train.csv'}", "data.label=y", "model=mlp", "model.hidden=[4]")


@pytest.fixture
def new(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("patient,c,a,b\nAnn,1,2,3\nBob,4,5,6\nCid,-1,0,2\n")
    return path


def read(path):
    return list(csv.DictReader(path.open()))


def test_probabilities_of_all_classes_and_a_column_of_the_file(trained, new, tmp_path):
    output = tmp_path / "out.csv"
    assert predicting.predict(trained.checkpoint, new, output, chances=True, name="patient", batch_size=2) == 3
    rows = read(output)
    assert list(rows[0]) == ["example", "patient", "prediction", "confidence", "p(blue)", "p(green)", "p(red)"]
    assert [row["patient"] for row in rows] == ["Ann", "Bob", "Cid"]
    saved = torch.load(trained.checkpoint, weights_only=True)["record"]["preparation"]
    x = torch.tensor([[2.0, 3, 1], [5, 6, 4], [0, 2, -1]], dtype=torch.float64)
    x = ((x - torch.tensor(saved["mean"])) / torch.tensor(saved["std"])).float()
    expected = load_network(trained.checkpoint)(x).softmax(1)
    for row, p in zip(rows, expected, strict=True):
        assert [float(row[f"p({name})"]) for name in ("blue", "green", "red")] == pytest.approx(p.tolist(), abs=1e-5)
        assert row["prediction"] == ("blue", "green", "red")[int(p.argmax())]
        assert row["confidence"] == max(row[f"p({name})"] for name in ("blue", "green", "red"))


def test_without_options_the_columns_are_as_before(trained, new, tmp_path):
    predicting.predict(trained.checkpoint, new, tmp_path / "out.csv")
    assert list(read(tmp_path / "out.csv")[0]) == ["example", "prediction", "confidence"]


def test_a_file_is_replaced_only_if_told_so(trained, new, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    with pytest.raises(ValueError, match=r"out.csv exists\. Name another, or add overwrite=true"):
        predicting.predict(trained.checkpoint, new, output)
    assert output.read_text() == "precious"
    predicting.predict(trained.checkpoint, new, output, overwrite=True)
    assert len(read(output)) == 3


def test_what_identifies_a_row_is_copied_as_it_is_written(trained, tmp_path):
    ids = ["0", "0.0", "-5", "007", "", "-1", "a b", "1e3"]
    new = tmp_path / "new.csv"
    names = torch.load(trained.checkpoint, weights_only=True)["record"]["preparation"]["columns"]
    new.write_text("\n".join([",".join(["id", *names]), *(f"{name},1,2,3" for name in ids)]))
    predicting.predict(trained.checkpoint, new, tmp_path / "out.csv", name="id")
    assert [row["id"] for row in read(tmp_path / "out.csv")] == ids


def test_a_column_that_cannot_be_copied_is_refused(trained, new, tmp_path):
    with pytest.raises(ValueError, match="no column 'name'"):
        predicting.predict(trained.checkpoint, new, tmp_path / "out.csv", name="name")
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="id=patient: a column is copied from a CSV or Parquet file"):
        predicting.predict(trained.checkpoint, tmp_path / "new.npz", tmp_path / "out.csv", name="patient")
    with pytest.raises(ValueError, match="probabilities=yes: must be true or false"):
        predicting.predict(trained.checkpoint, new, tmp_path / "out.csv", chances="yes")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("shape", [(5, 3), (4, 6), (7,)])
def test_examples_of_any_shape_are_predicted_as_they_were_trained(job, tmp_path, shape):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(60, *shape)) * 10 + 3).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "train.npz", x=x[:40], y=y[:40])
    np.savez(tmp_path / "test.npz", x=x[40:], y=y[40:])
    files = (f"data.train={tmp_path / 'train.npz'}", f"data.test={tmp_path / 'test.npz'}")
    trained = job("data=arrays", *files, "data.label=y", "model=mlp", "model.hidden=[4]", "test=last")
    predicting.predict(trained.checkpoint, tmp_path / "test.npz", tmp_path / "out.csv")
    right = [int(row["prediction"]) == label for row, label in zip(read(tmp_path / "out.csv"), y[40:], strict=True)]
    assert np.mean(right) == pytest.approx(trained.metrics["test/accuracy"])


def test_a_column_that_was_constant_in_training_has_no_influence(job, tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{a},{b},2023,{'no' if k % 2 else 'yes'}" for k, (a, b) in enumerate(rng.normal(size=(60, 2)))]
    (tmp_path / "train.csv").write_text("\n".join(["a,b,year,y", *rows]))
    trained = job("data=arrays", f"data.train={tmp_path / 'train.csv'}", "data.label=y", "model=mlp", "model.hidden=[4]")
    found = []
    for year in (2023, 2024, 2123):
        new, output = tmp_path / f"{year}.csv", tmp_path / f"out{year}.csv"
        new.write_text("\n".join(["a,b,year", *(row.rsplit(",", 2)[0] + f",{year}" for row in rows)]))
        predicting.predict(trained.checkpoint, new, output, chances=True)
        found.append(output.read_text())
    assert found[0] == found[1] == found[2]
