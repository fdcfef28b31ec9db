"""``dreamset predict``: label new image files with a delivered classifier.

Files are read, checked and resized like those of a source. Neither ``params.yaml`` nor a diffusion model is needed.
"""

from __future__ import annotations

import csv
import glob
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.core.errors import InputError
from dreamset.core.files import check_target, filling, read_json
from dreamset.core.images import BadImageError, Decoding
from dreamset.core.progress import bar
from dreamset.core.resizing import resize_crop
from dreamset.sources.imagefolder import files, natural
from dreamset.sources.reading import opened, printable
from dreamset.use.score import Score, labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TextIO

    import numpy as np
    from numpy.typing import NDArray

TOP: Final = 5
_THREADS: Final = min(16, os.cpu_count() or 1)


class File(NamedTuple):
    """A file to label.

    Attributes:
        path: of the file.
        real: the resolved folder that no link may leave, or None if the user named the file.
        folder: name of the folder that stands for its class: the one below the named folder, or that of the file.
    """

    path: Path
    real: Path | None
    folder: str


class Counts(NamedTuple):
    """The numbers of files, and of those labelled, left without a label, and unusable."""

    files: int
    labelled: int
    abstained: int
    unusable: int


def columns(classes: int, *, given: bool = False) -> list[str]:
    """The header: the label and its probability, the best ``TOP`` classes, and the error of an unusable file.

    With ``given``, the class that a file's folder names comes first.
    """
    best = [f"{name}_{rank}" for rank in range(1, min(TOP, classes) + 1) for name in ("label", "probability")]
    return ["file", *(["given"] if given else []), "label", "probability", "abstained", *best, "error"]


def run(
    paths: Sequence[str], folder: Path, out: Path | None, threshold: float | None, score: Score | None = None
) -> Counts:
    """Write a row of CSV per file, in the order of ``find``.

    Below the threshold the classifier abstains: the label is empty, and ``label_1`` holds its guess.

    Args:
        paths: files, folders or glob patterns.
        folder: a delivered classifier.
        out: the CSV file; None: standard output.
        threshold: smallest top probability for a label, 0..1; None: the delivered threshold.
        score: takes the answers about files, whose folders then have to name classes; None: folders say nothing.

    Raises:
        InputError: there are no such files or no classifier, ``threshold`` is outside 0..1, ``out`` cannot be
            written, or a folder to score names no class.
    """
    from dreamset import classifiers

    if out is not None:
        check_target(out, "--out")
        check_replaced(out, "--out", ".csv", b"file,")
    record = delivered(folder)
    if threshold is None:
        threshold = float(record["threshold"])
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold: expected a probability of 0 to 1, got {threshold:g}.")
    to_label = find(paths)
    given = labels({file.folder for file in to_label}, record["classes"]) if score is not None else {}
    predictor = classifiers.load(folder)
    pixels = record["preprocessing"]
    decoding = Decoding.recorded(pixels)
    done = labelled = abstained = 0
    with (
        _writer(out, columns(len(predictor.classes), given=score is not None)) as writer,
        bar(total=len(to_label), what="predict", unit="file") as progress,
    ):
        for block, images in decoded(to_label, pixels["side"], decoding, classifiers.BATCH):
            usable = [image for image in images if not isinstance(image, str)]
            probabilities = iter(predictor.probabilities(predictor.logits(stacked(usable, pixels["side"]))))
            for file, image in zip(block, images, strict=True):
                start = {"file": printable(file.path.as_posix())}
                if score is not None:
                    start["given"] = predictor.classes[given[file.folder]]
                if isinstance(image, str):
                    writer.writerow(start | {"error": image})
                    continue
                answer = next(probabilities)
                row = _row(answer, predictor.classes, threshold)
                writer.writerow(start | row)
                if score is not None:
                    score.add(given[file.folder], int(answer.argmax()), abstained=row["abstained"] == "yes")
                labelled += row["abstained"] == "no"
                abstained += row["abstained"] == "yes"
            done += len(block)
            progress.update(len(block))
    return Counts(done, labelled, abstained, done - labelled - abstained)


def check_replaced(path: Path, option: str, suffix: str, start: bytes = b"") -> None:
    """Refuse to write over a file that no such command wrote, such as a picture that a glob put behind the option.

    Args:
        path: the file to write.
        option: of the command line.
        suffix: of what the option writes, in lower case, such as ``.csv``.
        start: what such a file starts with.

    Raises:
        InputError: another kind of file is there.
    """
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            same = file.read(len(start)) == start
        if not same or path.suffix.lower() != suffix:
            raise InputError(
                f"{option} {path}: is there, and is none that {option} wrote; name a new file that ends in {suffix}, "
                "or remove that one."
            )


def delivered(folder: Path) -> dict[str, Any]:
    """Read ``classifier.json`` of a delivered classifier.

    Raises:
        InputError: ``folder`` holds no delivered classifier.
    """
    from dreamset import classifiers

    record: dict[str, Any] = read_json(folder / classifiers.RECORD, "dreamset deliver")
    if "preprocessing" not in record:
        raise InputError(f"{folder}: is no delivered classifier; give the folder that `dreamset deliver` wrote.")
    return record


def find(paths: Sequence[str]) -> list[File]:
    """All files that ``paths`` name, each once: in the given order, and in natural order in folders and patterns.

    Hidden files in folders are left out. A link that leads out of its folder is listed here and refused on reading.

    Raises:
        InputError: a path does not exist, a folder cannot be read, or there is no file at all.
    """
    by_path: dict[str, File] = {}
    for text in paths:
        names = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True), key=natural)  # noqa: PTH207
        if not names:
            raise InputError(f"{printable(text)}: is no file or folder; give image files, folders or patterns.")
        for name in names:
            path = Path(name)
            if path.is_dir():
                real = Path(os.path.realpath(path))
                inside = [File(path / file, real, _first(file) or real.name) for file in files(path)]
            else:
                inside = [File(path, None, path.absolute().parent.name)]
            for file in inside:
                by_path.setdefault(str(file.path), file)
    if not by_path:
        raise InputError(f"{printable(', '.join(paths))}: holds no files; give image files, folders or patterns.")
    return list(by_path.values())


def _first(file: str) -> str | None:
    """The first folder of a relative path; None of a file without one."""
    first, slash, _ = file.partition("/")
    return first if slash else None


def decoded(
    to_label: Sequence[File], side: int, decoding: Decoding, batch: int
) -> Iterator[tuple[Sequence[File], list[NDArray[np.uint8] | str]]]:
    """Yield ``batch`` files at a time with their images (side, side, 3) uint8, or the reason why one is unusable."""

    def read(file: File) -> NDArray[np.uint8] | str:
        try:
            return resize_crop(opened(file.path, decoding, file.real)[0].image, side)
        except BadImageError as error:
            return printable(str(error))
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except MemoryError:
            return "needs more memory than there is"

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(to_label), batch):
            block = to_label[start : start + batch]
            yield block, list(pool.map(read, block))


def stacked(images: Iterable[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """Return images (side, side, 3) as one array (images, side, side, 3) uint8, which may hold none."""
    import numpy as np

    return np.array(list(images), np.uint8).reshape(-1, side, side, 3)


def _row(probabilities: NDArray[np.float32], classes: tuple[str, ...], threshold: float) -> dict[str, Any]:
    """The columns of one image."""
    # Equal probabilities keep the order of the classes, as in argmax.
    order = (-probabilities).argsort(kind="stable")[:TOP]
    top = float(probabilities[order[0]])
    abstains = top < threshold
    row = {
        "label": "" if abstains else classes[order[0]],
        "probability": f"{top:.6f}",
        "abstained": "yes" if abstains else "no",
    }
    for rank, label in enumerate(order, 1):
        row |= {f"label_{rank}": classes[label], f"probability_{rank}": f"{float(probabilities[label]):.6f}"}
    return row


@contextmanager
def _writer(out: Path | None, header: list[str]) -> Iterator[csv.DictWriter[str]]:
    """Yield a writer to standard output, or to a file that appears complete or not at all."""
    if out is None:
        yield _with_header(sys.stdout, header)
        return
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with filling(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8", newline="") as file:
                yield _with_header(file, header)
            temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _with_header(file: TextIO, header: list[str]) -> csv.DictWriter[str]:
    writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
    writer.writeheader()
    return writer
