"""Reads image files of any size and mode as bytes of one shape."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
UNREADABLE = (".heic", ".heif", ".avif", ".jp2", ".dng", ".raw", ".cr2", ".nef")  # images in formats that are not read
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # by content; Pillow knows others, some of which are programs (EPS)
MODES = {"RGB": 3, "L": 1}
MAX_PIXELS = 2**26  # 256 MiB as RGBA; the largest cameras have fewer
MAX_PIXELS_PER_BYTE = 2**16  # a blank fax page 8,192 pixels wide has a bit for each line; a header that claims more is forged
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
FAINT = 8  # contrast in grey levels of 256 below which nothing is visible
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path, size: int, mode: str) -> Tensor:
    """Read the first picture in a file, upright, and resize its central square.

    The camera's orientation in EXIF is applied. Transparent pixels are put on white, or on black if nothing is visible on white.
    Transparency that hides the complete picture is ignored. Grey levels of 16 bits are rounded to 8. Colours become grey by the luma of
    ITU-R 601. The square is as wide as the shorter side. Resizing is bilinear, with antialiasing.

    Args:
        path: A file of one of `FORMATS`.
        size: Height and width of the result.
        mode: One of `MODES`.

    Returns:
        uint8 of shape (C, size, size).

    Raises:
        ValueError: If the file holds no such picture, is damaged, has more than `MAX_PIXELS` pixels, or pixels of unknown range.
    """
    return _read(path, lambda image: _converted(image, size, mode))


def check_header(path: Path) -> None:
    """Refuse a file that `read_image` would refuse, as far as its header shows.

    Raises:
        ValueError: As `read_image`.
    """
    _read(path, lambda image: torch.empty(0))


def largest_deep_level(path: Path) -> int:
    """The largest grey level of a picture of 16 bits. 0 for others, which are not decoded.

    Raises:
        ValueError: As `read_image`.
    """
    return int(_read(path, lambda image: torch.tensor(np.asarray(image).max().item() if image.mode in DEEP else 0)))


def _read(path: Path, use: Callable[[Image.Image], Tensor]) -> Tensor:
    try:
        return _opened(path, path, use)
    except Exception as error:  # a decoder of a damaged file can raise anything, from struct.error to TypeError
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = _unidentified(path)
        try:
            if (bare := without_notes(path)) is not None:
                reason = "it is a damaged PNG file" if isinstance(error, UnidentifiedImageError) else reason
                return _opened(path, bare, use)
        except Exception:  # the fault is not in the notes
            pass
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(12)
    if not start:
        return "it is empty"
    if start[4:8] == b"ftyp":
        return "it is HEIC, AVIF or a video. Convert it"
    return f"its content is none of {', '.join(FORMATS)}"


def _opened(path: Path, content: Path | io.BytesIO, use: Callable[[Image.Image], Tensor]) -> Tensor:
    with Image.open(content, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it must have at most {MAX_PIXELS:,} pixels, got {width} × {height}")
        if width * height > MAX_PIXELS_PER_BYTE * (size := path.stat().st_size):
            raise ValueError(f"{size} bytes cannot hold the {width} × {height} pixels of its header")
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):  # PNG and PPM define white
            kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
            raise ValueError(f"its pixels are {kind}, so the value of white is unknown. Convert it to 8 or 16 bits")
        return use(image)


def without_notes(path: Path) -> io.BytesIO | None:
    """A PNG file without its texts, profiles and other notes, because Pillow refuses large and damaged ones. None for another format.

    The chunks that determine the picture stay: those that every reader must know, transparency, and a camera's orientation.
    """
    kept = io.BytesIO()
    with path.open("rb") as file:
        if file.read(len(PNG_MAGIC)) != PNG_MAGIC:
            return None
        kept.write(PNG_MAGIC)
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind[0] & 0x20 and kind not in (b"tRNS", b"eXIf"):  # a small letter: a note
                file.seek(size + 4, io.SEEK_CUR)
                continue
            body = file.read(size + 4)
            if kind != b"eXIf" or body[size:] == struct.pack(">I", zlib.crc32(kind + body[:size])):
                kept.write(head + body)
    kept.seek(0)
    return kept


def _converted(image: Image.Image, size: int, mode: str) -> Tensor:
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, MemoryError):  # faults of the picture itself
        raise
    except Exception:  # a damaged note of the camera, which viewers also ignore
        image.load()
    if image.mode in DEEP:
        image = _of_eight_bits(image)
    if image.has_transparency_data:
        image = _over_a_background(image.convert("RGBA"))
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow's only conversion from LAB
    image = image.convert(mode)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # Resizing also crops the square. A strip of 1 × 1,000,000 pixels, resized first, would need more than all memory.
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image).reshape(size, size, -1)).permute(2, 0, 1).contiguous()


def _over_a_background(image: Image.Image) -> Image.Image:
    """An RGBA image on white, or on black if it is too faint on white."""
    if image.getchannel("A").getextrema() == (0, 0):  # an unused field, as in BMP
        return image.convert("RGB")
    over_white, over_black = (Image.alpha_composite(Image.new("RGBA", image.size, colour), image) for colour in ("white", "black"))
    return over_black if _contrast(over_white) < FAINT <= _contrast(over_black) else over_white


def _contrast(image: Image.Image) -> int:
    return max(high - low for low, high in image.convert("RGB").getextrema())  # pyright: ignore[reportGeneralTypeIssues, reportOperatorIssue]


def _of_eight_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    eight = ((grey + 128) // 257).astype(np.uint8)
    if eight.min() == eight.max() and grey.min() < grey.max():
        raise ValueError(f"its values of 16 bits, {grey.min()} to {grey.max()}, are one grey level of 8 bits. Scale them to 0 to 65535")
    return Image.fromarray(eight)


class ImageFiles:
    """Images (N, C, size, size) of bytes, decoded by threads at each access: `vat.data.loader.Streamed`.

    Args:
        paths: The files.
        size: Height and width.
        mode: One of `MODES`.
        workers: Number of threads that decode. Pillow lets them run in parallel.
        device: Device of the returned images.
    """

    dtype = torch.uint8

    def __init__(self, paths: Sequence[Path], *, size: int, mode: str, workers: int, device: torch.device | None = None) -> None:
        self.paths, self.size, self.mode, self.workers = paths, size, mode, workers
        self.device = device or torch.device("cpu")
        self._threads = ThreadPoolExecutor(workers, "decode")

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, size, size)."""
        return len(self.paths), MODES[self.mode], self.size, self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Images of these rows, uint8 (B, C, size, size).

        Raises:
            ValueError: If a file cannot be read.
        """
        images = self._threads.map(lambda row: read_image(self.paths[row], self.size, self.mode), rows.tolist())
        return torch.stack(list(images)).to(self.device)

    def to(self, device: torch.device) -> "ImageFiles":
        """The same files, with images on another device."""
        if device == self.device:
            return self
        return ImageFiles(self.paths, size=self.size, mode=self.mode, workers=self.workers, device=device)
