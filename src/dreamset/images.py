"""Opening image files that may be anything, and writing the ones we make."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


class BadImageError(Exception):
    """Why a file is not used, in a few words."""


def open_rgb(data: bytes, max_pixels: int) -> Image.Image:
    """A decoded RGB image, upright by its EXIF orientation.

    Args:
        data: the content of the file.
        max_pixels: larger images are refused from their header, before any decoding.

    Raises:
        BadImageError: empty, truncated, too large, animated or no image at all.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a decompression bomb; the size is checked here instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise BadImageError(f"{image.width}x{image.height} is more than {max_pixels} pixels")
            if getattr(image, "n_frames", 1) > 1:
                raise BadImageError("more than one frame")
            if image.mode.startswith(("I", "F")):
                raise BadImageError(f"mode {image.mode}: more than 8 bits per channel, whose range is not stated")
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise BadImageError("not a PNG, JPEG, WebP, BMP or TIFF image") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {max_pixels} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImageError(f"damaged: {error}") from None


def read_rgb(path: Path) -> Image.Image:
    """A file that ``prepare`` has accepted, or that dreamset wrote."""
    with Image.open(path, formats=FORMATS) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def resize(image: Image.Image, size: int) -> Image.Image:
    """Shortest side to ``size`` pixels, bicubic; the other side keeps the aspect ratio."""
    width, height = image.size
    if min(width, height) == size:
        return image
    scale = size / min(width, height)
    return image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC)


def resize_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Shortest side to ``size``, then the centre square: (size, size, 3) uint8."""
    import numpy as np

    image = resize(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def png(pixels: NDArray[np.uint8], text: dict[str, str] | None = None) -> bytes:
    """A PNG file of (h, w, 3) or (h, w) uint8 pixels, with text chunks."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()
