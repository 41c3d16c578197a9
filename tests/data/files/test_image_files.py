"""Unusual image files are read correctly. Each is compared with the pixels that were written."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vat.data.files.image_files import check_header, read_image

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2)
DIAGONAL = np.eye(8, dtype=bool)


def saved(path, pixels, **options):
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def read(path, mode="RGB"):
    check_header(path)
    return read_image(path, 8, mode).permute(1, 2, 0).numpy()


def bmp(alpha):
    """32 bits with a mask for alpha. Some programs write it and leave the field 0."""
    pixels = np.dstack([COLOURS[..., ::-1], np.full((8, 8), alpha, np.uint8)])[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def test_transparency_that_hides_all_of_a_picture_is_left_out(tmp_path):
    for alpha in (0, 255):
        (path := tmp_path / "a.bmp").write_bytes(bmp(alpha))
        assert np.array_equal(read(path), COLOURS)
    hidden = np.dstack([COLOURS, np.zeros((8, 8), np.uint8)])
    for name, options in {"a.png": {}, "a.tif": {}, "a.webp": {"lossless": True, "exact": True}}.items():
        assert np.array_equal(read(saved(tmp_path / name, hidden, **options)), COLOURS)


@pytest.mark.parametrize(("drawn", "background"), [(255, 0), (250, 0), (0, 255), (128, 255)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "gif", "1", "tif"])
def test_a_drawing_on_transparency_is_seen(tmp_path, kind, drawn, background):
    expected = np.where(DIAGONAL, drawn, background)
    alpha = DIAGONAL * np.uint8(255)
    colour = np.full((8, 8), drawn, np.uint8)
    if kind in ("palette", "gif"):
        image = Image.fromarray(DIAGONAL.astype(np.uint8), "P")
        image.putpalette([drawn] * 768)
        path = saved(tmp_path / ("a.gif" if kind == "gif" else "a.png"), image, transparency=0)
    elif kind == "1":
        if drawn not in (0, 255):
            pytest.skip("of one bit")
        image = Image.fromarray((drawn == 255) == DIAGONAL)
        path = saved(tmp_path / "a.png", image, transparency=255 - drawn)
    else:
        channels = [colour, alpha] if kind == "LA" else [colour] * 3 + [alpha]
        path = saved(tmp_path / ("a.tif" if kind == "tif" else "a.png"), np.dstack(channels))
    for mode in ("RGB", "L"):
        assert np.array_equal(read(path, mode), np.repeat(expected[..., None], 3 if mode == "RGB" else 1, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_sixteen_bits_that_becomes_one_level_is_refused(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", np.arange(64, dtype=np.uint16).reshape(8, 8))
    with pytest.raises(ValueError, match=r"16 bits, 0 to 63, are one grey level of 8 bits. Scale them"):
        read(path)
    assert (read(saved(path, np.full((8, 8), 514, np.uint16))) == 2).all()  # one level already


def chunk(kind, data, *, broken=False):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ broken)


def with_chunk(content, added, *, before=b"IDAT"):
    place = content.index(before) - 4
    return content[:place] + added + content[place:]


def encoded(**options):
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"pHYs", b"eXIf", b"iCCP", b"tIME", b"abCd"])
def test_damaged_notes_of_a_png_do_not_matter(tmp_path, kind, before):
    for broken in (False, True):
        (path := tmp_path / "a.png").write_bytes(with_chunk(encoded(), chunk(kind, b"abc\0defghij", broken=broken), before=before))
        assert np.array_equal(read(path), COLOURS)


def test_large_notes_of_a_png_do_not_matter_and_its_orientation_does(tmp_path):
    texts = [PngImagePlugin.PngInfo() for _ in range(2)]
    texts[0].add_text("note", "a" * 3_000_000, zip=True)
    texts[1].add_itxt("note", "a" * 3_000_000)
    for options in ({"pnginfo": texts[0]}, {"pnginfo": texts[1]}, {"icc_profile": os.urandom(100) + bytes(5_000_000)}):
        (path := tmp_path / "a.png").write_bytes(encoded(**options))
        assert np.array_equal(read(path), COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6
    path.write_bytes(encoded(pnginfo=texts[0], exif=exif))
    assert np.array_equal(read(path), np.rot90(COLOURS, -1))


def test_chunks_that_determine_a_pngs_picture_must_be_intact(tmp_path):
    path = tmp_path / "a.png"
    content = bytearray(encoded())
    content[content.index(b"IDAT") + 20] ^= 1
    for damaged in (bytes(content), with_chunk(encoded(), chunk(b"tRNS", bytes(6), broken=True))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: (broken data|it is a damaged PNG file)"):
            read(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_note_of_the_camera_does_not_matter(tmp_path):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(10)):
        flat = np.full((16, 16, 3), 100, np.uint8)
        assert (abs(read(saved(tmp_path / "a.jpg", flat, exif=exif)).astype(int) - 100) <= 1).all()


def test_lab_becomes_grey_as_it_becomes_colours(tmp_path):
    path = saved(tmp_path / "a.tif", Image.merge("LAB", [Image.fromarray(GRADIENT), *[Image.new("L", (8, 8), 128)] * 2]))
    colours = read(path)
    assert (np.diff(colours[..., 0].ravel().astype(int)) >= 0).all()  # lightness rises
    assert colours.max() - colours.min() > 200
    assert np.array_equal(read(path, "L")[..., 0], np.asarray(Image.fromarray(colours).convert("L")))
