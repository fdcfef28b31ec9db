"""How often a classifier is right about files whose folders name their classes."""

from __future__ import annotations

import difflib
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.files import class_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONFIDENCE: Final = 0.95
_WORST: Final = 5  # confusions that are listed
_NAMED: Final = 10  # classes that a sentence lists
_CLASSES: Final = 20  # classes whose own accuracy is listed


def labels(folders: Iterable[str], classes: Sequence[str]) -> dict[str, int]:
    """Return the label of each folder's name: a class, or a class as dreamset's own datasets write it.

    Raises:
        InputError: a name is no class.
    """
    known = {class_folder(label, name, len(classes)): label for label, name in enumerate(classes)}
    known |= {unicodedata.normalize("NFC", name): label for label, name in enumerate(classes)}
    found = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", folder)
        if name not in known:
            near = difflib.get_close_matches(name, classes, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            some = ", ".join(classes[:_NAMED]) + (" ..." if len(classes) > _NAMED else "")
            raise InputError(
                f"predict --score: the folder {folder!r} is no class of this classifier ({hint}it has {some}); rename "
                "it, name other folders, or leave out --score."
            )
        found[folder] = known[name]
    return found


@dataclass
class Score:
    """The answers about files with a label, ``add``ed one by one; abstaining counts by the best class.

    Attributes:
        classes: in the order of the labels.
        answers: (label, best class, whether the classifier abstained) of each file.
    """

    classes: Sequence[str]
    answers: list[tuple[int, int, bool]] = field(default_factory=list)

    def add(self, label: int, best: int, *, abstained: bool) -> None:
        """Count one file."""
        self.answers.append((label, best, abstained))

    def lines(self) -> list[str]:
        """Return the accuracy with Wilson's interval, that of each class, the worst first, and the worst confusions."""
        import numpy as np

        from dreamset.metrics.accuracy import confusion, most_confused, per_class

        if not self.answers:
            return ["no file could be scored"]
        table = np.array(self.answers, np.int64)
        lines = [_share(int((table[:, 0] == table[:, 1]).sum()), len(table), "images")]
        kept = table[table[:, 2] == 0]
        if 0 < len(kept) < len(table):
            right = int((kept[:, 0] == kept[:, 1]).sum())
            lines.append(_share(right, len(kept), "images where the classifier does not abstain"))
        matrix = confusion(table[:, 1], table[:, 0], len(self.classes))
        shares = {label: share for label, share in enumerate(per_class(matrix)) if share is not None}
        there = sorted(shares, key=lambda label: shares[label])
        for label in there[:_CLASSES]:
            row = matrix[label]
            lines.append(f"  {self.classes[label]}: " + _share(int(row[label]), int(row.sum()), "images"))
        if len(there) > _CLASSES:
            lines.append(f"  {len(there) - _CLASSES} further classes are not worse")
        for label, best, count in most_confused(matrix, _WORST):
            lines.append(f"  {self.classes[label]} taken for {self.classes[best]}: {count}")
        return lines


def _share(right: int, of: int, what: str) -> str:
    from dreamset.metrics.accuracy import wilson

    low, high = wilson(right, of, CONFIDENCE)
    percent = f"{100 * right / of:.1f} % right of {of} {what}"
    return f"{percent} ({100 * CONFIDENCE:g} % interval {100 * low:.1f} to {100 * high:.1f})"
