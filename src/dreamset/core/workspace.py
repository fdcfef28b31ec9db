"""Every path in the project: the only module that knows folder names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folders of one (shots, seed).

    Args:
        root: the project: bundled models, shards and the tracking spool are shared from here.
        cell: where this run's data, models and results stand; the project itself for ``dvc repro``,
            a folder under ``.dreamset/table`` for one cell of a sweep.
    """

    root: Path
    cell: Path

    @classmethod
    def at(cls, root: Path) -> Workspace:
        """The workspace of ``dvc repro``."""
        return cls(root, root)

    @property
    def splits(self) -> Path:
        """Manifest of what may be learned from: shots and selection images."""
        return self.cell / "data/splits/train.json"

    @property
    def test_split(self) -> Path:
        """Manifest of the test images; only ``evaluate`` opens it."""
        return self.cell / "data/splits/test.json"

    @property
    def rejected(self) -> Path:
        """Files of the source that were rejected, with reasons."""
        return self.cell / "data/splits/rejected.json"

    @property
    def near_duplicates(self) -> Path:
        """Real images of two splits that are almost the same picture."""
        return self.cell / "data/splits/near_duplicates.json"

    @property
    def near_test(self) -> Path:
        """Pictures of synthetic images beside the test images that they are near to, one file per recipe."""
        return self.cell / "data/near_test"

    @property
    def real(self) -> Path:
        """Image files that ``prepare`` writes for shots and selection, where a source has no files of its own."""
        return self.cell / "data/real"

    @property
    def real_test(self) -> Path:
        """The same for test images, apart so that no other stage depends on them."""
        return self.cell / "data/real_test"

    def adapter(self, recipe: str) -> Path:
        """Folder of the trained adapters of ``recipe``."""
        return self.cell / "models/adapters" / recipe

    def tuned(self, recipe: str) -> Path:
        """Folder of the adapters that the study of ``recipe`` has chosen, where it searched what is adapted."""
        return self.cell / "models/tuned" / recipe

    def synthetic(self, recipe: str) -> Path:
        """Folder of the synthetic dataset of ``recipe``."""
        return self.cell / "data/synthetic" / recipe

    def review(self, recipe: str) -> Path:
        """What a person has decided about the images of ``recipe``; need not be there."""
        return self.cell / "data/review" / f"{recipe}.json"

    def classifiers(self, arm: str) -> Path:
        """Folder of the classifiers of ``arm``: ``real`` or a recipe."""
        return self.cell / "models/classifiers" / arm

    @property
    def classifier(self) -> Path:
        """Folder of the delivered classifier."""
        return self.cell / "models/classifier"

    def result(self, stage: str, item: str | None = None) -> Path:
        """The JSON of a stage, or of its item (a recipe, an arm)."""
        return self.cell / "results" / (f"{stage}.json" if item is None else f"{stage}/{item}.json")

    @property
    def results(self) -> Path:
        """Folder of everything that is committed and read by people."""
        return self.cell / "results"

    def plots(self, stage: str, item: str | None = None) -> Path:
        """Folder of plot data and pictures of a stage, or of its item."""
        return self.cell / "results/plots" / (stage if item is None else f"{stage}/{item}")

    @property
    def shards(self) -> Path:
        """Finished pieces of work by key, shared by all cells; ignored by git and DVC."""
        return self.root / ".dreamset/shards"

    @property
    def unfinished(self) -> Path:
        """Checkpoints of adapters in training, by key."""
        return self.root / ".dreamset/unfinished"

    @property
    def trials(self) -> Path:
        """What the trials of studies are working on, by study; ignored by git and DVC."""
        return self.root / ".dreamset/tune"

    @property
    def scratch(self) -> Path:
        """Folder of nameless files: decoded images while a stage uses them."""
        return self.root / ".dreamset/scratch"

    @property
    def locks(self) -> Path:
        """Which runs are going on, of all cells."""
        return self.root / ".dreamset/locks"

    @property
    def artifacts(self) -> Path:
        """Pictures that the trials of studies keep for a dashboard, of all cells."""
        return self.root / ".dreamset/artifacts"

    @property
    def spool(self) -> Path:
        """Tracking records that no server has taken yet."""
        return self.root / ".dreamset/track"
