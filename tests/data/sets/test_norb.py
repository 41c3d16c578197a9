import gzip
import math
import struct

import pytest
import torch
from official import matrix, stereo_pairs, write_norb

from vat.data.sets.norb import NORB, TEST, TRAIN, read_images, read_integers


@pytest.fixture
def data_dir(tmp_path):
    write_norb(tmp_path)
    return tmp_path


def make(data_dir, **options):
    data = NORB(data_dir=str(data_dir), **{"num_labeled": 10, "num_validation": 20} | options)
    with pytest.warns(UserWarning, match=r"holds 100 \+ 25 examples of NORB"):
        data.setup()
    return data


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_matrices_round_trip(tmp_path, pack):
    path = tmp_path / "dat.mat"
    pairs = stereo_pairs(250)  # more than are reduced at a time
    path.write_bytes(pack(matrix(pairs)) if pack is bytes else pack(matrix(pairs), 1))
    assert torch.equal(read_images(path, size=96, most=250), pairs)
    reduced = pairs.double().view(250, 2, 32, 3, 32, 3).mean((3, 5)).round().byte()
    assert torch.equal(read_images(path, size=32, most=250), reduced)
    for values, shape in ((torch.arange(-3, 5, dtype=torch.int32), ()), (torch.arange(20, dtype=torch.int32).view(5, 4), (4,))):
        path.write_bytes(pack(matrix(values)))
        assert torch.equal(read_integers(path, shape, most=10), values)


DAT, CAT = matrix(stereo_pairs(3)), matrix(torch.arange(5, dtype=torch.int32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early: must have 24 more bytes, got 0"),
        (DAT[:-1], "ends too early: must have 55296 more bytes, got 55295"),
        (DAT + b"\0", "has more bytes after its last value"),
        (struct.pack("<I", 0x1E3D4C56) + DAT[4:], "and type 0x1e3d4c55, got a header with 4 dimensions.*type 0x1e3d4c56"),
        (DAT[:4] + struct.pack(">I", 4) + DAT[8:], "got a header with 67108864 dimensions"),
        (DAT[:8] + struct.pack("<4I", 3, 2, 96, 95) + DAT[24:], r"\(3, 2, 96, 95\)"),
        (DAT[:8] + struct.pack("<4I", 2**31, 2, 96, 96) + DAT[24:], r"must hold 1 to 100 entries of shape \(2, 96, 96\).*2147483648"),
        (DAT[:8] + struct.pack("<4I", 0, 2, 96, 96), r"\(0, 2, 96, 96\)"),
        (CAT, "got a header with 1 dimensions"),
        (gzip.compress(DAT)[:-5], "cannot be read"),
    ],
)
def test_an_odd_matrix_is_refused(tmp_path, data, message):
    path = tmp_path / "dat.mat"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} .*{message}"):
        read_images(path, size=32, most=100)


def test_spoilt_matrices_are_read_or_refused(tmp_path, fuzz):
    fuzz(lambda path: read_images(path, size=32, most=10), matrix(stereo_pairs(1)), tmp_path / "dat.mat", "NORB")
    information = matrix(torch.arange(200, dtype=torch.int32).view(50, 4))
    fuzz(lambda path: read_integers(path, (4,), most=100), information, tmp_path / "info.mat", "NORB")
    fuzz(lambda path: read_integers(path, (), most=100), gzip.compress(CAT), tmp_path / "cat.mat", "NORB")


def test_the_parts_are_those_published(data_dir):
    data = make(data_dir)
    assert [len(rows) for rows in (data.split.labeled, data.split.unlabeled, data.split.validation, data.split.test)] == [10, 80, 20, 25]
    for rows, each in ((data.split.labeled, 2), (data.split.validation, 4), (data.split.test, 5)):
        assert torch.bincount(data.y[rows]).tolist() == [each] * 5
    assert (data.x.dtype, data.input_shape, data.augment) == (torch.uint8, (2, 32, 32), None)
    assert data.split.digest == "ec2a85f9aec41dd8"
    assert make(data_dir, size=48).input_shape == (2, 48, 48)


def test_validation_can_be_on_toys_unseen(data_dir):
    data = make(data_dir, validation_instance=7)
    assert data.split.validation.tolist() == [row for row in range(100) if row // 5 % 5 == 2]
    assert len(data.split.unlabeled) == 80
    with pytest.raises(ValueError, match=r"one of the training set's toys \[4, 6, 7, 8, 9\], got 5"):
        make(data_dir, validation_instance=5)


@pytest.mark.parametrize("size", [0, 64, 100, -32])
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be a divisor of 96, such as 32, 48 or 96, got {size}"):
        NORB(size=size)


@pytest.mark.parametrize(
    ("kind", "values", "message"), [(1, 5, r"0\.\.4, got 5 in row 3"), (1, -1, "got -1 in row 3"), (2, 10, r"0\.\.9, got 10 in row 3")]
)
def test_categories_and_instances_out_of_range_are_refused(data_dir, kind, values, message):
    path = data_dir / "norb" / TRAIN[kind].name
    wrong = torch.zeros(100, *((4,) if kind == 2 else ()), dtype=torch.int32)
    wrong.view(100, -1)[3, 0] = values
    path.write_bytes(matrix(wrong))
    with pytest.raises(ValueError, match=f"{path} .*{message}"):
        NORB(data_dir=str(data_dir)).setup()


def test_the_files_hold_what_their_names_say():
    for files, part in ((TRAIN, "training"), (TEST, "testing")):
        assert [file.name.rsplit("-", 2)[1:] for file in files] == [[part, f"{kind}.mat.gz"] for kind in ("dat", "cat", "info")]
    assert math.prod((5, 5, 9, 18, 6)) == 24_300  # kinds, toys, elevations, azimuths, lightings, as in the names
