"""The trainings of a recipe: which shots each learns from, and which shards it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.data.splits import Sample, Split
    from dreamset.data.work import Work
    from dreamset.generator.training import Job, Settings

GRID_CLASSES: Final = 10  # classes on a sample grid


@dataclass(frozen=True)
class Training:
    """The trainings of a recipe.

    Attributes:
        scopes: the labels that each job learns.
        jobs: one per adapter, its images not read yet.
        files: the image files of each job by its key, relative to the cell.
        settings: of each job; they differ by the number of steps alone.
        start: the class encoder that conditions the U-Net, a file of the recipe's parent; None without one.
        kept: the shards of each job by the number of steps taken. The end is missing: its shard is the job's key.
        stops: steps of each job after which the weights are used; None for the end.
    """

    scopes: list[tuple[int, ...]]
    jobs: list[Job]
    files: dict[str, list[str]]
    settings: list[Settings]
    start: Path | None
    kept: list[dict[int, str]]
    stops: list[int | None]

    @property
    def used(self) -> list[str]:
        """The shard that holds the weights to use, for each job."""
        return [
            job.key if stop is None else kept[stop]
            for job, kept, stop in zip(self.jobs, self.kept, self.stops, strict=True)
        ]

    def keys_of(self, group: Sequence[int]) -> list[str]:
        """Return the shards that the jobs of a group make.

        A training for early weights makes the last weights too. Claiming both keeps other processes out meanwhile.
        """
        ends, used = [job.key for job in self.jobs], self.used
        return [key for index in group for key in dict.fromkeys((ends[index], used[index]))]


def scopes(work: Work) -> list[tuple[int, ...]]:
    """Return the labels of each training of a recipe: one per class, per shot, or for the data set."""
    labels = tuple(range(len(work.split.classes)))
    if work.row.trains_each_shot:
        return [(sample.label,) for sample in _by_class(work.split)]
    return [(label,) for label in labels] if work.row.has_adapter_per_class or work.row.shares_down else [labels]


def images_of(work: Work, plan: Sequence[tuple[int, ...]]) -> list[list[Sample]]:
    """Return the images that each training learns from, for the labels that ``scopes`` gives."""
    if work.row.trains_each_shot:
        return [[sample] for sample in _by_class(work.split)]
    return [[sample for sample in work.split.train if sample.label in labels] for labels in plan]


def _by_class(split: Split) -> list[Sample]:
    return sorted(split.train, key=lambda sample: sample.label)
