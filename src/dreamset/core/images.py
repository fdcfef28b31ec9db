"""Opening image files that may be anything, and writing the ones we make."""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


# Filters are global, so they cannot be set around a call while threads read. The size is held against
# prepare.max_pixels before any decoding, and sloppy metadata of cameras names no file and changes no pixel.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

THUMBNAIL: Final = 16  # px

_ORIENTATION: Final = 0x0112  # EXIF
_BITS_PER_SAMPLE: Final = 258  # TIFF
_STEPS: Final = 10  # of the inversion at most; then digits are exact to a grey level but for one pixel in 10,000
_RELAXATION: Final = 1.6  # longer steps than the plain iteration's, which needs twice as many
_NOTES: Final = {"1": "1-bit", "L": "grey", "P": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr"}


_DICOM_MARK: Final = (128, b"DICM")  # after a preamble that may hold anything
DICOM: Final = (
    "DICOM; convert it with `dcm2img --set-window CENTER WIDTH --write-png IN.dcm OUT.png` of DCMTK (before 3.6.9 the "
    "command is dcmj2pnm)"
)


class BadImageError(Exception):
    """Why a file is not used, in a few words."""


@dataclass(frozen=True)
class Decoding:
    """How files of a source are read.

    ``max_pixels``: larger images are refused from their header, before any decoding. ``window``: the values of a grey
    file of more than 8 bits that become black and white; None: such files are refused.
    """

    max_pixels: int
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Decoded:
    """An image as ``to_rgb`` makes it, what was out of the ordinary in its file, and whether a window was applied."""

    image: Image.Image
    note: str | None
    windowed: bool = False


def decode(data: bytes, decoding: Decoding) -> Decoded:
    """The content of a file as an RGB image of 8 bits.

    Raises:
        BadImageError: empty, truncated, too large, animated, of more than 8 bits per channel without a window for them,
            DICOM, or no image at all.
    """
    if not data:
        raise BadImageError("empty file")
    if is_dicom(data):
        raise BadImageError(DICOM)
    max_pixels = decoding.max_pixels
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        bits = _check_header(image, data, decoding)
        note = _note(image)
        if bits > 8 and decoding.window:
            low, high = decoding.window
            told = f"{bits} bits, window {low:g} to {high:g}"
            return Decoded(_windowed(image, low, high), f"{told}; {note}" if note else told, windowed=True)
        return Decoded(to_rgb(image), note)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not a PNG, JPEG, WebP, BMP or TIFF image") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {max_pixels} pixels") from None
    except Exception as error:
        # Decoders that are fed damaged bytes raise of every kind: struct.error, KeyError, TypeError, zlib.error ...
        raise BadImageError(f"damaged: {str(error) or type(error).__name__}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture that the whole pipeline sees: upright by its EXIF orientation, on white where transparent, RGB."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_dicom(data: bytes) -> bool:
    """Whether the first bytes of a file, 132 at least, are DICOM's."""
    start, mark = _DICOM_MARK
    return data[start : start + len(mark)] == mark


def is_grey(image: Image.Image) -> bool:
    """Whether the three channels of an RGB image are one and the same."""
    # One row tells nearly every picture of colours apart.
    for part in (image.crop((0, image.height // 2, image.width, image.height // 2 + 1)), image):
        red, green, blue = part.split()
        if any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
            return False
    return True


def thumbnail(image: Image.Image) -> bytes:
    """The luminance of an image at ``THUMBNAIL`` pixels square, whatever its aspect ratio: THUMBNAIL**2 bytes."""
    # Averages of all pixels where it shrinks; a filter that reaches farther would read past the edges.
    how = Image.Resampling.BOX if min(image.size) >= THUMBNAIL else Image.Resampling.BICUBIC
    return image.convert("L").resize((THUMBNAIL, THUMBNAIL), how).tobytes()


def _windowed(image: Image.Image, low: float, high: float) -> Image.Image:
    """A grey image of any depth, ``low`` as black and ``high`` as white, upright, as RGB."""
    import numpy as np

    values = np.nan_to_num(np.asarray(ImageOps.exif_transpose(image), np.float64), nan=low)
    scaled = np.clip((values - low) / (high - low), 0, 1) * 255
    return Image.fromarray(np.round(scaled).astype(np.uint8)).convert("RGB")


def read_rgb(path: Path) -> Image.Image:
    """A file that ``prepare`` has accepted, or that dreamset wrote, as ``to_rgb`` makes it."""
    with Image.open(path, formats=FORMATS) as image:
        return to_rgb(image)


def shortest_side(path: Path) -> int:
    """Pixels of the shortest side of a file that ``prepare`` has accepted, from its header alone."""
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
    return min(width, height)


def _check_header(image: Image.Image, data: bytes, decoding: Decoding) -> int:
    """Refuse what the header tells, before any pixel is decoded; bits per channel."""
    max_pixels = decoding.max_pixels
    if image.width * image.height > max_pixels:
        raise BadImageError(f"{image.width}x{image.height} is more than {max_pixels} pixels")
    # Phones write JPEGs that carry a preview or a gain map as a second picture; the first is the photograph.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise BadImageError("more than one frame: animated, or of several pages")
    bits = _bits(image, data)
    if bits > 8 and not image.mode.startswith(("I", "F")):
        raise BadImageError(f"{bits} bits per channel in colour; save it with 8")
    if bits > 8 and not decoding.window:
        raise BadImageError(
            f"{bits} bits per channel, whose range is not stated; give prepare.window, or save it with 8"
        )
    if bits <= 8 and image.mode not in ("RGB", *_NOTES) and not image.has_transparency_data:
        raise BadImageError(f"mode {image.mode}: neither colours nor greys; save it as RGB")
    return bits


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel of the file; Pillow cuts some 16-bit files down to 8 without a word."""
    if image.mode.startswith(("I", "F")):
        return 16 if image.mode.startswith("I;16") else 32
    if image.format == "PNG":
        return data[24]  # of the header chunk, which is the first
    if image.format == "TIFF":
        return max(map(int, getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))))
    return 8


def _note(image: Image.Image) -> str | None:
    notes = [_NOTES[image.mode]] if image.mode in _NOTES else []
    if image.has_transparency_data:
        notes.append("transparency, put on white")
    turned = image.getexif().get(_ORIENTATION, 1)
    if turned in range(2, 9):
        notes.append(f"EXIF orientation {turned}, turned upright")
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {getattr(image, 'n_frames', 1)} pictures in the file")
    return "; ".join(notes) or None


def resize(image: Image.Image, size: int) -> Image.Image:
    """Shortest side to ``size`` pixels, bicubic; the other side keeps the aspect ratio.

    Pictures of 28 or 32 pixels are raised to the base's resolution by it, once, and what is drawn is lowered again,
    once, by its inverse ``to_native``; nothing in between is resized.
    """
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


def to_native(image: Image.Image, native: int) -> Image.Image:
    """The picture with ``native`` pixels on its shortest side that ``resize`` raises to ``image``, or to the nearest.

    Real images of fewer pixels than the base draws are raised before anything sees them, so whatever a drawn image
    has beyond that is a mark of its origin. What was raised comes back as it was, to rounding, where averaging
    would blur it once more: this inverts ``resize`` in least squares, over the pictures that 8 bits can hold.

    Args:
        image: RGB, any size; one that is no larger is returned as it is.
        native: pixels.
    """
    import numpy as np

    width, height = image.size
    if min(width, height) <= native:
        return image
    scale = native / min(width, height)
    up_y, down_y = _raising(max(native, round(height * scale)), height)
    up_x, down_x = _raising(max(native, round(width * scale)), width)

    def down(planes: Any) -> Any:
        return down_y @ planes @ down_x.T

    wanted = np.asarray(image, np.float32).transpose(2, 0, 1)
    small = down(wanted).clip(0, 255)
    # One step is exact but for the overshoot at edges, which raising cuts off at black and white.
    for _ in range(_STEPS):
        raised = (up_y @ (small @ up_x.T).clip(0, 255)).clip(0, 255)
        before = small
        small = (before + _RELAXATION * down(wanted - raised)).clip(0, 255)
        if np.abs(small - before).max() < 0.1:
            break
    return Image.fromarray(np.round(small).astype(np.uint8).transpose(1, 2, 0))


@functools.cache
def _raising(small: int, large: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What ``resize`` does along one side as a matrix (large, small) float32, and its pseudo-inverse."""
    import numpy as np

    impulses = Image.fromarray(np.eye(small, dtype=np.float32))
    up: NDArray[np.float32] = np.asarray(impulses.resize((large, small), Image.Resampling.BICUBIC), np.float32).T
    return up, np.linalg.pinv(up.astype(np.float64)).astype(np.float32)


def png(pixels: NDArray[np.uint8], text: dict[str, str] | None = None) -> bytes:
    """A PNG file of (h, w, 3) or (h, w) uint8 pixels, with text chunks."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()
