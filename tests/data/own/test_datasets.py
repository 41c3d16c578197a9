import random
import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from vat.data.own.datasets import DatasetRows, Datasets

GENERATOR = torch.Generator().manual_seed(0)
CENTRES = 3 * torch.randn(3, 4, generator=GENERATOR)


def drawn(number):
    y = torch.arange(number) % 3
    return CENTRES[y] + torch.randn(number, 4, generator=GENERATOR), y


LABELED, UNLABELED, VALIDATION, TEST = (TensorDataset(*drawn(number)) for number in (30, 50, 12, 15))


pytestmark = pytest.mark.filterwarnings("ignore:no labelled example is")


class Inputs(Dataset):
    """Only the inputs of another Dataset, as arrays."""

    def __init__(self, of):
        self.of = of

    def __len__(self):
        return len(self.of)

    def __getitem__(self, number):
        return self.of[number][0].numpy()


class Items(Dataset):
    """The given items."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def ready(**options):
    data = Datasets(**({"labeled": LABELED, "batch_size_labeled": 4, "batch_size_unlabeled": 7} | options))
    data.setup()
    return data


def test_parts_that_are_given_stay_and_the_others_are_cut():
    data = ready(unlabeled=UNLABELED, validation=VALIDATION, test=TEST)
    parts = {"labeled": range(30), "unlabeled": range(80), "validation": range(80, 92), "test": range(92, 107)}
    assert {name: getattr(data.split, name).tolist() for name in parts} == {name: list(rows) for name, rows in parts.items()}
    for rows, dataset in ((slice(30), LABELED), (slice(30, 80), UNLABELED), (slice(80, 92), VALIDATION), (slice(92, 107), TEST)):
        assert torch.equal(data.x[rows], dataset.tensors[0])
        assert torch.equal(data.y[rows], torch.full((50,), -1) if dataset is UNLABELED else dataset.tensors[1])
    assert (data.class_names, data.input_shape, data.bounds) == (["0", "1", "2"], (4,), None)
    assert data.summary == (
        "107 examples: 30 labelled (0: 10, 1: 10, 2: 10), 50 without a label: 50 × in unlabeled; 12 given for validation; "
        "15 given for the test"
    )
    assert ready().split.sizes == {"labeled": 21, "unlabeled": 21, "validation": 3, "test": 6}
    assert ready(validation=VALIDATION).split.sizes == {"labeled": 24, "unlabeled": 24, "validation": 12, "test": 6}
    assert ready(test=TEST, num_labeled=6).split.sizes == {"labeled": 6, "unlabeled": 27, "validation": 3, "test": 15}


def test_labels_that_say_none_are_of_the_pool_and_kinds_of_items_are_alike():
    y = LABELED.tensors[1].clone()
    y[20:] = -1
    one = ready(labeled=TensorDataset(LABELED.tensors[0], y), unlabeled=Inputs(UNLABELED))
    numbers = [int(label) for label in y]
    other = ready(
        labeled=ConcatDataset([Items(*((x.double().numpy(), np.int64(k)) for x, k in zip(LABELED.tensors[0], numbers, strict=True)))]),
        unlabeled=Subset(UNLABELED, range(50)),
    )
    assert torch.equal(one.y, other.y)
    assert torch.equal(one.x, other.x)
    assert one.split.sizes == {"labeled": 14, "unlabeled": 74, "validation": 2, "test": 4}
    assert "60 without a label: 10 × -1, 50 × in unlabeled" in one.summary


def test_inputs_that_are_read_in_turn_give_the_batches_of_those_in_memory():
    images = torch.randint(256, (60, 3, 6, 6), dtype=torch.uint8, generator=GENERATOR)
    options = {"labeled": TensorDataset(images[:30], LABELED.tensors[1]), "unlabeled": TensorDataset(images[30:])}
    one, other = (ready(**options, resident_gib=gib, flip=True) for gib in (2, 0))
    assert isinstance(one.x, torch.Tensor)
    assert isinstance(other.x, DatasetRows)
    assert (one.split.digest, one.mean, one.std, one.unit) == (other.split.digest, other.mean, other.std, "pixels in [0, 1]")
    loaders = one.train_dataloader(), other.train_dataloader()
    for start in (0, 40):
        for loader in loaders:
            loader.load_state_dict({"micro_step": start})
        for _, a, b in zip(range(3), *loaders, strict=False):
            assert a.micro_step == b.micro_step
            assert torch.equal(a.labeled.x, b.labeled.x)
            assert torch.equal(a.labeled.y, b.labeled.y)
            assert torch.equal(a.unlabeled.x, b.unlabeled.x)
    for (x, y), (x2, y2) in zip(one.test_dataloader(), other.test_dataloader(), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Augmented(Inputs):
    def __getitem__(self, number):
        return self.of[number][0] + random.random(), self.of[number][1]


X = torch.zeros(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labeled": Stream()}, "labeled must be a map-style Dataset, with a length, got Stream"),
        ({"labeled": Items()}, "labeled is empty. Leave it out, or fill it"),
        ({"labeled": Augmented(LABELED)}, r"labeled\[0\] differs when it is read again. Remove random augmentation"),
        ({"labeled": Inputs(LABELED)}, r"labeled\[0\] must be \(x, y\), got ndarray"),
        ({"labeled": Items(("a", 1))}, r"labeled\[0\] must be \(x, y\) or x, where x is a tensor or an array of numbers, got str"),
        ({"labeled": Items({"x": X})}, "got dict"),
        ({"labeled": Items((X, 0), (X, 0.5))}, r"the label of labeled\[1\] must be a whole number from 0, or -1 for none, got 0\.5"),
        ({"labeled": Items((X, 0), (X, torch.eye(3)[0]))}, r"the label of labeled\[1\] must be .*, got tensor\(\[1., 0., 0.\]\)"),
        ({"labeled": Items((X, 0), (X, -2))}, "must be .*, got -2"),
        (
            {"labeled": Items((X, 0), (X[:2], 1))},
            r"labeled\[1\] must be .* of shape \(4,\) like labeled\[0\], got torch.float32 of shape \(2,\)",
        ),
        ({"labeled": Items((X, 0), (X + torch.nan, 1))}, r"labeled\[1\] has NaN or infinity. Repair or remove it"),
        ({"test": Items((X, -1))}, r"test\[0\] has no label. Remove this example"),
        ({"class_names": ["a", "b"]}, r"class_names must have a name for each label from 0 to 2, got \['a', 'b'\]"),
    ],
)
def test_data_sets_of_another_form_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("their_data")
    module.make_data = lambda size=30: {"labeled": Subset(LABELED, range(size)), "unlabeled": UNLABELED, "class_names": [*"abc"]}
    module.make_module = lambda seed=0: Datasets(labeled=LABELED, seed=seed, batch_size_labeled=4)
    module.make_list = lambda: [LABELED]
    module.make_other = lambda: {"unlabeled": UNLABELED}
    for name, made in vars(module).items():
        if callable(made):  # defined in that module, as a function of a user's file is
            made.__module__, made.__qualname__ = "their_data", name
    monkeypatch.setitem(sys.modules, "their_data", module)
    return module


SETTINGS = ("data=custom", "model=mlp", "model.hidden=[8]", "trainer.max_steps=6", "data.steps_per_epoch=3", "hydra.run.dir=run")


def test_a_users_function_is_trained_on_and_evaluated(main, tmp_path, package):
    from vat.runs import checkpoints

    main(*SETTINGS, "data._target_=their_data.make_data", "+data.size=24", "data.batch_size_labeled=4")
    record = checkpoints.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["record"]
    assert (record["class_names"], record["parts"]["unlabeled"]) == ([*"abc"], 67)
    evaluated = records_of_evaluation(tmp_path)
    assert evaluated.split.digest == record["split"]


def records_of_evaluation(folder):
    from vat.runs import checkpoints, records

    path = folder / "run" / "checkpoints" / "last.ckpt"
    data = records.data_of(checkpoints.read_checkpoint(path), path, allow_targets=["their_data"])
    data.setup()
    return data


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), r"data=custom needs data\._target_=my_package\.make_data, a function of yours that returns a dict of Datasets"),
        (("data._target_=their_data.make_list",), "make_list must return a dict of Datasets, with labeled .*, got list"),
        (("data._target_=their_data.make_other",), "make_other must return a dict with a Dataset as labeled, got unlabeled"),
        (("data._target_=their_data.nothing",), "their_data.nothing cannot be imported"),
        (
            ("data._target_=their_data.make_module", "data.steps_per_epoch=4"),
            "data.steps_per_epoch=4 has no effect: .*make_module takes no such argument",
        ),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(main, package, typed, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(*SETTINGS, *typed)
