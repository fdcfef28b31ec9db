"""Many LoRAs of shots at once against one at a time, in one run: ``python -m benchmarks.scopes``.

Images: batches whose images have LoRAs of their own, against one mix at a time. The first row is a stock pipeline that
works as the reference does: it loads the LoRAs of a mix, calls ``set_adapters``, draws and unloads them. In the second,
our own loop adds LoRAs that are in memory to the weights. Both draw all images that have a mix at once. With 4 shots a
class has 6 pairs, each of 8 images in 50; with 16 shots it has 120, and each image another one. No row writes files.

Adapters: as many trainings at once as the model's row allows, against the same code with one. Set-up counts, spread
over all steps of a training. Sample grids do not; both sides would draw as many.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from diffusers import StableDiffusionPipeline

from benchmarks import timing
from benchmarks.adapters import jobs
from benchmarks.setting import BUNDLED, QUICK, Setting, adapters
from benchmarks.timing import Ladder, Rung, clock
from dreamset import classifiers, params, prepare
from dreamset.core import device
from dreamset.core.files import atomic_write, write_json
from dreamset.core.seeds import image_seed
from dreamset.core.workspace import Workspace
from dreamset.data.adapters import read_adapters
from dreamset.data.splits import read_split
from dreamset.data.work import Work
from dreamset.drawing.blocks import plan, requests
from dreamset.generator import base_model, lora
from dreamset.generator.conditions import cat
from dreamset.generator.mixture import Mixes, Mixture
from dreamset.generator.sampler import draw, scheduler, to_uint8
from dreamset.generator.training import Together

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dreamset.drawing.blocks import Request
    from dreamset.generator.base_model import BaseModel

ROOT = Path(__file__).parents[1]
ONES, STOCK = 16, 4  # batches, of one mix each, that are timed: with our own loop, and with a stock pipeline


def make(raw: dict[str, Any], folder: Path, shots: int, *, quick: bool) -> Setting:
    """Prepare digits with so many shots in a folder that is thrown away."""
    raw = copy.deepcopy(raw) | {"shots": shots, "active": ["loft", "chimera"]}
    row = raw["models"][raw["model"]]
    for kind in ("generator", "clip", "judge"):
        row[kind] = str(ROOT / row[kind])
    amount = QUICK if quick else BUNDLED
    parsed, workspace = params.parse(raw, classifiers.ROWS), Workspace.at(folder)
    prepare.run(parsed, workspace)
    return Setting(parsed, workspace, read_split(workspace.splits), amount, device.pick(), ())


@dataclass
class Images:
    """The images of a recipe, drawn in mixed batches or one mix at a time."""

    setting: Setting
    recipe: str
    pipeline: Any = None

    def __post_init__(self) -> None:
        adapters(self.setting, self.recipe)
        params, place = self.setting.params, self.setting.workspace.adapter(self.recipe)
        self.base = base_model.load(self.setting.generator, params.base, self.setting.device)
        self.work = Work(params, self.setting.workspace, self.setting.split, self.recipe)
        found = read_adapters(place)
        self.files = {adapter.sha256: place / adapter.file for adapter in found}
        self.blocks = [requests(self.work, block) for block in plan(self.work, found)]
        self.alone: dict[Any, list[Request]] = {}
        for request in (request for block in self.blocks for request in block):
            self.alone.setdefault((request.label, request.mix), []).append(request)
        prompts = list(dict.fromkeys(["", *(request.prompt for block in self.blocks for request in block)]))
        with torch.no_grad():
            self.embeds = dict(zip(prompts, self.base.encode(prompts).split(), strict=True))
        self.deltas = {
            sha: [(at.layer.weight, at.pair.delta) for at in lora.adapted(self.base, file)]
            for sha, file in self.files.items()
        }

    def batch(self, wanted: Sequence[Request], mixes: Mixes | None = None) -> torch.Tensor:
        """Return the images of some requests, drawn at once: (n, h, w, 3) uint8."""
        seed, split = self.setting.params.seed, self.setting.split
        seeds = [image_seed(seed, split.classes[request.label], request.index) for request in wanted]
        conditions = cat([self.embeds[request.prompt] for request in wanted])
        empty = self.embeds[""].expand(len(wanted))
        randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
        return to_uint8(draw(self.base, self.work.sampler, conditions, empty, randoms, mixes=mixes))

    def mixed(self, blocks: int) -> dict[tuple[int, int], torch.Tensor]:
        """Return the images of the first blocks by label and index."""
        drawn = {}
        with Mixture(self.base, self.files) as mixture:
            for wanted in self.blocks[:blocks]:
                images = self.batch(wanted, Mixes(mixture, [request.mix for request in wanted]))
                drawn |= {(one.label, one.index): image for one, image in zip(wanted, images, strict=True)}
        return drawn

    def one_at_a_time(self, mixes: int) -> dict[tuple[int, int], torch.Tensor]:
        """Return the images of the first mixes, each fused into the weights in turn."""
        drawn = {}
        for (_, mix), wanted in list(self.alone.items())[:mixes]:
            with self._fused(mix):
                images = self.batch(wanted)
            drawn |= {(one.label, one.index): image for one, image in zip(wanted, images, strict=True)}
        return drawn

    def stock(self, mixes: int) -> dict[tuple[int, int], torch.Tensor]:
        """Return the images of the first mixes, as a stock pipeline draws them."""
        kind, seed, split = self.work.sampler, self.setting.params.seed, self.setting.split
        if self.pipeline is None:
            self.pipeline = _pipeline(self.setting, kind.scheduler)
        pipeline, drawn = self.pipeline, {}
        for (_, mix), wanted in list(self.alone.items())[:mixes]:
            names = [f"shot{number}" for number in range(len(mix))]
            for name, (sha, _) in zip(names, mix, strict=True):
                pipeline.load_lora_weights(self.files[sha], adapter_name=name)
            pipeline.set_adapters(names, [weight for _, weight in mix])
            seeds = [image_seed(seed, split.classes[request.label], request.index) for request in wanted]
            images = pipeline(
                [request.prompt for request in wanted],
                height=self.base.resolution,
                width=self.base.resolution,
                num_inference_steps=kind.steps,
                guidance_scale=kind.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
            ).images
            pipeline.unload_lora_weights()
            pixels = to_uint8(images * 2 - 1)
            drawn |= {(one.label, one.index): image for one, image in zip(wanted, pixels, strict=True)}
        return drawn

    @contextmanager
    def _fused(self, mix: Sequence[tuple[str, float]]) -> Iterator[None]:
        """Add LoRAs, read before, to the weights; restore these afterwards."""
        before = [(weight, weight.clone()) for weight, _ in self.deltas[mix[0][0]]]
        with torch.no_grad():
            for sha, share in mix:
                for weight, delta in self.deltas[sha]:
                    weight.add_(delta, alpha=share)
            yield
            for weight, value in before:
                weight.copy_(value)

    def ladder(self, blocks: int = 2) -> Ladder:
        """Return the ways to draw, by seconds per image."""

        def each(way: str, amount: int) -> float:
            start = clock()
            drawn = getattr(self, way)(amount)
            return (clock() - start) / len(drawn)

        shots, count = self.setting.params.shots, len(next(iter(self.alone.values())))
        return Ladder(
            f"Images of {self.recipe}, {shots} shots per class, {len(self.blocks[0])} in a batch",
            "images",
            [
                Rung("stock pipeline, one mix at a time", lambda: each("stock", STOCK)),
                Rung(f"own loop, one mix at a time ({count} in the first batch)", lambda: each("one_at_a_time", ONES)),
                Rung("mixed batches", lambda: each("mixed", blocks)),
            ],
        )


def _pipeline(setting: Setting, name: str) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(setting.generator, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler(name, dict(pipeline.scheduler.config))
    return pipeline.to(setting.device)


def trainings(setting: Setting, recipe: str, base: BaseModel) -> Ladder:
    """Return the two ways to train, by seconds per adapter."""
    found, _, settings = jobs(setting, recipe)
    work = Work(setting.params, setting.workspace, setting.split, recipe)
    each = sum(setting.split.train_per_class) / len(found)  # files that a training makes
    amount = setting.amount

    def taken(at_once: int) -> float:
        group = found[:at_once]
        with tempfile.TemporaryDirectory() as folder:
            start = clock()
            together = Together(base, group, settings, Path(folder), losses=[[] for _ in group])
            setup = clock() - start
            for _ in range(amount.warmup):
                together._train_step()
            start = clock()
            for _ in range(amount.steps):
                together._train_step()
            step = (clock() - start) / amount.steps
            together.close()
        return (setup + step * settings.steps) / len(group) / each

    most = min(work.params.together(recipe), len(found))
    shots = setting.params.shots
    return Ladder(
        f"Adapters of {recipe}, {shots} shots per class, {settings.steps} steps of batch {settings.schedule.batch}",
        "adapters",
        [
            Rung("one training at a time", lambda: taken(1)),
            Rung(f"{most} trainings at once", lambda: taken(most)),
        ],
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was measured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    report: dict[str, Any] = {
        "device": device.name(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(["python", "-m", "benchmarks.scopes", *arguments]),
        "versions": {package: version(package) for package in ("torch", "diffusers", "peft")},
        "load_before": round(os.getloadavg()[0], 2),
        "tasks": [],
    }
    tables = []

    def climbed(ladder: Ladder) -> None:
        report["tasks"].append(timing.climb(ladder, 1 if options.quick else options.repeat))
        tables.append(timing.markdown(report["tasks"][-1]))
        print(tables[-1], flush=True)

    for shots in options.shots:
        with tempfile.TemporaryDirectory(prefix="dreamset-scopes-") as folder:
            setting = make(raw, Path(folder), shots, quick=options.quick)
            for recipe in options.recipes:
                images = Images(setting, recipe)
                climbed(trainings(setting, recipe, images.base))
                climbed(images.ladder(1 if options.quick else 2))
    report["load_after"] = round(os.getloadavg()[0], 2)
    write_json(options.output / "scopes.json", report)
    atomic_write(options.output / "scopes.md", "\n".join(tables))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scopes", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16], help="default: 4 16")
    parser.add_argument("--recipes", nargs="+", default=["loft", "chimera"], help="default: loft chimera")
    parser.add_argument("--threads", type=int, help="CPU threads of one operation; default: PyTorch's")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of every row, in turns; default: 3")
    parser.add_argument("--quick", action="store_true", help="next to no work: shows that everything runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
