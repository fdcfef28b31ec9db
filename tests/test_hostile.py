"""Files and folders that are odd, damaged or meant to do harm: put right with a note, or refused in one sentence."""

import copy
import io
import json
import os
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin, features

import toy
from dreamset import params as parameters
from dreamset import prepare, sources
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.files import sha256
from dreamset.core.images import BadImageError, Decoding, decode, read_rgb
from dreamset.core.workspace import Workspace
from dreamset.data import splits

SMALL = settings(max_examples=60, deadline=None)
PIXELS = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, exif=exif)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def hollow(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of one bit per pixel whose pixels are missing."""
    return header(width, height, 1, 0) + b"".join(more) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def png16() -> bytes:
    """A 16-bit RGB PNG, which Pillow reads as 8-bit without a word."""
    lines = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    return header(2, 2, bits=16) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG whose text unpacks to 64 MB."""
    text = b"key\0\0" + zlib.compress(bytes(64 * 2**20), 9)
    whole = encoded(RGB)
    return whole[:33] + chunk(b"zTXt", text) + whole[33:]


def with_chunk(kind: bytes, data: bytes, *, broken: bool = False) -> bytes:
    """A PNG with one chunk more, whose checksum may be wrong."""
    more, whole = chunk(kind, data), encoded(RGB)
    return whole[:33] + (more[:-1] + bytes([more[-1] ^ 1]) if broken else more) + whole[33:]


def with_segment(marker: int, data: bytes) -> bytes:
    """A JPEG with one segment more."""
    whole = encoded(RGB, "JPEG")
    return whole[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + whole[2:]


def tiff_with_broken_xmp() -> bytes:
    """A TIFF whose XMP is a number, at which Pillow fails."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700] = 3
    tags[700] = 7
    return encoded(RGB, "TIFF", tiffinfo=tags)


def grey_tiff(values: np.ndarray[Any, Any], photometric: int = 1) -> bytes:
    """An uncompressed grey TIFF of numbers of any kind; ``photometric`` 0 says that the low ones are white."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, values.nbytes), (339, kind)]
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    pixels += b"\0" * (len(pixels) % 2)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def with_alpha() -> Image.Image:
    image = RGB.convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(9) < 4, 0, 255).astype(np.uint8)[None].repeat(6, 0)))
    return image


def palette_with_alpha() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    return encoded(image, transparency=1)


def grey_with_colour_key() -> bytes:
    image = Image.new("L", (4, 4), 7)
    image.putpixel((0, 0), 9)
    return encoded(image, transparency=7)


ODD: dict[str, tuple[bytes, str | None]] = {
    "plain.png": (encoded(RGB), None),
    "plain.jpg": (encoded(RGB, "JPEG"), None),
    "plain.webp": (encoded(RGB, "WEBP", lossless=True), None),
    "plain.bmp": (encoded(RGB, "BMP"), None),
    "plain.tif": (encoded(RGB, "TIFF"), None),
    "png_named.jpg": (encoded(RGB), None),
    "grey.png": (encoded(RGB.convert("L")), "grey"),
    "bits.png": (encoded(RGB.convert("1")), "1-bit"),
    "bits.tif": (encoded(RGB.convert("1"), "TIFF"), "1-bit"),
    "palette.png": (encoded(RGB.convert("P")), "palette"),
    "cmyk.jpg": (encoded(RGB.convert("CMYK"), "JPEG"), "CMYK"),
    "cmyk.tif": (encoded(RGB.convert("CMYK"), "TIFF"), "CMYK"),
    "alpha.png": (encoded(with_alpha()), "transparency, put on white"),
    "alpha.webp": (encoded(with_alpha(), "WEBP", lossless=True), "transparency, put on white"),
    "grey_alpha.png": (encoded(with_alpha().convert("LA")), "transparency, put on white"),
    "palette_alpha.png": (palette_with_alpha(), "palette; transparency, put on white"),
    "grey_key.png": (grey_with_colour_key(), "grey; transparency, put on white"),
    "sloppy.jpg": (encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"), None),
    "turned.png": (turned(6), "EXIF orientation 6, turned upright"),
    "still.gif": (encoded(RGB.convert("L"), "GIF"), "palette"),
    "gif.png": (encoded(RGB.convert("P"), "GIF"), "palette"),
    "plain.ppm": (encoded(RGB, "PPM"), None),
    "grey.pgm": (encoded(RGB.convert("L"), "PPM"), "grey"),
    "bits.pbm": (encoded(RGB.convert("1"), "PPM"), "1-bit"),
    "two_bits.pgm": (b"P5\n# a comment 9\n2 1\n3\n\x00\x03", "grey"),
    "plain.JPE": (encoded(RGB, "JPEG"), None),
    "plain.jfif": (encoded(RGB, "JPEG"), None),
    "text_bomb.png": (text_bomb(), "damaged metadata, passed over"),
    "broken_exif.png": (with_chunk(b"eXIf", b"no camera"), "damaged metadata, passed over"),
    "broken_exif_sum.png": (with_chunk(b"eXIf", b"II*\0\x08\0\0\0", broken=True), "damaged metadata, passed over"),
    "broken_profile.png": (with_chunk(b"iCCP", b"name\0\x09rest"), "damaged metadata, passed over"),
    "broken_exif.webp": (encoded(RGB, "WEBP", lossless=True, exif=b"Exif\0\0nothing"), "damaged metadata, passed over"),
    "broken_jfif.jpg": (with_segment(0xE0, b"JFIF\0\1"), "damaged metadata, passed over"),
    "broken_xmp.tif": (tiff_with_broken_xmp(), "damaged metadata, passed over"),
    "turned.tif": (encoded(RGB, "TIFF", tiffinfo={0x0112: 6}), "EXIF orientation 6, turned upright"),
    "two.jpg": (encoded(RGB, "MPO", save_all=True, append_images=[RGB]), "the first of 2 pictures in the file"),
}

BAD: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "text.jpg": (b"no image", "not a PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or AVIF image"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\nsize 9", "a pointer of Git LFS instead of the image"),
    "page.png": (b"<html><body>404</body></html>", "not a PNG"),
    "cut.png": (encoded(RGB)[:-30], "damaged"),
    "cut.jpg": (encoded(RGB, "JPEG")[:-60], "damaged"),
    "head.png": (encoded(RGB)[:20], "damaged"),
    "moving.gif": (encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]), "more than one frame"),
    "deep.pgm": (b"P5 2 1 4095\n" + bytes(4), "16 bits per channel in a PGM or PPM file; save it as PNG or TIFF"),
    "deep.ppm": (b"P6 1 1 65535\n" + bytes(6), "16 bits per channel in a PGM or PPM file"),
    "signed.tif": (grey_tiff(np.array([[-5, 5]], np.int8)), "8 signed bits per channel, whose range is not stated"),
    "double.tif": (grey_tiff(np.ones((2, 2))), "a TIFF of 64-bit floating-point numbers, which is not read; save it"),
    "half.tif": (grey_tiff(np.ones((2, 2), np.float16)), "a TIFF of 16-bit floating-point numbers, which is not read"),
    "raw.NEF": (b"MM\0*", "suffix .NEF: a raw photograph; export it as JPEG"),
    "photo.jp2": (b"", "suffix .jp2: not read; convert it with `magick IN.jp2 OUT.png`"),
    "deep_grey.png": (encoded(Image.new("I;16", (4, 4))), "16 bits per channel"),
    "deep_rgb.png": (png16(), "16 bits per channel"),
    "deep.tif": (encoded(Image.new("I;16", (4, 4)), "TIFF"), "16 bits per channel"),
    "float.tif": (encoded(Image.new("F", (4, 4)), "TIFF"), "32 bits per channel"),
    "whole.tif": (encoded(Image.new("I", (4, 4)), "TIFF"), "32 bits per channel"),
    "scan.png": (b"\0" * 128 + b"DICM" + b"\x02\0\0\0", "DICOM; convert it with `dcm2img --set-window"),
    "lab.tif": (encoded(Image.new("LAB", (4, 4)), "TIFF"), "mode LAB"),
    "moving.webp": (encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]), "more than one frame"),
    "moving.png": (encoded(RGB, save_all=True, append_images=[RGB.rotate(180)]), "more than one frame"),
    "pages.tif": (encoded(RGB, "TIFF", save_all=True, append_images=[RGB]), "more than one frame"),
    "bomb.png": (header(30_000, 30_000, 1, 0) + chunk(b"IDAT", zlib.compress(b"\0")), "pixels"),
    "bomb100.png": (header(10_000, 10_000) + chunk(b"IDAT", zlib.compress(b"\0")), "10000x10000 is more than"),
    "bomb.bmp": (encoded(RGB, "BMP")[:18] + struct.pack("<ii", 20_000, 20_000) + encoded(RGB, "BMP")[26:], "pixels"),
    "cut_text_bomb.png": (text_bomb()[:-30], "damaged: "),
    "scan.dcm": (b"\0" * 128 + b"DICM" + b"\x02\0\0\0", "DICOM; convert it with `dcm2img --set-window"),
    "no_scan.dcm": (b"\0" * 200, "suffix .dcm: not an image file"),
    "notes.odt": (encoded(RGB), "suffix .odt: not an image file"),
    "bare": (encoded(RGB), "suffix missing: not an image file"),
}


def params(raw: dict[str, Any], source: str | Path, **changes: Any) -> parameters.Params:
    mine = copy.deepcopy(raw)
    mine["prepare"]["source"] = f"imagefolder:{source}" if isinstance(source, Path) else source
    for key, value in changes.items():
        (mine["prepare"] if key in mine["prepare"] else mine)[key] = value
    return toy.parse(mine)


def folder(root: Path, classes: list[str], count: int = 8) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((2, 2, 3), (c // 256, c % 256, i), np.uint8)
            (root / name / f"{i}.png").write_bytes(encoded(Image.fromarray(pixels)))
    return root


# Single files


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_put_right_with_a_note(tmp_path: Path, name: str) -> None:
    data, note = ODD[name]
    decoded = decode(data, Decoding(10**6))
    image = decoded.image
    assert decoded.note == note
    assert not decoded.converted
    assert image.mode == "RGB"
    (tmp_path / name).write_bytes(data)
    # Whatever reads the file later sees what prepare saw.
    assert np.array_equal(np.asarray(read_rgb(tmp_path / name)), np.asarray(image))


def test_what_is_put_right() -> None:
    def pixels(name: str) -> np.ndarray[Any, Any]:
        return np.asarray(decode(ODD[name][0], Decoding(10**6)).image)

    whole = ("plain.png", "plain.webp", "plain.bmp", "plain.tif", "plain.ppm", "png_named.jpg")
    for name in (*whole, *(name for name in ODD if "broken" in name and not name.endswith(".jpg")), "text_bomb.png"):
        assert np.array_equal(pixels(name), PIXELS)
    for name in ("turned.png", "turned.tif"):
        assert np.array_equal(pixels(name), np.rot90(PIXELS, -1))
    assert pixels("two_bits.pgm")[0, :, 0].tolist() == [0, 255]
    for name in ("alpha.png", "alpha.webp"):
        assert (pixels(name)[:, :4] == 255).all()
        assert np.array_equal(pixels(name)[:, 4:], PIXELS[:, 4:])
    assert pixels("palette_alpha.png")[0, 0].tolist() == [255, 0, 0]
    assert pixels("palette_alpha.png")[1, 1].tolist() == [255, 255, 255]
    assert pixels("grey_key.png")[:2, 0].tolist() == [[9, 9, 9], [255, 255, 255]]
    assert np.array_equal(pixels("cmyk.tif"), PIXELS)
    assert set(np.unique(pixels("bits.png"))) <= {0, 255}


@pytest.mark.parametrize("name", [name for name, (_, words) in BAD.items() if "suffix" not in words])
def test_bad_files_are_refused_with_the_reason(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(BadImageError, match=words) as caught:
        decode(data, Decoding(50_000_000))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hollow(30000, 30000), "pixels"),
        (hollow(7200, 7200), "7200x7200 is more than 50000000 pixels"),
        (hollow(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**27))), "damaged"),
        (b"SIMPLE  =                    T".ljust(2880), "not a PNG"),
        (b"\x1f\x8b\x08" + bytes(100), "not a PNG"),
    ],
)
def test_bombs_are_refused_from_their_header(data: bytes, words: str) -> None:
    with pytest.raises(BadImageError, match=words):
        decode(data, Decoding(50_000_000))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32), ("TIFF", np.float32)]
)
def test_a_window_makes_8_bits_of_deep_greys(kind: str, dtype: type) -> None:
    values = np.array([[0, 1000], [1500, 2000], [3000, 40000]], dtype)
    data = encoded(Image.fromarray(values), kind)
    with pytest.raises(BadImageError, match=r"bits per channel, .*give prepare\.window"):
        decode(data, Decoding(10**6))
    decoded = decode(data, Decoding(10**6, (1000, 2000)))
    assert decoded.converted
    assert decoded.note is not None and "window 1000 to 2000" in decoded.note
    assert np.asarray(decoded.image)[..., 0].tolist() == [[0, 0], [128, 255], [255, 255]]
    # Of colours a window says nothing.
    with pytest.raises(BadImageError, match="16 bits per channel in colour"):
        decode(png16(), Decoding(10**6, (1000, 2000)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32])
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_tiff_of_any_numbers_is_right_or_refused_for_the_reason(dtype: type, photometric: int) -> None:
    values = np.array([[0, 5], [6, 10]] if np.dtype(dtype).kind == "u" else [[-5, 0], [5, 10]], dtype)
    data = grey_tiff(values, photometric)
    expected = np.clip(np.round(values.astype(float) * 25.5), 0, 255)
    try:
        decoded = decode(data, Decoding(10**6, (0, 10)))
    except BadImageError as error:
        # Pillow opens none of these with low values as white.
        assert photometric == 0 and dtype in (np.int8, np.int16, np.uint32, np.int32)
        assert f"a TIFF of {8 * values.itemsize}-bit" in str(error) and "is not read; save it" in str(error)
        return
    if dtype == np.uint8:
        expected = values  # the range of 8 bits is known, so the window says nothing
    given = np.asarray(decoded.image)[..., 0].astype(int)
    # Halves are rounded on either side.
    assert np.abs(given - (255 - expected if photometric == 0 else expected)).max() <= 1
    assert decoded.converted == (dtype != np.uint8)


def test_large_unsigned_numbers_of_a_tiff_are_not_black() -> None:
    values = np.array([[0, 2**31 + 5, 2**32 - 1]], np.uint32)
    data = grey_tiff(np.array([[0, 1, 2]], np.uint32)).replace(
        np.array([0, 1, 2], "<u4").tobytes(), values.astype("<u4").tobytes()
    )
    decoded = decode(data, Decoding(10**6, (0, 2**32 - 1)))
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    (tmp_path / "photo.avif").write_bytes(encoded(RGB.resize((32, 24)), "AVIF"))
    image = read_rgb(tmp_path / "photo.avif")
    assert image.size == (32, 24)
    assert abs(np.asarray(image).mean() - PIXELS.mean()) < 10


def test_heic_is_read_with_the_extra_and_written_as_png(raw: dict[str, Any], tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(10 * c + i).integers(0, 255, (6, 8, 3), dtype=np.uint8)
            suffix = "HEIC" if i % 2 else "jpg"  # messengers name them so
            data = encoded(Image.fromarray(pixels).resize((64, 48)), "HEIF")
            (tmp_path / "raw" / name / f"{i}.{suffix}").write_bytes(data)
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(params(raw, tmp_path / "raw", shots="all"), workspace)
    assert (summary["train"], summary["rejected"]) == (8, 0)
    for sample in splits.read_split(workspace.splits).train:
        with Image.open(workspace.cell / sample.path) as written:
            assert (written.format, written.mode, written.size) == ("PNG", "RGB", (64, 48))
    with pytest.raises(BadImageError, match="damaged: HEIC"):
        decode(data[:60], Decoding(10**6))


def test_heic_without_the_extra_is_refused_with_two_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"):
        with pytest.raises(BadImageError, match=r"HEIC; install .*\.\[heif\].*`heif-convert IN\.heic OUT\.jpg`"):
            decode(b"\0\0\0\x18ftyp" + brands, Decoding(10**6))


def test_windowed_files_reach_later_stages_with_8_bits(raw: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(1000, 2000, (6, 6), dtype=np.uint16)
            (tmp_path / "raw" / name / f"{i}.png").write_bytes(encoded(Image.fromarray(pixels)))
    workspace = Workspace.at(tmp_path / "w")
    mine = params(raw, tmp_path / "raw", shots=2, selection="extra:1", window=[1000, 2000])
    prepare.run(mine, workspace)
    split, test = splits.read_split(workspace.splits), splits.read_test(workspace.test_split)
    assert split.channels == 1
    for sample in (*split.train, *split.selection, *test.test):
        path = workspace.cell / sample.path
        assert sample.path.startswith("data/real") and sha256(path.read_bytes()) == sample.sha256
        assert sample.note == "16 bits, window 1000 to 2000"
        with Image.open(path) as written:
            assert written.mode == "L"
            # The whole range of grey is used, where cutting to 8 bits would have left four levels.
            assert np.ptp(np.asarray(written)) > 100
    with pytest.raises(InputError, match=r"16 bits per channel, .*prepare\.window"):
        prepare.run(params(raw, tmp_path / "raw", shots=2), workspace)


@SMALL
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        image = decode(data, Decoding(10**6)).image
    except BadImageError:
        return
    assert image.mode == "RGB"


@SMALL
@given(st.sampled_from(sorted(ODD)), st.data())
def test_damaged_images_decode_or_are_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(ODD[name][0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        image = decode(bytes(content), Decoding(10**6)).image
    except BadImageError:
        return
    assert image.width * image.height <= 10**6


# Folders of them


def test_a_folder_of_odd_and_bad_files(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    (root / "odd").mkdir()
    for name, (data, _) in (ODD | BAD).items():
        (root / "odd" / name).write_bytes(data)
    (root / "odd/.hidden.png").write_bytes(b"")
    (root / "odd/folder.png").mkdir()
    (root / "odd/none.png").symlink_to(root / "odd/gone.png")
    (root / "odd/loop.png").symlink_to(root / "odd/loop.png")
    os.mkfifo(root / "odd/pipe.png")
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(params(raw, root, max_rejected=36, shots=2, selection="extra:1"), workspace)
    reasons = {Path(row["file"]).name: row["reason"] for row in json.loads(workspace.rejected.read_text())}
    assert set(reasons) == {*BAD, "none.png", "loop.png", "pipe.png"}
    assert summary["rejected"] == len(reasons) == 36
    for name, (_, words) in BAD.items():
        assert words in reasons[name]
    assert reasons["pipe.png"] == "not a file"
    with pytest.raises(InputError, match=r"36 files .*rejected\.json, or raise prepare\.max_rejected"):
        prepare.run(params(raw, root, max_rejected=35), workspace)


def test_notes_stand_in_the_manifest(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for name in ("cat", "dog"):
        for i in range(8):
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(Image.new("L", (4, 4), 16 * i + len(name) + (name == "cat"))))
    workspace = Workspace.at(tmp_path / "w")
    raw["evaluate"]["protocol"] = "test"
    prepare.run(params(raw, root, shots=2), workspace)
    assert {sample.note for sample in splits.read_split(workspace.splits).train} == {"grey"}
    assert {sample.note for sample in splits.read_test(workspace.test_split).test} == {"grey"}


def test_links_that_lead_out_are_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(RGB))
    (root / "cat/out.png").symlink_to(secret)
    (root / "cat/inside.png").symlink_to(root / "cat/1.png")
    source = sources.read(params(raw, root).prepare)
    assert [(Path(file).name, reason) for file, reason, _ in source.rejected] == [
        ("out.png", "a link that leads out of the folder; copy the file into it")
    ]
    (root / "list.csv").write_text("path,label\ncat/out.png,cat\ncat/0.png,cat\ndog/0.png,dog\n")
    assert len(sources.read(params(raw, f"csv:{root / 'list.csv'}").prepare).rejected) == 1
    # A folder of links to class folders is how a user picks classes of a data set.
    (tmp_path / "picked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "picked" / name).symlink_to(root / name)
    assert len(sources.read(params(raw, tmp_path / "picked").prepare).train) == 17


def test_names_that_are_not_utf8(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    (root / "cat" / os.fsdecode(b"\xff.png")).write_bytes(encoded(RGB))
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(params(raw, root, shots=2), workspace)
    assert json.loads(workspace.rejected.read_text())[0]["reason"] == "name is not UTF-8; rename it"
    (root / os.fsdecode(b"\xfe")).mkdir()
    with pytest.raises(InputError, match="is not UTF-8; rename it") as caught:
        prepare.run(params(raw, root), workspace)
    str(caught.value).encode()


def test_a_folder_that_cannot_be_read(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    (root / "dog/inner").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    # Tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"dog/inner: cannot be read \(Permission denied\); make the folder readable"):
        sources.read(params(raw, root).prepare)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds 0 class folders"),
        (["cat"], "holds 1 class folders"),
        (["Cat", "cat", "dog"], "classes 'Cat' and 'cat' have the same caption"),
        (["sea lake", "sea_lake"], "have the same caption"),
        (["ﬁsh", "fish"], "have the same caption"),
        (["train/a", "train/b", "test/a", "test/b", "extra/x"], "holds extra beside train/"),
        (["train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b"], "holds valid beside train/"),
        (["train/a", "train/b", "val/a", "val/c"], r"train/ and val/ hold different classes \(b, c\)"),
    ],
)
def test_wrong_class_folders_are_one_sentence(
    raw: dict[str, Any], tmp_path: Path, names: list[str], words: str
) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=words):
        sources.read(params(raw, folder(tmp_path / "raw", names, 2)).prepare)


def test_texts_beside_images_and_what_archives_leave_are_no_damaged_images(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog", "__MACOSX"], 4)
    for name in ("0.txt", "0.json", "0.XML", "boxes.csv", "0.yaml", "Thumbs.db", "@eaDir/0.png"):
        (root / "cat" / name).parent.mkdir(exist_ok=True)
        (root / "cat" / name).write_text("text")
    source = sources.read(params(raw, root).prepare)
    assert source.classes == ("cat", "dog")
    assert (len(source.train), source.rejected) == (8, [])
    assert source.warnings == (
        "files that are no images were passed over: 1 .csv, 1 .db, 1 .json, 1 .txt, 1 .xml, 1 .yaml",
    )


@pytest.mark.parametrize("around", ["photos", "a/b", "images", "train"])
def test_a_folder_around_the_class_folders_is_looked_into(raw: dict[str, Any], tmp_path: Path, around: str) -> None:
    folder(tmp_path / "raw" / around, ["cat", "dog"], 2)
    (tmp_path / "raw/__MACOSX").mkdir()
    source = sources.read(params(raw, tmp_path / "raw").prepare)
    assert source.classes == ("cat", "dog")
    assert source.warnings == (f"{tmp_path}/raw/{around} was read, the only folder in {tmp_path}/raw",)


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("train/images", "train/labels"), ("JPEGImages", "Annotations")]
)
def test_data_sets_of_boxes_are_refused(raw: dict[str, Any], tmp_path: Path, names: tuple[str, str]) -> None:
    root = tmp_path / "raw"
    folder(root, [names[0]], 2)
    (root / names[1]).mkdir()
    (root / names[1] / "0.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(InputError, match=r"holds no images but texts, .*YOLO.*; cut the objects out"):
        sources.read(params(raw, root).prepare)


def test_names_in_two_forms_of_unicode_are_one_class(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    folder(root / "train", ["cafe\u0301", "bar"], 2)
    folder(root / "test", ["caf\u00e9", "bar"], 2)
    source = sources.read(params(raw, root).prepare)
    assert source.classes == ("bar", "caf\u00e9")
    assert [i.label for i in source.test or []] == [0, 0, 1, 1]
    folder(root / "train", ["caf\u00e9"], 2)
    with pytest.raises(InputError, match="two folders caf\u00e9, written in two forms of Unicode; put them together"):
        sources.read(params(raw, root).prepare)


def test_an_empty_class_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    (root / "eel").mkdir()
    with pytest.raises(InputError, match=r"class 'eel' has 0 usable images"):
        prepare.run(params(raw, root, shots=1), Workspace.at(tmp_path / "w"))


def test_validation_folders_are_for_selection(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for c, part in enumerate(("train", "valid", "test")):
        for i in range(4):
            for k, name in enumerate(("cat", "²")):
                path = root / part / name / f"²{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(Image.fromarray(np.full((2, 2, 3), (c, i, k), np.uint8))))
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(params(raw, root, selection="coop"), workspace)
    split, test = splits.read_split(workspace.splits), splits.read_test(workspace.test_split)
    for samples, part in ((split.train, "train"), (split.selection, "valid"), (test.test, "test")):
        assert len(samples) == 8
        assert all(f"/raw/{part}/" in sample.path for sample in samples)


def test_more_than_a_thousand_classes_stay_in_order(raw: dict[str, Any], tmp_path: Path) -> None:
    count = 1001
    root = folder(tmp_path / "raw", [f"class {i}" for i in range(count)], 3)
    workspace = Workspace.at(tmp_path / "w")
    raw["evaluate"]["protocol"] = "test"
    summary = prepare.run(params(raw, root, shots=1, selection="extra:1"), workspace)
    assert (summary["train"], summary["selection"], summary["test"]) == (count, count, count)
    split = splits.read_split(workspace.splits)
    # Readers sort folder names.
    slugs = [split.folder(label) for label in range(count)]
    assert slugs == sorted(slugs)
    assert slugs[7].startswith("0007_")


def test_the_command_line_says_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("source: digits  ", "source: csv:list.csv  "))
    (tmp_path / "list.csv").write_text("path,label\n../x.png,a\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["prepare"])
    assert "list.csv, line 2: '../x.png' does not stay inside the folder" in capsys.readouterr().err


def test_a_workspace_that_is_in_the_way_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / ".dreamset").write_text("a file where a folder is to be")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main(["prepare"])
    told = capsys.readouterr().err
    assert re.search(r"/\.dreamset/?.*: (Not a directory|File exists); make it usable .* run the same command", told)
    assert told.count("\n") == 1
    (tmp_path / ".dreamset").unlink()
    (tmp_path / "results").write_text("a file where a folder is to be")
    with pytest.raises(SystemExit, match="2"):
        main(["prepare"])
    assert "results/prepare.json: lies below a file" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["cat", "dog"], ["."]),
        (["train/cat", "train/dog", "test/cat", "test/dog"], [".", "test", "train"]),
    ],
)
def test_images_beside_class_folders_are_told(
    raw: dict[str, Any], tmp_path: Path, names: list[str], places: list[str]
) -> None:
    root = folder(tmp_path / "raw", names, 2)
    assert sources.read(params(raw, root).prepare).warnings == ()
    for place in places:
        (root / place / "loose.JPG").write_bytes((root / names[0] / "0.png").read_bytes())
        (root / place / "._loose.jpg").write_bytes(b"of a file manager")
        (root / place / "notes.txt").write_text("text")
    source = sources.read(params(raw, root).prepare)
    assert len(source.train) == 4
    assert source.warnings == (
        f"images beside the class folders: {len(places)} (first {root}/loose.JPG); they have no class and are not "
        "read, so put each into the folder of its class, or move them away",
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/cat", "train/dog", "unlabelled"], r"train counted as a class of .*folders \(cat, dog\)"),
        (["Training/cat", "Training/dog", "more/cat"], r"Training counted as a class"),
        (["site A/cat", "site A/dog", "site B/cat", "site B/dog"], r"site A, site B counted as classes"),
        (["cat/left", "cat/right", "dog"], None),
        (["cat/monday", "cat/tuesday", "dog/friday"], None),
        (["train", "plane"], None),
        (["train/steam", "plane"], None),
    ],
)
def test_folders_that_hold_the_classes_are_told(
    raw: dict[str, Any], tmp_path: Path, names: list[str], words: str | None
) -> None:
    source = sources.read(params(raw, folder(tmp_path / "raw", names, 2)).prepare)
    assert [bool(words and re.search(words, warning)) for warning in source.warnings] == [True] * bool(words)


def test_a_place_that_is_none_is_told(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "raw").symlink_to("gone")
    with pytest.raises(InputError, match=r"raw is a link to gone, where there is no folder; give imagefolder:PATH"):
        sources.read(params(raw, tmp_path / "raw").prepare)
    with pytest.raises(InputError, match=r"~/photos begins with ~, which only a shell knows; write the whole path"):
        sources.read(params(raw, Path("~/photos")).prepare)
