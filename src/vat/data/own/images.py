"""A user's own images: a folder for each class and one for unlabelled images, or one folder with a table of labels."""

import itertools
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vat.data.files.image_files import MAX_PIXELS, MODES, SUFFIXES, UNREADABLE, ImageFiles, check_header, largest_deep_level, read_image
from vat.data.files.names import composed
from vat.data.files.tables import SUFFIXES as TABLES
from vat.data.loader import Inputs
from vat.data.own.arrays import MISSING, classes_of
from vat.data.own.base import OwnData, channel_moments, numbered, says_unlabeled
from vat.data.own.image_labels import LABELS, overrules_folders, read_labels
from vat.data.splits import Split
from vat.files import as_path

UNLABELED = "unlabeled"
FILES_FOR_LEVELS = 100  # files that are examined for cameras of 12 or 14 bits
# Names that storage systems, programs of cameras and archives put next to images. They hold copies, most of them small.
SYSTEM = {
    *(
        "@eadir",
        "@__thumb",
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "lost+found",
        "lost&found",
    ),
    *("__macosx", "$recycle.bin", "recycler", "system volume information", "network trash folder", "temporary items", "_vti_cnf"),
    *("thumbnails", "_thumbnails", "_thumbs", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
}
SYSTEM_PREFIXES = (".", "synophoto_", "synofile_")
PARTS = {"train", "training", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "test", "testing"}


class Images(OwnData):
    """Images in a folder for each class, with unlabelled ones in `unlabeled/`, or in one folder with a table of labels.

    The classes are the folders' names in alphabetical order. Their files may be in subfolders. Sizes and modes may differ, see
    `vat.data.files.image_files.read_image`. Files without one of `SUFFIXES` are ignored, with a warning for the formats `UNREADABLE`.
    Names that start with a dot, or that storage systems use (`SYSTEM`), are also ignored. Symbolic links to files and folders are
    followed, also out of `dir`, but no folder is entered twice.

    A folder without folders of classes holds `labels.csv`, with the file of each image and its class
    (`vat.data.own.image_labels.read_labels`). An image without a row or a class there has no label. If such a table names other classes
    than the folders, it is right.

    Images that fit into `resident_gib` are decoded once and stay on the training device. Larger sets are streamed: `setup` checks the
    headers of the files, and each image is decoded when it is needed. A damaged file then ends the run with an error that names it. The
    batches are bit-identical. (With streaming and an augmentation, each of several processes decodes the complete batch.)

    Args:
        dir: Folder with the folders of the classes.
        size: Height and width of the network's inputs.
        mode: "RGB", or "L" for grey.
        corrupt: "refuse" ends with an error if a file cannot be read. "skip" leaves such files out and names them in a warning.
        group_pattern: Regular expression for a file's path within its class folder. The match of its first group, or of all of it, is the
            file's group. None means that every file is a group.
        resident_gib: Largest size of decoded images that are not streamed, in GiB, with a byte for each pixel and channel.
        workers: Number of threads that decode.
        options: As in `OwnData`.

    Attributes:
        mean, std: Mean and standard deviation over the pool, or 10,000 images of it.

    Raises:
        ValueError: If a setting is out of range. In `setup`, if the folders or files are not as described, or as in `OwnData`.
    """

    unit = "pixels in [0, 1]"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        *,
        dir: str,
        size: int = 32,
        mode: Literal["RGB", "L"] = "RGB",
        corrupt: Literal["refuse", "skip"] = "refuse",
        group_pattern: str | None = None,
        resident_gib: float = 2.0,
        workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if corrupt not in ("refuse", "skip"):
            raise ValueError(f"corrupt must be refuse or skip, got {corrupt!r}")
        if size < 1 or workers < 1 or not resident_gib >= 0:
            raise ValueError(f"size and workers must be >= 1, resident_gib >= 0, got {size}, {workers}, {resident_gib}")
        if size**2 > MAX_PIXELS:
            raise ValueError(f"data.size={size}: images may have at most {MAX_PIXELS:,} pixels. Lower it")
        try:
            self.group_pattern = None if group_pattern is None else re.compile(group_pattern)
        except re.error as error:
            raise ValueError(f"group_pattern={group_pattern!r} is no regular expression: {error}") from error
        self.dir = as_path(dir, "data.dir")
        self.size, self.mode, self.corrupt = size, mode, corrupt
        self.resident_gib, self.workers = resident_gib, workers

    def load(self) -> tuple[Inputs, Tensor, Split]:
        """Images as bytes, resident or streamed, sorted by class and path. Unlabelled images follow, and then those of `test`."""
        self.class_names, files = find_images(self.dir)
        self.warn_of_lookalikes()
        groups = self._groups(files)
        num_train = len(files)
        if self.test is not None:
            held_out = self._held_out(self.test)
            if shared := sorted({*groups} & {*(held_out_groups := self._groups(held_out))}):
                raise ValueError(f"{self.test} and {self.dir} both have examples of the group {shared[0]}. Keep it in one of them")
            files, groups = files + held_out, groups + held_out_groups
        shape = MODES[self.mode], self.size, self.size
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's warnings name no file, and errors below do
            if len(files) * math.prod(shape) > self.resident_gib * 2**30:
                kept = self._readable(files, lambda row: check_header(files[row].path))
                paths = [files[row].path for row in kept.tolist()]
                x = ImageFiles(paths, size=self.size, mode=self.mode, workers=self.workers)
            else:
                images = torch.empty(len(files), *shape, dtype=torch.uint8)
                kept = self._readable(files, lambda row: images[row].copy_(read_image(files[row].path, self.size, self.mode)))
                x = images if len(kept) == len(files) else images[kept]
            num_test = int((kept >= num_train).sum())
            if self.test is not None and not num_test:
                raise ValueError(f"data.test={self.test}: none of its files can be read as an image")
            y = torch.tensor([file.label for file in files])[kept]
            unlabeled = f"in {UNLABELED}/" if (self.dir / UNLABELED).is_dir() else f"not in {LABELS}, or without a class there"
            split = self.cut(
                y,
                groups=numbered(groups)[kept] if groups else None,
                num_test=num_test,
                unlabeled_as={unlabeled: number} if (number := int((y < 0).sum())) else {},
            )
            self.mean, self.std = channel_moments(x, split.unlabeled, seed=self.split_seed)
            some = kept[:: math.ceil(len(kept) / FILES_FOR_LEVELS)].tolist()
            if 0 < (level := max(largest_deep_level(files[row].path) for row in some)) < 2**14:
                warnings.warn(f"images of 16 bits have values up to {level} of 65535, so they are dark. Scale them before", stacklevel=2)
        self.warn_of_copies(x, split)
        return x, y, split

    def _groups(self, files: Sequence["FoundImage"]) -> list[str]:
        """The group of each file. Empty without groups."""
        return [] if self.group_pattern is None else [_group(file, self.group_pattern) for file in files]

    def _held_out(self, folder: Path) -> list["FoundImage"]:
        """The files for the test, with the training's numbers of the classes."""
        one, other = Path(os.path.realpath(self.dir)), Path(os.path.realpath(folder))
        if one == other or one in other.parents or other in one.parents:
            raise ValueError(f"data.test={folder} and data.dir={self.dir}: they must not be the same folder, or one in the other")
        names, files = find_images(folder, least=1)
        if unknown := sorted({*names} - {*self.class_names}):
            raise ValueError(f"{folder} holds {', '.join(unknown)}. The classes of {self.dir} are {', '.join(self.class_names)}")
        if any(file.label < 0 for file in files):
            where = folder / UNLABELED if (folder / UNLABELED).is_dir() else folder / LABELS
            raise ValueError(f"{where}: test examples must be labelled: " + ("remove it" if where.is_dir() else "give every image a class"))
        return [file._replace(label=self.class_names.index(names[file.label])) for file in files]

    def _readable(self, files: Sequence["FoundImage"], read: Callable[[int], object]) -> Tensor:
        """The rows that can be read. Unless files are skipped, an error if one cannot."""

        def fault(row: int) -> str | None:
            try:
                read(row)
            except ValueError as error:
                return str(error)
            return None

        faults: dict[int, str] = {}
        rows = range(len(files))
        with ThreadPoolExecutor(self.workers) as threads:
            for start in range(0, len(files), 1000):  # in parts, because a million tasks for a pool would take a GB
                for row, found in zip(piece := rows[start : start + 1000], threads.map(fault, piece), strict=True):
                    if found is None:
                        continue
                    if self.corrupt == "refuse":
                        raise ValueError(f"{found}. Repair or remove it, or leave out all such files by data.corrupt=skip")
                    faults[row] = found
        if faults:
            warnings.warn(f"left out {len(faults)} of {len(files)} files:\n" + "\n".join(faults.values()), stacklevel=2)
        return torch.tensor([row for row in rows if row not in faults], dtype=torch.int64)


class FoundImage(NamedTuple):
    """A file that should hold an image.

    Attributes:
        path: Path of the file.
        within: Path within the folder of its class, with slashes.
        label: Number of its class, or −1.
    """

    path: Path
    within: str
    label: int


def find_images(folder: Path, *, least: int = 2) -> tuple[list[str], list[FoundImage]]:
    """The names of the classes, and the files sorted by class and path.

    Args:
        folder: Folder with the folders of the classes.
        least: Smallest allowed number of classes.

    Raises:
        ValueError: If the folder is not as `Images` describes it.
    """
    if not folder.is_dir():
        instead = f". data=arrays data.train={folder} reads a table" if folder.suffix.lower() in TABLES else ""
        what = "is a file and no folder" if folder.exists() else "is no folder"
        raise ValueError(f"dir={folder} {what}. Name a folder that holds a folder for each class, or images and {LABELS}{instead}")
    visible = sorted(path for path in folder.iterdir() if not _of_the_system(path.name))
    for path in visible:
        _refuse_link_to_nowhere(path)
    loose = next((path for path in visible if path.suffix.lower() in SUFFIXES and not path.is_dir()), None)
    folders = [path for path in visible if path.is_dir()]
    for path in folders:
        if path.name != UNLABELED and says_unlabeled(path.name):
            raise ValueError(f"{path} would be a class of that name. If its images have no label, rename it to {UNLABELED}")
        if path.name != (shown := path.name.encode(errors="backslashreplace").decode()):  # with bytes that Python escapes
            raise ValueError(f"{folder}/{shown}: the name of a class must be UTF-8: rename it")
    classes = [path for path in folders if path.name != UNLABELED]
    if (folder / LABELS).is_file() and (
        loose is not None or len(classes) < least or overrules_folders(folder / LABELS, images_within(folder)[0])
    ):
        return _labelled_by_table(folder, least=least)
    if loose is not None:
        raise ValueError(
            f"{loose} is in no class. Move it into the folder of its class or into {folder / UNLABELED}, or name the class of each file in "
            f"{folder / LABELS}"
        )
    if len(classes) < least:
        inner = classes[0] if len(classes) == 1 and sum(path.is_dir() for path in classes[0].iterdir()) >= least else None
        hint = "" if inner is None else f". Perhaps data.dir={inner}, which holds folders"
        raise ValueError(f"{folder} must hold folders of at least {least} classes, got {len(classes)} without {UNLABELED}/{hint}")
    parts = [path.name for path in classes if _is_part(path)]
    if len(parts) >= min(2, len(classes)):
        raise ValueError(
            f"{folder} holds {', '.join(parts)}, which are parts, not classes. Name one as data.dir, and the one for "
            "the test as data.test. The validation part is cut from data.dir, and the test part too without data.test"
        )
    names = [composed(path.name) for path in classes]
    if missing := [name for name in names if name.casefold() in MISSING]:
        warnings.warn(f"{folder / missing[0]} is a class of that name. If its images have no label, rename it to {UNLABELED}", stacklevel=2)
    for first, second in itertools.combinations(range(len(names)), 2):
        if names[first] == names[second]:
            both = " and ".join(ascii(classes[k].name) for k in (first, second))
            raise ValueError(f"{folder} holds {both}, which differ only in the form of their characters. Put them into one folder")
    of_folder: dict[str, Path] = {}
    for path in folders:
        if (other := of_folder.setdefault(os.path.realpath(path), path)) is not path:
            raise ValueError(f"{other} and {path} are one folder. Remove the link")
    files = []
    *labeled, unlabeled = images_within(*classes, folder / UNLABELED)
    for label, (path, found) in enumerate(zip(classes, labeled, strict=True)):
        if not found:
            raise ValueError(f"{path} holds no image ({', '.join(SUFFIXES)}). Remove the folder, or put images of this class into it")
        files += [FoundImage(path / within, within, label) for within in found]
    return names, files + [FoundImage(folder / UNLABELED / within, within, -1) for within in unlabeled]


def _is_part(folder: Path) -> bool:
    """Whether a folder's name is one of a part of the data, such as train, Test_set or val2."""
    words = {*re.findall("[a-z]+", folder.name.lower())}
    return bool(words & PARTS) and words <= PARTS | {"set", "data", "dataset", "split", "images", "imgs"}


def _labelled_by_table(folder: Path, *, least: int) -> tuple[list[str], list[FoundImage]]:
    """As `find_images`, of a folder with `LABELS`."""
    (found,) = images_within(folder)
    labels = read_labels(folder / LABELS, found)
    names = classes_of([*labels.values()], folder / LABELS)
    if len(names) < least:
        raise ValueError(f"{folder / LABELS} must hold at least {least} classes, got {len(names)}")
    number = {name: c for c, name in enumerate(names)} | {None: len(names)}
    order = sorted(found, key=lambda within: number[labels.get(within)])  # a class keeps the order of paths
    return names, [FoundImage(folder / within, within, number[labels[within]] if within in labels else -1) for within in order]


def images_within(*folders: Path) -> list[list[str]]:
    """The images in each folder and its subfolders, as sorted relative paths with slashes. Warns of `UNREADABLE` files.

    Raises:
        ValueError: If something with the name of an image is not a file.
    """
    images, left_out = [], Counter[str]()
    roots = {os.path.realpath(folder) for folder in folders}  # a link may lead to its own folder, or into another of these
    for folder in folders:
        images.append(found := [])
        for path in _files_within(folder, {*roots}):
            if (suffix := path.suffix.lower()) in SUFFIXES:
                if not path.is_file() and path.exists():  # a broken link counts as a damaged file; reading a pipe would never end
                    raise ValueError(f"{path} has the name of an image but is not a file. Remove it")
                found.append(path.relative_to(folder).as_posix())
            elif suffix in UNREADABLE:
                left_out[suffix] += 1
            else:
                _refuse_link_to_nowhere(path)
        found.sort()
    if left_out:
        counts = ", ".join(f"{number} files ending in {suffix}" for suffix, number in sorted(left_out.items()))
        warnings.warn(f"left out {counts}. To use them, convert them", stacklevel=2)
    return images


def _files_within(folder: Path, entered: set[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}). Make it readable, or move it out of the data") from error

    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse if os.path.lexists(folder) else None):
        inner, folders[:] = sorted(name for name in folders if not _of_the_system(name)), []
        for name in inner:
            if (real := os.path.realpath(os.path.join(root, name))) not in entered:
                entered.add(real)
                folders.append(name)
        yield from (Path(root, name) for name in names if not _of_the_system(name))


def _refuse_link_to_nowhere(path: Path) -> None:
    if path.is_symlink() and not path.exists() and path.suffix.lower() not in SUFFIXES:  # with an image's name it counts as a damaged file
        raise ValueError(f"{path} is a broken link, perhaps to a folder of images. Remove it, or restore its target")


def _of_the_system(name: str) -> bool:
    return name.lower() in SYSTEM or name.lower().startswith(SYSTEM_PREFIXES)


def _group(file: FoundImage, pattern: re.Pattern[str]) -> str:
    match = pattern.search(file.within)
    group = match and match.group(1 if pattern.groups else 0)
    if not group:
        raise ValueError(f"{file.path}: group_pattern={pattern.pattern!r} finds no group in {file.within!r}")
    return group
