"""Five timed steps of what takes long: training an adapter, drawing a block, training a classifier, scoring images.

It runs in a process of its own (``python -m dreamset.command.probe``), so that nothing stays in the memory of a GPU
while stages run. Pictures are noise, and nothing that it makes is kept.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import classifiers
from dreamset.core import device
from dreamset.core.workspace import Workspace
from dreamset.data.splits import Split, read_split
from dreamset.params import Params, load
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dreamset.generator.base_model import BaseModel

STEPS: Final = 5
_BUDGET: Final = 8.0  # seconds of one step at most, and about of all of a measure; else of fewer images, or fewer
_SCORED: Final = 64  # images


def measure(params: Params, workspace: Workspace, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the seconds of what ``names`` lists, in the words of ``times.wanted``.

    Yields:
        The name, with ``seconds`` per unit, ``fixed`` seconds of an image where it is drawn, ``images`` that a unit was
        of, and ``bytes`` on disk; or ``failed``, a reason.
    """
    split = read_split(workspace.splits) if workspace.splits.is_file() else _made_up()
    base: BaseModel | None = None
    for name in names:
        kind, _, item = name.partition(" ")
        try:
            if kind in ("draw", "adapt") and base is None:
                from dreamset.generator import base_model

                base = base_model.load(hub.locate(workspace.root, *params.base.pretrained), params.base, device.pick())
            if kind == "adapt":
                assert base is not None
                yield name, adapting(params, split, base, item, workspace)
            elif kind == "draw":
                assert base is not None
                yield name, drawing(params, base)
            elif kind == "classifier":
                yield name, fitting(params, split, item, workspace)
            elif kind == "judge":
                yield name, judging(params, workspace)
        except Exception as error:
            yield name, {"failed": " ".join(str(error).split())[:200] or type(error).__name__}


def _made_up() -> Split:
    return Split("none", ("a", "b"), "a photo of a {class}", (), 1, 0, (), ())


def _noise(count: int, side: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 255, (count, side, side, 3), np.uint8)


def adapting(params: Params, split: Split, base: BaseModel, recipe: str, workspace: Workspace) -> dict[str, Any]:
    """Return the seconds of a step of all adapters of a recipe that are trained at once, and the bytes of one."""
    from dreamset.generator import trained
    from dreamset.generator.training import Job, Settings, Together

    row, schedule = params.recipes[recipe], params.schedule(recipe)
    kind = trained.kind_of(row, len(split.classes))

    def steps(count: int, batch: int, together: int) -> tuple[float, int]:
        settings = Settings(
            kind=kind,
            schedule=dataclasses.replace(schedule, batch=batch),
            steps=count,
            weight_decay=0.0,
            max_grad_norm=1.0,
            caption_dropout=0.0,
            ema=params.base.adapt.ema,
            checkpoint_every=sys.maxsize,
            sample_every=sys.maxsize,
            sample_images=1,
            sampler=params.sampler(recipe),
            seed=0,
        )
        images = [*_noise(batch, params.base.resolution)]
        prompts = tuple(split.prompt(index % len(split.classes), row.prompt) for index in range(batch))
        jobs = [Job(f"timed{job}", f"adapter_{job}", job, images, prompts, ()) for job in range(together)]
        stamps: list[float] = []
        with tempfile.TemporaryDirectory(dir=workspace.root / ".dreamset", prefix="timed-") as name:
            folder = Path(name)
            for job in range(together):
                for step in (0, count):
                    (folder / f"samples_{step:05d}_{job}.png").touch()  # grids are counted as drawn images
            training = Together(base, jobs, settings, folder)
            try:
                training.run(lambda _: stamps.append(time.perf_counter()), range(1, count + 1))
                training.save_weights(0, folder)
            finally:
                training.close()
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.name != "state.safetensors")
        return (stamps[-1] - stamps[0]) / (count - 1), size

    shots = len(split.train) if row.trains_each_shot else len(split.classes)
    together = max(1, min(params.together(recipe), shots))
    whole = schedule.batch * together
    few, times = _fitting(whole, lambda count: steps(2, count, 1)[0])
    seconds, size = steps(1 + times, schedule.batch, together) if few == whole else steps(1 + times, few, 1)
    return {"seconds": seconds * whole / few, "images": few, "bytes": size}


def _fitting(most: int, step: Callable[[int], float]) -> tuple[int, int]:
    """Return the number of images of a step that keeps to the budget, at most ``most``, and how many such steps do.

    Args:
        most: images of a whole step.
        step: the seconds of a step of so many images; the first call is slower than the others.
    """
    step(1)
    count, seconds = 1, step(1)
    while count < most and seconds * min(most / count, 8) < _BUDGET:
        count = min(most, 8 * count)
        seconds = step(count)
    return count, min(STEPS, max(1, round(_BUDGET / seconds)))


def drawing(params: Params, base: BaseModel) -> dict[str, Any]:
    """Return the seconds of a step of the sampler on one image, and those of an image that do not depend on steps."""
    import torch

    from dreamset.generator.sampler import draw
    from dreamset.params.model import Sampler

    row = params.base.generate

    def seconds(count: int, steps: int) -> float:
        with torch.no_grad():
            prompts, empty = base.encode(["a photo"] * count), base.encode([""] * count)
        sampler = Sampler("ddim", steps, row.guidance)
        generators = [torch.Generator().manual_seed(index) for index in range(count)]
        begun = time.perf_counter()
        draw(base, sampler, prompts, empty, generators).cpu()
        return time.perf_counter() - begun

    count, times = _fitting(row.batch, lambda count: seconds(count, 1))
    short, long = seconds(count, 1), seconds(count, 1 + times)
    step = max(0.0, long - short) / times
    return {"seconds": step / count, "fixed": max(0.0, short - step) / count, "images": count}


def fitting(params: Params, split: Split, name: str, workspace: Workspace) -> dict[str, Any]:
    """Return the seconds of a step of a classifier, and its bytes."""
    import numpy as np

    from dreamset.classifiers.fit import Source, fit
    from dreamset.data.arrays import Labelled

    row = params.base.train.rows[name]
    classifier = classifiers.build(name, params.base, split, workspace.root)
    size: int = classifier.size  # type: ignore[assignment]
    finest = classifiers.finest(split.native, params.base.resolution)
    side, count = classifiers.stored(size, finest), len(split.classes)
    images = Labelled(_noise(count, side), np.arange(count), ("",) * count)
    none = Labelled(images.images[:0], images.labels[:0], ())

    def seconds(steps: int, batch: int) -> float:
        schedule: Any = dataclasses.replace(row, batch=batch)
        history = fit(
            classifier,
            [Source("real", images, 1.0, 1.0)],
            none,
            schedule,
            selections=1,
            invariances=split.invariances,
            crop=params.base.train.crop,
            seed=("timed", name),
            stop=steps,
            what="timed",
        )
        return history.seconds

    stored = sum(tensor.numel() * 4 for tensor in classifier.state_dict().values())
    count, times = _fitting(row.batch, lambda count: seconds(1, max(2, count)))
    batch = max(2, count)
    first = seconds(1, batch)
    each = max(1e-6, seconds(1 + times, batch) - first) / times
    return {"seconds": each * row.batch / batch, "images": batch, "bytes": stored}


def judging(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Return the seconds in which the judge looks at an image."""
    from dreamset.metrics.features import Judge
    from dreamset.weights import judging as network

    judge = Judge(network.find(workspace.root, params.base))
    images = _noise(_SCORED, judge.size)
    begun = time.perf_counter()
    judge.features(images[:1])
    one = time.perf_counter() - begun
    count = max(1, min(_SCORED, int(_BUDGET / max(one, 1e-6))))
    begun = time.perf_counter()
    judge.features(images[:count])
    return {"seconds": (time.perf_counter() - begun) / count, "images": count}


def main() -> None:
    """Print a line for each name of the arguments, behind the parameters' file and the time of the start."""
    file, started, *names = sys.argv[1:]
    device.keep_memory()
    root = Path.cwd()
    (root / ".dreamset").mkdir(exist_ok=True)
    params, workspace = load(Path(file), classifiers.ROWS), Workspace.at(root)
    import diffusers  # noqa: F401 - what most stages begin with
    import torch  # noqa: F401

    from dreamset.generator import base_model  # noqa: F401

    print(json.dumps(["start", {"seconds": time.time() - float(started)}]), flush=True)
    for name, found in measure(params, workspace, [name for name in names if name != "start"]):
        print(json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    main()
