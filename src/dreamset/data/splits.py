"""The split manifests. Stages take labels from here, and never from walking folders."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.files import class_folder, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD: Final = re.compile(r"[^\W\d_]+|\d+")
_SPELLED: Final = 4  # letters of a word in capitals that is said letter by letter, such as an MRI
# A vowel but not of one, use, unit or Europe; and the hour, whose h is silent.
_VOWEL: Final = re.compile(
    r"(?!one|once|eu|ew|uni(?!n|m)|us[aeu]|ut[eio]|ur[aeoi]|uk|ub[io]|ufo)[aeiou]|hour|hono|heir|honest"
)


@dataclass(frozen=True)
class Sample:
    """One real image.

    Attributes:
        path: relative to the workspace's cell, or absolute.
        label: an index into ``classes``.
        group: images of one group stay together in every split (a writer, a patient, a burst).
        sha256: the digest of the file.
        note: a peculiarity of the file that reading it corrects, such as a rotation in its EXIF data.
    """

    path: str
    label: int
    group: str
    sha256: str
    note: str | None = None


@dataclass(frozen=True)
class Split:
    """The images that may be learned from: ``data/splits/train.json``.

    Attributes:
        source: the name of the source.
        classes: names in label order, as the source gives them.
        template: the caption, which holds ``{class}``, or ``{a class}`` for the name with its article.
        invariances: the changes that keep a label.
        shots: what the parameters ask for, of each class: a number, ``all``, or a number by class.
        seed: the seed of the draw.
        train: the shots, as many of those asked for as there are, by class and in the order of their permutation.
        selection: the images that may choose a step or a configuration.
        names: the classes as captions say them, where they differ from what ``spoken`` makes of ``classes``.
        clip_templates: the captions of CLIP as it is, each with ``{class}``; None: ``template``.
        native: median of the shortest sides of the shots' files, pixels; None: unknown.
        channels: 1 where every image of the source is grey, else 3.
        protocol: ``test`` where test images are held out of everything; ``cv`` where classifiers trained on other
            shots score each shot in turn.
        unseen: sha256 of the files of all labelled images that were drawn, test images included, as the source has
            them. Retrieval must return none of these. Folds keep it, since their manifests lack what they hold out.
        changes: what ``images.changed`` did to every image, by the key of section prepare; None: nothing.
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
    clip_templates: tuple[str, ...] | None = None
    native: int | None = None
    channels: int = 3
    protocol: Literal["test", "cv"] = "test"
    unseen: tuple[str, ...] = ()
    changes: dict[str, Any] | None = None

    @property
    def train_per_class(self) -> tuple[int, ...]:
        """Return the number of shots of each class, by label."""
        counts = [0] * len(self.classes)
        for sample in self.train:
            counts[sample.label] += 1
        return tuple(counts)

    @property
    def shots_in_words(self) -> str:
        """Return ``shots`` in a few words: "4", "all", or "1 to 16"."""
        if not isinstance(self.shots, dict):
            return str(self.shots)
        low, high = min(self.shots.values()), max(self.shots.values())
        return str(low) if low == high else f"{low} to {high}"

    def prompt(self, label: int, kind: str = "template") -> str:
        """Return what a class is drawn from: the caption, the bare class name, or the name of its class vector.

        Args:
            label: the class.
            kind: ``template`` for the caption, ``class_vector`` for the class vector, any other for the bare name.
        """
        if kind == "class_vector":
            return class_vector(label, len(self.classes))
        name = self._name(label)
        return caption(self.template, name) if kind == "template" else name

    @property
    def classless(self) -> str:
        """The caption without the name of a class, such as "a photo of the digit"."""
        words = " ".join(self.template.replace("{a class}", "").replace("{class}", "").split())
        return words.replace(" ,", ",").strip(" ,;:")

    def clip_prompts(self) -> list[list[str]]:
        """Return the captions of CLIP as it is: those of all classes by label, for each of its templates."""
        names = [self._name(label) for label in range(len(self.classes))]
        templates = self.clip_templates or (self.template,)
        return [[caption(template, name) for name in names] for template in templates]

    def _name(self, label: int) -> str:
        return self.names[label] if self.names else spoken(self.classes[label])

    def folder(self, label: int) -> str:
        """Return the name of the class's folder in a synthetic dataset."""
        return class_folder(label, self.classes[label], len(self.classes))


@dataclass(frozen=True)
class TestSplit:
    """The test images: ``data/splits/test.json``.

    They are the same for every seed and number of shots. Under cross-validation there are none.
    """

    __test__ = False  # pytest would collect the class because of its name

    classes: tuple[str, ...]
    test: tuple[Sample, ...]


def spoken(name: str) -> str:
    """Return a class name as a prompt says it: underscores and line breaks become spaces."""
    return " ".join(name.replace("_", " ").split()) or name


def caption(template: str, name: str) -> str:
    """Return a template with a class's name in place of ``{class}``, and with "a" or "an" before it of ``{a class}``.

    Published templates have ``a {class}`` for every name, and stay so: their numbers were measured with "a photo of a
    airplane". Only the default caption of one's own images says ``{a class}``.
    """
    return template.replace("{a class}", f"{_article(name)} {name}").replace("{class}", name)


def _article(name: str) -> str:
    """Return the article before the sound that an English name begins with, as far as its letters tell."""
    first = _WORD.search(name)
    word = first[0] if first else ""
    if word.isdigit():
        return "an" if word.startswith("8") or word in ("11", "18") else "a"
    if len(word) == 1 or (word.isupper() and len(word) <= _SPELLED):
        return "an" if word[0].upper() in "AEFHILMNORSX" else "a"
    return "an" if _VOWEL.match(word.lower()) else "a"


def class_vector(label: int, classes: int) -> str:
    """Return words for the one-hot vector of a class; they stand where other bases have a prompt."""
    return f"class vector {label + 1} of {classes}"


def write_split(path: Path, split: Split) -> None:
    """Write the training manifest."""
    write_json(path, _plain(split))


def write_test(path: Path, split: TestSplit) -> None:
    """Write the test manifest."""
    write_json(path, _plain(split))


def read_split(path: Path) -> Split:
    """Return the training manifest.

    Raises:
        InputError: the file is missing or is no training manifest.
    """
    raw = read_json(path, "dreamset prepare")
    try:
        fields = dict(raw, train=_samples(raw["train"]), selection=_samples(raw["selection"]))
        for key in ("classes", "invariances", "names", "clip_templates", "unseen"):
            if key in fields:
                fields[key] = tuple(fields[key])
        return Split(**fields)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a split manifest ({error}); run `dreamset prepare` again.") from error


def read_test(path: Path) -> TestSplit:
    """Return the test manifest. Only ``evaluate`` calls this, and a test checks that.

    Raises:
        InputError: the file is missing or is no test manifest.
    """
    raw = read_json(path, "dreamset prepare")
    try:
        return TestSplit(tuple(raw["classes"]), _samples(raw["test"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a test manifest ({error}); run `dreamset prepare` again.") from error


def _plain(split: Split | TestSplit) -> dict[str, Any]:
    """Return a manifest as JSON holds it, without the fields that are None."""

    def present(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in fields if value is not None}

    return asdict(split, dict_factory=present)


def _samples(rows: Sequence[dict[str, Any]]) -> tuple[Sample, ...]:
    return tuple(Sample(**row) for row in rows)
