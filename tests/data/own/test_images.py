import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vat.data.files import image_files
from vat.data.files.image_files import ImageFiles, check_header, read_image
from vat.data.own import base as own
from vat.data.own.images import Images, find_images
from vat.lightning.classifier import Classifier

pytestmark = [pytest.mark.filterwarnings(f"ignore:{said}") for said in ("no labelled example is", ".* examples to train on")]

ROOT = Path(__file__).parents[3]
GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2)


def saved(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def encoded(kind, pixels=COLOURS):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def channels_last(x):
    return x.permute(1, 2, 0).numpy()


@pytest.fixture
def folder(tmp_path):
    """24 pictures of two classes and 12 without a label, of three patients each, all of different grey."""
    for c, name in enumerate(("cat", "dog", "unlabeled")):
        for i in range(12):
            pixels = np.random.default_rng((c, i)).integers(256, size=(9 + i % 3, 11, 3), dtype=np.uint8)
            saved(tmp_path / "pictures" / name / f"p{i // 2}" / f"{i}.png", pixels)
    return tmp_path / "pictures"


def ready(folder, **options):
    data = Images(dir=str(folder), **({"size": 8, "batch_size_labeled": 4, "batch_size_unlabeled": 7} | options))
    data.setup()
    return data


# One file


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "ppm", "webp"])
def test_pixels_of_the_right_size_are_taken_as_they_are(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", GRADIENT, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(channels_last(read_image(path, 8, "L"))[..., 0], GRADIENT)
    assert np.array_equal(channels_last(read_image(path, 8, "RGB")), np.repeat(GRADIENT[..., None], 3, axis=2))


def test_the_content_counts_and_not_the_suffix(tmp_path):
    (path := tmp_path / "a.jpg").write_bytes(encoded("PNG"))
    assert np.array_equal(channels_last(read_image(path, 8, "RGB")), COLOURS)


@pytest.mark.parametrize("shape", [(8, 20), (24, 48), (32, 16), (16, 28), (4, 8), (64, 64), (3, 3)])
def test_the_shorter_side_is_resized_with_antialiasing_and_the_middle_cut_out(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    height, width = (8 * side // min(shape) for side in shape)
    whole = F.interpolate(torch.from_numpy(pixels).float()[None, None], (height, width), mode="bilinear", antialias=True)[0]
    expected = whole[:, (height - 8) // 2 :, (width - 8) // 2 :][:, :8, :8]
    found = read_image(saved(tmp_path / "a.png", pixels), 8, "L")
    assert (found.float() - expected).abs().max() <= 1  # Pillow rounds after each axis


@pytest.mark.parametrize("shape", [(9, 10), (31, 50)])
def test_a_square_between_two_pixels_is_the_mean_of_both(tmp_path, shape):
    ramp = np.tile(np.arange(shape[1], dtype=np.uint8) * 5, (shape[0], 1))
    found = read_image(saved(tmp_path / "a.png", ramp), 4, "L")[0].float()
    step = shape[0] / 4
    middles = (shape[1] - shape[0]) / 2 + step * (torch.arange(4) + 0.5) - 0.5  # in pixels, of each column of the result
    assert (found[:, 1:3] - 5 * middles[1:3]).abs().max() <= 1


def test_grey_of_sixteen_bits_is_rounded_to_eight(tmp_path):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    for path in (saved(tmp_path / "a.png", deep), saved(tmp_path / "a.tif", deep), saved(tmp_path / "a.pgm", deep)):
        assert np.array_equal(channels_last(read_image(path, 8, "L"))[..., 0], np.rint(deep / 257).astype(np.uint8))


def test_transparent_pixels_are_put_on_white(tmp_path):
    alpha = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8) * np.ones((8, 1), np.uint8)
    expected = np.where(alpha[..., None] == 0, 255, COLOURS)
    path = saved(tmp_path / "a.png", np.dstack([COLOURS, alpha]))
    assert np.array_equal(channels_last(read_image(path, 8, "RGB")), expected)
    path = saved(tmp_path / "b.png", np.dstack([GRADIENT, alpha]))
    assert np.array_equal(channels_last(read_image(path, 8, "L"))[..., 0], np.where(alpha == 0, 255, GRADIENT))
    palette = Image.fromarray(GRADIENT // 16).convert("L")
    palette.putpalette([level for k in range(256) for level in (k, 2 * k % 256, 0)])
    path = saved(tmp_path / "c.png", palette, transparency=0)
    found = channels_last(read_image(path, 8, "RGB"))
    index = GRADIENT // 16
    assert np.array_equal(found, np.where((index == 0)[..., None], 255, np.dstack([index, 2 * index, 0 * index])))


def test_the_orientation_that_a_camera_notes_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right
    path = saved(tmp_path / "a.png", COLOURS, exif=exif)
    assert np.array_equal(channels_last(read_image(path, 8, "RGB")), np.rot90(COLOURS, -1))


def test_black_and_white_and_cmyk_are_converted(tmp_path):
    checks = (np.indices((8, 8)).sum(0) % 2).astype(bool)
    assert np.array_equal(channels_last(read_image(saved(tmp_path / "a.png", checks), 8, "L"))[..., 0], checks * np.uint8(255))
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert read_image(saved(tmp_path / "a.jpg", ink, quality=100), 8, "RGB")[:, 0, 0].tolist() == [0, 255, 255]


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(8193, 8192), r"it must have at most 67,108,864 pixels, got 8193 × 8192"),
        (png(9500, 9500), r"got 9500 × 9500"),
        (png(2**31 - 1, 2**31 - 1), "decompression bomb"),
        (png(8000, 8000), r"\d+ bytes cannot hold the 8000 × 8000 pixels of its header"),
        (png(100, 100), "truncated"),
        (encoded("PNG")[:60], "a.png cannot be read as an image"),
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "it is HEIC, AVIF or a video. Convert it"),
        (b"no picture", "its content is none of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "its content is none of PNG, JPEG"),
    ],
)
def test_what_is_no_picture_or_far_too_large_is_refused(tmp_path, content, message):
    (path := tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_image(path, 8, "RGB")


def test_pixels_of_unknown_range_are_refused(tmp_path):
    for values, kind in (
        (GRADIENT.astype(np.float32), "floating-point numbers"),
        (GRADIENT.astype(np.int32), "signed or 32-bit integers"),
        (GRADIENT.astype(np.int32) * 1000, "signed or 32-bit integers"),
    ):
        path = saved(tmp_path / "a.tif", values)
        for read in (check_header, lambda path: read_image(path, 8, "L")):
            with pytest.raises(ValueError, match=rf"a\.tif .*its pixels are {kind}, so the value of white is unknown"):
                read(path)


def test_a_strip_of_a_million_pixels_costs_no_memory(tmp_path):
    path = saved(tmp_path / "a.png", np.full((1, 1_000_000), 7, np.uint8))
    assert read_image(path, 64, "L").unique().tolist() == [7]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_a_spoilt_file_is_read_or_refused_by_name(fuzz, tmp_path, kind):
    fuzz(lambda path: read_image(path, 8, "RGB"), encoded(kind), tmp_path / "a.png", kind)


# A folder


def test_classes_are_folders_in_order_and_files_in_order_of_their_paths(tmp_path):
    for name in (
        "b/2.png",
        "b/10.PNG",
        "b/x/1.jpg",
        "b/x/2.jfif",
        "b/x/3.JPE",
        "a/1.png",
        "unlabeled/z.png",
        "unlabeled/y/1.png",
        ".cache/1.png",
    ):
        saved(tmp_path / name, GRADIENT)
    for name in ("notes.txt", "a/Thumbs.db", "a/.DS_Store", "a/._1.png", "b/readme"):
        (tmp_path / name).write_bytes(b"no picture")
    names, files = find_images(tmp_path)
    assert names == ["a", "b"]
    expected = [
        ("1.png", 0),
        ("10.PNG", 1),
        ("2.png", 1),
        *((f"x/{name}", 1) for name in ("1.jpg", "2.jfif", "3.JPE")),
        ("y/1.png", -1),
        ("z.png", -1),
    ]
    assert [(file.within, file.label) for file in files] == expected
    assert all(file.path.is_file() for file in files)


def test_images_of_other_formats_are_counted(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        saved(tmp_path / name, GRADIENT)
    for name in ("a/2.heic", "b/2.HEIC", "unlabeled/x/1.dng", "a/.3.heic", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"of another format")
    with pytest.warns(
        UserWarning, match=r"^left out 1 files ending in \.dng, 2 files ending in \.heic. To use them, convert them$"
    ) as said:
        _, files = find_images(tmp_path)
    assert [file.within for file in files] == ["1.png", "1.png"]
    assert len(said) == 1


def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path):
    saved(tmp_path / "a" / "1.png", GRADIENT)
    saved(tmp_path / os.fsdecode(b"gr\xfcn") / "1.png", GRADIENT)
    with pytest.raises(ValueError, match=r"/gr\\udcfcn: the name of a class must be UTF-8: rename it"):
        find_images(tmp_path)


def test_folders_whose_names_differ_in_form_or_case_alone_are_named(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301"):
        saved(tmp_path / name / "1.png", GRADIENT)
    with pytest.raises(ValueError, match=r"holds 'cafe\\u0301' and 'caf\\xe9', which differ only in the form of their characters"):
        find_images(tmp_path)
    (tmp_path / "caf\u00e9").rename(tmp_path / "cat")
    assert find_images(tmp_path)[0] == ["caf\u00e9", "cat"]


def test_what_cannot_be_entered_is_refused_by_name(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/inner/2.png", "b/1.png"):
        saved(tmp_path / name, GRADIENT)
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", locked)
        with pytest.raises(
            ValueError, match=r"a/inner cannot be read \(Permission denied\)\. Make it readable, or move it out of the data"
        ):
            find_images(tmp_path)
    for link in (tmp_path / "b" / "more", tmp_path / "class"):
        link.symlink_to(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=rf"{link} is a broken link, perhaps to a folder of images"):
            find_images(tmp_path)
        link.unlink()


def test_links_are_followed_but_not_in_circles(tmp_path):
    outside = saved(tmp_path / "elsewhere" / "1.png", GRADIENT)
    saved(tmp_path / "data" / "b" / "1.png", GRADIENT)
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "2.png").symlink_to(outside)
    (tmp_path / "data" / "b" / "again").symlink_to(tmp_path / "data" / "b")
    _, files = find_images(tmp_path / "data")
    assert [(file.within, file.label) for file in files] == [("1.png", 0), ("1.png", 1), ("2.png", 1)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"must hold folders of at least 2 classes, got 0 without unlabeled/"),
        (["a/1.png"], "got 1 without unlabeled/"),
        (["unlabeled/1.png"], "got 0 without unlabeled/"),
        (["a/1.png", "b/notes.txt"], r"data/b holds no image \(\.png, .*Remove the folder"),
        (["a/1.png", "b/1.png", "1.png"], r"data/1\.png is in no class. Move it into the folder of its class or into .*/unlabeled"),
        (
            ["a/1.png", "b/1.png", "Unlabelled/1.png"],
            "data/Unlabelled would be a class of that name. If its images have no label, rename it to unlabeled",
        ),
        (
            ["train/a/1.png", "Test/b/1.png"],
            "data holds Test, train, which are parts, not classes. Name one as data.dir, and the one for the test as data.test",
        ),
        (["train/1.png", "dev_set/1.png", "other/1.png"], "data holds dev_set, train, which are parts"),
        (["photos/a/1.png", "photos/b/1.png"], r"got 1 without unlabeled/\. Perhaps data\.dir=.*photos, which holds folders"),
    ],
)
def test_a_folder_of_another_form_is_refused(tmp_path, names, message):
    (tmp_path / "data").mkdir()
    for name in names:
        if name.endswith(".png"):
            saved(tmp_path / "data" / name, GRADIENT)
        else:
            (tmp_path / "data" / name).parent.mkdir()
            (tmp_path / "data" / name).write_text("no picture")
    with pytest.raises(ValueError, match=message):
        ready(tmp_path / "data")


def test_no_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dir=.*nowhere is no folder"):
        ready(tmp_path / "nowhere")
    (tmp_path / "rows.csv").touch()
    with pytest.raises(
        ValueError, match=r"rows\.csv is a file and no folder\. Name a folder .*\. data=arrays data\.train=.*rows\.csv reads a"
    ):
        ready(tmp_path / "rows.csv")
    for name in ("a", "b"):
        saved(tmp_path / name / "1.png", GRADIENT)
    os.mkfifo(tmp_path / "a" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png has the name of an image but is not a file. Remove it"):
        ready(tmp_path)


# The data set


def test_a_test_folder_is_the_test_part_in_the_classes_of_the_training_folder(folder, tmp_path):
    for name in ("dog/1", "dog/2", "bird/1"):
        saved(tmp_path / "test" / f"{name}.png", COLOURS)
    saved(folder / "bird" / "1.png", COLOURS)
    saved(folder / "bird" / "2.png", COLOURS)
    data = ready(folder, test=str(tmp_path / "test"))
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.split.test.tolist() == [38, 39, 40]
    assert data.y[38:].tolist() == [0, 2, 2]
    assert data.split.sizes == {"labeled": 23, "unlabeled": 35, "validation": 3, "test": 3}
    assert np.array_equal(channels_last(data.x[39]), COLOURS)
    streamed = ready(folder, test=str(tmp_path / "test"), resident_gib=0)
    assert streamed.split.digest == data.split.digest
    (tmp_path / "test" / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out 1 of 41 files"):
        assert ready(folder, test=str(tmp_path / "test"), corrupt="skip").split.test.tolist() == [38, 39]
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out 3 of 41 files"), pytest.raises(ValueError, match="test: none of its files can be read"):
        ready(folder, test=str(tmp_path / "test"), corrupt="skip")


def test_a_test_folder_that_does_not_fit_is_refused(folder, tmp_path):
    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            ready(folder, **({"test": str(tmp_path / "test")} | options))

    for name in ("cat/p9", "mouse/p1"):
        saved(tmp_path / "test" / name / "1.png", COLOURS)
    refused("test holds mouse. The classes of .* are cat, dog")
    (tmp_path / "test" / "mouse").rename(tmp_path / "test" / "dog")
    refused("both have examples of the group p1. Keep it in one of them", group_pattern=r"p\d")
    assert ready(folder, test=str(tmp_path / "test")).split.sizes["test"] == 2
    (tmp_path / "one").mkdir()
    refused("of at least 1 classes, got 0", test=str(tmp_path / "one"))
    saved(tmp_path / "one" / "dog" / "1.png", COLOURS)
    assert ready(folder, test=str(tmp_path / "one")).y[36:].tolist() == [1]
    saved(tmp_path / "test" / "unlabeled" / "1.png", COLOURS)
    refused("test/unlabeled: test examples must be labelled: remove it")
    for inside in (folder, folder / "cat", folder.parent):
        refused("they must not be the same folder, or one in the other", test=str(inside))


def test_setup_describes_the_images(folder):
    data = ready(folder)
    assert data.class_names == ["cat", "dog"]
    assert (data.input_shape, data.x.dtype, len(data.x)) == ((3, 8, 8), torch.uint8, 36)
    assert data.y.tolist() == [0] * 12 + [1] * 12 + [-1] * 12
    parts = {"labeled": 17, "unlabeled": 29, "validation": 2, "test": 5}
    assert {name: len(getattr(data.split, name)) for name in parts} == parts
    assert torch.isin(torch.arange(24, 36), data.split.unlabeled).all()
    for row in (0, 13, 35):
        _, files = find_images(folder)
        assert torch.equal(data.x[row], read_image(files[row].path, 8, "RGB"))


def test_mean_and_deviation_are_those_of_the_pool(folder):
    data = ready(folder)
    pool = data.x[data.split.unlabeled].double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pool.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std).double(), pool.std((0, 2, 3), correction=0))


def test_a_constant_channel_is_not_divided_by_zero(tmp_path):
    for name in ("a/1", "a/2", "b/1", "b/2", "unlabeled/1"):
        saved(tmp_path / f"{name}.png", np.full((8, 8, 3), (51, 0, 255), np.uint8))
    data = ready(tmp_path)
    assert data.mean == pytest.approx((0.2, 0.0, 1.0))
    assert data.std == (1.0, 1.0, 1.0)


def test_the_seed_moves_the_labels_and_the_split_seed_the_parts(folder):
    settings = ({"split_seed": 0}, {"split_seed": 0, "seed": 1}, {"split_seed": 1})
    one, other, moved = (ready(folder, num_labeled=6, **options) for options in settings)
    assert torch.equal(one.split.test, other.split.test)
    assert torch.equal(one.split.validation, other.split.validation)
    assert not torch.equal(one.split.labeled, other.split.labeled)
    assert not torch.equal(one.split.test, moved.split.test)
    assert torch.bincount(one.y[one.split.labeled]).tolist() == [3, 3]


def test_what_is_in_no_part_is_named(folder):
    with pytest.warns(UserWarning, match="unlabeled_classes leaves out the 12 examples without a label, which are of no class"):
        assert not (ready(folder, unlabeled_classes=[0]).split.unlabeled >= 24).any()
    for path in sorted((folder / "dog").rglob("*.png"))[1:]:
        path.unlink()
    with pytest.warns(UserWarning, match="no labelled example is in the validation part of dog; in the test part of dog. Label more"):
        ready(folder)


def test_a_pool_that_is_labelled_throughout_has_no_unlabelled_batch(folder):
    assert next(iter(ready(folder).train_dataloader())).unlabeled is not None
    for path in sorted((folder / "unlabeled").rglob("*.png")):
        path.unlink()
    data = ready(folder)
    assert next(iter(data.train_dataloader())).unlabeled is None
    assert next(iter(ready(folder, num_labeled=6).train_dataloader())).unlabeled is not None


def test_no_group_is_in_two_parts_and_unlabelled_rows_of_held_out_groups_are_in_none(folder):
    data = ready(folder, group_pattern=r"^(p\d)/")
    _, files = find_images(folder)
    groups = [file.within[:2] for file in files]
    sides = [{groups[row] for row in rows.tolist()} for rows in (data.split.unlabeled, data.split.validation, data.split.test)]
    assert all(sides)
    assert set.union(*sides) == set(groups)
    assert not any(sides[i] & sides[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = {row for row in range(24, 36) if groups[row] in sides[0]}
    assert expected == set(data.split.unlabeled.tolist()) & set(range(24, 36))
    assert 0 < len(expected) < 12


def test_a_file_without_a_group_is_refused(folder):
    saved(folder / "dog" / "nobody.png", GRADIENT)
    with pytest.raises(ValueError, match=r"nobody\.png: group_pattern='p\\\\d' finds no group in 'nobody\.png'"):
        ready(folder, group_pattern=r"p\d")


@pytest.mark.parametrize("content", [b"no picture", encoded("PNG")[:60]], ids=["text", "truncated"])
def test_a_damaged_file_is_refused_or_left_out_by_name(folder, content):
    whole = ready(folder)
    for name in ("cat/p0/0a.png", "unlabeled/p9.jpg"):
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cat/p0/0a\.png cannot be read .*leave out all such files by data\.corrupt=skip"):
        ready(folder)
    with pytest.warns(UserWarning, match=r"left out 2 of 38 files:\n.*cat/p0/0a\.png cannot .*\n.*unlabeled/p9\.jpg cannot"):
        data = ready(folder, corrupt="skip")
    assert torch.equal(data.x, whole.x)
    assert data.split.digest == whole.split.digest


def same(one, other):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{}, {"flip": True, "translate": 1}, {"mode": "L", "workers": 5, "group_pattern": r"p\d"}])
def test_a_streamed_run_has_the_batches_of_a_resident_one(folder, options):
    resident, streamed = ready(folder, **options), ready(folder, resident_gib=0, **options)
    assert isinstance(streamed.x, ImageFiles)
    assert isinstance(resident.x, torch.Tensor)
    assert (streamed.mean, streamed.std, streamed.input_shape) == (resident.mean, resident.std, resident.input_shape)
    assert streamed.split.digest == resident.split.digest
    one, other = resident.train_dataloader(), streamed.train_dataloader()
    for steps in (range(3), range(3)):
        for _, expected, found in zip(steps, one, other, strict=False):
            assert found.micro_step == expected.micro_step
            assert same(found.labeled, expected.labeled)
            assert same(found.unlabeled, expected.unlabeled)
        for loader in (one, other):
            loader.load_state_dict({"micro_step": 40})
    for name in ("val_dataloader", "test_dataloader"):
        assert all(same(a, b) for a, b in zip(getattr(resident, name)(), getattr(streamed, name)(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(resident.training_inputs(), streamed.training_inputs(), strict=True))


def test_a_file_that_turns_out_damaged_in_training_is_named(folder):
    data = ready(folder, resident_gib=0)
    loader = data.train_dataloader()
    path = data.x.paths[data.split.labeled[0]]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{path} cannot be read as an image"):
        list(loader)


def test_a_large_set_is_streamed(folder):
    decoded = 36 * 3 * 8 * 8 / 2**30
    assert isinstance(ready(folder, resident_gib=decoded).x, torch.Tensor)
    assert isinstance(ready(folder, resident_gib=decoded * 0.999).x, ImageFiles)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "CMYK"}, "mode must be one of RGB, L, got 'CMYK'"),
        ({"corrupt": "ignore"}, "corrupt must be refuse or skip, got 'ignore'"),
        ({"size": 0}, "size and workers must be >= 1, resident_gib >= 0, got 0, 2, 2.0"),
        ({"size": 8193}, r"data\.size=8193: images may have at most 67,108,864 pixels. Lower it"),
        ({"workers": 0}, "got 32, 0, 2.0"),
        ({"resident_gib": -1.0}, "got 32, 2, -1.0"),
        ({"group_pattern": "("}, r"group_pattern='\(' is no regular expression: missing \)"),
        (
            {"test_share": 0.9, "validation_share": 0.1},
            "with a sum below 1, got validation_share=0.1, test_share=0.9",
        ),
        ({"test_share": 0.0}, "test_share=0.0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Images(dir="pictures", **options)


@pytest.mark.parametrize("gib", [0, 2])
def test_a_run_from_the_command_line_keeps_the_class_names(main, tmp_path, folder, gib):
    from vat.runs import checkpoints

    main("data=images", f"data.dir={folder}", f"data.resident_gib={gib}", "data.size=8", "trainer=debug", "hydra.run.dir=run")
    checkpoint = checkpoints.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["record"]["class_names"] == ["cat", "dog"]


def test_a_worker_that_dies_in_training_ends_the_run_with_one_line_and_it_resumes(main, folder, monkeypatch):
    settings = ("data=images", f"data.dir={folder}", "data.resident_gib=0", "data.size=8", "model=cnn", "model.channels=[4]")
    settings += ("data.batch_size_labeled=2", "data.batch_size_unlabeled=4", "trainer.max_steps=6", "data.steps_per_epoch=3", "test=none")
    whole_step, whole_read, seen = Classifier.training_step, image_files.read_image, []

    def training_step(self, batch, batch_idx):
        seen.append(batch.micro_step)
        return whole_step(self, batch, batch_idx)

    def dies(*arguments):
        if len(seen) > 3:  # in the second epoch
            raise MemoryError("a worker cannot decode")
        return whole_read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", training_step)
        patch.setattr(image_files, "read_image", dies)
        with pytest.raises(SystemExit, match=r"^error: out of memory\. Lower data\.batch_size_unlabeled .*a worker cannot decode"):
            main(*settings)
    assert 3 < len(seen) < 6
    main(*settings, "ckpt_path=last")
    (run,) = Path().glob("outputs/*/*")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.long  # a separate process; the test above runs the same in this one
def test_the_command_that_a_user_types_ends_well(shell, folder):
    command = ("data=images", f"data.dir={folder}", "data.size=8", "model=cnn", "trainer=debug", "logger=none")
    result = shell(ROOT / "src" / "train.py", *command)
    assert result.returncode == 0, result.stderr
    assert "pixels in [0, 1]" in result.stdout


def test_moments_of_a_large_pool_are_of_examples_from_all_of_it(monkeypatch):
    monkeypatch.setattr(own, "MOST_FOR_MOMENTS", 400)
    x = torch.arange(2000.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)  # sorted, as by class
    (mean,), (std,) = own.channel_moments(x, torch.arange(2000), seed=0)
    assert mean == pytest.approx(1000, abs=100)
    assert std == pytest.approx(577, abs=60)


@pytest.mark.parametrize(("size", "most"), [(32, 100), (224, 100), (768, 9), (4096, 1)])
def test_moments_of_large_images_take_fewer_at_once(size, most):
    asked = []

    class Files:
        shape, dtype = (120, 3, size, size), torch.uint8

        def __getitem__(self, rows):
            asked.append(len(rows))
            return torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8)  # instead of as many pixels

    own.channel_moments(Files(), torch.arange(120), seed=0)
    assert max(asked) == most
    assert sum(asked[1:]) == 120  # the first is for the range of the values


@pytest.mark.filterwarnings("ignore:no labelled example is")
@pytest.mark.parametrize("gib", [0, 2])
def test_images_of_a_camera_of_fewer_than_sixteen_bits_are_named(tmp_path, gib):
    for number in range(12):
        deep = np.random.default_rng(number).integers(3999, size=(8, 8)).astype(np.uint16)
        deep[0, 0] = 3999
        saved(tmp_path / "ab"[number % 2] / f"{number}.png", deep)
    with pytest.warns(UserWarning, match="images of 16 bits have values up to 3999 of 65535, so they are dark. Scale them before"):
        ready(tmp_path, resident_gib=gib)
    saved(tmp_path / "a" / "0.png", np.full((8, 8), 16384, np.uint16))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "images of 16 bits")
        ready(tmp_path, resident_gib=gib)


def test_moments_of_values_far_from_zero_are_right():
    x = 1e8 + 8.0 * torch.arange(2).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    assert own.channel_moments(x, torch.arange(2), seed=0) == ((pytest.approx(1e8 + 4, abs=1e-3),), (pytest.approx(4.0),))


def test_a_link_from_one_class_to_all_of_them_brings_no_foreign_images(tmp_path):
    for k, name in enumerate(("a", "b")):
        for i in range(3):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (k, i, 0)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "a" / "all").symlink_to(tmp_path / "data")
    _, files = find_images(tmp_path / "data")
    assert [(file.within, file.label) for file in files] == [(f"{i}.png", k) for k in (0, 1) for i in range(3)]
    (tmp_path / "data" / "c").symlink_to(tmp_path / "data" / "a")
    with pytest.raises(ValueError, match=r"are one folder. Remove the link"):
        find_images(tmp_path / "data")


def test_one_class_may_be_called_as_a_part_is_and_a_class_called_unknown_is_named(tmp_path):
    for name in ("car", "train", "unknown"):
        saved(tmp_path / "data" / name / "1.png", GRADIENT)
    with pytest.warns(UserWarning, match=r"data/unknown is a class of that name\. If its images have no label, rename it to unlabeled"):
        assert find_images(tmp_path / "data")[0] == ["car", "train", "unknown"]


def test_classes_of_a_table_are_in_the_order_of_numbers(tmp_path):
    for i in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{[10, 2][i % 2]}\n" for i in range(4)))
    assert find_images(tmp_path)[0] == ["2", "10"]
