"""The split manifests: what stages know of labels comes from here and never from walking folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamset.core.errors import InputError
from dreamset.core.files import class_folder, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Sample:
    """One real image.

    ``path`` is relative to the workspace's cell, or absolute; ``label`` indexes ``classes``; ``group`` names what
    must not be split (a writer, a patient, a burst); ``sha256`` is of the file; ``note`` says what is out of the
    ordinary in it and was put right on reading, such as a rotation in its EXIF data.
    """

    path: str
    label: int
    group: str
    sha256: str
    note: str | None = None


@dataclass(frozen=True)
class Split:
    """What may be learned from: ``data/splits/train.json``.

    ``classes`` are the names in label order, as the source gives them. ``template`` is the caption, holding
    ``{class}``. ``invariances`` are the changes that keep a label. ``shots`` is what was asked for, of each class:
    a number, ``all``, or a number by class; ``train`` holds as many of them as there are, by class and in the order
    of their permutation; ``selection`` the images that may choose a step or a configuration.
    ``names`` are the classes as captions say them, where ``spoken`` does not make them of ``classes``.
    ``native`` is the median of the shots' shortest sides as their files have them, pixels; None: not known.
    ``channels`` is 1 where every image of the source is grey, else 3. ``protocol`` is ``test`` where test images are
    held out of it all, and ``cv`` where every shot is scored in turn by classifiers of the others. ``unseen`` are the
    sha256 of the files of every labelled image that was drawn, test images among them, as the source has them: what is
    found elsewhere must be none of these. Folds keep it, for what they hold out stands in no part of their manifests.
    """

    source: str
    classes: tuple[str, ...]
    template: str
    invariances: tuple[str, ...]
    shots: int | str | dict[str, int]
    seed: int
    train: tuple[Sample, ...]
    selection: tuple[Sample, ...]
    names: tuple[str, ...] | None = None
    native: int | None = None
    channels: int = 3
    protocol: Literal["test", "cv"] = "test"
    unseen: tuple[str, ...] = ()

    @property
    def train_per_class(self) -> tuple[int, ...]:
        """How many images of each class may be learned from, by label."""
        counts = [0] * len(self.classes)
        for sample in self.train:
            counts[sample.label] += 1
        return tuple(counts)

    @property
    def shots_told(self) -> str:
        """``shots`` in a few words: "4", "all", or "1 to 16"."""
        if not isinstance(self.shots, dict):
            return str(self.shots)
        low, high = min(self.shots.values()), max(self.shots.values())
        return str(low) if low == high else f"{low} to {high}"

    def prompt(self, label: int, kind: str = "template") -> str:
        """What a class is drawn from: the template filled, the bare label, or the name of its class vector."""
        if kind == "class_vector":
            return class_vector(label, len(self.classes))
        name = self.names[label] if self.names else spoken(self.classes[label])
        return self.template.replace("{class}", name) if kind == "template" else name

    def folder(self, label: int) -> str:
        """Name of the class's folder in a synthetic dataset."""
        return class_folder(label, self.classes[label], len(self.classes))


@dataclass(frozen=True)
class TestSplit:
    """``data/splits/test.json``: the same for every seed and number of shots; without images under cross-validation."""

    __test__ = False  # pytest would collect it for its name

    classes: tuple[str, ...]
    test: tuple[Sample, ...]


def spoken(name: str) -> str:
    """A class name as a prompt says it: underscores and line breaks are spaces."""
    return " ".join(name.replace("_", " ").split()) or name


def class_vector(label: int, classes: int) -> str:
    """The one-hot vector of a class in words, which stand for it where other classes have a prompt."""
    return f"class vector {label + 1} of {classes}"


def write_split(path: Path, split: Split) -> None:
    """Write the training manifest."""
    write_json(path, _plain(split))


def write_test(path: Path, split: TestSplit) -> None:
    """Write the test manifest."""
    write_json(path, _plain(split))


def read_split(path: Path) -> Split:
    """Read the training manifest."""
    raw = read_json(path, "dreamset prepare")
    try:
        fields = dict(raw, train=_samples(raw["train"]), selection=_samples(raw["selection"]))
        for key in ("classes", "invariances", "names", "unseen"):
            if key in fields:
                fields[key] = tuple(fields[key])
        return Split(**fields)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a split manifest ({error}); run `dreamset prepare` again.") from error


def read_test(path: Path) -> TestSplit:
    """Read the test manifest. Only ``evaluate`` calls this; a test holds it to that."""
    raw = read_json(path, "dreamset prepare")
    try:
        return TestSplit(tuple(raw["classes"]), _samples(raw["test"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a test manifest ({error}); run `dreamset prepare` again.") from error


def _plain(split: Split | TestSplit) -> dict[str, Any]:
    """A manifest as JSON holds it: what is None is left out."""

    def present(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in fields if value is not None}

    return asdict(split, dict_factory=present)


def _samples(rows: Sequence[dict[str, Any]]) -> tuple[Sample, ...]:
    return tuple(Sample(**row) for row in rows)
