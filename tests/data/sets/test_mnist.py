import gzip
import hashlib
import re
import struct
from pathlib import Path

import pytest
import torch
from official import digits, idx, write_mnist

from vat.data.files.download import DownloadError
from vat.data.files.idx import read_idx
from vat.data.sets import mnist
from vat.data.sets.mnist import MNIST


@pytest.fixture
def data_dir(tmp_path):
    write_mnist(tmp_path)
    return tmp_path


@pytest.fixture
def small(data_dir):
    def make(**options):
        data = MNIST(data_dir=str(data_dir), **{"num_labeled": 20, "num_validation": 40} | options)
        with pytest.warns(UserWarning, match=r"holds 200 \+ 50 examples of MNIST instead of the published 60000 \+ 10000"):
            data.setup()
        return data

    return make


# The format


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_idx_round_trip(tmp_path, pack, shape):
    values = torch.randint(256, (7, *shape), dtype=torch.uint8)
    path = tmp_path / "values"
    path.write_bytes(pack(idx(values)))
    assert torch.equal(read_idx(path, shape, most=7), values)
    digest = hashlib.sha256(idx(values)).hexdigest()
    assert torch.equal(read_idx(path, shape, most=7, digest=digest), values)
    other = hashlib.sha256(b"").hexdigest()
    assert torch.equal(read_idx(path, shape, most=8, digest=other), values)  # no published size, so no published content
    with pytest.raises(ValueError, match="values has the published size but other content"):
        read_idx(path, shape, most=7, digest=other)


GOOD = idx(torch.arange(3 * 28 * 28).view(3, 28, 28) % 256)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early: must have 16 more bytes, got 0"),
        (GOOD[:15], "ends too early: must have 16 more bytes, got 15"),
        (GOOD[:-1], "ends too early: must have 2352 more bytes, got 2351"),
        (GOOD + b"\0", "has more bytes after its last value"),
        (gzip.compress(GOOD)[:-9], "cannot be read"),
        (b"\0\0\x08\x01" + GOOD[4:], "is no idx file of bytes in 3 dimensions: its magic number must be 0x00000803, got 0x00000801"),
        (b"\0\0\x0d\x03" + GOOD[4:], "its magic number must be 0x00000803, got 0x00000d03"),
        (struct.pack(">4I", 0x803, 3, 28, 27) + GOOD[16:], r"of shape \(28, 28\), got 3 of shape \(28, 27\) in its header"),
        (struct.pack(">4I", 0x803, 0, 28, 28), "must hold 1 to 100 entries"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 28, 28) + GOOD[16:], "got 4294967295"),
    ],
)
def test_an_odd_idx_file_is_refused(tmp_path, data, message):
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} .*{message}"):
        read_idx(path, (28, 28), most=100)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_spoilt_idx_files_are_read_or_refused(tmp_path, fuzz, pack):
    good = pack(idx(torch.arange(200).view(10, 4, 5)))
    fuzz(lambda path: read_idx(path, (4, 5), most=50), good, tmp_path / "images", "idx")


# The data set


def test_the_parts_are_those_published(small):
    data, other = small(), small(seed=1)
    parts = {"labeled": 20, "unlabeled": 160, "validation": 40, "test": 50}
    assert {name: len(getattr(data.split, name)) for name in parts} == parts
    assert data.split.test.tolist() == list(range(200, 250))
    for name in ("unlabeled", "validation", "test"):
        assert torch.equal(getattr(data.split, name), getattr(other.split, name))  # fixed; the seed chooses labels alone
    assert not torch.equal(data.split.labeled, other.split.labeled)
    for rows, each in ((data.split.labeled, 2), (data.split.validation, 4), (data.split.unlabeled, 16)):
        assert torch.bincount(data.y[rows]).tolist() == [each] * 10
    assert data.split.digest == "56be5b047644ed66"  # results are compared under this name: never to change


def test_images_stay_bytes_and_come_out_in_the_unit_interval(small):
    data = small(translate=1)
    (train, _), (test, labels) = digits(200, 200), digits(50, 50)
    assert (data.x.dtype, data.x.shape, data.input_shape) == (torch.uint8, (250, 1, 28, 28), (1, 28, 28))
    assert torch.equal(data.x[:, 0], torch.cat([train, test]).byte())
    ((x, y),) = list(data.test_dataloader())
    assert torch.equal(x[:, 0], test.float() / 255)
    assert torch.equal(y, labels)
    batch = data.train_dataloader().batch(0)
    for x in (batch.labeled.x, batch.unlabeled.x, next(data.training_inputs())):
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0, 1)
    assert (data.mean, data.std, data.class_names) == (None, None, list("0123456789"))


def test_the_folder_is_given_or_named_by_the_environment_or_the_usual(monkeypatch, tmp_path):
    monkeypatch.delenv("VAT_DATA_DIR", raising=False)
    assert str(MNIST().data_dir) == ".data"
    monkeypatch.setenv("VAT_DATA_DIR", str(tmp_path))
    assert MNIST().data_dir == tmp_path
    assert str(MNIST(data_dir="here").data_dir) == "here"
    assert MNIST(data_dir="~/here").data_dir == Path.home() / "here"  # a shell leaves a tilde behind a sign of equality


def test_labels_that_do_not_fit_the_images_are_refused(data_dir):
    path = data_dir / "mnist/train-labels-idx1-ubyte"
    for labels, message in (
        (torch.arange(199) % 10, "one label for each of 200 images, got 199"),
        (torch.arange(200) % 11, "got 10 in row 10"),
    ):
        path.write_bytes(idx(labels))
        with pytest.raises(ValueError, match=f"{path} .*{message}"):
            MNIST(data_dir=str(data_dir)).setup()


@pytest.mark.parametrize("number", [0, 200])
def test_a_validation_part_that_cannot_be_had_is_refused(data_dir, number):
    with (
        pytest.raises(ValueError, match=f"num_validation must be from 1 to 199, got {number}"),
        pytest.warns(UserWarning, match="holds 200"),
    ):
        MNIST(data_dir=str(data_dir), num_validation=number).setup()


def test_an_absent_file_that_cannot_be_downloaded_is_named(data_dir, monkeypatch):
    monkeypatch.setattr(mnist, "TEST_LABELS", mnist.TEST_LABELS.__class__("absent.gz", ["http://127.0.0.1:9/absent.gz"], "0" * 32))
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DownloadError, match=f"absent.gz is not in {data_dir / 'mnist'}"):
        MNIST(data_dir=str(data_dir)).setup()


# Classes without labels, and unequal numbers of labels


def test_the_pool_can_be_restricted_to_classes_beside_the_labelled_examples(small):
    data = small(unlabeled_classes=[0, 7])
    labels = data.y[data.split.unlabeled]
    assert torch.bincount(labels).tolist() == [16, 2, 2, 2, 2, 2, 2, 16, 2, 2]
    assert torch.equal(data.split.labeled, small().split.labeled)
    assert torch.equal(data.split.unlabeled, data.split.unlabeled.unique())


def test_labels_can_be_restricted_to_classes_other_than_those_of_the_pool(small):
    data = small(labeled_classes=[2, 3, 5, 9], unlabeled_classes=[0, 1], num_labeled=8)
    assert torch.bincount(data.y[data.split.labeled]).tolist() == [0, 0, 2, 2, 0, 2, 0, 0, 0, 2]
    assert torch.bincount(data.y[data.split.unlabeled]).tolist() == [16, 16, 2, 2, 0, 2, 0, 0, 0, 2]
    for rows, each in ((data.split.validation, 4), (data.split.test, 5)):
        assert torch.bincount(data.y[rows]).tolist() == [0, 0, each, each, 0, each, 0, 0, 0, each]


def test_a_class_with_too_few_examples_is_called_by_its_own_number(small):
    with pytest.raises(ValueError, match="needs 24 examples of class 2, got 16"):
        small(labeled_classes=[2, 5], num_labeled=32, imbalance=3.0)
    with pytest.raises(ValueError, match="gives class 5 none of 4 labels"):
        small(labeled_classes=[2, 5], num_labeled=4, imbalance=100.0)


@pytest.mark.parametrize("option", ["labeled_classes", "unlabeled_classes"])
def test_no_class_at_all_is_refused(small, option):
    for given in ([], "dog"):
        with pytest.raises(ValueError, match=rf"^{option}={re.escape(str(given))}: must be a list of at least . class.*, or null for all"):
            small(**{option: given})


def test_labels_of_one_class_are_refused(small):
    for one in ([3], [3, 3], [3, "3"]):
        with pytest.raises(ValueError, match="must be a list of at least 2 classes"):
            small(labeled_classes=one)


@pytest.mark.parametrize("option", ["labeled_classes", "unlabeled_classes"])
def test_a_class_that_does_not_exist_is_refused(small, option):
    with pytest.raises(ValueError, match=rf"{option}: there is no class 10. The classes are 0, 1, 2,"):
        small(**{option: [1, 10]})


def test_labels_can_be_unequally_many(small):
    data = small(imbalance=8.0, num_labeled=40, num_validation=20)
    counts = torch.bincount(data.y[data.split.labeled])
    assert (counts.sum(), counts[0], counts[-1]) == (40, 9, 1)
    assert (counts.diff() <= 0).all()
    expected = 8.0 ** (-torch.arange(10) / 9)
    assert (counts - 40 * expected / expected.sum()).abs().max() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance": 0.5}, "imbalance must be 1, or more with balanced=True and num_labeled set, got 0.5"),
        ({"imbalance": float("nan")}, "got nan"),
        ({"imbalance": 2.0, "balanced": False}, "got 2.0"),
        ({"imbalance": 2.0, "num_labeled": None}, "got 2.0"),
        ({"imbalance": 100.0}, "imbalance=100 gives class . none of 20 labels. Raise num_labeled"),
        ({"imbalance": 10.0, "num_labeled": 80}, "num_labeled=80 needs 20 examples of class 0, got 16"),
    ],
)
def test_an_imbalance_that_cannot_be_had_is_refused(small, options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_whitening_is_of_the_pool_and_says_its_unit(small):
    data = small(zca=True)
    assert data.x.dtype == torch.float32
    assert (data.mean, data.std) == (None, None)
    assert data.unit == "standard deviations of the whitened pixels, of which an image has about 28"
    assert data.lds_eps == pytest.approx(0.18 * 28)
    pool = data.x[data.split.unlabeled].flatten(1)
    torch.testing.assert_close(pool.mean(0), torch.zeros(784), atol=1e-3, rtol=0)
    # 160 examples span 159 directions: whitened, they are at equal distances from their mean
    torch.testing.assert_close(pool.norm(dim=1), torch.full((160,), 159**0.5), atol=0.05, rtol=0)
