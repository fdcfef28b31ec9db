"""The work on one recipe: the parameters, the workspace and the split that it runs with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dreamset.data import asking
from dreamset.data.asking import Told
from dreamset.data.splits import read_split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.params import Params
    from dreamset.params.model import Model, Sampler
    from dreamset.params.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """A recipe, and everything that its adapters and images are made from.

    Attributes:
        params: all parameters.
        workspace: the folders that results go to.
        split: the shots and the selection images.
        recipe: the name of a row of ``recipes``.
        steps_at: the key of the sampler's steps, where no recipe and no model's row gives them.
        filter_key: what the choices of its filter depend on; empty without one.
        told: what its recipe asks with, beside the names of the classes.
        avoided: by label, the prompt of the unconditional half of guidance; none: the empty prompt for all.
    """

    params: Params
    workspace: Workspace
    split: Split
    recipe: str
    steps_at: str | None = None
    avoided: tuple[str, ...] = ()
    filter_key: Mapping[str, Any] = field(default_factory=dict)
    told: Told = field(default_factory=Told)

    @classmethod
    def read(cls, params: Params, workspace: Workspace, recipe: str) -> Work:
        """Return the work on a recipe with the split that ``prepare`` wrote.

        Raises:
            InputError: the split is missing or damaged.
        """
        return cls(params, workspace, read_split(workspace.splits), recipe)

    @property
    def row(self) -> Recipe:
        """The row of the recipe."""
        return self.params.recipes[self.recipe]

    @property
    def base(self) -> Model:
        """The row of the model."""
        return self.params.base

    def asked(self, wanted: Iterable[tuple[int, int]]) -> list[asking.Asked]:
        """Return the prompts of images, by label and index of each."""
        return asking.asked(self.split, self.row, self.params.seed, self.told, wanted)

    def lead(self, label: int) -> str:
        """Return how the prompts of a class begin; where all its images have one prompt, that prompt."""
        return asking.lead(self.split, self.row, label)

    @property
    def steps_key(self) -> str:
        """The key of ``params.yaml`` that gives the sampler's steps."""
        if self.steps_at is not None:
            return self.steps_at
        own = self.row.sampler.steps is not None
        if own:
            return f"recipes.{self.recipe}.sampler.steps"
        return f"models.{self.params.model}.{'student' if self.sampler.student else 'generate'}.steps"

    @property
    def sampler(self) -> Sampler:
        """The sampler of the model with the overrides of the recipe."""
        return self.params.sampler(self.recipe)
