"""Which files and folders hold images that can be read, what becomes of the others, and files without metadata."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Pillow's names.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
NAMES: Final = "PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or AVIF"
_HEIF_SUFFIXES: Final = frozenset({".heic", ".heif", ".hif"})
SUFFIXES: Final = _HEIF_SUFFIXES | frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".tif", ".tiff"),
        *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
    )
)
_RAW: Final = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
_OTHERS: Final = frozenset(
    (
        *(".dds", ".dib", ".emf", ".eps", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".pcx", ".pfm"),
        *(".psd", ".qoi", ".sgi", ".svg", ".tga", ".wmf", ".xbm", ".xpm"),
    )
)
# Thumbnails, recycle bins and snapshots of file servers, and what archives and file systems add.
_LEFT_BEHIND: Final = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler"),
        *("system volume information", "lost+found", "__macosx"),
    )
)
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_BRANDS: Final = frozenset({b"mif1", b"msf1"})  # of HEIF and of AVIF
HEIF: Final = (
    "HEIC; install the extra with `pip install -e '.[heif]'`, or convert it with `heif-convert IN.heic OUT.jpg` of "
    "libheif"
)

_POINTER: Final = b"version https://git-lfs"
POINTER: Final = "a pointer of Git LFS instead of the image; run `git lfs pull` where it comes from"
_DICOM_MARK: Final = (128, b"DICM")  # offset and bytes; the preamble before them may hold anything
DICOM: Final = (
    "DICOM; convert it with `dcm2img --set-window CENTER WIDTH --write-png IN.dcm OUT.png` of DCMTK (before 3.6.9 the "
    "command is dcmj2pnm)"
)

_PNG: Final = b"\x89PNG\r\n\x1a\n"
# Chunks without which a PNG would be another picture: those of its pixels, and those of its further frames.
_PNG_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"})
# Tags without which a TIFF would be another picture.
_TIFF_KEPT: Final = frozenset(
    (
        *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
        *(330, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532),
    )
)


def left_behind(folder: str) -> bool:
    """Return whether a folder of this name is hidden, or is a machine's own and holds no pictures of a person's."""
    return folder.startswith(".") or folder.casefold() in _LEFT_BEHIND


def is_pointer(data: bytes) -> bool:
    """Return whether the first bytes of a file mark it as a pointer of Git LFS, which stands in place of the file."""
    return data.startswith(_POINTER)


def is_dicom(data: bytes) -> bool:
    """Return whether the first 132 or more bytes of a file mark it as DICOM."""
    start, mark = _DICOM_MARK
    return data[start : start + len(mark)] == mark


def is_heif(data: bytes) -> bool:
    """Return whether the first bytes of a file mark it as HEIC, the format of many phones."""
    if data[4:8] != b"ftyp":
        return False
    brand = data[8:12]
    others = data[16 : min(int.from_bytes(data[:4], "big"), 256)]
    return brand in _HEIF_BRANDS or (brand in _ANY_BRANDS and b"avif" not in others and b"avis" not in others)


def readable(data: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that a file with these first bytes may have.

    Raises:
        ImportError: it is HEIC, and the extra that reads it is missing.
    """
    if not is_heif(data):
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def unread_words(suffix: str, head: bytes) -> str:
    """Return why a file is not read, by its suffix and its first bytes, and what it can be converted with."""
    if is_dicom(head):
        # Hospital archives name their files .dcm, .ima, or only by numbers.
        return DICOM
    lower = suffix.lower()
    if lower in _RAW:
        return f"suffix {suffix}: a raw photograph; export it as JPEG, or as TIFF of 8 bits, with the camera's program"
    if lower in _OTHERS:
        return f"suffix {suffix}: not read; convert it with `magick IN{suffix} OUT.png` of ImageMagick"
    return f"suffix {suffix or 'missing'}: not an image file"


def without_metadata(data: bytes) -> bytes:
    """Return a PNG, JPEG or TIFF file without what is not its pixels; any other content is returned as it is.

    Damaged or overlong texts, camera data and colour profiles keep Pillow from opening a picture whose pixels are
    whole. Nothing here uses a colour profile.
    """
    try:
        if data.startswith(_PNG):
            return _PNG + b"".join(_png_kept(data))
        if data.startswith(b"\xff\xd8"):
            return b"\xff\xd8" + b"".join(_jpeg_kept(data))
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _bare_tiff(data)
    except (struct.error, IndexError):
        # The structure itself is cut off: more than metadata is damaged.
        return data
    return data


def _png_kept(data: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] in _PNG_KEPT:
            yield data[at:end]
        at = end


def _jpeg_kept(data: bytes) -> Iterator[bytes]:
    """Yield the segments without comments and applications' data, but for Adobe's, which says what the colours are."""
    at = 2
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1]) != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        adobe = marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16
        if adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield segment
        at += 2 + length
    yield data[at:]


def _bare_tiff(data: bytes) -> bytes:
    """Return a TIFF file with an empty value in place of each piece of metadata in its first directory."""
    order = "<" if data[:2] == b"II" else ">"
    bare = bytearray(data)
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", data, at)
        if tag not in _TIFF_KEPT:
            struct.pack_into(f"{order}HII", bare, at + 2, 7, 1, 0)
    return bytes(bare)


def tiff_words(data: bytes) -> str | None:
    """Return what kind of pixels a TIFF file holds that Pillow cannot open; None where it is no TIFF."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        tags = ImageFileDirectory_v2(data[: 16 if data[2] == 43 or data[3] == 43 else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
        kind = {1: "whole numbers", 2: "signed whole numbers", 3: "floating-point numbers"}.get(kinds[0], "numbers")
        channels = "" if len(bits) == 1 else f" in {len(bits)} channels"
    except Exception:
        # Damaged tags fail in every way; then nothing is known of the pixels.
        return None
    return (
        f"a TIFF of {bits[0]}-bit {kind}{channels}, which is not read; save it with 8 bits per channel, or as grey "
        "with 16 bits or 32-bit floating-point numbers"
    )
