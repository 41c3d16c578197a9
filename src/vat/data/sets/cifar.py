"""CIFAR-10 and CIFAR-100 in their binary version: https://www.cs.toronto.edu/~kriz/cifar.html. No file is unpickled."""

import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vat.data.files.content import Content, Window, opened
from vat.data.files.download import PublishedFile, fetch
from vat.data.sets.labels import checked_labels
from vat.data.sets.published import Examples, PublishedImages

PIXELS = 3 * 32 * 32
BLOCK = 512  # bytes of a block in a tar archive
MOST_OTHER_BYTES = 1 << 20  # the published archives have only a few kilobytes of names and notes next to the records


def read_records(content: Content, *, num_classes: Sequence[int], most: int) -> Examples:
    """Read the records of a file.

    A record is one byte for each kind of label and 3,072 bytes of pixels: red, green, blue, row by row.

    Args:
        content: The records and nothing else.
        num_classes: Number of classes of each kind of label. The last kind is returned. The others are only checked.
        most: Number of records in the published file.

    Returns:
        Images uint8 (N, 3, 32, 32), labels int64 (N,), 1 <= N <= most.

    Raises:
        ValueError: If the content is anything else.
    """
    width = len(num_classes) + PIXELS
    taken = content.take_up_to(most * width)
    count, rest = divmod(len(taken), width)
    if rest or not count:
        raise content.fault(f"must hold complete records of {width} bytes, got {len(taken)} bytes")
    content.end(published=count == most)
    records = torch.frombuffer(taken, dtype=torch.uint8).view(count, width)
    labels = [checked_labels(records[:, kind], count, classes, content.name) for kind, classes in enumerate(num_classes)]
    return records[:, len(num_classes) :].reshape(count, 3, 32, 32), labels[-1]


def read_archive(path: Path, members: Mapping[str, str | None], *, num_classes: Sequence[int], most: int) -> list[Examples]:
    """Read the records of some members of a tar archive in one pass, without extracting it to disk.

    Args:
        path: The archive, compressed or not.
        members: Exact names, each with its published digest or None if it is not known.
        num_classes: See `read_records`.
        most: Number of records in each published member.

    Returns:
        For each member, in the order of `members`, what `read_records` returns.

    Raises:
        ValueError: If the archive or a member is damaged, or a member is missing.
    """
    found: dict[str, Examples] = {}
    largest = most * (len(num_classes) + PIXELS)
    others_left = MOST_OTHER_BYTES
    with opened(path) as archive:
        while any(header := archive.take(BLOCK)):
            name, size = _tar_entry(header, archive)
            padded = -(-size // BLOCK) * BLOCK
            if name in members and name not in found:
                if size > largest:
                    raise archive.fault(f"must hold at most {largest} bytes under {name}, got {size}")
                member = Content(Window(archive, size), f"{path}:{name}", members[name])
                found[name] = read_records(member, num_classes=num_classes, most=most)
                archive.skip(padded - size)
            else:
                others_left -= padded + BLOCK
                if others_left < 0:  # before it is decompressed
                    raise archive.fault(f"holds {name} of {size} bytes, which is not in the published archive")
                archive.skip(padded)
        if any(archive.take_up_to(others_left + 1)):  # read to the end, because gzip checks its checksum there
            raise archive.fault("has more bytes after its last member")
    if missing := [name for name in members if name not in found]:
        raise archive.fault(f"lacks {', '.join(missing)}")
    return [found[name] for name in members]


class _CIFAR(PublishedImages):
    """Common part of the two sets.

    Attributes:
        archive: The published archive, kept in the data folder.
        folder: Folder of the records in the archive, and in the data folder after unpacking.
        members: The files of records, the last one for the test. Each has its digest, or None if it is not known.
        label_classes: Number of classes of each label byte in a record. The last byte is the class.
        names: Names of the classes, in order.
    """

    archive: PublishedFile
    folder: str
    members: Mapping[str, str | None]
    label_classes: tuple[int, ...]
    names: str
    num_published = 50_000, 10_000
    lds_eps = 1.0

    def __init__(
        self,
        *,
        num_labeled: int | None = 4000,
        num_validation: int = 5000,
        translate: int = 2,
        flip: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, translate=translate, flip=flip, **options)
        self.class_names = self.names.split()

    def read(self) -> Sequence[Examples]:
        """Images and labels from the unpacked files if all of them exist, otherwise from the archive."""
        train, test = self.num_published
        most = {"num_classes": self.label_classes, "most": max(train // (len(self.members) - 1), test)}
        paths = [self.data_dir / self.folder / name for name in self.members]
        missing = [path.name for path in paths if not path.is_file()]
        if not missing:
            parts = []
            for path, digest in zip(paths, self.members.values(), strict=True):
                with opened(path, digest) as content:
                    parts.append(read_records(content, **most))
        else:
            if len(missing) < len(paths):
                warnings.warn(f"{self.data_dir / self.folder} lacks {', '.join(missing)}. The archive is read instead.", stacklevel=2)
            members = {f"{self.folder}/{name}": digest for name, digest in self.members.items()}
            parts = read_archive(fetch(self.archive, self.data_dir), members, **most)
        images, labels = zip(*parts[:-1], strict=True)
        return (torch.cat(images), torch.cat(labels)), parts[-1]


class CIFAR10(_CIFAR):
    """60,000 photographs (3, 32, 32) of ten classes: 45,000 in the pool, 5,000 for validation, 10,000 for the test.

    Files: `cifar-10-binary.tar.gz` in the data folder, or its six `.bin` files in `cifar-10-batches-bin/`.
    Arguments and errors are those of `PublishedImages`. The augmentation is that of TPAMI (arXiv 1704.03976).
    """

    archive = PublishedFile(
        "cifar-10-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "http://www.cs.utoronto.ca/~kriz/cifar-10-binary.tar.gz"),
        "c32a1d4ab5d03f1284b67883e8d87530",
    )
    folder = "cifar-10-batches-bin"
    members = MappingProxyType(
        {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        }
    )
    label_classes = (10,)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    # x = data.x[:50_000].double() / 255; x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)
    mean = 0.491400, 0.482158, 0.446531
    std = 0.247032, 0.243485, 0.261588


class CIFAR100(_CIFAR):
    """60,000 photographs (3, 32, 32) of a hundred classes: 45,000 in the pool, 5,000 for validation, 10,000 for the test.

    The classes are the hundred fine labels. The twenty coarse labels are ignored.
    Files: `cifar-100-binary.tar.gz` in the data folder, or its `train.bin` and `test.bin` in `cifar-100-binary/`.
    Arguments and errors are those of `PublishedImages`.
    """

    archive = PublishedFile(
        "cifar-100-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "http://www.cs.utoronto.ca/~kriz/cifar-100-binary.tar.gz"),
        "03b5dce01913d631647c71ecec9e9cb8",
    )
    folder = "cifar-100-binary"
    members = MappingProxyType({"train.bin": None, "test.bin": None})
    label_classes = (20, 100)
    names = (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar "
        "cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl "
        "hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom "
        "oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road "
        "rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank "
        "telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    )
    # Commonly published to four digits. The computation is that of CIFAR10.
    mean = 0.5071, 0.4865, 0.4409
    std = 0.2673, 0.2564, 0.2762


def _tar_entry(header: bytearray, archive: Content) -> tuple[str, int]:
    """Name and size in a header.

    `tarfile` reads only the header. It would read the member's content into memory, whatever its size.
    """
    try:
        entry = tarfile.TarInfo.frombuf(bytes(header), "latin-1", "strict")
    except tarfile.HeaderError as error:
        raise archive.fault("is not a tar archive: a header has a wrong checksum or number") from error
    if entry.size < 0:
        raise archive.fault(f"is not a tar archive: {entry.name} has {entry.size} bytes")
    regular = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    return entry.name if regular else f"{entry.name} (not a regular file)", entry.size
