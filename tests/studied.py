"""A made-up study of guidance and steps: trials with a known CAS, some stopped early, one failed, by two workers."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamset.study import analysis, sentences
from dreamset.study.choice import choose

RESOURCE = (3, 9, 27)
SPACE: dict[str, Any] = {
    "guidance": {"name": "FloatDistribution", "attributes": {"step": None, "low": 1.0, "high": 7.5, "log": False}},
    "steps": {"name": "IntDistribution", "attributes": {"log": False, "step": 1, "low": 5, "high": 30}},
}


def trial(number: int, **changes: Any) -> dict[str, Any]:
    """A finished trial, as a record holds it."""
    made: dict[str, Any] = {
        "number": number,
        "state": "COMPLETE",
        "params": {"guidance": 2.0, "steps": 20},
        "rungs": {"3": 0.3, "9": 0.4, "27": 0.5},
        "values": [0.5],
        "seconds": 10.0,
        "seconds_generate": 6.0,
        "seconds_train": 3.0,
        "seconds_per_image": 0.02,
        "images": 270,
        "fid": None,
        "feasible": True,
        "started": 1000.0 + 10 * number,
        "ended": 1010.0 + 10 * number,
        "worker": "here:1",
        "retried_from": None,
        "reason": None,
    }
    made |= changes
    return made | {"right": right(made["values"][0]) if made["values"] else None} | changes


# What differs in the record of a study that chooses the number of images.
OWN_IMAGES: dict[str, Any] = {
    "searched": ["per_class"],
    "space": {"per_class": {"name": "IntDistribution", "attributes": {"log": False, "step": 1, "low": 2, "high": 60}}},
}


def own_images(*per_class: int) -> dict[str, Any]:
    """What differs in a trial of such a study, by its images per class at each rung."""
    return {"params": {"per_class": per_class[-1]}, "images_per_class": [*per_class]}


def right(cas: float, images: int = 1000) -> str:
    """Which of so many images a trial of a CAS gets right: the first ones, so that a better trial loses none."""
    return "1" * round(cas * images) + "0" * (images - round(cas * images))


def stopped(number: int, at: int, **changes: Any) -> dict[str, Any]:
    """A trial that was stopped early after the rung ``at``."""
    rungs = {str(rung): 0.1 + rung / 100 for rung in RESOURCE if rung <= at}
    share = at / RESOURCE[-1]
    spent = {"seconds": 1 + 9 * share, "seconds_generate": 6 * share, "seconds_train": 3 * share}
    return trial(number, **{"state": "PRUNED", "values": None, "rungs": rungs, "images": 10 * at} | spent | changes)


def failed(number: int, **changes: Any) -> dict[str, Any]:
    """A trial that ended with a sentence."""
    given = {"state": "FAIL", "values": None, "rungs": {}, "seconds": 4.0, "images": 0, "seconds_per_image": None}
    reason = "generate.max_redrawn_share: too many images had to be redrawn."
    return trial(number, **given | {"seconds_generate": 0.0, "seconds_train": 0.0, "reason": reason} | changes)


def record(count: int = 26, *, two: bool = False, workers: int = 2, seed: int = 0) -> dict[str, Any]:
    """A whole record, summarised; with ``two`` objectives nothing is stopped early."""
    rng = np.random.default_rng(seed)
    trials, clock = [], [1_700_000_000.0] * workers
    for number in range(count):
        guidance, steps = (2.0, 20) if number == 0 else (float(rng.uniform(1, 7.5)), int(rng.integers(5, 31)))
        top = 0.72 - 0.012 * (guidance - 3.1) ** 2 - 0.25 * np.exp(-steps / 6) + rng.normal(0, 0.008)
        rungs = {
            str(rung): round(float(top - share + 0.01 * guidance * (rung < 27)), 4)
            for rung, share in zip(RESOURCE, (0.22, 0.09, 0.0), strict=True)
        }
        reach = 27 if two or number % 9 == 0 or top > 0.66 else 9 if top > 0.6 else 3
        rungs = {rung: cas for rung, cas in rungs.items() if int(rung) <= reach}
        seconds = reach * steps * 0.02
        who = int(np.argmin(clock))
        made = trial(
            number,
            params={"guidance": guidance, "steps": steps},
            state="COMPLETE" if reach == 27 else "PRUNED",
            rungs=rungs,
            values=([rungs["27"], 0.002 * steps] if two else [rungs["27"]]) if reach == 27 else None,
            seconds=seconds + 1.5,
            seconds_generate=seconds * 0.7,
            seconds_train=seconds * 0.3,
            seconds_per_image=0.002 * steps,
            images=10 * reach,
            started=clock[who],
            ended=clock[who] + seconds + 1.5,
            worker=f"machine-{'ab'[who % 2]}:{4000 + who}",
        )
        clock[who] = made["ended"] + 0.4
        trials.append(failed(number, params=made["params"], worker=made["worker"],
                             started=made["started"], ended=made["started"] + 4) if number == 11 else made)  # fmt: skip
    choice = choose(trials, trials[0]["params"], "cas_and_seconds" if two else "cas")
    assert choice is not None
    chosen = trials[choice["chosen"]]
    raw: dict[str, Any] = {
        "recipe": "stable_diffusion",
        "searched": ["guidance", "steps"],
        "space": SPACE,
        "best": chosen["params"],
        "best_trial": chosen["number"],
        "choice": choice,
        "default": {"values": trials[0]["params"], "trial": 0, "cas": trials[0]["values"][0]},
        "sampler": "tpe",
        "pruner": "none" if two else "hyperband",
        "resource": list(RESOURCE),
        "classifier": "resnet20",
        "steps": 120,
        "selection": {"rule": "fixed", "folds": 5, "images": 40, "labels_per_class": 4},
        "trials": trials,
        "seconds": round(sum(made["seconds"] for made in trials), 2),
    }
    raw |= analysis.summarise(raw)
    return raw | {"sentences": sentences.of(raw)}
