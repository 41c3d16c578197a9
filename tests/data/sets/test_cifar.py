import gzip
import io
import tarfile

import pytest
import torch
from official import CIFAR10_MEMBERS, batches, records, tar, write_cifar10

from vat.data.files.content import opened
from vat.data.loader import Chain, Flip, Translate
from vat.data.sets import cifar
from vat.data.sets.cifar import CIFAR10, CIFAR100, read_archive, read_records


@pytest.fixture
def data_dir(tmp_path):
    write_cifar10(tmp_path)
    return tmp_path


def make(data_dir, kind=CIFAR10, **options):
    data = kind(data_dir=str(data_dir), **{"num_labeled": 20, "num_validation": 20} | options)
    with pytest.warns(UserWarning, match="Results are not comparable to those of the published set"):
        data.setup()
    return data


# The format


def read(path, num_classes=(10,), most=100):
    with opened(path) as content:
        return read_records(content, num_classes=num_classes, most=most)


def test_records_round_trip(tmp_path):
    labels = torch.tensor([[3, 99], [19, 0], [0, 50]])
    data, images = records(labels)
    (tmp_path / "a").write_bytes(data)
    x, y = read(tmp_path / "a", (20, 100))
    assert torch.equal(x, images)
    assert torch.equal(y, labels[:, 1])


GOOD = batches(3)[0][0]


@pytest.mark.parametrize(
    ("data", "num_classes", "message"),
    [
        (b"", (10,), "must hold complete records of 3073 bytes, got 0 bytes"),
        (GOOD[:-1], (10,), "complete records of 3073 bytes, got 9218 bytes"),
        (GOOD + b"\0", (10,), "complete records"),
        (GOOD, (20, 100), "complete records of 3074 bytes"),
        (GOOD[:3073] + b"\x0a" + GOOD[3074:], (10,), r"must hold labels in 0\.\.9, got 10 in row 1"),
        (records(torch.tensor([[20, 0]]))[0], (20, 100), r"labels in 0\.\.19, got 20 in row 0"),
        (GOOD * 40, (10,), "has more bytes after its last value"),
    ],
)
def test_odd_records_are_refused(tmp_path, data, num_classes, message):
    path = tmp_path / "batch.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} .*{message}"):
        read(path, num_classes)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_is_read_by_exact_names_in_the_order_asked_for(tmp_path, pack, form):
    (one, x_one), (two, x_two), (other, _) = batches(3)[:3]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack(tar([("../two", other), ("two", two), ("folder/", b""), ("one", one), ("two", other)], form)))
    found = read_archive(path, {"one": None, "two": None}, num_classes=(10,), most=100)
    assert [torch.equal(x, expected) for (x, _), expected in zip(found, (x_one, x_two), strict=True)] == [True, True]
    assert list(tmp_path.iterdir()) == [path]


ARCHIVE = tar([("one", GOOD), ("two", GOOD)])


def negative(archive):
    """The archive with a size of -1 in its first header, which has base 256 for that."""
    header = bytearray(archive[:512])
    header[124:136] = b"\xff" * 12
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    return bytes(header) + archive[512:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (negative(ARCHIVE), "is not a tar archive: one has -1 bytes"),
        (tar([("./one", GOOD), ("two", GOOD)]), "lacks one"),
        (ARCHIVE[:5000], "a.tar:one cannot be read: 4731 more bytes must follow"),
        (ARCHIVE[: 512 + 9728], "ends too early: must have 512 more bytes, got 0"),
        (gzip.compress(ARCHIVE)[:-4], "cannot be read"),
        (b"a" + ARCHIVE[1:], "is not a tar archive: a header has a wrong checksum"),
        (b"PK" * 300, "is not a tar archive"),
        (ARCHIVE + b"more", "has more bytes after its last member"),
        (tar([("one", GOOD * 40), ("two", GOOD)]), "must hold at most 307300 bytes under one, got 368760"),
        (
            tar([("bomb", bytes(2 << 20)), ("one", GOOD), ("two", GOOD)]),
            "holds bomb of 2097152 bytes, which is not in the published archive",
        ),
        (tar([("one", GOOD), ("two", GOOD[:-1])]), "a.tar:two must hold complete records"),
    ],
)
def test_an_odd_archive_is_refused(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_archive(path, {"one": None, "two": None}, num_classes=(10,), most=100)
    assert str(path) in str(caught.value)


def test_links_are_no_members(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("one")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match="lacks one"):
        read_archive(tmp_path / "a.tar", {"one": None}, num_classes=(10,), most=100)


def test_spoilt_records_and_archives_are_read_or_refused(tmp_path, fuzz):
    fuzz(read, GOOD, tmp_path / "a.bin", "CIFAR binary")
    members = {"one": None, "two": None}
    for data in (ARCHIVE, gzip.compress(ARCHIVE)):
        fuzz(lambda path: read_archive(path, members, num_classes=(10,), most=4), data, tmp_path / "a.tar", "CIFAR archive")


# The data sets


def test_archive_and_unpacked_files_give_the_same_data(data_dir, tmp_path):
    (tmp_path / "unpacked/cifar-10-batches-bin").mkdir(parents=True)
    for name, (data, _) in zip(CIFAR10_MEMBERS, batches(), strict=True):
        (tmp_path / "unpacked" / name).write_bytes(data)
    packed, unpacked = make(data_dir), make(tmp_path / "unpacked")
    images = torch.cat([x for _, x in batches()])
    for data in (packed, unpacked):
        assert data.x.dtype == torch.uint8
        assert torch.equal(data.x, images)
        assert data.y.tolist() == [row % 10 for row in range(120)]
        assert data.split.digest == packed.split.digest == "1d6623a286a27eb0"
    (tmp_path / "unpacked" / CIFAR10_MEMBERS[5]).unlink()  # not all there: the archive it is
    (tmp_path / "unpacked/cifar-10-binary.tar.gz").symlink_to(data_dir / "cifar-10-binary.tar.gz")
    with pytest.warns(UserWarning, match=r"cifar-10-batches-bin lacks test_batch\.bin\. The archive is read instead"):
        assert torch.equal(make(tmp_path / "unpacked").x, images)


def test_the_parts_are_those_published(data_dir):
    data = make(data_dir)
    for rows, each in ((data.split.labeled, 2), (data.split.validation, 2), (data.split.unlabeled, 8), (data.split.test, 2)):
        assert torch.bincount(data.y[rows]).tolist() == [each] * 10
    assert data.split.test.tolist() == list(range(100, 120))
    assert data.class_names == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_at_the_published_size_the_content_must_be_the_published_one(data_dir, monkeypatch):
    monkeypatch.setattr(CIFAR10, "num_published", (100, 20))
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has the published size but other content"):
        CIFAR10(data_dir=str(data_dir)).setup()


def test_images_are_mirrored_and_shifted_as_floats(data_dir):
    data = make(data_dir)
    assert isinstance(data.augment, Chain)
    assert [type(step) for step in data.augment.augmentations] == [Translate, Flip]
    assert isinstance(make(data_dir, translate=0).augment, Flip)
    assert isinstance(make(data_dir, flip=False).augment, Translate)
    assert make(data_dir, translate=0, flip=False).augment is None
    loader = make(data_dir, translate=0).train_dataloader()
    part = loader.batch(3).unlabeled
    assert torch.equal(part.x, loader.batch(3).unlabeled.x)  # keyed, not streamed
    plain = data.x[part.index].float() / 255
    same, mirrored = ((part.x == x).flatten(1).all(dim=1) for x in (plain, plain.flip(3)))
    assert (same ^ mirrored).all()
    assert 40 < mirrored.sum() < 88  # binomial of mean 64, standard deviation 5.7


def test_flip_refuses_what_it_cannot_mirror():
    with pytest.raises(ValueError, match=r"images of shape \(B, C, H, W\), got \(4, 9\)"):
        Flip()(torch.zeros(4, 9), torch.Generator())


def test_cifar100_has_the_fine_labels(tmp_path):
    fine = torch.arange(200) % 100
    (tmp_path / "cifar-100-binary").mkdir()
    for name, seed in (("train.bin", 0), ("test.bin", 1)):
        data, images = records(torch.stack([fine % 20, fine], dim=1), seed)
        (tmp_path / "cifar-100-binary" / name).write_bytes(data)
    data = make(tmp_path, CIFAR100, num_labeled=100, num_validation=100)
    assert torch.equal(data.x[200:], images)
    assert torch.equal(data.y, fine.repeat(2))
    assert torch.bincount(data.y[data.split.labeled]).tolist() == [1] * 100
    assert len(set(data.class_names)) == 100
    assert data.class_names == sorted(data.class_names)


def test_every_member_has_its_place():
    for kind in (CIFAR10, CIFAR100):
        assert len(kind.names.split()) == kind.label_classes[-1]
        assert len(kind.mean) == len(kind.std) == 3
    assert cifar.CIFAR10.members.keys() == {name.split("/")[1] for name in CIFAR10_MEMBERS}
