"""Budgets: as many images of each class as can be drawn in ``generate.budget_s`` seconds.

The seconds are those that the records of finished blocks and copies hold: drawing with all candidates of a filter,
installing adapters, and copying, but not loading the base. First one image of each class is drawn, which shows what an
image takes; then as many whole blocks of all classes as fit; at last one smaller block of each. Every step follows from
recorded seconds alone. So a run that was killed goes on as it would have, and draws only into what is left.

The blocks are those that ``generate.per_class`` would draw. So that number without a budget gives the same images.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.drawing import copies, draw, filters
from dreamset.drawing.blocks import plan
from dreamset.drawing.finish import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dreamset.data.adapters import Adapter
    from dreamset.data.work import Work
    from dreamset.drawing.blocks import Block
    from dreamset.drawing.candidates import Chooser
    from dreamset.generator.base_model import BaseModel

_SAFE: Final = 0.95  # share of what is left that the next step may take by the estimate; the rest fills up later


@dataclass(frozen=True)
class Spent:
    """What a budget was spent on.

    Attributes:
        budget: seconds.
        seconds: that were used.
        per_class: images of each class in the dataset, copies included.
        drawn_now: images that this call drew.
    """

    budget: float
    seconds: float
    per_class: int
    drawn_now: int

    @property
    def sentence(self) -> str:
        """What a person should know of it."""
        return (
            f"{self.per_class} images per class fit into {self.budget:g} seconds, of which they took "
            f"{self.seconds:.1f}; generate.per_class: {self.per_class} with budget_s: null gives the same images."
        )


def fitted(
    work: Work, adapters: list[Adapter] | None, load: Callable[[], BaseModel] | None = None
) -> tuple[Work, Spent | None]:
    """Draw as many images of each class as fit into the budget, and return the work that asks for exactly these.

    Args:
        work: on the recipe.
        adapters: None where the recipe retrieves its images, which takes no budget.
        load: returns the base; None: ``draw.load_base``.

    Returns:
        The work, unchanged without a budget, and what the budget was spent on.

    Raises:
        InputError: the budget is too short for one image of each class; what was drawn stays.
    """
    if work.params.generate.budget_s is None or adapters is None:
        return work, None
    course = _Course(settled(work), adapters, work.params.generate.budget_s, load)
    course.run()
    spent = Spent(course.budget, course.seconds, course.stored(course.reached), course.drawn_now)
    return _asking(work, spent.per_class), spent


def _asking(work: Work, per_class: int) -> Work:
    """Return the work that asks for a number of images of each class, and has no budget."""
    section = dataclasses.replace(work.params.generate, per_class=per_class, budget_s=None)
    return dataclasses.replace(work, params=dataclasses.replace(work.params, generate=section))


@dataclass
class _Course:
    """The steps of one budget.

    Attributes:
        work: on the recipe, settled.
        adapters: of the recipe.
        budget: seconds.
        load: returns the base; None: ``draw.load_base``.
        seconds: of all blocks and copies so far.
        reached: drawn images of each class.
        drawn_now: images that were drawn and not found.
    """

    work: Work
    adapters: list[Adapter]
    budget: float
    load: Callable[[], BaseModel] | None
    seconds: float = 0.0
    reached: int = 0
    drawn_now: int = 0
    _counted: set[str] = field(default_factory=set)
    _rate: tuple[float, float] | None = None  # seconds of drawing and of copying an image, in the last step

    def run(self) -> None:
        """Take all steps."""
        given = self.work.params.generate.per_class
        most = self.work.row.drawn(given) if isinstance(given, int) else None
        unit, depth = len(self.work.row.strengths), self._depth
        # Where blocks are always whole, so is the first.
        whole = max(block.stop - block.start for block in self._plan(unit)) >= depth > unit
        first = min(depth if whole else unit, most or depth)
        if not self._reach(first) or self.seconds > self.budget:
            raise self._too_short(first)
        while self._rate is not None and (most is None or self.reached < most):
            each = sum(self._rate) * len(self.work.split.classes)
            fits = int(_SAFE * (self.budget - self.seconds) / each)
            # Images of a block that is not whole are drawn again as part of a larger one.
            target = min(self.reached // depth * depth + fits, self.reached + fits if most is None else most)
            smaller = target // depth * depth <= self.reached
            if target != most:
                # Whole blocks first, and one smaller one at the end.
                target = target // unit * unit if smaller and not whole else target // depth * depth
            if target <= self.reached or not self._reach(target) or (smaller and not whole):
                return

    def stored(self, drawn: int) -> int:
        """Return the images of each class in the dataset for a number of drawn ones."""
        given, every = self.work.params.generate.per_class, drawn * (1 + self.work.row.copies)
        return min(every, given) if isinstance(given, int) else every

    def _plan(self, drawn: int) -> list[Block]:
        return plan(_asking(self.work, self.stored(drawn)), self.adapters)

    @functools.cached_property
    def _depth(self) -> int:
        """Return the images of each class that a round of whole blocks draws."""
        drawn = 3 * self.work.base.generate.batch * len(self.work.row.strengths)
        blocks = plan(_asking(self.work, drawn * (1 + self.work.row.copies)), self.adapters)
        return max(block.stop - block.start for block in blocks)

    def _reach(self, target: int) -> bool:
        """Draw until each class has ``target`` images, as far as the budget lasts; return whether it has."""
        store = self.work.workspace.shards
        # Round by round, so that all classes have as many images wherever it ends.
        blocks = sorted(self._plan(target), key=lambda block: block.start // self._depth)
        new = [block for block in blocks if block.key not in self._counted]
        images, drawing, copying, over = 0, 0.0, 0.0, False
        for block in new:
            if shards.find(store, block.key) is None:
                break
            if over := self._is_over(block, images, drawing):
                break
            one, other = self._took(block)
            images, drawing, copying = images + len(block), drawing + one, copying + other
        rest = [block for block in new if block.key not in self._counted]
        missing = [block for block in rest if shards.find(store, block.key) is None]
        if missing and not over:

            def is_over(block: Block, count: int, seconds: float) -> bool:
                return self._is_over(block, images + count, drawing + seconds)

            chooser = self._chooser if self.work.row.filters else None
            self.drawn_now += draw.draw_all(self.work, self.adapters, missing, self._base, chooser, is_over)
            for block in rest:
                if shards.find(store, block.key) is not None:
                    one, other = self._took(block)
                    images, drawing, copying = images + len(block), drawing + one, copying + other
        if images:
            self.seconds += drawing + copying
            self._rate = drawing / images, copying / images
        done = [block for block in blocks if block.key in self._counted]
        if len(done) == len(blocks):
            self.reached = target
        else:
            self.reached = max(self.reached, min(_prefixes(done, len(self.work.split.classes))))
        return len(done) == len(blocks)

    def _took(self, block: Block) -> tuple[float, float]:
        """Count a finished block; return the seconds of drawing it, and of copying its images."""
        store = self.work.workspace.shards
        copied = copies.plan(self.work, [block])
        copies.make(self.work, copied)
        self._counted.add(block.key)
        record = json.loads((store / block.key / "record.json").read_text(encoding="utf-8"))
        return float(record["seconds"]), copies.seconds(store, copied)

    def _is_over(self, block: Block, count: int, seconds: float) -> bool:
        """Return whether there is no time for a block, when a step has drawn ``count`` images in ``seconds``."""
        if self._rate is None:
            # What an image takes is not known before the first block.
            return count > 0 and seconds > self.budget
        drawing, copying = self._rate
        expected = len(block) * drawing + (count + len(block)) * copying
        return self.seconds + seconds + expected > self.budget

    def _too_short(self, first: int) -> InputError:
        """Return the sentence on a budget that is too short for the first step."""
        assert self._rate is not None
        needed = sum(self._rate) * first * len(self.work.split.classes)
        what = "an image" if first == 1 else f"{first} images"
        return InputError(
            f"{self.work.recipe}: generate.budget_s: {self.budget:g} seconds are too few for {what} of each class, "
            f"which take about {needed:.2g}; raise it. What was drawn is kept."
        )

    @functools.cached_property
    def _loaded(self) -> BaseModel:
        if self.load is not None:
            return self.load()
        return draw.load_base(self.work.params, self.work.workspace, self.work.recipe)

    def _base(self) -> BaseModel:
        """Return the base, loaded once for all steps."""
        return self._loaded

    @functools.cached_property
    def _chooser(self) -> Chooser:
        return filters.Filter(self.work)


def _prefixes(blocks: Sequence[Block], classes: int) -> list[int]:
    """Return for each label how many of its images from the first on stand in blocks without a gap."""
    indices: list[set[int]] = [set() for _ in range(classes)]
    for block in blocks:
        for label in block.labels:
            indices[label].update(block.indices)
    return [next(index for index in itertools.count() if index not in there) for there in indices]
