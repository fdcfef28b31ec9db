"""Draw the images of blocks with the base and its adapters; write each block as a shard while the next is drawn."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__, compute
from dreamset.core import locks, shards, xmp
from dreamset.core.device import out_of_memory, pick
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import read_json, sha256, write_json
from dreamset.core.progress import bar
from dreamset.core.seeds import image_seed
from dreamset.data import cards, tuned
from dreamset.data.synthetic import SyntheticImage, write_metadata
from dreamset.drawing import starts
from dreamset.drawing.blocks import requests
from dreamset.drawing.candidates import GROUP
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dreamset.core.workspace import Workspace
    from dreamset.data.adapters import Adapter
    from dreamset.data.work import Work
    from dreamset.drawing.blocks import Block, Request
    from dreamset.drawing.candidates import Chooser
    from dreamset.generator.base_model import BaseModel
    from dreamset.generator.conditions import Condition
    from dreamset.generator.mixture import Mixes, Mixture
    from dreamset.generator.sampler import Between, Guide
    from dreamset.params import Params

_ENCODED: Final = 2000  # prompts that are kept encoded; at Stable Diffusion's size each takes 150 kB


def load_base(params: Params, workspace: Workspace, recipe: str) -> BaseModel:
    """Return what a recipe draws with, on the device: the base or its student, compiled if the model's row says so."""
    from dreamset.generator import base_model, student

    quick = params.sampler(recipe).student

    def read() -> BaseModel:
        base = base_model.load(hub.locate(workspace.root, *params.base.pretrained), params.base, pick())
        if quick:
            assert params.base.few_steps is not None
            base = student.of(base, hub.locate(workspace.root, *params.base.few_steps.pretrained))
        if params.base.generate.compile:
            base_model.compile_unet(base)
        return base

    return compute.resident(f"to draw{' in a few steps' if quick else ''}: {params.base}", read)


def schedule(work: Work) -> dict[str, Any]:
    """Return the configuration of the noise schedule that images are drawn by."""
    from dreamset.generator import student

    root, base = work.workspace.root, work.base
    if work.sampler.student:
        assert base.few_steps is not None
        own = student.schedule(hub.locate(root, *base.few_steps.pretrained))
        if own is not None:
            return own
    file = hub.locate(root, *base.pretrained) / "scheduler/scheduler_config.json"
    found: dict[str, Any] = read_json(file, "dreamset fetch")
    return found


def draw_all(
    work: Work,
    adapters: list[Adapter],
    missing: list[Block],
    load: Callable[[], BaseModel] | None = None,
    chooser: Chooser | None = None,
    is_over: Callable[[Block, int, float], bool] | None = None,
) -> int:
    """Draw blocks, adapter by adapter; a second thread encodes and writes each while the next is drawn.

    Args:
        work: on the recipe.
        adapters: of the recipe.
        missing: the blocks.
        load: returns the base; None: ``load_base``.
        chooser: the recipe's filter; None: there is none.
        is_over: says before a block, by the images and the seconds of this call so far, whether to stop there; None:
            all blocks are drawn.

    Returns:
        The number of images that this call drew; fewer than are missing where another process draws the same blocks.

    Raises:
        InputError: an image stays degenerate after all redraws, or the sampler begins with little noise.
        StoppedError: a single image does not fit into memory.
    """
    import torch

    from dreamset.generator import trained
    from dreamset.generator.mixture import Mixture
    from dreamset.generator.sampler import Guide, check_first_step

    workspace = work.workspace
    base = load_base(work.params, workspace, work.recipe) if load is None else load()
    if not work.row.starts_from_shots:
        check_first_step(base.schedule, work.sampler, work.steps_key)
    total = sum(map(len, missing))
    written: Future[None] | None = None
    count, seconds = 0, 0.0
    current: tuple[int | None, float, bool] | None = None
    guide, unguided = Guide(), None
    if work.row.guide_until is not None:
        guide = dataclasses.replace(guide, until=work.row.guide_until)
    if work.row.guide == "base":
        # Before any adapter is installed: the base's own U-Net, and its empty or negative prompt.
        guide = dataclasses.replace(guide, network=base.twin())
        with torch.no_grad():
            unguided = base.encode([work.row.negative or ""])
    drawer = Drawer(work, base, guide, unguided, chooser, starts.Latents(workspace.cell))
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        bar(total=total, what=f"drawing {work.recipe}", unit="img") as progress,
        ExitStack() as installed,
    ):
        for block, claim in shards.claimed(workspace.shards, missing, lambda block: [block.key]):
            with claim:
                locks.boundary()
                if is_over is not None and is_over(block, count, seconds):
                    break
                began = time.perf_counter()
                adapter = None if block.adapter is None else adapters[block.adapter]
                # The scale of mixed LoRAs is in the weights of each image.
                wanted = (block.adapter, 1.0 if block.mixes else block.scale, bool(block.mixes))
                if wanted != current:
                    installed.close()
                    file, drawer.mixture = None, None
                    if adapter is not None:
                        file = tuned.adapters(work.params, workspace, work.recipe) / adapter.file
                    if block.mixes:
                        folder = tuned.adapters(work.params, workspace, work.recipe)
                        mixture = Mixture(base, {each.sha256: folder / each.file for each in adapters})
                        drawer.mixture = installed.enter_context(mixture)
                    else:
                        installed.enter_context(trained.installed(base, file, block.scale))
                    drawer.embeds, current = {}, wanted
                installing = time.perf_counter() - began
                drawn = drawer.draw(block)
                drawn = dataclasses.replace(drawn, seconds=drawn.seconds + installing)
                if written:
                    written.result()
                sha = None if adapter is None else adapter.sha256
                # The claim on the shard lasts until the writer has written it.
                written = writer.submit(write, work, block, sha, drawn, claim.pop_all())
            count, seconds = count + len(drawn.requests), seconds + drawn.seconds
            progress.update(len(drawn.requests))
        if written:
            written.result()
    return count


@dataclass(frozen=True)
class Drawn:
    """The images of a block.

    Attributes:
        requests: of the images.
        pixels: (n, h, w, 3) uint8.
        seeds: of each image.
        redraws: of each, how many degenerate tries came before it.
        seconds: taken.
        tries: of each, the number of candidates that a filter looked at; None without a filter.
        gave_up: of each, whether the filter accepted none of them.
    """

    requests: list[Request]
    pixels: NDArray[np.uint8]
    seeds: list[int]
    redraws: list[int]
    seconds: float
    tries: list[int] | None = None
    gave_up: list[bool] | None = None


@dataclass
class Drawer:
    """Draws the images of a recipe's blocks.

    Attributes:
        work: on the recipe.
        base: with the adapter of the moment installed.
        guide: of the recipe, without the modes of the images.
        unguided: condition of the guiding network; None: that of the adapted one.
        chooser: the filter of the recipe; None: the first candidate is the image.
        latents: cache of the encoded shots.
        embeds: cache of the encoded prompts of this adapter.
        mixture: the LoRAs of shots beside the base's weights; None: all images have the same adapter, or none.
    """

    work: Work
    base: BaseModel
    guide: Guide
    unguided: Condition | None
    chooser: Chooser | None
    latents: starts.Latents
    embeds: dict[str, Condition] = field(default_factory=dict)
    mixture: Mixture | None = None

    def draw(self, block: Block) -> Drawn:
        """Draw a block, as far as its filter asks for.

        Raises:
            InputError: an image stays degenerate after all redraws.
            StoppedError: a single image does not fit into memory.
        """
        import torch

        started = time.perf_counter()
        wanted = requests(self.work, block)
        asked = [*dict.fromkeys(prompt for request in wanted for prompt in (request.avoid, request.prompt))]
        alike = self.work.row.asks_alike
        # Last bits depend on a batch's others. So prompts that differ from image to image are encoded one by one, and
        # those of a block all together, whatever was encoded for the block before.
        if len(self.embeds) > _ENCODED or (alike and asked != [*self.embeds]):
            self.embeds.clear()
        new = [prompt for prompt in asked if prompt not in self.embeds]
        if self.mixture and self.mixture.changes_conditions:
            new = []  # each image's text encoder is another
        for batch in filter(None, [new] if alike else [[prompt] for prompt in new]):
            with torch.no_grad():
                self.embeds.update(zip(batch, self.base.encode(batch).split(), strict=True))
        if self.chooser is None:
            drawn = self._candidates(wanted, 0)
        elif self.work.row.draws_all_tries:
            drawn = self._best_of_all(wanted, self.chooser)
        else:
            drawn = self._first_accepted(wanted, self.chooser)
        return dataclasses.replace(drawn, seconds=time.perf_counter() - started)

    def _candidates(self, wanted: list[Request], turn: int) -> Drawn:
        """Draw the candidates of one turn, and draw degenerate ones again."""
        import torch

        from dreamset.generator.mixture import Mixes
        from dreamset.generator.sampler import degenerate, draw_fitting, to_uint8

        work, base = self.work, self.base
        params, split, recipe = work.params, work.split, work.recipe
        redraws, seeds = [0] * len(wanted), [0] * len(wanted)
        rows, images = list(range(len(wanted))), torch.empty(0)
        for attempt in range(params.generate.redraws + 1):
            for row in rows:
                redraws[row] = attempt
                request = wanted[row]
                nth = turn * (params.generate.redraws + 1) + attempt
                seeds[row] = image_seed(params.seed, split.classes[request.label], request.index, nth)
            mixes = None if self.mixture is None else Mixes(self.mixture, [wanted[row].mix for row in rows])
            conditions = self._encoded([wanted[row].prompt for row in rows], mixes)
            if self.unguided is None:
                empty = self._encoded([wanted[row].avoid for row in rows], mixes)
            else:
                empty = self.unguided.expand(len(rows))
            # Redraws are not compiled: their number is chance, and each number would be compiled anew.
            drawer = base if attempt == turn == 0 else dataclasses.replace(base, compiled=None)
            shots = [shot for row in rows if (shot := wanted[row].shot)]
            modes = [shot for row in rows if (shot := wanted[row].toward)]
            try:
                begun = self._begun([wanted[row] for row in rows]) if shots else None
                guide = self.guide
                if modes:
                    guide = dataclasses.replace(guide, modes=self.latents.of(base, modes), pull=work.row.pull_share)
                drawn = draw_fitting(
                    drawer, work.sampler, conditions, empty, [seeds[row] for row in rows], begun, guide, mixes
                )
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise StoppedError(
                    f"generate {recipe}: no memory to draw one image by itself; put attention_slicing, vae_slicing or "
                    f"offload into models.{params.model}.memory in params.yaml. All images are then drawn with it, "
                    "finished ones anew."
                ) from error
            images = drawn if attempt == 0 else images.index_copy(0, torch.tensor(rows, device=images.device), drawn)
            rows = [row for row, bad in zip(rows, degenerate(drawn).tolist(), strict=True) if bad]
            if not rows:
                return Drawn(wanted, to_uint8(images).numpy(), seeds, redraws, 0.0)
        request = wanted[rows[0]]
        raise InputError(
            f"{recipe}: image {request.index} of class {split.classes[request.label]!r} (and {len(rows) - 1} more) is "
            f"constant, black or NaN after {params.generate.redraws} redraws; lower the adapter's learning rate "
            "(models.*.adapt) or the guidance."
        )

    def _encoded(self, prompts: list[str], mixes: Mixes | None) -> Condition:
        """Return the conditions of prompts, one per image; LoRAs on the text encoder give each image its own."""
        import torch

        from dreamset.generator.conditions import cat

        if mixes is None or not mixes.mixture.changes_conditions:
            return cat([self.embeds[prompt] for prompt in prompts])
        with torch.no_grad():
            mixes.use()
            return self.base.encode_each(prompts)

    def _begun(self, wanted: list[Request]) -> Tensor | Between:
        """Return the latents that images start from."""
        import torch

        from dreamset.generator.sampler import Between

        shots = [request.shot for request in wanted if request.shot is not None]
        if self.work.row.init_mix is None:
            return self.latents.of(self.base, shots)
        if self.work.row.init_mix == "pixels":
            return self.latents.mixed(
                self.base, [(shot, one.beside, one.share) for shot, one in zip(shots, wanted, strict=True)]
            )
        # A class of one shot stays with it: its share is 1.
        others = [one.beside or shot for shot, one in zip(shots, wanted, strict=True)]
        share = torch.tensor([one.share for one in wanted])
        return Between(self.latents.of(self.base, shots), self.latents.of(self.base, others), share)

    def _first_accepted(self, wanted: list[Request], chooser: Chooser) -> Drawn:
        """Draw turn after turn what the filter has not accepted; at the end take the best of what is left."""
        import numpy as np

        rows = np.arange(len(wanted))
        tries, best = np.zeros(len(wanted), int), np.full(len(wanted), -np.inf)
        taken: Drawn | None = None
        for turn in range(self.work.row.tries):
            drawn = self._candidates([wanted[row] for row in rows], turn)
            rated = chooser.rate(drawn.pixels, np.array([request.label for request in drawn.requests]))
            tries[rows] = turn + 1
            if taken is None:
                taken = dataclasses.replace(drawn, requests=wanted)
            # What is accepted is better than anything that is not.
            worth = np.where(rated.accepted, np.inf, rated.score)
            for place, row in enumerate(rows):
                if turn == 0 or worth[place] > best[row]:
                    best[row] = worth[place]
                    taken.pixels[row], taken.seeds[row] = drawn.pixels[place], drawn.seeds[place]
                    taken.redraws[row] = drawn.redraws[place]
            rows = rows[~rated.accepted]
            if not len(rows):
                break
        assert taken is not None
        left = set(rows.tolist())
        gave_up = [row in left for row in range(len(wanted))]
        return dataclasses.replace(taken, tries=tries.tolist(), gave_up=gave_up)

    def _best_of_all(self, wanted: list[Request], chooser: Chooser) -> Drawn:
        """Draw all candidates, and let the filter choose among those of each group of a class."""
        import numpy as np

        labels = np.array([request.label for request in wanted])
        turns = [self._candidates(wanted, turn) for turn in range(self.work.row.tries)]
        rated = [chooser.rate(drawn.pixels, labels) for drawn in turns]
        groups: dict[tuple[int, int], list[int]] = {}
        for row, request in enumerate(wanted):
            groups.setdefault((request.label, request.index // GROUP), []).append(row)
        chosen, accepted = np.zeros(len(wanted), int), np.zeros(len(wanted), bool)
        for rows in groups.values():
            rows.sort(key=lambda row: wanted[row].index)
            chosen[rows], accepted[rows] = chooser.choose([one.rows(rows) for one in rated])
        return Drawn(
            wanted,
            np.stack([turns[turn].pixels[row] for row, turn in enumerate(chosen)]),
            [turns[turn].seeds[row] for row, turn in enumerate(chosen)],
            [turns[turn].redraws[row] for row, turn in enumerate(chosen)],
            0.0,
            [len(turns)] * len(wanted),
            (~accepted).tolist(),
        )


def write(work: Work, block: Block, adapter: str | None, drawn: Drawn, claim: ExitStack) -> None:
    """Encode a block and write it as a shard; then close its claim."""
    from dreamset.core.images import png

    workspace, split = work.workspace, work.split
    files, images = [], []
    scale = block.scale if (adapter is not None or block.mixes) and work.row.trains_lora else None
    with claim:
        root, tool = workspace.root, f"dreamset {__version__}"
        base = hub.student(root, work.params, work.recipe) or hub.identity(root, *work.base.pretrained)
        for place, (request, pixels, seed, redraws) in enumerate(
            zip(drawn.requests, drawn.pixels, drawn.seeds, drawn.redraws, strict=True)
        ):
            name = f"{split.folder(request.label)}/{request.index:05d}.png"
            source = xmp.GENERATED if request.shot is None else xmp.EDITED
            text = {
                "Software": tool,
                "DigitalSourceType": source,
                "Seed": str(seed),
                "Prompt": request.prompt,
                xmp.CHUNK: xmp.packet(
                    cards.public_name(base["name"]), base["sha256"], request.prompt, seed, tool, source
                ),
            }
            files.append((name, png(pixels, text)))
            images.append(
                SyntheticImage(
                    file_name=name,
                    label=request.label,
                    class_name=split.classes[request.label],
                    index=request.index,
                    prompt=request.prompt,
                    seed=seed,
                    redraws=redraws,
                    sampler=dataclasses.asdict(work.sampler),
                    adapter=adapter,
                    adapter_scale=scale,
                    sha256=sha256(files[-1][1]),
                    shot=None if request.shot is None else request.shot.sha256,
                    tries=None if drawn.tries is None else drawn.tries[place],
                    gave_up=None if drawn.gave_up is None else drawn.gave_up[place],
                    avoid=request.avoid or None,
                    toward=None if request.toward is None else request.toward.sha256,
                    beside=None if request.beside is None else request.beside.sha256,
                    share=None if request.beside is None else request.share,
                    told=request.told,
                    attributes=None if request.attributes is None else dict(request.attributes),
                    adapters=[sha for sha, _ in request.mix] or None,
                    adapter_weights=[weight for _, weight in request.mix] or None,
                )
            )
        with shards.writing(workspace.shards, block.key, sum(len(data) for _, data in files)) as folder:
            for name, data in files:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
            write_metadata(folder, images)
            candidates = len(images) if drawn.tries is None else sum(drawn.tries)
            write_json(folder / "record.json", {"drawn": candidates, "seconds": drawn.seconds})
