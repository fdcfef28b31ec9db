"""Reading image files of any content safely, resizing images, and writing PNG."""

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


# Warning filters are global, so they cannot be set around a call while other threads read. Both warnings can go:
# prepare.max_pixels limits the size before any decoding, and faulty camera metadata changes no pixel.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

THUMBNAIL: Final = 16  # px

_ORIENTATION: Final = 0x0112  # EXIF
_BITS_PER_SAMPLE: Final = 258  # TIFF
_STEPS: Final = (
    10  # at most, of the inversion; then all but one pixel in 10,000 of the digits are exact to one grey level
)
_RELAXATION: Final = 1.6  # steps of the plain iteration, which are shorter, would have to be twice as many
_NOTES: Final = {"1": "1-bit", "L": "grey", "P": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr"}


_DICOM_MARK: Final = (128, b"DICM")  # offset and bytes; the preamble before them may hold anything
DICOM: Final = (
    "DICOM; convert it with `dcm2img --set-window CENTER WIDTH --write-png IN.dcm OUT.png` of DCMTK (before 3.6.9 the "
    "command is dcmj2pnm)"
)


class BadImageError(Exception):
    """A file cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Decoding:
    """How to read the files of a source.

    Attributes:
        max_pixels: a larger image is refused by its header, before any decoding.
        window: the values that become black and white in a grey file of more than 8 bits; None refuses such files.
    """

    max_pixels: int
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Decoded:
    """An image from ``to_rgb``, a note on anything unusual in its file, and whether a window was applied."""

    image: Image.Image
    note: str | None
    windowed: bool = False


def decode(data: bytes, decoding: Decoding) -> Decoded:
    """Decode the content of a file to an RGB image of 8 bits.

    Raises:
        BadImageError: the content is empty, truncated, too large, animated, DICOM, no image at all, or of more than
            8 bits per channel without a window.
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
            applied = f"{bits} bits, window {low:g} to {high:g}"
            return Decoded(_windowed(image, low, high), f"{applied}; {note}" if note else applied, windowed=True)
        return Decoded(to_rgb(image), note)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not a PNG, JPEG, WebP, BMP or TIFF image") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {max_pixels} pixels") from None
    except Exception as error:
        # On damaged bytes decoders raise errors of every kind: struct.error, KeyError, TypeError, zlib.error ...
        raise BadImageError(f"damaged: {str(error) or type(error).__name__}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image that the whole pipeline uses: RGB, upright by its EXIF orientation, transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_dicom(data: bytes) -> bool:
    """Return whether the first 132 or more bytes of a file mark it as DICOM."""
    start, mark = _DICOM_MARK
    return data[start : start + len(mark)] == mark


def is_grey(image: Image.Image) -> bool:
    """Return whether the three channels of an RGB image are equal."""
    # For nearly every colour image, one row is enough to see that they are not.
    for part in (image.crop((0, image.height // 2, image.width, image.height // 2 + 1)), image):
        red, green, blue = part.split()
        if any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
            return False
    return True


def thumbnail(image: Image.Image) -> bytes:
    """Return the luminance of an image squeezed to THUMBNAIL x THUMBNAIL pixels: THUMBNAIL**2 bytes."""
    # Shrinking averages all pixels; a wider filter would read past the edges.
    how = Image.Resampling.BOX if min(image.size) >= THUMBNAIL else Image.Resampling.BICUBIC
    return image.convert("L").resize((THUMBNAIL, THUMBNAIL), how).tobytes()


def _windowed(image: Image.Image, low: float, high: float) -> Image.Image:
    """Return a grey image of any depth as RGB, upright, with ``low`` as black and ``high`` as white."""
    import numpy as np

    values = np.nan_to_num(np.asarray(ImageOps.exif_transpose(image), np.float64), nan=low)
    scaled = np.clip((values - low) / (high - low), 0, 1) * 255
    return Image.fromarray(np.round(scaled).astype(np.uint8)).convert("RGB")


def read_rgb(path: Path) -> Image.Image:
    """Read a file that ``prepare`` has accepted, or that dreamset wrote; see ``to_rgb``."""
    with Image.open(path, formats=FORMATS) as image:
        return to_rgb(image)


def shortest_side(path: Path) -> int:
    """Return the shortest side in pixels of a file that ``prepare`` has accepted; reads only its header."""
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
    return min(width, height)


def _check_header(image: Image.Image, data: bytes, decoding: Decoding) -> int:
    """Return the bits per channel, or refuse the file by its header before any pixel is decoded."""
    max_pixels = decoding.max_pixels
    if image.width * image.height > max_pixels:
        raise BadImageError(f"{image.width}x{image.height} is more than {max_pixels} pixels")
    # Phones write JPEGs with a preview or a gain map as a second picture; the first one is the photograph.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise BadImageError("more than one frame: animated, or several pages")
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
    """Return the bits per channel of the file; Pillow silently reduces some 16-bit files to 8."""
    if image.mode.startswith(("I", "F")):
        return 16 if image.mode.startswith("I;16") else 32
    if image.format == "PNG":
        return data[24]  # in the header chunk, which comes first
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
    """Resize the shortest side to ``size`` pixels, bicubic, and keep the aspect ratio.

    Images of 28 or 32 pixels are enlarged once to the resolution of the base. A drawn image is reduced once by the
    inverse, ``to_native``. Nothing in between is resized.
    """
    width, height = image.size
    if min(width, height) == size:
        return image
    scale = size / min(width, height)
    return image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC)


def resize_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the shortest side to ``size`` and return the centre square: (size, size, 3) uint8."""
    import numpy as np

    image = resize(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def to_native(image: Image.Image, native: int) -> Image.Image:
    """Return the small image that ``resize`` would enlarge to ``image``, or to the nearest possible one.

    Real images smaller than the base's resolution are enlarged before anything uses them. Detail that a drawn image
    has beyond that would give away its origin. This function inverts ``resize`` in least squares over 8-bit images:
    an enlarged image comes back as it was, up to rounding, where averaging would blur it once more.

    Args:
        image: RGB, any size; one that is no larger than ``native`` is returned unchanged.
        native: pixels on the shortest side of the result.
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
    # One step would be exact if enlarging did not cut off the overshoot at edges at black and white.
    for _ in range(_STEPS):
        raised = (up_y @ (small @ up_x.T).clip(0, 255)).clip(0, 255)
        before = small
        small = (before + _RELAXATION * down(wanted - raised)).clip(0, 255)
        if np.abs(small - before).max() < 0.1:
            break
    return Image.fromarray(np.round(small).astype(np.uint8).transpose(1, 2, 0))


@functools.cache
def _raising(small: int, large: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``resize`` along one side as a matrix (large, small) float32, and its pseudo-inverse (small, large)."""
    import numpy as np

    impulses = Image.fromarray(np.eye(small, dtype=np.float32))
    up: NDArray[np.float32] = np.asarray(impulses.resize((large, small), Image.Resampling.BICUBIC), np.float32).T
    return up, np.linalg.pinv(up.astype(np.float64)).astype(np.float32)


def png(pixels: NDArray[np.uint8], text: dict[str, str] | None = None) -> bytes:
    """Encode (h, w, 3) or (h, w) uint8 pixels as a PNG file with text chunks."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()
