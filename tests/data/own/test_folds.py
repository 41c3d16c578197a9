"""`data.folds`: every labelled example outside the test part is validated once, and trained on by the runs of the other folds."""

import pytest
import torch

from vat.data.own.arrays import Arrays

Y = [0] * 12 + [1] * 9 + [2] + [-1] * 8


@pytest.fixture
def made(tmp_path):
    import numpy as np

    def make(fold=None, *, y=Y, groups=None, **options):
        path = tmp_path / "rows.npz"
        rng = np.random.default_rng(0)
        arrays = {"x": rng.normal(size=(len(y), 3)), "y": np.array(y)} | ({} if groups is None else {"g": np.array(groups)})
        np.savez(path, **arrays)
        data = Arrays(train=str(path), fold=fold, group=None if groups is None else "g", **{"folds": 4} | options)
        data.setup()
        return data

    return make


def rows(part):
    return set(part.tolist())


@pytest.mark.parametrize("groups", [None, [row // 2 for row in range(len(Y))]], ids=["rows", "groups"])
@pytest.mark.filterwarnings("ignore:no labelled example")
def test_folds_are_disjoint_and_share_the_test_part(made, groups):
    whole, parts = made(groups=groups).split, [made(fold, groups=groups).split for fold in range(4)]
    assert len(whole.validation) == 0
    held_out = [rows(split.validation) for split in parts]
    assert sum(map(len, held_out)) == len(set().union(*held_out))
    for split in parts:
        assert torch.equal(split.test, whole.test)
        assert rows(split.labeled) | rows(split.validation) == rows(whole.labeled)
        assert {Y[row] for row in rows(split.labeled)} == {0, 1, 2}
        if groups is not None:
            of = [{groups[row] for row in rows(part)} for part in (split.unlabeled, split.validation, split.test)]
            assert sum(map(len, of)) == len(set().union(*of))
    # The only example of class 2 and its group are always trained on.
    (only,) = [row for row, c in enumerate(Y) if c == 2]
    never = rows(whole.labeled) - set().union(*held_out)
    assert only in never
    assert never <= {row for row in range(len(Y)) if row == only or (groups is not None and groups[row] == groups[only])}


def test_folds_keep_the_classes_shares(made):
    y = [0] * 40 + [1] * 20
    for fold in range(4):
        validation = made(fold, y=y, test_share=0.2).split.validation
        assert torch.bincount(torch.tensor(y)[validation]).tolist() == [8, 4]


@pytest.mark.filterwarnings("ignore:no labelled example")
def test_folds_vary_with_the_seed(made):
    one, same, other = (made(0, seed=seed).split.validation for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 1}, "folds=1: must be >= 2"),
        ({"folds": 30}, "folds=30: must be at most the 18 labelled examples"),
        ({"folds": None, "fold": 0}, "fold=0: must be >= 0 and less than folds=None"),
        ({"fold": 4}, "fold=4: must be >= 0 and less than folds=4"),
    ],
)
def test_folds_that_cannot_be_are_refused(made, options, words):
    with pytest.raises(ValueError, match=words):
        made(**options)


@pytest.mark.filterwarnings("ignore:no labelled example")
def test_without_folds_the_parts_are_as_before(made):
    split = made(folds=None, seed=3).split
    assert (split.sizes["validation"], split.sizes["test"], split.sizes["labeled"]) == (2, 4, 16)
