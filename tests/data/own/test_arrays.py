import csv
import io
import json
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vat.data.files.tables import read_table
from vat.data.files.texts import read_texts
from vat.data.own.arrays import Arrays
from vat.data.own.images import Images
from vat.data.own.text import Texts

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{said}")
    for said in (
        ".* seems? to",
        "no labelled example is",
        ".*have the values of examples",
        ".*column names of mixed type",
    )
]

ROOT = Path(__file__).parents[3]
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(loc=3, scale=[1, 10, 0.1, 5], size=(60, 4))
Y = np.arange(60) % 3
HALF = np.where(np.arange(60) < 30, Y, -1)  # the second half has no labels
PATIENT = np.arange(60) // 5 % 6  # each has labelled and unlabelled rows


def written(path, **arrays):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def ready(path, **options):
    data = Arrays(train=str(path), **({"batch_size_labeled": 4, "batch_size_unlabeled": 8} | options))
    data.setup()
    return data


def header(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.npz"


# The parts


def test_parts_come_from_the_labelled_rows_and_the_pool_has_all_others(path):
    data = ready(written(path, x=X, y=HALF))
    parts = {"labeled": 21, "unlabeled": 51, "validation": 3, "test": 6}
    assert {name: len(getattr(data.split, name)) for name in parts} == parts
    for name in ("labeled", "validation", "test"):
        rows = getattr(data.split, name)
        assert (data.y[rows] >= 0).all()
        assert torch.bincount(data.y[rows]).tolist() == [len(rows) // 3] * 3
    assert torch.isin(torch.arange(30, 60), data.split.unlabeled).all()
    assert data.y.tolist() == HALF.tolist()
    assert data.class_names == ["0", "1", "2"]


def test_the_seed_moves_the_labels_and_the_split_seed_the_parts(path):
    written(path, x=X, y=HALF)
    settings = ({"split_seed": 0}, {"split_seed": 0, "seed": 1}, {"split_seed": 1}, {"seed": 1})
    one, other, moved, followed = (ready(path, num_labeled=6, **options) for options in settings)
    assert followed.split.digest == ready(path, num_labeled=6, seed=1, split_seed=1).split.digest  # so a spread over seeds includes splits
    for name in ("validation", "test"):
        assert torch.equal(getattr(one.split, name), getattr(other.split, name))
        assert not torch.equal(getattr(one.split, name), getattr(moved.split, name))
    assert not torch.equal(one.split.labeled, other.split.labeled)
    assert torch.bincount(one.y[one.split.labeled]).tolist() == [2, 2, 2]


def test_the_unlabelled_batch_is_dropped_only_where_nothing_is_unlabelled(path):
    assert next(iter(ready(written(path, x=X, y=HALF)).train_dataloader())).unlabeled is not None
    assert next(iter(ready(written(path, x=X, y=Y)).train_dataloader())).unlabeled is None
    assert next(iter(ready(path, num_labeled=9).train_dataloader())).unlabeled is not None


def test_no_patient_is_in_two_parts_and_unlabelled_rows_of_held_out_ones_are_in_no_part(path):
    data = ready(written(path, x=X, y=HALF, patient=np.array([f"p{k}" for k in PATIENT])), group="patient")
    sides = [set(PATIENT[rows.numpy()]) for rows in (data.split.unlabeled, data.split.validation, data.split.test)]
    assert [len(side) for side in sides] == [4, 1, 1]
    assert set.union(*sides) == set(range(6))
    assert set(data.split.unlabeled.tolist()) == {row for row in range(60) if PATIENT[row] in sides[0]}


def test_a_test_file_is_the_test_part_in_the_classes_and_scale_of_the_training_file(path, tmp_path):
    other = written(tmp_path / "test.npz", x=X[:12] * 2, y=np.array(["b", "c"] * 6))
    names = np.array([*"abc"])[Y]
    data = ready(written(path, x=X, y=np.where(HALF < 0, "", names)), test=str(other))
    assert data.class_names == ["a", "b", "c"]
    assert data.split.test.tolist() == list(range(60, 72))
    assert data.y[60:].tolist() == [1, 2] * 6
    assert [len(part) for part in (data.split.labeled, data.split.unlabeled, data.split.validation)] == [27, 57, 3]
    pool = X[data.split.unlabeled.numpy()]
    np.testing.assert_allclose(data.x[60:].numpy(), (X[:12] * 2 - pool.mean(0)) / pool.std(0), rtol=1e-5, atol=1e-5)


def test_a_class_with_no_label_to_train_on_is_named(path):
    written(path, x=X, y=HALF, class_names=np.array([*"abcd"]))
    with pytest.warns(
        UserWarning, match="is left to train on of d; in the validation part of d; in the test part of d. Label more, or choose another"
    ):
        assert ready(path).num_classes == 4


# Inputs


def test_features_are_standardised_one_by_one_over_the_pool(path):
    x = np.column_stack([X, np.full(60, 0.1)])
    data = ready(written(path, x=x, y=HALF))
    pool = x[data.split.unlabeled.numpy()]
    np.testing.assert_allclose(data.x[:, :4].numpy(), ((x - pool.mean(0)) / pool.std(0))[:, :4], rtol=1e-4, atol=1e-5)
    assert data.x[:, 4].abs().max() < 1e-6  # a constant, only shifted
    assert (data.x.dtype, data.mean, data.unit) == (torch.float32, None, "standard deviations of each feature")


def test_numbers_that_float32_cannot_tell_apart_are_standardised_first(path, tmp_path):
    seconds = 1.7e9 + np.arange(60.0)
    x = np.column_stack([seconds, X[:, 0]])
    new = {"x": x[:9].astype(np.float32), "y": Y[:9]}  # of another type
    data = ready(written(path, x=x, y=HALF), test=str(written(tmp_path / "test.npz", **new)))
    pool = seconds[data.split.unlabeled.numpy()]
    np.testing.assert_allclose(data.x[:60, 0].numpy(), (seconds - pool.mean()) / pool.std(), rtol=1e-5, atol=1e-6)
    assert data.x.dtype == torch.float32


def test_copies_of_training_examples_among_those_held_out_are_counted(path, tmp_path):
    test = written(tmp_path / "test.npz", x=np.concatenate([X[HALF < 0][:5], X[:4] + 1]), y=Y[:9])  # five of the pool without labels
    with pytest.warns(UserWarning, match=r"^5 of 9 test examples have the values of examples to train on"):
        ready(written(path, x=X, y=HALF), test=str(test))
    twice = np.concatenate([X, X])
    with pytest.warns(UserWarning, match=r"validation examples and \d+ of 24 test examples have the values") as said:
        data = ready(written(path, x=twice, y=np.concatenate([Y, Y])))
    pool = {row.tobytes() for row in data.x[data.split.unlabeled].numpy()}
    expected = sum(row.tobytes() in pool for row in data.x[data.split.test].numpy())
    assert f"and {expected} of 24" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(written(path, x=twice, y=np.concatenate([Y, Y]), g=np.tile(np.arange(60), 2)), group="g")


def test_features_stay_as_they_are_when_told_so(path):
    data = ready(written(path, x=X, y=HALF), standardize=False)
    assert torch.equal(data.x, torch.from_numpy(X).float())
    assert (data.mean, data.unit) == (None, "units of the data file")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, ">f8", bool])
def test_numbers_of_any_type_become_features(path, dtype):
    x = (np.arange(240).reshape(60, 4) % 7).astype(dtype)
    data = ready(written(path, x=np.asfortranarray(x), y=HALF), standardize=False)
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == x.astype(float).tolist()


@pytest.mark.parametrize(
    ("shape", "axes", "found"),
    [
        ((60, 8, 6), None, (1, 8, 6)),
        ((60, 3, 8, 6), None, (3, 8, 6)),
        ((60, 8, 6, 3), (0, 3, 1, 2), (3, 8, 6)),
        ((60, 8, 6, 1), (0, 3, 1, 2), (1, 8, 6)),
    ],
)
def test_bytes_are_images_whose_channels_the_network_normalises(path, shape, axes, found):
    x = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    data = ready(written(path, x=x, y=HALF))
    assert (data.x.dtype, data.input_shape, data.unit) == (torch.uint8, found, "pixels in [0, 1]")
    assert np.array_equal(data.x.numpy(), (x.transpose(axes) if axes else x).reshape(60, *found))
    pool = data.x[data.split.unlabeled].double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pool.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std).double(), pool.std((0, 2, 3), correction=0))
    assert ready(path, standardize=False).mean is None


@pytest.mark.filterwarnings("ignore:.*images are floats")
def test_floating_point_images_keep_their_units(path):
    x = np.random.default_rng(0).normal(100, 20, size=(60, 8, 6, 3))
    data = ready(written(path, x=x, y=HALF))
    np.testing.assert_array_equal(data.x.numpy(), x.transpose(0, 3, 1, 2).astype(np.float32))
    assert data.mean == pytest.approx([100] * 3, abs=2)
    assert data.std == pytest.approx([20] * 3, abs=2)
    assert data.unit == "units of the data file"


# Labels


@pytest.mark.parametrize(
    ("y", "class_names", "expected", "names"),
    [
        (np.array([3, 11, -1] * 20), None, [0, 1, -1], ["3", "11"]),
        (np.array([True, False, True] * 20), None, [1, 0, 1], ["0", "1"]),
        (np.array(["dog", "cat", ""] * 20), None, [1, 0, -1], ["cat", "dog"]),
        (np.array(["10", "9", ""] * 20), None, [1, 0, -1], ["9", "10"]),
        (np.array([3.0, 11.0, np.nan] * 20), None, [0, 1, -1], ["3", "11"]),
        (np.array([2, 0, -1] * 20), ["low", "middle", "high"], [2, 0, -1], ["low", "middle", "high"]),
        (np.array([1, 0, np.nan] * 20, dtype=np.float16), ["low", "high"], [1, 0, -1], ["low", "high"]),
        (np.array(["low", "high", ""] * 20), ["low", "high"], [0, 1, -1], ["low", "high"]),
        (np.array([0, 1, -1] * 20, dtype=np.int8), ["7", "3"], [0, 1, -1], ["7", "3"]),
        (np.array(["7", "3", ""] * 20), ["7", "3"], [0, 1, -1], ["7", "3"]),
    ],
)
@pytest.mark.filterwarnings("ignore:no labelled example is")
def test_classes_are_the_labels_there_are_or_those_named(path, y, class_names, expected, names):
    data = ready(written(path, x=X, y=y, **({} if class_names is None else {"class_names": np.array(class_names)})))
    assert data.y.tolist() == expected * 20
    assert data.class_names == names
    assert data.num_classes == len(names)


def test_a_class_that_may_say_that_the_label_is_missing_is_kept_with_a_warning(path):
    written(path, x=X, y=np.array(["gravel", "None", "?"] * 20))
    with pytest.warns(
        UserWarning, match=r"a\.npz: \?, None is a class of that name. If the examples have no label, leave it empty, or write -1"
    ):
        assert ready(path).class_names == ["?", "None", "gravel"]


@pytest.mark.parametrize(
    ("y", "stand_in"),
    [
        (np.where(Y == 2, -1, Y).astype(np.uint8), "255"),
        (np.where(Y == 2, -1, Y).astype(np.uint64), "18446744073709551615"),
        (np.where(Y == 2, 999, Y), "999"),
        (np.where(Y == 2, 255, 254 + Y), None),  # the other class is 254
        (np.where(Y == 2, 7, Y), None),
    ],
)
def test_a_number_that_may_stand_for_no_label_is_named(path, y, stand_in):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ready(written(path, x=X, y=y))
    said = [str(warning.message) for warning in found if "is a class of that name" in str(warning.message)]
    assert [text.partition(": ")[2].partition(" ")[0] for text in said] == [stand_in] * (stand_in is not None)


@pytest.mark.parametrize(
    ("text", "said"), [("", "is empty. Name a file or a folder"), (" ", "is empty"), ("https://a.org/b.csv", "is an address. Download it")]
)
@pytest.mark.parametrize("make", [Arrays, Texts, Images])
def test_what_names_no_file_is_refused(path, text, said, make):
    key = "dir" if make is Images else "train"
    with pytest.raises(ValueError, match=rf"data\.{key}=.* {said}"):
        make(**{key: text})
    with pytest.raises(ValueError, match=rf"data\.test=.* {said}"):
        make(**{key: str(path), "test": text})


def test_the_label_is_no_group(path):
    with pytest.raises(ValueError, match=r"data\.group=y: must not be data\.label too"):
        ready(written(path, x=X, y=Y), group="y")


def test_groups_that_look_alike_are_named(path):
    written(path, x=X, y=Y, g=np.array([f"{'pP'[k % 2]}{k // 2}" for k in range(60)]))
    with pytest.warns(UserWarning, match=r"'P0', 'p0' are 2 groups. If they are one, give them one name"):
        ready(path, group="g")


def test_another_array_may_hold_the_labels(path):
    assert ready(written(path, x=X, target=HALF), label="target").y.tolist() == HALF.tolist()


# Refusals


NAN, INF = X.copy(), X.copy()
NAN[7, 1], NAN[9, 0], INF[3, 3] = np.nan, np.nan, 1e300


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": X}, {}, "it has no array 'y' but x"),
        ({"y": Y}, {}, "it has no array 'x' but y"),
        ({"x": X, "y": Y}, {"group": "patient"}, "it has no array 'patient' but x, y"),
        ({"x": X, "y": Y[:-1]}, {}, r"its arrays must have the same length, got \{'x': 60, 'y': 59\}"),
        ({"x": X, "y": Y, "g": Y[1:]}, {"group": "g"}, r"the same length, got \{'x': 60, 'y': 60, 'g': 59\}"),
        ({"x": NAN, "y": Y}, {}, "row 7 is the first of 2 with a feature that is NaN, infinite or beyond float32"),
        ({"x": INF, "y": Y}, {}, "row 3 is the first of 1"),
        ({"x": X[:, 0], "y": Y}, {}, r"x must hold examples with features, \(N, ...\), got shape \(60,\)"),
        ({"x": np.float64(1), "y": Y}, {}, r"got shape \(\)"),
        ({"x": X[:0], "y": Y[:0]}, {}, r"got shape \(0, 4\)"),
        ({"x": X.astype(complex), "y": Y}, {}, "x must hold numbers, got complex128"),
        ({"x": X.astype(str), "y": Y}, {}, "x must hold numbers, got <U"),
        ({"x": X.astype(object), "y": Y}, {}, "x holds Python objects, which would have to be unpickled"),
        ({"x": X, "y": Y.astype(object)}, {}, "y holds Python objects"),
        ({"x": X, "y": Y + 0.5}, {}, r"y must be a vector of whole numbers or strings, got 0\.5"),
        ({"x": X, "y": np.where(Y == 1, np.inf, Y)}, {}, "of whole numbers or strings, got inf"),
        ({"x": X, "y": Y[:, None]}, {}, r"got int64 of shape \(60, 1\)\. Save y\.ravel\(\)"),
        ({"x": X, "y": np.eye(3)[Y]}, {}, r"got float64 of shape \(60, 3\)\. Save y\.argmax\(1\)"),
        ({"x": X, "y": np.ones((60, 3))}, {}, r"got float64 of shape \(60, 3\)$"),
        ({"x": X, "y": Y - 5}, {}, "y must be >= 0, or -1 if it is not known, got -5"),
        ({"x": X, "y": Y, "g": np.where(Y == 1, "", "p")}, {"group": "g"}, "row 1 is of no group. g must be known in every row"),
        (
            {"x": X, "y": Y, "class_names": np.array(["a", "b"])},
            {},
            r"class_names must have a name for each y from 0 to 2, got \['a', 'b'\]",
        ),
        ({"x": X, "y": Y, "class_names": np.array(["a", "b", "a"])}, {}, "class_names must be distinct and not empty"),
        (
            {"x": X, "y": np.array(["a", "b", "Unlabelled"] * 20)},
            {},
            "Unlabelled would be a class of that name. If the examples have no label",
        ),
        (
            {"x": X, "y": np.array(["0", "1", "NA"] * 20)},
            {},
            "NA would be a class of that name. If the examples have no label, leave it empty, or write -1",
        ),
        ({"x": X, "y": np.array(["0.5", "1.5", "Null"] * 20)}, {}, "Null would be a class of that name"),
        ({"x": X, "y": np.array([*"ac"] * 30), "class_names": np.array(["a", "b"])}, {}, "row 1 has the label 'c'. The classes are a, b"),
        ({"x": np.zeros((60, 3, 8, 3)), "y": Y}, {}, r"x must be images of 1 to 4 channels, .*, got shape \(60, 3, 8, 3\)"),
        ({"x": np.zeros((60, 8, 8, 8), np.uint8), "y": Y}, {}, r"x must be images .*, got shape \(60, 8, 8, 8\)"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(path, arrays, options, message):
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        ready(written(path, **arrays), **options)


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (np.full(60, -1), {}, "labelled examples must be of at least two classes, got 0 examples of 0"),
        (np.zeros(60, int), {}, "of at least two classes, got 60 examples of 1"),
        (np.where(np.arange(60) < 2, Y, -1), {}, r"2 labelled examples are too few to hold out 1 \+ 1"),
        (
            HALF,
            {"num_labeled": 22},
            "num_labeled must be from 1 to 21, .* got 22. Of 30 labelled examples, 3 are for validation and 6 for the test",
        ),
        (HALF, {"group": "two"}, "3 parts need at least as many groups, got 2"),
    ],
)
def test_labels_that_do_not_suffice_are_refused(path, y, options, message):
    with pytest.raises(ValueError, match=message):
        ready(written(path, x=X, y=y, two=Y // 2), **options)


def test_a_minus_one_that_may_be_a_class_is_counted_and_named(path):
    signs = np.arange(60) % 2 * 2 - 1
    with pytest.raises(ValueError, match=r"of at least two classes, got 30 examples of 1. -1 means that there is no label, in 30 × -1. If"):
        ready(written(path, x=X, y=signs))
    data = ready(written(path, x=X, y=Y - 1))
    assert data.summary == "60 examples: 40 labelled (0: 20, 1: 20), 20 without a label: 20 × -1"
    mixed = np.array(["a", "b", "", " ", "-1", "nan"] * 10)
    assert ready(written(path, x=X, y=mixed)).summary.endswith("40 without a label: 20 × empty, 10 × -1, 10 × NaN")


def test_classes_that_look_alike_are_named_and_forms_of_a_letter_are_one(path, tmp_path):
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    data = ready(written(path, x=X, y=np.array([nfc, nfd, "tea"] * 20)), test=str(written(tmp_path / "test.npz", x=X + 1, y=[nfd] * 60)))
    assert (data.class_names, data.y[:6].tolist()) == ([nfc, "tea"], [0, 0, 1] * 2)
    with pytest.warns(UserWarning, match="'Tea', 'tea' are 2 classes. If they are one, give them one name"):
        ready(written(path, x=X, y=np.array(["Tea", "tea"] * 30)))


# Few labels


def test_one_label_a_class_is_kept_to_train_on(path, tmp_path):
    few = np.where(np.arange(60) < 3, Y, -1)
    test = str(written(tmp_path / "test.npz", x=X + 1, y=Y))
    with pytest.raises(ValueError, match=r"3 labelled examples of 3 classes are too few .* train without .* by data\.validation_share=0"):
        ready(written(path, x=X, y=few), test=test)
    with pytest.warns(UserWarning, match="validation_share=0: no example is held out for validation. So nothing measures the progress"):
        data = ready(path, test=test, validation_share=0, test_share=1.5)  # which has no effect
    assert data.split.sizes == {"labeled": 3, "unlabeled": 60, "validation": 0, "test": 60}
    assert data.val_dataloader() == []
    rare = np.where(np.arange(60) == 59, 3, np.where(np.arange(60) < 57, Y, -1))  # a class of one example
    for seed in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = ready(written(path, x=X, y=rare), test=test, split_seed=seed)
        assert 59 in data.split.labeled
        assert len(data.split.validation) == 6


@pytest.mark.filterwarnings("ignore:validation_share=0")
def test_a_run_without_validation_resumes_to_the_same_weights(main, path, monkeypatch):
    from vat.lightning.classifier import Classifier

    written(path, x=X, y=HALF)
    settings = ("data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[8]", "data.validation_share=0", "data.steps_per_epoch=3")
    settings += ("trainer.max_steps=9", "data.batch_size_labeled=4", "data.batch_size_unlabeled=8")
    with pytest.raises(SystemExit, match=r"test=best needs a validation part to choose a checkpoint, and there is none\. Use test=last"):
        main(*settings, "test=best")
    main(*settings, "hydra.run.dir=whole")
    whole_step = Classifier.training_step

    def dies(self, batch, batch_idx):
        if batch.micro_step == 7:
            raise OSError("killed")
        return whole_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", dies)
        with pytest.raises(SystemExit, match="killed"):
            main(*settings, "hydra.run.dir=killed")
    last = Path("killed/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 6
    main(*settings, "hydra.run.dir=killed", f"ckpt_path={last}")
    one, other = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("whole", "killed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor))


@pytest.mark.filterwarnings("ignore:validation_share=0")
def test_a_sweep_without_validation_runs_and_does_not_rank(main, path, capsys, monkeypatch):
    from vat.runs import report

    monkeypatch.setattr(report.console, "quiet", False)
    written(path, x=X, y=HALF)
    settings = ("-m", "data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[8]", "data.validation_share=0", "seed=0,1")
    for _ in range(2):  # the second time nothing is trained again
        main(*settings)
        said = " ".join(capsys.readouterr().out.split())
        assert "2 of 2 jobs have no validation part, so validation cannot rank them" in said
        assert "by validation error" not in said
    (summary,) = Path("multirun").glob("*/summary.csv")
    (row,) = csv.DictReader(summary.open())
    assert (row["jobs"], row["done"], row["val_error_percent_mean"]) == ("2", "2", "")
    tested = [json.loads(metrics.read_text())["test/accuracy"] for metrics in Path("multirun").glob("*/metrics.json")]
    assert float(row["test_error_percent_mean"]) == pytest.approx(100 - 50 * sum(tested))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X[:9], "y": np.array([0, 1, -1] * 3)}, r"test\.npz: test examples must be labelled. row 2 is not"),
        ({"x": X[:9], "y": Y[:9] + 1}, r"test\.npz: row 2 has the label '3'. The classes are 0, 1, 2"),
        ({"x": X[:9, :3], "y": Y[:9]}, r"like those of .*a\.npz, numbers of shape \(4,\), got numbers of shape \(3,\)"),
        (
            {"x": X[:9], "y": Y[:9], "class_names": np.array([*"abc"])},
            r"must have the class_names of .*, \['0', '1', '2'\], got \['a', 'b', 'c'\]",
        ),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused(path, tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        ready(written(path, x=X, y=Y), test=str(written(tmp_path / "test.npz", **arrays)))


def test_the_file_to_train_on_is_not_tested_on(path):
    with pytest.raises(ValueError, match=r"data\.test=.* is data\.train too"):
        ready(written(path, x=X, y=Y), test=str(path))


def test_a_patient_in_both_files_is_refused(path, tmp_path):
    other = written(tmp_path / "test.npz", x=X, y=Y, patient=PATIENT + 5)
    with pytest.raises(ValueError, match=r"test\.npz and .*a\.npz both have examples of patient 5. Keep it in one of them"):
        ready(written(path, x=X, y=Y, patient=PATIENT), test=str(other), group="patient")
    other = written(tmp_path / "test.npz", x=X, y=Y, patient=PATIENT + 6)
    assert len(ready(path, test=str(other), group="patient").split.test) == 60


def test_no_file_and_an_unknown_kind_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: there is no such file"):
        ready(tmp_path / "nowhere.npz")
    (tmp_path / "a.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pkl: its name must end in \.npz, \.csv, \.parquet"):
        ready(tmp_path / "a.pkl")


# Hostile files


def test_a_truncated_file_is_refused(path):
    content = written(path, x=X, y=Y).read_bytes()
    for length in (0, 10, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.npz cannot be used: "):
            ready(path)


def test_an_array_larger_than_its_bytes_is_refused_before_it_is_allocated(path):
    for shape in ((2**40, 2**20), (10**6, 4), (-1, 4), (2**62, 2**62)):
        zipped(path, x=header(shape) + bytes(100), y=header((1,)) + bytes(8))
        with pytest.raises(ValueError, match=r"a\.npz cannot be used: x claims the shape"):
            ready(path)


def test_a_size_that_the_compressed_bytes_cannot_hold_is_refused(path):
    claim = header((2**30, 2**10))
    content = bytearray(zipped(path, zipfile.ZIP_DEFLATED, x=claim, y=claim).read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x claims 4294967294 bytes, which \d+ compressed bytes cannot hold"):
        ready(path)


def test_an_array_beyond_memory_is_refused(path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 30)
    with pytest.raises(ValueError, match="x needs 2048 bytes, but this machine has a memory of 900"):
        ready(written(path, x=X, y=Y))


def test_a_header_for_structured_types_is_refused(path):
    array = io.BytesIO()
    np.lib.format.write_array(array, X, version=(3, 0))
    zipped(path, zipfile.ZIP_STORED, x=array.getvalue(), y=header((1,)) + bytes(8))
    with pytest.raises(ValueError, match=r"x has the format \(3, 0\), which is for structured types"):
        ready(path)


def test_inputs_alone_are_read_where_no_label_is_asked_for(path):
    table = read_table(written(path, x=X), label=None, group=None)
    np.testing.assert_array_equal(table.x, X)
    assert set(table.labels) == {""}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(path, method):
    zipped(path, method, x=header((1,)) + bytes(8), y=header((1,)) + bytes(8))
    with pytest.raises(ValueError, match=r"x is compressed in a way that np\.savez does not know"):
        ready(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("y", [HALF, np.array(["a", "b", ""] * 20)], ids=["numbers", "names"])
def test_a_spoilt_file_is_read_or_refused_by_name(fuzz, path, save, y):
    save(path, x=X[:6], y=y[:6])
    fuzz(lambda path: read_table(path, label="y", group=None), path.read_bytes(), path, ".npz")


# CSV and Parquet


CSV = """age,weight,species,owner
1,2.5,cat,ann
2,3.5,dog,bob
3,4.5,,cid
4,5.5,None,dan
"""


def test_parquet_takes_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_text(CSV)
    with pytest.raises(ValueError, match=r"it needs pyarrow. Run: pip install pyarrow"):
        read_table(tmp_path / "a.parquet", label="species", group=None)


def test_a_csv_file_holds_labels_groups_and_features(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    table = read_table(tmp_path / "a.csv", label="species", group="owner")
    assert table.x.tolist() == [[1, 2.5], [2, 3.5], [3, 4.5], [4, 5.5]]
    assert table.labels == ["cat", "dog", "", "None"]  # a class may be called so
    assert (table.groups, table.columns) == (["ann", "bob", "cid", "dan"], ["age", "weight"])


def test_a_parquet_file_holds_the_same(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"age": [1, 2, 3], "y": pd.array([1, None, 0], dtype="Int64"), "weight": [1.5, 2.5, 3.5]})
    frame.to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", label="y", group=None)
    assert table.x.tolist() == [[1, 1.5], [2, 2.5], [3, 3.5]]
    assert table.labels == ["1", "", "0"]
    frame.drop(columns="age").assign(y=[True, None, False]).to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", label="y", group=None)
    assert table.labels == ["True", "", "False"]
    assert table.x.flags.writeable  # or torch warns


def test_columns_that_pandas_keeps_as_an_index_are_columns_still(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"age": [1, 2, 3], "owner": ["ann", "bob", "cid"], "y": ["p", "q", "p"], "weight": [1.5, 2.5, 3.5]})
    for index in (["age"], ["owner", "age"], ["y"]):
        frame.set_index(index).to_parquet(tmp_path / "a.parquet")
        table = read_table(tmp_path / "a.parquet", label="y", group="owner", features=["age", "weight"])
        assert table.x.tolist() == [[1, 1.5], [2, 2.5], [3, 3.5]]
        assert (table.labels, table.groups) == (["p", "q", "p"], ["ann", "bob", "cid"])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["0", "-1", "1"], ["0", "", "1"]), (["0.0", "", "2.0"], ["0", "", "2"]), (["nan", "a", " b"], ["", "a", "b"])],
)
def test_labels_of_a_csv_file_are_known_however_pandas_wrote_them(tmp_path, labels, expected):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"1,{label}\n" for label in labels))
    assert read_table(tmp_path / "a.csv", label="y", group=None).labels == expected


def test_blanks_after_the_commas_are_no_part_of_names_and_labels(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text('age, "weight, kg", y, owner\n7, 2.5, "cat, tabby", ann\n9, 3.5, , bob\n')
    table = read_table(tmp_path / "a.csv", label="y", group="owner")
    assert (table.x.tolist(), table.columns) == ([[7, 2.5], [9, 3.5]], ["age", "weight, kg"])
    assert (table.labels, table.groups) == (["cat, tabby", ""], ["ann", "bob"])


def test_what_was_measured_is_no_label(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text("x,y\n1,2.0\n2,0.37\n3,-1\n")
    with pytest.raises(
        ValueError, match=r"a\.csv cannot be used: y must hold whole numbers or names as classes, not measurements, got 0\.37"
    ):
        read_table(tmp_path / "a.csv", label="y", group=None)
    (tmp_path / "a.csv").write_text("x,y\n1,2.5\n2,unsure\n")
    assert read_table(tmp_path / "a.csv", label="y", group=None).labels == ["2.5", "unsure"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("4.5", "heavy"), r"column 'weight' is not numeric \(.*\)\. Encode it as numbers, or remove it"),
        (CSV.replace("4.5", ""), "column 'weight' has missing values, the first in line 4. Fill them"),
        (CSV.replace("4.5", "inf"), "line 4 is the first of 1 with a feature that is NaN, infinite"),
        (CSV.replace("species", "kind"), "it has no column 'species' but 'age', 'weight', 'kind', 'owner'"),
        (CSV.replace("age", ""), "it has a column without a name"),
        (CSV.replace("weight", "species"), "it has two columns called 'species': rename or remove one"),
        (CSV.replace("ann", ""), "line 2 is of no group. owner must be known in every row"),
        (CSV + "5,6.5,cat,eve,more\n", "cannot be used"),
        ("species,owner\ncat,ann\n", "it has no feature: .species., .owner. are named by"),
        (CSV.splitlines()[0] + "\n", "it has no rows"),
        (CSV.replace(",", ";"), "its fields are separated by ';'. Save it with commas"),
        (CSV.replace(",", ";").replace(".", ","), "by ';'. Save it with commas as separators, and with decimal points"),
        (CSV.replace(",", "\t"), "its fields are separated by '.t'. Save it with commas"),
        (CSV.replace(",", "|"), r"its fields are separated by '\|'\. Save it with commas"),
        ("", "cannot be used"),
        ("\0\xff", "cannot be used"),
    ],
)
def test_a_csv_file_of_another_form_is_refused_by_name(tmp_path, text, message):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.csv cannot be used: .*{message.removeprefix('cannot be used')}"):
        read_table(tmp_path / "a.csv", label="species", group="owner")


def test_a_csv_file_in_another_encoding_is_refused_with_the_way_out(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_bytes(CSV.replace("cat", "kätzchen").encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv cannot be used: .*\. Save it as UTF-8"):
        read_table(tmp_path / "a.csv", label="species", group="owner")


def test_the_columns_of_a_test_file_come_in_their_own_order_and_others_are_no_features(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=[*"abcd"]).assign(y=Y)
    frame.to_csv(tmp_path / "train.csv", index=False)
    frame[["d", "y", "b", "a", "c"]].assign(e="a word").to_csv(tmp_path / "test.csv", index=False)
    data = ready(tmp_path / "train.csv", test=str(tmp_path / "test.csv"))
    assert torch.equal(data.x[:60], data.x[60:])
    frame.drop(columns="c").assign(e=1).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(ValueError, match=r"test.csv cannot be used: it has no column 'c' but .*; it is a feature in training"):
        ready(tmp_path / "train.csv", test=str(tmp_path / "test.csv"))


def test_a_spoilt_csv_file_is_read_or_refused_by_name(fuzz, tmp_path):
    pytest.importorskip("pandas")
    fuzz(lambda path: read_table(path, label="species", group="owner"), CSV.encode(), tmp_path / "a.csv", "CSV")


def test_a_spoilt_parquet_file_is_read_or_refused_by_name(fuzz, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pd.DataFrame({"a": [1, 2, 3], "y": ["p", "q", None]}).to_parquet(tmp_path / "a.parquet")
    good = (tmp_path / "a.parquet").read_bytes()
    fuzz(lambda path: read_table(path, label="y", group=None), good, tmp_path / "a.parquet", "Parquet")


# A run


def test_a_run_from_the_command_line_keeps_the_class_names(main, tmp_path, path):
    from vat.runs import checkpoints

    written(path, x=X, y=np.array(["dog", "cat", ""] * 20))
    main("data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[8]", "trainer=debug", "hydra.run.dir=run")
    record = checkpoints.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["record"]
    assert (record["class_names"], record["unit"]) == (["cat", "dog"], "standard deviations of each feature")


@pytest.mark.long  # a separate process; the test above runs the same in this one
def test_the_command_that_a_user_types_ends_well(shell, path):
    written(path, x=X, y=HALF)
    command = ("data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[8]", "trainer=debug", "logger=none")
    result = shell(ROOT / "src" / "train.py", *command)
    assert result.returncode == 0, result.stderr
    assert "standard deviations of each feature" in result.stdout


def test_a_parquet_file_whose_columns_are_numbers_is_read_with_and_without_labels(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 3)))
    frame.assign(**{"3": 1}).to_parquet(tmp_path / "train.parquet")
    frame.to_parquet(tmp_path / "new.parquet")
    known = read_table(tmp_path / "train.parquet", label="3", group=None)
    assert known.columns == ["0", "1", "2"]
    new = read_table(tmp_path / "new.parquet", label=None, group=None, features=known.columns)
    assert np.array_equal(new.x, known.x)


@pytest.mark.parametrize(("read", "columns"), [(read_table, {"label": "y", "group": None}), (read_texts, {"text": "text"})])
def test_a_device_or_a_pipe_is_no_data_file(read, columns, tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for path in (Path("/dev/zero"), pipe):
        with pytest.raises(ValueError, match=f"{path} is a device or a pipe. Name a regular file"):
            read(path, **columns)


def test_a_radius_far_below_what_fits_the_data_is_reported(main, path, capsys, monkeypatch):
    """2, as for images in [0, 1], on floats from 0 to 255."""
    from vat.runs import report

    monkeypatch.setattr(report.console, "quiet", False)
    written(path, x=(25 * GENERATOR.uniform(0, 10, size=(60, 64))).astype(np.float32), y=Y)
    settings = ("data=arrays", f"data.train={path}", "data.standardize=false", "model=mlp", "model.hidden=[8]", "test=none")
    for eps, told in {"2": True, "60": False}.items():
        main(*settings, f"vat.eps={eps}", f"hydra.run.dir=eps{eps}")
        assert ("hardly changes the training" in " ".join(capsys.readouterr().out.split())) == told


def test_labels_of_numbers_are_chosen_by_these_numbers(tmp_path):
    path = written(tmp_path / "a.npz", x=X, y=Y + 1)
    data = ready(path, labeled_classes=[1, 2], unlabeled_classes=[3])
    assert [data.class_names[c] for c in data.y[data.split.labeled].unique()] == ["1", "2"]
    assert [data.class_names[c] for c in data.y[data.split.unlabeled].unique()] == ["1", "2", "3"]
    with pytest.raises(ValueError, match=r"labeled_classes: there is no class 0\. The classes are 1, 2, 3"):
        ready(path, labeled_classes=[0, 1])
    with pytest.raises(ValueError, match="needs 18 examples of class 2, got"):
        ready(path, num_labeled=20, labeled_classes=[2, 3], imbalance=9.0)


def test_the_moments_of_the_training_replace_those_of_other_data(tmp_path):
    trained = ready(written(tmp_path / "a.npz", x=X, y=Y))
    other = Arrays(train=str(written(tmp_path / "b.npz", x=np.concatenate([100 * X, X]), y=np.tile(Y, 2))))
    other.given = trained.preparation
    other.setup()
    assert other.preparation == trained.preparation
    assert torch.equal(other.x[60:], trained.x)
    narrow = Arrays(train=str(written(tmp_path / "c.npz", x=X[:, :3], y=Y)))
    narrow.given = trained.preparation
    with pytest.raises(ValueError, match=r"must hold inputs of shape \(4,\), as in training, got \(3,\)"):
        narrow.setup()
