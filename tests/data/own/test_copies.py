import io

import numpy as np
import pytest
import torch
from PIL import Image

from vat.data.files.image_files import ImageFiles, read_image
from vat.data.own.copies import find_copies
from vat.data.own.images import Images

ALIKE = "look like resized or recompressed copies of"


@pytest.fixture(scope="module")
def photographs():
    """60 pictures of several sizes with shapes and shades as in a scene."""
    found = []
    for k in range(60):
        generator = np.random.default_rng(k)
        rough = Image.fromarray(generator.integers(256, size=(6, 6, 3), dtype=np.uint8))
        side = int(generator.integers(150, 400))
        found.append(rough.resize((side, side + k % 40), Image.Resampling.BICUBIC))
    return found


def copy(image, side, quality):
    small = image.copy()
    small.thumbnail((side, side))
    small.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [16, 32, 100])
@pytest.mark.parametrize(("side", "quality"), [(120, 75), (96, 90), (60, 60)])
def test_resized_and_recompressed_copies_are_found_and_others_are_not(tmp_path, photographs, size, side, quality):
    paths = [tmp_path / f"{k}.jpg" for k in range(120)]
    for k, image in enumerate(photographs):
        image.save(paths[k], quality=95)
        paths[60 + k].write_bytes(copy(image, side, quality))
    x = torch.stack([read_image(path, size, "RGB") for path in paths])
    streamed = ImageFiles(paths, size=size, mode="RGB", workers=2)
    for inputs in (x, x / 255, streamed):
        ((kind, number, of),) = find_copies(inputs, torch.arange(60), inputs, torch.arange(60, 120))
        assert (kind, of) == (ALIKE, 60)
        assert number >= 55
        assert not list(find_copies(inputs, torch.arange(30), inputs, torch.arange(30, 60)))


def test_faint_and_flat_images_are_no_copies_of_each_other():
    faint = 128 + torch.randint(3, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert not list(find_copies(faint, torch.arange(20), faint, torch.arange(20, 40)))
    flat = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    assert not list(find_copies(flat, torch.arange(20), flat, torch.arange(20, 40)))
    assert list(find_copies(flat % 20, torch.arange(20), flat % 20, torch.arange(20, 40))) == [("have the values of", 20, 20)]


def test_what_storage_systems_leave_is_no_image_and_copies_in_folders_of_other_names_are_named(tmp_path, photographs):
    for k, image in enumerate(photographs[:40]):
        folder = tmp_path / "ab"[k % 2]
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{k}.jpg", quality=95)
        for inner in ("@eaDir", "@eaDir/x.jpg", ".thumbnails", "__MACOSX", ".AppleDouble", "lost+found", "#recycle", "$RECYCLE.BIN"):
            (folder / inner).mkdir(exist_ok=True)
            (folder / inner / f"{k}.jpg").write_bytes(copy(image, 120, 75))
        (folder / f"SYNOPHOTO_THUMB_{k}.jpg").write_bytes(copy(image, 120, 75))
    for name in ("@eaDir", "__MACOSX", "lost+found", ".Trash-1000", "System Volume Information"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(copy(photographs[0], 120, 75))
    for name in ("Thumbs.db", "a/Thumbs.db", "a/desktop.ini"):
        (tmp_path / name).write_bytes(b"no picture")
    (data := Images(dir=str(tmp_path))).setup()
    assert (len(data.x), data.class_names) == (40, ["a", "b"])
    for k, image in enumerate(photographs[:40]):
        (folder := tmp_path / "ab"[k % 2] / "small").mkdir(exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(copy(image, 120, 75))
    with pytest.warns(UserWarning, match=rf"^\d of 8 validation examples and \d+ of 16 test examples {ALIKE} examples to train on. If"):
        Images(dir=str(tmp_path)).setup()
