"""Small data sets in the official formats."""

import gzip
import io
import json
import lzma
import struct
import tarfile

import numpy as np
import scipy.io
import torch

from vat.data.sets import norb

CIFAR10_MEMBERS = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)] + ["cifar-10-batches-bin/test_batch.bin"]


def write_mnist(folder):
    """200 + 50 images, two of the four files not compressed."""
    (folder / "mnist").mkdir()
    for part, number in (("train", 200), ("t10k", 50)):
        images, labels = digits(number, seed=number)
        (folder / f"mnist/{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"mnist/{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def digits(number, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (number, 28, 28), generator=generator), torch.arange(number) % 10


def idx(values):
    """An IDX file: the big-endian header and the bytes."""
    return struct.pack(f">{1 + values.ndim}I", 0x0800 | values.ndim, *values.shape) + values.byte().numpy().tobytes()


def write_cifar10(folder):
    """100 + 20 images, as an archive."""
    members = [("cifar-10-batches-bin/", b""), *zip(CIFAR10_MEMBERS, [data for data, _ in batches()], strict=True)]
    (folder / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar([*members, ("cifar-10-batches-bin/readme.html", b"text")])))


def batches(each=20):
    return [records(torch.arange(each)[:, None] % 10, seed=number) for number in range(6)]


def records(labels, seed=0):
    """Make records with the given label bytes (N, kinds), and their images."""
    images = torch.randint(256, (len(labels), 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    return torch.cat([labels, images.flatten(1)], dim=1).byte().numpy().tobytes(), images.byte()


def tar(members, form=tarfile.USTAR_FORMAT):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def write_svhn(folder):
    """100 + 30 images, and 50 extra ones."""
    (folder / "svhn").mkdir()
    for seed, (part, number) in enumerate((("train", 100), ("test", 30), ("extra", 50))):
        (folder / f"svhn/{part}_32x32.mat").write_bytes(mat(house_numbers(number, seed)))


def house_numbers(number, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "X": generator.integers(256, size=(32, 32, 3, number), dtype=np.uint8),
        "y": (np.arange(number) % 10 + 1)[:, None].astype(np.uint8),
    }


def mat(variables, **options):
    packed = io.BytesIO()
    scipy.io.savemat(packed, variables, **{"do_compression": True} | options)
    return packed.getvalue()


def write_norb(folder):
    """100 + 25 stereo pairs."""
    (folder / "norb").mkdir()
    for files, number, toys in ((norb.TRAIN, 100, (4, 6, 7, 8, 9)), (norb.TEST, 25, (0, 1, 2, 3, 5))):
        rows = torch.arange(number, dtype=torch.int32)
        instances = torch.tensor(toys, dtype=torch.int32)[rows // 5 % 5]
        information = torch.stack([instances, rows % 9, rows % 18 * 2, rows % 6], dim=1)
        for file, values in zip(files, (stereo_pairs(number), rows % 5, information), strict=True):
            (folder / "norb" / file.name).write_bytes(gzip.compress(matrix(values), 1))


def stereo_pairs(number, seed=0):
    return torch.randint(256, (number, 2, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def matrix(values):
    """A matrix in the published format: type, number of dimensions, at least three dimensions, values."""
    shape = [*values.shape, *[1] * (3 - values.ndim)]
    kind = norb.INTEGERS if values.dtype == torch.int32 else norb.BYTES
    return struct.pack(f"<{2 + len(shape)}I", kind, values.ndim, *shape) + values.numpy().tobytes()


def write_imdb(folder):
    """The three files of docs/text.md, by the options that name them."""
    words = ["a", "film", "of", "people", "in", "the", "city", "great", "dull", "fine", "poor"]
    paths = {}
    for option, number, labels in (("train", 60, (0, 1)), ("unlabeled", 30, (-1,)), ("test", 20, (0, 1))):
        lines = [
            {
                "id": i,
                "label": labels[i % len(labels)],
                "rating": 0,
                "text": " ".join([*(words[i * k % 10] for k in (1, 3, 7)), f"{option}{i}"]),
            }
            for i in range(number)
        ]
        paths[option] = folder / f"imdb_{option}.jsonl.xz"
        paths[option].write_bytes(lzma.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return paths
