"""``dreamset expect``: say how much synthetic images are likely to help, before the costly part begins.

Three cheap measurements decide: whether the base and its CLIP know the classes, whether the base's pictures look
like the shots, and what the table over seeds (``dreamset table``) measured at the nearest number of shots. Cheap
changes of the shots are tried, too, and one that clearly makes CLIP know them better is named. No test image is opened.

Where no help is to be expected, ``decide`` asks whether to go on, or ends the stage. What costs depends on the file
``data/splits/go`` and so does not run then.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import StoppedError
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.images import CHANGES, Decoding, changed, read_rgb
from dreamset.core.resizing import resize, resize_crop
from dreamset.core.seeds import seed_for
from dreamset.data import licences, splits
from dreamset.data.runs import REAL, SYNTHETIC
from dreamset.data.work import Work
from dreamset.drawing.blocks import read_blocks
from dreamset.drawing.finish import finish
from dreamset.metrics import claims
from dreamset.metrics.expectation import LEVEL, judgement, strength
from dreamset.metrics.gains import over_real
from dreamset.metrics.resemblance import look
from dreamset.params.knobs import SamplerOverrides
from dreamset.params.recipe import Recipe
from dreamset.weights import hub, judging

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers import Predictor
    from dreamset.core.workspace import Workspace
    from dreamset.data.arrays import Labelled
    from dreamset.data.splits import Split
    from dreamset.params import Params

_TRIED: Final = 8  # shots of a class that changes are tried on
_ENOUGH: Final = 1024  # px of their shortest side; the changes of a whole photograph would take a second each
_CLOSE: Final = 0.02  # of the tried shots: changes this near to the best one are as good, and fewer are better
_NO_HELP: Final = ("no help", "unlikely")
ASKS: Final = "DREAMSET_ASKS"
_MOST_SHOTS: Final = 32  # of a class that pictures are compared with; more would make the kernel's matrix large
_SPELLED: Final = 2.0  # letters per token; CLIP's own vocabulary takes 3 or more of an English word at once
_WORD: Final = re.compile(r"[^\W\d_]{3,}")  # shorter ones, and numbers, are spelled in every vocabulary


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Draw a few pictures without adapters, compare them with the shots, and write ``results/expect.json``.

    Returns:
        The content of that file.

    Raises:
        InputError: the splits or the pretrained weights are missing, or their licence has not been accepted.
    """
    licences.check(params)
    from dreamset.classifiers import seen
    from dreamset.data import arrays
    from dreamset.metrics.features import Judge

    split = splits.read_split(workspace.splits)
    labels = _chosen(len(split.classes), params)
    shots = [sample for sample in split.train if sample.label in labels]
    counts = Counter(sample.label for sample in split.train)
    pictures = _Pictures(params, workspace, split, labels)
    predictor = _zero_shot(params, workspace, split)
    zero_shot, read = _recognised(params, workspace, predictor, shots, pictures)

    judge = Judge(judging.find(workspace.root, params.base))
    side = seen(judge.size, params.base.resolution)
    few = [s for label in labels for s in [s for s in shots if s.label == label][:_MOST_SHOTS]]
    real, drawn = arrays.real(few, workspace.cell, side, workspace.scratch), pictures.read(side)
    record: dict[str, Any] = {
        "model": params.model,
        "source": split.source,
        "shots": [min(counts.values()), max(counts.values())],
        "classes": len(split.classes),
        "classes_drawn": len(labels),
        "spelled": spelled(split, workspace, params),
        "zero_shot": zero_shot,
        "read_as_prompted": read,
        "look": look(judge.features(real.images), real.labels, judge.features(drawn.images), drawn.labels)
        | {"stand_in": judging.stand_in(workspace.root, params.base)},
        "table": measured(workspace, max(counts.values())),
        "change": _change(params, workspace, split, predictor, shots),
        "reach": _reach(params, workspace, split),
        "drawing_s": _seconds(params, workspace, split, pictures),
    }
    record["expectation"], record["sentences"] = judgement(record)
    record["primary"] = strength(zero_shot)
    hopeful = record["expectation"] not in _NO_HELP
    goes_on = hopeful or params.expect.on_no_help == "go"
    if goes_on and not hopeful:
        record["warnings"] = ["no help is to be expected, and the run goes on: expect.on_no_help is go"]
    write_json(workspace.result("expect"), record)
    workspace.go.unlink(missing_ok=True)
    if goes_on:
        _write_go(workspace)
    return record


def decide(params: Params, workspace: Workspace) -> None:
    """Ask whether to go on where no help is to be expected, if ``expect.on_no_help`` and a terminal allow it.

    With the environment variable ``ASKS`` the caller asks, as `dreamset run` does.

    Raises:
        StoppedError: the run does not go on.
    """
    if workspace.go.is_file():
        return
    how = params.expect.on_no_help
    if how == "ask" and os.environ.get(ASKS):
        _write_go(workspace)
        return
    if how == "ask" and sys.stdin.isatty():
        print("Go on all the same? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            _write_go(workspace)
            return
    raise StoppedError(
        f"expect: no help is to be expected (expect.on_no_help: {how}), so nothing is adapted, drawn or trained. "
        "Change what the sentences above name, or go on with `dreamset set expect.on_no_help=go` and the same command "
        f"again. {workspace.result('expect').relative_to(workspace.cell)} has the sentences and numbers."
    )


def _write_go(workspace: Workspace) -> None:
    atomic_write(workspace.go, "go\n")


def _chosen(classes: int, params: Params) -> list[int]:
    """Return the labels of the classes that pictures are drawn of: all, or a random draw where there are many."""
    import numpy as np

    most = params.expect.classes
    if classes <= most:
        return list(range(classes))
    rng = np.random.default_rng(seed_for("expect", params.seed))
    return sorted(int(label) for label in rng.choice(classes, most, replace=False))


class _Pictures:
    """A few pictures of each of ``labels`` by the base as it is, from the noise of a dataset's first images."""

    def __init__(self, params: Params, workspace: Workspace, split: Split, labels: Sequence[int]) -> None:
        wanted, base = params.expect, params.base
        steps = min(wanted.steps, base.generate.steps)  # a base distilled to one step draws with one
        # Blocks are no larger than needed, and so few pictures do not pay for compiling.
        batch = min(base.generate.batch, wanted.per_class * len(labels))
        row = dataclasses.replace(base.generate, batch=batch, compile=False)
        short = dataclasses.replace(
            params,
            recipes={"expect": Recipe("none", "template", SamplerOverrides(steps=steps))},
            generate=dataclasses.replace(params.generate, per_class=wanted.per_class, budget_s=None),
            models={params.model: dataclasses.replace(base, generate=row)},
        )
        part = dataclasses.replace(
            split,
            classes=tuple(split.classes[label] for label in labels),
            names=tuple(split.names[label] for label in labels) if split.names else None,
            train=(),
            selection=(),
        )
        key = "expect.steps" if steps == wanted.steps else f"models.{params.model}.generate.steps"
        blocks, needed, _ = finish(Work(short, workspace, part, "expect", key), [], {})
        self.store, self.split, self.steps = workspace.shards, split, steps
        self.blocks = [block.key for block in blocks]
        self.rows = [
            (f"{block.key}/{image.file_name}", labels[image.label], image.sha256)
            for block in blocks
            for image in read_blocks(workspace, [block])
            if image.index < needed[image.label]
        ]

    def read(self, side: int) -> Labelled:
        """Return the pictures, ``side`` pixels square, read like those of a synthetic dataset."""
        from dreamset.data import arrays

        return arrays.drawn(self.rows, self.store, self.split, side, "dreamset expect")


def _zero_shot(params: Params, workspace: Workspace, split: Split) -> Predictor:
    """Return the CLIP beside the base as a classifier, as it is."""
    from dreamset import classifiers

    model = classifiers.build("clip_zeroshot", params.base, split, workspace.root)
    return classifiers.Predictor(model, split.classes)


def _recognised(
    params: Params, workspace: Workspace, predictor: Predictor, shots: Sequence[splits.Sample], pictures: _Pictures
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how many shots, and how many of the base's pictures, CLIP recognises without any training."""
    from dreamset.classifiers import finest, seen
    from dreamset.data import arrays

    side = seen(predictor.size, finest(pictures.split.native, params.base.resolution))
    shares = []
    for images in (arrays.real(shots, workspace.cell, side, workspace.scratch), pictures.read(side)):
        right = int((predictor.logits(images.images).argmax(1) == images.labels).sum())
        shares.append(share(right, len(images), params.evaluate.confidence) | {"chance": 1 / len(predictor.classes)})
    return shares[0], shares[1]


def _change(
    params: Params, workspace: Workspace, split: Split, predictor: Predictor, shots: Sequence[splits.Sample]
) -> dict[str, Any] | None:
    """Return the change of the shots with which CLIP names clearly more of them than as they are; None without one.

    Every combination of the changes of ``images.changed`` that ``prepare`` has not made is tried, on a few shots of
    each class. Of so many tries the best looks too good. So it counts only where McNemar's exact test is below 5 %
    divided by their number, and among those about as good the one with the fewest changes is taken.
    """
    import numpy as np

    from dreamset.classifiers import seen
    from dreamset.metrics.mcnemar import mcnemar

    few = [
        s for label in dict.fromkeys(s.label for s in shots) for s in [s for s in shots if s.label == label][:_TRIED]
    ]
    # A second inversion takes the first one back.
    open_to = [name for name in CHANGES if name == "invert" or name not in (split.changes or {})]
    tries = [names for count in range(1, len(open_to) + 1) for names in itertools.combinations(open_to, count)]
    values: dict[str, Any] = {"invert": True, "crop": "object", "autocontrast": True}
    decodings = {names: Decoding(0, **{name: values[name] for name in names}) for names in ((), *tries)}
    side = seen(predictor.size, params.base.resolution)
    seen_as: dict[tuple[str, ...], list[NDArray[np.uint8]]] = {names: [] for names in decodings}
    for sample in few:
        picture = read_rgb(workspace.cell / sample.path)
        picture = resize(picture, min(_ENOUGH, *picture.size))
        for names, decoding in decodings.items():
            seen_as[names].append(resize_crop(changed(picture, decoding)[0], side))
    labels = np.array([sample.label for sample in few])
    results = {names: predictor.logits(np.stack(images)).argmax(1) == labels for names, images in seen_as.items()}
    before = results.pop(())
    clear = [
        names
        for names, after in results.items()
        if after.sum() > before.sum()
        and mcnemar(after.astype(np.float64) - before.astype(np.float64)).p < LEVEL / len(tries)
    ]
    if not clear:
        return None
    best = max(results[names].mean() for names in clear)
    names = next(names for names in clear if results[names].mean() >= best - _CLOSE)
    values["invert"] = not (split.changes or {}).get("invert")
    return {
        "prepare": {name: values[name] for name in names},
        "before": int(before.sum()),
        "after": int(results[names].sum()),
        "of": len(few),
        "tries": len(tries),
    }


def _reach(params: Params, workspace: Workspace, split: Split) -> dict[str, Any]:
    """Return the gains that can be shown on the images that ``evaluate`` will score; only their number is looked at."""
    from dreamset.metrics.mcnemar import reach

    scored = len(split.train)
    if split.protocol != "cv":
        scored = read_json(workspace.result("prepare"), "dreamset prepare")["test"]
    return reach(scored, params.evaluate.confidence)


def _seconds(params: Params, workspace: Workspace, split: Split, pictures: _Pictures) -> float:
    """Return the seconds that drawing the images of a recipe takes here, going by the pictures drawn just now."""
    records = [read_json(workspace.shards / key / "record.json", "dreamset expect") for key in pictures.blocks]
    each: float = (
        sum(record["seconds"] for record in records) / sum(record["drawn"] for record in records) / pictures.steps
    )
    seconds = each * params.base.generate.steps * sum(params.synthetic_per_class(split.train_per_class))
    # A budget without a number of images is used up.
    budget, counted = params.generate.budget_s, params.generate.per_class is not None
    return round(seconds if budget is None else min(budget, seconds) if counted else budget, 1)


def share(right: int, of: int, confidence: float) -> dict[str, Any]:
    """Return the share of ``right`` in ``of`` with Wilson's interval, rounded to 4 digits."""
    from dreamset.metrics.accuracy import wilson

    low, high = wilson(right, of, confidence)
    return {
        "right": right,
        "of": of,
        "share": round(right / of, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "confidence": confidence,
    }


def spelled(split: Split, workspace: Workspace, params: Params) -> list[str]:
    """Return the classes whose names hold a word that is missing in the base's vocabulary.

    A tokenizer's vocabulary holds the words of the captions it was made from. It composes other words of single
    letters and short pieces. A name without a word of three letters or more cannot be judged so, and is not listed.
    """
    from transformers import CLIPTokenizer

    folder = hub.locate(workspace.root, *params.base.pretrained)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return [
        name
        for label, name in enumerate(split.classes)
        if any(len(word) / len(tokenizer.tokenize(word)) < _SPELLED for word in _WORD.findall(split.prompt(label, "")))
    ]


def measured(workspace: Workspace, shots: int) -> dict[str, Any] | None:
    """Return what ``results/table`` measured at the number of shots nearest to ``shots``, by ratio.

    Retrieved images, which no generator drew, are left out.

    Returns:
        None without a table, else ``source`` and ``model`` of the table, ``shots`` and ``seeds``; ``lift``, the
        smallest and largest gain of adapted recipes over plain ones on synthetic images alone; ``added``, the number
        of comparisons of synthetic images added to real ones with the best run of the same classifier on real images
        alone; ``gains``, those of them that interval and adjusted test show.
    """
    path, setting = workspace.results / "table/claims.csv", workspace.results / "table/setting.json"
    if not path.is_file() or not setting.is_file():
        return None
    from dreamset.core.files import read_json

    settings = read_json(setting, "dreamset table")
    if "recipes" not in settings:
        return None  # of a program that is too old to tell what its recipes were
    # The last row of a recipe's entry is its own; those before it are of the recipes that it starts from.
    own = {name: entry["rows"][-1] for name, entry in settings["recipes"].items()}
    found = {name for name, row in own.items() if row["origin"] == "retrieval"}
    every = [claim for claim in claims.read_claims(path) if not found & {claim.gain.of.arm, claim.gain.minus.arm}]
    if not every:
        return None
    nearest = min({claim.shots for claim in every}, key=lambda k: (abs(math.log(k / shots)), k))
    here = [claim for claim in every if claim.shots == nearest]
    level = 1 - float(settings["evaluate"]["confidence"])
    shown = {
        (claim.gain.of, claim.gain.minus)
        for claim in here
        if claim.asked == "gain" and dataclasses.replace(claim.gain, p=claim.p_adjusted).shown(level) == "helps"
    }
    gains = [claim.gain for claim in here if not claim.primary]
    adapted = {name for name, row in own.items() if row["adapter"] != "none"}
    plain = {name for name, row in own.items() if row["adapter"] == "none" and not row["search"]}
    alone = [gain for gain in gains if gain.of.kind == gain.minus.kind == SYNTHETIC]
    lift = [gain.difference for gain in alone if gain.of.arm in adapted and gain.minus.arm in plain]
    choices = dict.fromkeys((gain.of.arm, gain.of.classifier) for gain in gains if gain.minus.arm == REAL)
    added = [gain for recipe, classifier in choices if (gain := over_real(gains, recipe, classifier))]
    return {
        "source": settings["prepare"]["source"],
        "model": settings["model"],
        "shots": nearest,
        "seeds": here[0].seeds,
        "lift": [min(lift), max(lift)] if lift else None,
        "added": len(added),
        "gains": [
            {"of": str(gain.of), "difference": gain.difference, "low": gain.low}
            for gain in added
            if (gain.of, gain.minus) in shown
        ],
    }
