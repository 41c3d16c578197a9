import hashlib
import struct

import numpy as np
import pytest
import scipy.io
import torch
from official import house_numbers, mat, write_svhn

from vat.data.files.matlab import read_matlab
from vat.data.sets import svhn
from vat.data.sets.svhn import SVHN, read_svhn


@pytest.fixture
def data_dir(tmp_path):
    write_svhn(tmp_path)
    return tmp_path


def make(data_dir, **options):
    data = SVHN(data_dir=str(data_dir), **{"num_labeled": 20, "num_validation": 20} | options)
    with pytest.warns(UserWarning, match="examples of SVHN instead of the published 73257"):
        data.setup()
    return data


# The format


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i4", "<f4", "<f8", "<i8"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 3, 4), (5, 4, 3, 2)])
def test_arrays_are_read_as_scipy_reads_them(tmp_path, compressed, dtype, shape):
    path = tmp_path / "a.mat"
    values = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    path.write_bytes(mat({"first": "text", "wanted": values, "last": {"a": 1}}, do_compression=compressed))
    found = read_matlab(path, {"wanted": 1000})
    assert found.keys() == {"wanted"}
    expected = scipy.io.loadmat(path)["wanted"]
    assert found["wanted"].dtype == expected.dtype
    np.testing.assert_array_equal(found["wanted"], expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels_round_trip(tmp_path, compressed):
    path, given = tmp_path / "train_32x32.mat", house_numbers(23)
    path.write_bytes(mat(given, do_compression=compressed))
    for digest in (None, hashlib.md5(path.read_bytes()).hexdigest()):
        x, y = read_svhn(path, most=23, digest=digest)
        assert (x.shape, x.dtype) == ((23, 3, 32, 32), torch.uint8)
        assert all((x[i, c].numpy() == given["X"][:, :, c, i]).all() for i in range(23) for c in range(3))
        assert y.tolist() == [(row + 1) % 10 for row in range(23)]  # 10 is the digit 0
    with pytest.raises(ValueError, match="has the published size but other content"):
        read_svhn(path, most=23, digest="0" * 32)


def with_(**changes):
    return mat(house_numbers(3) | changes)


GOOD = mat(house_numbers(3), do_compression=False)


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


FLAGS, ONES = element(6, struct.pack("<II", 9, 0)), element(2, b"\1\1")


def variable(*, flags=FLAGS, values=ONES):
    """A file with a variable y of shape (2, 1)."""
    return GOOD[:128] + element(14, flags + element(5, struct.pack("<ii", 2, 1)) + element(1, b"y") + values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early: must have 128 more bytes, got 0"),
        (GOOD[:124] + b"\0\2IM" + GOOD[128:], "is no little-endian MATLAB 5 file"),
        (b"\x89HDF\r\n" * 100, "is no little-endian MATLAB 5 file"),
        (GOOD[:-1], "ends too early|more bytes must follow"),
        (mat(house_numbers(3))[:-5], "ends too early|cannot be read"),
        (GOOD + b"\0", "ends too early: must have 7 more bytes, got 0"),
        (GOOD + bytes(8), "must hold only variables, got an element of type 0"),
        (GOOD[:128] + struct.pack("<II", 9, 8) + bytes(8), "must hold only variables, got an element of type 9"),
        (GOOD + GOOD[128:], "holds X twice"),
        (mat({"X": house_numbers(3)["X"]}), "lacks the variable y"),
        (variable(), "lacks the variable X"),
        (variable(values=element(2, b"\1")), r"must hold 2 values as y, of shape \(2, 1\), got 1"),
        (variable(values=element(3, b"\1\1\1")), "holds an element of type 3 in 3 bytes"),
        (variable(flags=element(7, bytes(8))), "holds an element of type 7 and 8 bytes out of place"),
        (with_(X=house_numbers(101)["X"]), r"must hold 1 to 307200 values as X, got the shape \(32, 32, 3, 101\) in its header"),
        (with_(X=house_numbers(3)["X"].astype(float)), r"bytes of shape \(32, 32, 3, N\) under X, got float64"),
        (with_(X=house_numbers(3)["X"].transpose(3, 2, 0, 1)), r"under X, got uint8 \(3, 3, 32, 32\)"),
        (with_(X=house_numbers(3)["X"] + 1j), "real numbers as X"),
        (with_(X="text"), "out of place|real numbers as X"),
        (with_(y={"a": 1}), "real numbers as y"),
        (with_(y=np.full((3, 1), 1, dtype=object)), "real numbers as y"),
        (with_(y=np.array([[1], [2], [0]])), r"labels 1\.\.10 of shape \(N, 1\) under y, got \(3, 1\) from 0 to 2"),
        (with_(y=np.array([[1], [2], [11]])), "from 1 to 11"),
        (with_(y=np.array([[1], [2], [2.5]])), "labels 1..10"),
        (with_(y=np.array([[1, 2, 3]])), r"got \(1, 3\)"),
        (with_(y=np.array([[1], [2]])), "must hold one label for each of 3 images, got 2"),
    ],
)
def test_an_odd_file_is_refused(tmp_path, data, message):
    path = tmp_path / "train.mat"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} .*({message})"):
        read_svhn(path, most=100)


@pytest.mark.parametrize("compressed", [False, True])
def test_spoilt_files_are_read_or_refused(tmp_path, fuzz, compressed):
    fuzz(lambda path: read_svhn(path, most=10), mat(house_numbers(2), do_compression=compressed), tmp_path / "train.mat", ".mat")


# The data set


def test_the_parts_are_those_published(data_dir):
    data = make(data_dir)
    assert [len(rows) for rows in (data.split.labeled, data.split.unlabeled, data.split.validation, data.split.test)] == [20, 80, 20, 30]
    for rows, each in ((data.split.labeled, 2), (data.split.validation, 2), (data.split.test, 3)):
        assert torch.bincount(data.y[rows]).tolist() == [each] * 10
    assert (data.x.dtype, data.x.shape, data.x.is_contiguous()) == (torch.uint8, (130, 3, 32, 32), True)
    assert data.split.digest == "01cc8fd5dd3ce56f"


def test_extra_examples_join_the_pool_and_nothing_else(data_dir):
    data, without = make(data_dir, extra=True), make(data_dir)
    assert torch.equal(data.x[:130], without.x)
    for name in ("labeled", "validation", "test"):
        assert torch.equal(getattr(data.split, name), getattr(without.split, name))
    assert torch.equal(data.split.unlabeled, torch.cat([without.split.unlabeled, torch.arange(130, 180)]))
    assert data.num_published == (svhn.NUM_TRAIN, svhn.NUM_TEST, svhn.NUM_EXTRA)
