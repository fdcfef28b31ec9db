"""A small study of known outcomes, with everything that a dashboard shows of a real one: no model, no minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import toy
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace

RECIPE = "stable_diffusion_tuned"
NAME = f"{RECIPE}-0a1b2c3d"
RUNGS = (3, 9, 27)
# Guidance and steps of trials, and the rung at which each ends; 0: it fails.
TRIALS = (
    (2.0, 20, 27),
    (7.0, 12, 3),
    (1.4, 28, 27),
    (3.1, 9, 0),
    (5.2, 17, 9),
    (2.6, 25, 27),
)


def cas(guidance: float, steps: int, images: int) -> float:
    """Best near guidance 2.5, better with more steps and images."""
    return round(0.4 + 0.2 * (images / 27) - 0.03 * abs(guidance - 2.5) + 0.005 * steps, 4)


def trials() -> list[dict[str, Any]]:
    """The trials as the record of a study holds them."""
    rows = []
    for number, (guidance, steps, last) in enumerate(TRIALS):
        rungs = {str(images): cas(guidance, steps, images) for images in RUNGS if images <= last}
        state = {0: "FAIL", RUNGS[-1]: "COMPLETE"}.get(last, "PRUNED")
        started = 1_700_000_000.0 + 20 * number
        row = {
            "number": number,
            "state": state,
            "params": {"guidance": guidance, "steps": steps},
            "values": [rungs["27"]] if state == "COMPLETE" else None,
            "rungs": rungs,
            "seconds": 2.0 + last / 3,
            "seconds_generate": last / 4,
            "seconds_train": last / 12,
            "seconds_per_image": 0.008,
            "images": last * 3,
            "fid": None,
            "feasible": True,
            "started": started,
            "ended": started + 2 + last / 3,
            "worker": "there:4711",
            "retried_from": None,
            "reason": "steps: too few for this scheduler; give 10 or more." if state == "FAIL" else None,
        }
        rows.append(row)
    return rows


def record(**changes: Any) -> dict[str, Any]:
    """``results/tune/<recipe>.json`` of the study."""
    rows = trials()
    complete = [row for row in rows if row["state"] == "COMPLETE"]
    best = max(complete, key=lambda row: row["values"][0])
    return {
        "recipe": RECIPE,
        "searched": ["guidance", "steps"],
        "best": best["params"],
        "best_trial": best["number"],
        "default": {"values": rows[0]["params"], "trial": 0, "cas": rows[0]["values"][0]},
        "study": NAME,
        "storage": "sqlite:///studies.db",
        "sampler": "tpe",
        "pruner": "hyperband",
        "objectives": "cas",
        "resource": list(RUNGS),
        "classifier": "resnet20",
        "steps": 200,
        "trials": rows,
        "counts": {"complete": len(complete), "pruned": 2, "failed": 1},
        "saved": {"resource": 0.42, "words": "42 %"},
        "seconds": 120.0,
        "sentences": ["guidance 2.6 and steps 25 were chosen among 6 trials."],
        **changes,
    }


def run(workspace: Workspace) -> dict[str, Any]:
    """The same study by Optuna in ``studies.db``, each trial with its sheet of pictures; its record."""
    import optuna
    from optuna.trial import TrialState

    from dreamset.study.artifacts import SAMPLES, explain, keep_samples

    made = record()

    def objective(trial: optuna.Trial) -> float:
        guidance, steps = trial.suggest_float("guidance", 1, 7.5), trial.suggest_int("steps", 5, 30)
        row = made["trials"][trial.number]
        trial.set_user_attr("worker", row["worker"])
        if row["state"] == "FAIL":
            trial.set_user_attr("reason", row["reason"])
            raise InputError(row["reason"])
        mine = Workspace(workspace.root, workspace.root / ".dreamset/tune" / str(trial.number))
        toy.write_synthetic(mine, RECIPE, RUNGS[0], seed=trial.number)
        for images in RUNGS:
            trial.report(cas(guidance, steps, images), images)
            if images == RUNGS[0]:
                row[SAMPLES] = keep_samples(trial, mine.synthetic(RECIPE), toy.CLASSES, workspace)
            trial.set_user_attr("rungs", {name: value for name, value in row["rungs"].items() if int(name) <= images})
            if row["state"] == "PRUNED" and str(images * 3) not in row["rungs"]:
                raise optuna.TrialPruned
        return cas(guidance, steps, RUNGS[-1])

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{workspace.root}/studies.db", study_name=NAME, direction="maximize")
    explain(study, toy.params(), RECIPE)
    for guidance, steps, _ in TRIALS:
        study.enqueue_trial({"guidance": guidance, "steps": steps})
    study.optimize(objective, n_trials=len(TRIALS), catch=(InputError,))
    names = {TrialState.COMPLETE: "COMPLETE", TrialState.PRUNED: "PRUNED", TrialState.FAIL: "FAIL"}
    assert [names[trial.state] for trial in study.trials] == [row["state"] for row in made["trials"]]
    return made


def pictures(workspace: Workspace) -> list[Path]:
    """The sheets that are kept."""
    return sorted(workspace.artifacts.iterdir())
