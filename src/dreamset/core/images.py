"""Reading image files of any content safely, and writing PNG."""

from __future__ import annotations

import functools
import io
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from dreamset.core import formats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")

# Warning filters are global, so they cannot be set around a call while other threads read. Both warnings can go:
# prepare.max_pixels limits the size before any decoding, and faulty camera metadata changes no pixel.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

THUMBNAIL: Final = 16  # px

_ORIENTATION: Final = 0x0112  # EXIF
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What ``changed`` can do, by the name of its key in section prepare, and in words.
CHANGES: Final = {"invert": "inverted", "crop": "cut to the object", "autocontrast": "contrast widened"}
NO_OBJECT: Final = "shows no object, so that nothing was cut"
_FAINT: Final = 16  # of 255: a difference of this size and less is none
_STRAY: Final = 0.005  # share of the object's pixels at each end of a side that may be specks of dust
_SMALLEST: Final = 4  # px: what is smaller on both sides is a speck and no object
_MARGIN: Final = 1 / 8  # around the object, of its longer side; letters were read best from 0 to 1/5
_CUTOFF: Final = 0.5  # per cent of the darkest and of the lightest pixels that contrast does not count

_BITS_PER_SAMPLE: Final = 258  # of TIFF, and so are the next two
_PHOTOMETRIC: Final = 262
_SAMPLE_FORMAT: Final = 339
_WHITE_IS_ZERO: Final = 0
_UNSIGNED, _SIGNED = 1, 2
_PASSED_OVER: Final = "damaged metadata, passed over"
# The largest value in the header of a PGM or PPM, after its width and height; comments may stand between.
_LARGEST: Final = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}")
_NOTES: Final = {"1": "1-bit", "L": "grey", "P": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr"}


class BadImageError(Exception):
    """A file cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Decoding:
    """How to read the files of a source.

    Attributes:
        max_pixels: a larger image is refused by its header, before any decoding.
        window: the values that become black and white in a grey file of more than 8 bits; None refuses such files.
        invert: negative, as in ``changed``; the next two likewise.
        crop: cut to the object.
        autocontrast: darkest and lightest become black and white.
    """

    max_pixels: int
    window: tuple[float, float] | None = None
    invert: bool = False
    crop: Literal["object"] | None = None
    autocontrast: bool = False

    @classmethod
    def recorded(cls, preprocessing: Mapping[str, Any]) -> Decoding:
        """Return the decoding that the record of a delivered classifier states; older records know no changes."""
        window = preprocessing["window"]
        return cls(preprocessing["max_pixels"], tuple(window) if window else None, **preprocessing.get("changes", {}))

    @property
    def changes(self) -> dict[str, Any]:
        """Return the changes of ``changed`` that are asked for, by name; empty where the picture stays as it is."""
        return {name: getattr(self, name) for name in CHANGES if getattr(self, name)}


@dataclass(frozen=True)
class Decoded:
    """An image from ``to_rgb``, a note on anything unusual in its file, and whether only ``decode`` reads it so."""

    image: Image.Image
    note: str | None
    converted: bool = False


def decode(data: bytes, decoding: Decoding) -> Decoded:
    """Decode the content of a file to an RGB image of 8 bits.

    Raises:
        BadImageError: the content is empty, truncated, too large, animated, DICOM, no image at all, or of more than
            8 bits per channel without a window.
    """
    if not data:
        raise BadImageError("empty file")
    if formats.is_dicom(data):
        raise BadImageError(formats.DICOM)
    if formats.is_pointer(data):
        raise BadImageError(formats.POINTER)
    try:
        decoded, whole = _opened(data, lambda image: _decoded(image, data, decoding))
    except BadImageError:
        raise
    except ImportError:
        raise BadImageError(formats.HEIF) from None
    except UnidentifiedImageError:
        if formats.is_heif(data):
            raise BadImageError("damaged: HEIC that cannot be opened") from None
        raise BadImageError(formats.tiff_words(data) or f"not a {formats.NAMES} image") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {decoding.max_pixels} pixels") from None
    except Exception as error:
        # On damaged bytes decoders raise errors of every kind: struct.error, KeyError, TypeError, zlib.error ...
        raise BadImageError(f"damaged: {str(error) or type(error).__name__}") from None
    if not whole:
        decoded = replace(decoded, note="; ".join(filter(None, (decoded.note, _PASSED_OVER))))
    if not decoding.changes:
        return decoded
    image, note = changed(decoded.image, decoding)
    return Decoded(image, "; ".join(filter(None, (decoded.note, note))), converted=True)


def _decoded(image: Image.Image, data: bytes, decoding: Decoding) -> Decoded:
    depth = _check_header(image, data, decoding)
    note = _note(image)
    if depth.unstated and decoding.window:
        low, high = decoding.window
        applied = f"{depth.words}, window {low:g} to {high:g}"
        image = _windowed(image, low, high)
        return Decoded(image, f"{applied}; {note}" if note else applied, converted=True)
    # Others need the extra to read HEIC, too.
    return Decoded(to_rgb(image), note, converted=image.format == "HEIF")


def _opened(data: bytes, use: Callable[[Image.Image], _T]) -> tuple[_T, bool]:
    """Return what ``use`` makes of a file's image, and whether the file is whole.

    Where its metadata are damaged, they are left out, and the pixels are used.

    Raises:
        Exception: what Pillow or ``use`` raises.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats.readable(data)) as image:
            return use(image), True
    except (BadImageError, ImportError, Image.DecompressionBombError):
        raise
    except Exception:
        bare = formats.without_metadata(data)
        if bare == data:
            raise
    with Image.open(io.BytesIO(bare), formats=formats.FORMATS) as image:
        return use(image), False


def changed(image: Image.Image, decoding: Decoding) -> tuple[Image.Image, str]:
    """Return a picture as ``decoding`` changes it, and in words what was done.

    The order is: inverted, cut to the object, contrast widened. The card of a delivered classifier holds the same steps
    as a program (``dreamset.deliver``), and a test compares the two.

    - Object: the pixels that differ from the border's median colour by more than a quarter of the largest difference,
      and by more than 16 of 255. What is cut out is a square around them, with an eighth of their longer side as
      margin, and filled with the border's colour where it reaches beyond the picture. Without an object, or with one of
      less than 4 pixels, the picture stays whole.
    - Contrast: the darkest 0.5 % become black and the lightest 0.5 % white, and greys and colours keep their tone. A
      picture whose greys differ by no more than 16 of 255 stays as it is.

    Args:
        image: RGB.
        decoding: says which changes.
    """
    words = [CHANGES[name] for name in decoding.changes]
    if decoding.invert:
        image = ImageOps.invert(image)
    if decoding.crop:
        cut = _object(image)
        if cut is None:
            words[words.index(CHANGES["crop"])] = NO_OBJECT
        image = cut or image
    if decoding.autocontrast:
        low, high = image.convert("L").getextrema()
        if high - low > _FAINT:  # type: ignore[operator]
            image = ImageOps.autocontrast(image, cutoff=_CUTOFF, preserve_tone=True)
    return image, ", ".join(words)


def _object(image: Image.Image) -> Image.Image | None:
    """Return the square around what differs from the border, or None where nothing does."""
    import numpy as np

    width, height = image.size
    sides = ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height))
    edges = np.concatenate([np.asarray(image.crop(side)).reshape(-1, 3) for side in sides])
    red, green, blue = np.median(edges, axis=0).astype(int).tolist()
    ground = Image.new("RGB", image.size, (red, green, blue))
    difference = np.asarray(functools.reduce(ImageChops.lighter, ImageChops.difference(image, ground).split()))
    shown = difference > max(_FAINT, int(difference.max()) / 4)
    if not shown.any():
        return None
    (left, right), (top, bottom) = (_span(shown.sum(axis)) for axis in (0, 1))
    longest = max(right - left, bottom - top)
    if longest < _SMALLEST:
        return None
    side = round(longest * (1 + 2 * _MARGIN))
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, (-left, -top))
    return square


def _span(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return where the counted pixels begin and end along a side, without the few that lie outermost."""
    reached = counts.cumsum()
    few = int(_STRAY * reached[-1])
    return int((reached > few).argmax()), int((reached >= reached[-1] - few).argmax()) + 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image that the whole pipeline uses: RGB, upright by its EXIF orientation, transparency on white."""
    image = _upright(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned by its EXIF orientation. TIFF files are turned by Pillow as they are loaded."""
    image.load()
    turn = _TURNS.get(_orientation(image) or 1)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 where there is none; None where the EXIF data cannot be read."""
    try:
        orientation: int = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Camera data of any content fail in every way. They decide nothing but the orientation.
        return None
    return orientation


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
    """Return a grey image of any depth as RGB, upright, with ``low`` as black and ``high`` as white.

    A TIFF may say that its low values are white; then ``low`` is white and ``high`` is black.
    """
    import numpy as np

    bits, kind, white_is_zero = _tiff(image)
    stored = np.asarray(_upright(image))
    # Pillow has no type for these, and hands their bits out as another.
    if (bits, kind) == (32, _UNSIGNED):
        stored = stored.view(np.uint32)
    elif (bits, kind) == (8, _SIGNED):
        stored = stored.view(np.int8)
    values = np.nan_to_num(stored.astype(np.float64), nan=low)
    scaled = np.clip((values - low) / (high - low), 0, 1) * 255
    return Image.fromarray(np.round(255 - scaled if white_is_zero else scaled).astype(np.uint8)).convert("RGB")


def rgb(data: bytes) -> Image.Image:
    """Decode a file that ``prepare`` has accepted, or that dreamset wrote; see ``to_rgb``."""
    return _opened(data, to_rgb)[0]


def read_rgb(path: Path) -> Image.Image:
    """Read a file that ``prepare`` has accepted, or that dreamset wrote; see ``to_rgb``."""
    return rgb(path.read_bytes())


class _Depth(NamedTuple):
    """The bits per channel in words, and whether nothing states which of their values are black and white."""

    words: str
    unstated: bool


def _check_header(image: Image.Image, data: bytes, decoding: Decoding) -> _Depth:
    """Return the depth of the channels, or refuse the file by its header before any pixel is decoded."""
    max_pixels = decoding.max_pixels
    if image.width * image.height > max_pixels:
        raise BadImageError(f"{image.width}x{image.height} is more than {max_pixels} pixels")
    # Phones write JPEGs with a preview or a gain map as a second picture, and HEIC with several; one is the photograph.
    if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "HEIF"):
        raise BadImageError("more than one frame: animated, or several pages")
    bits, signed = _bits(image, data), _tiff(image)[:2] == (8, _SIGNED)
    words = f"{bits} bits{', signed' if signed else ''}"
    unstated = bits > 8 or signed
    if unstated and image.format == "PPM":
        raise BadImageError(f"{bits} bits per channel in a PGM or PPM file; save it as PNG or TIFF")
    if bits > 8 and not image.mode.startswith(("I", "F")):
        raise BadImageError(f"{bits} bits per channel in colour; save it with 8")
    if unstated and not decoding.window:
        raise BadImageError(
            f"{bits} {'signed ' * signed}bits per channel, whose range is not stated; give prepare.window, or save it "
            "with 8"
        )
    if not unstated and image.mode not in ("RGB", *_NOTES) and not image.has_transparency_data:
        raise BadImageError(f"mode {image.mode}: neither colours nor greys; save it as RGB")
    return _Depth(words, unstated)


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits per channel of the file; Pillow silently reduces some 16-bit files to 8."""
    if image.format == "PNG":
        return data[24]  # in the header chunk, which comes first
    if image.format == "TIFF":
        return _tiff(image)[0]
    if image.format == "PPM":
        # Pillow stretches values to 8 or 16 bits and keeps their largest one in no public place.
        largest = _LARGEST.match(data)
        return 32 if image.mode == "F" else 16 if largest and int(largest[1]) > 255 else 8
    return 16 if image.mode.startswith("I;16") else 32 if image.mode.startswith(("I", "F")) else 8


def _tiff(image: Image.Image) -> tuple[int, int, bool]:
    """Return of a TIFF the bits per channel, the kind of its numbers, and whether its low values are white."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = max(map(int, tags.get(_BITS_PER_SAMPLE, (8,))))
    return bits, int(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _note(image: Image.Image) -> str | None:
    notes = [_NOTES[image.mode]] if image.mode in _NOTES else []
    if image.has_transparency_data:
        notes.append("transparency, put on white")
    turned = _orientation(image)
    if turned in _TURNS:
        notes.append(f"EXIF orientation {turned}, turned upright")
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {getattr(image, 'n_frames', 1)} pictures in the file")
    if turned is None:
        notes.append(_PASSED_OVER)
    return "; ".join(notes) or None


def png(pixels: NDArray[np.uint8], text: dict[str, str] | None = None) -> bytes:
    """Encode (h, w, 3) or (h, w) uint8 pixels as a PNG file with text chunks."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()
