"""The paths of the project; no other module knows folder names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folders of one run, which has one number of shots and one seed.

    Args:
        root: the project's folder; all runs share its bundled models, shards and tracking spool.
        cell: the folder of this run's data, models and results. For ``dvc repro`` it is the project's folder, for a
            cell of a sweep a folder under ``.dreamset/table``.
    """

    root: Path
    cell: Path

    @classmethod
    def at(cls, root: Path) -> Workspace:
        """Return the workspace of ``dvc repro``."""
        return cls(root, root)

    @property
    def raw(self) -> Path:
        """Folder of the images of a source; DVC watches no other place for them."""
        return self.root / "data/raw"

    @property
    def splits(self) -> Path:
        """Manifest of the images that may be learned from: shots and selection images."""
        return self.cell / "data/splits/train.json"

    @property
    def test_split(self) -> Path:
        """Manifest of the test images; only ``evaluate`` opens it."""
        return self.cell / "data/splits/test.json"

    @property
    def go(self) -> Path:
        """File that ``expect`` writes where the run may go on; what costs depends on it, in ``dvc.yaml``."""
        return self.cell / "data/splits/go"

    @property
    def rejected(self) -> Path:
        """List of the source's rejected files, with reasons."""
        return self.cell / "data/splits/rejected.json"

    @property
    def near_duplicates(self) -> Path:
        """List of real images in different splits that are almost the same picture."""
        return self.cell / "data/splits/near_duplicates.json"

    @property
    def near_test(self) -> Path:
        """Folder of pictures that show synthetic images beside the test images they resemble; one file per recipe."""
        return self.cell / "data/near_test"

    @property
    def mistakes(self) -> Path:
        """Folder of the held-out images that a classifier takes for another class, and of what it takes them for."""
        return self.cell / "data/mistakes"

    @property
    def real(self) -> Path:
        """Folder of shots and selection images that ``prepare`` writes where a source has no image files."""
        return self.cell / "data/real"

    @property
    def real_test(self) -> Path:
        """Folder of test images that ``prepare`` writes; it is separate so that no other stage depends on it."""
        return self.cell / "data/real_test"

    def adapter(self, recipe: str) -> Path:
        """Return the folder of the trained adapters of ``recipe``."""
        return self.cell / "models/adapters" / recipe

    def own(self, recipe: str) -> Path:
        """Return the folder that takes what a person put among the adapters of ``recipe``; git and DVC ignore it."""
        return self.root / ".dreamset/own" / recipe

    def tuned(self, recipe: str) -> Path:
        """Return the folder of the adapters that the study of ``recipe`` chose, where it searched the adaptation."""
        return self.cell / "models/tuned" / recipe

    def synthetic(self, recipe: str) -> Path:
        """Return the folder of the synthetic dataset of ``recipe``."""
        return self.cell / "data/synthetic" / recipe

    def review(self, recipe: str) -> Path:
        """Return the file of a person's decisions about the images of ``recipe``; it need not exist."""
        return self.cell / "data/review" / f"{recipe}.json"

    def classifiers(self, arm: str) -> Path:
        """Return the folder of the classifiers of ``arm``: ``real`` or a recipe."""
        return self.cell / "models/classifiers" / arm

    @property
    def classifier(self) -> Path:
        """Folder of the delivered classifier."""
        return self.cell / "models/classifier"

    def result(self, stage: str, item: str | None = None) -> Path:
        """Return the JSON file of a stage, or of one of its items (a recipe, an arm)."""
        return self.cell / "results" / (f"{stage}.json" if item is None else f"{stage}/{item}.json")

    @property
    def results(self) -> Path:
        """Folder of the results, which are committed and which people read."""
        return self.cell / "results"

    def plots(self, stage: str, item: str | None = None) -> Path:
        """Return the folder of the plot data and pictures of a stage, or of one of its items."""
        return self.cell / "results/plots" / (stage if item is None else f"{stage}/{item}")

    @property
    def shards(self) -> Path:
        """Folder of finished pieces of work, by key; all cells share it, and git and DVC ignore it."""
        return self.root / ".dreamset/shards"

    @property
    def captions(self) -> Path:
        """Folder of the captions and attributes of shots, by what wrote them; git and DVC ignore it."""
        return self.root / ".dreamset/captions"

    @property
    def unfinished(self) -> Path:
        """Folder of the checkpoints of adapters in training, by key."""
        return self.root / ".dreamset/unfinished"

    @property
    def trials(self) -> Path:
        """Folder of the trials that run now, by study; git and DVC ignore it."""
        return self.root / ".dreamset/tune"

    @property
    def scratch(self) -> Path:
        """Folder of unnamed temporary files, such as decoded images while a stage uses them."""
        return self.root / ".dreamset/scratch"

    @property
    def locks(self) -> Path:
        """Folder of the locks of all running stages, of all cells."""
        return self.root / ".dreamset/locks"

    @property
    def artifacts(self) -> Path:
        """Folder of the pictures that trials keep for a dashboard, of all cells."""
        return self.root / ".dreamset/artifacts"

    @property
    def runs(self) -> Path:
        """Folder of a small record of every run that was evaluated here, which ``dreamset compare`` reads."""
        return self.root / ".dreamset/runs"

    @property
    def spool(self) -> Path:
        """Folder of the tracking records that no server has taken yet."""
        return self.root / ".dreamset/track"
