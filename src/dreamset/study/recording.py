"""The record of a study, ``results/tune/<recipe>.json``: its trials, its choice and what they were made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from dreamset.core.addresses import without_password
from dreamset.data import tuned
from dreamset.study import analysis, loop, sentences, space
from dreamset.study.rungs import images_at

if TYPE_CHECKING:
    import optuna

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params
    from dreamset.study.objective import Objective


def counted(params: Params, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the first ``tune.trials`` trials that ended, without those that were tried again.

    The store holds more of them if an earlier run had more trials. The choice must depend on the parameters alone.
    """
    return sorted(loop.ended(study.trials), key=lambda trial: trial.number)[: params.tune.trials]


def of_trial(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Return the JSON of a trial, with times in seconds since the epoch."""
    facts, state = trial.user_attrs, trial.state.name
    # The start by the worker that ended the trial: another worker may have begun it before.
    started = facts.get("started", trial.datetime_start.timestamp() if trial.datetime_start else None)
    ended = trial.datetime_complete.timestamp() if trial.datetime_complete else None
    return {
        "number": trial.number,
        "state": state,
        "params": space.rounded(trial.params),
        # To Optuna the value of a pruned trial is its last report.
        "values": list(trial.values) if state == "COMPLETE" else None,
        "rungs": facts.get("rungs", {}),
        "seconds": 0.0 if started is None or ended is None else round(ended - started, 3),
        **{name: facts.get(name) for name in ("seconds_generate", "seconds_train", "seconds_per_image")},
        "images": facts.get("images", 0),
        "fid": facts.get("fid"),
        "right": facts.get("right") if state == "COMPLETE" else None,
        "feasible": all(value <= 0 for value in trial.constraints.values()),
        "started": started,
        "ended": ended,
        **{name: facts.get(name) for name in ("worker", "retried_from", "samples")},
        "reason": loop.reason(trial),
    }


def origin(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return the part of a record that changes with its inputs.

    A recipe that starts from this one depends on this record and on no other.
    """
    return {"inherited": tuned.inherited(params, workspace, recipe), "made_of": params.making(recipe)}


def directions(params: Params) -> list[Literal["maximize", "minimize"]]:
    """Return the direction of each objective: the score up, and the seconds per image down."""
    return ["maximize", "minimize"] if params.tune.two else ["maximize"]


def of_study(
    params: Params, objective: Objective, study: optuna.Study, choice: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the content of ``results/tune/<recipe>.json``."""
    from optuna.distributions import distribution_to_json

    tune, model = params.tune, params.base.tune
    first = counted(params, study)
    trials = [of_trial(trial) for trial in first]
    for trial in (trial for trial in trials if "per_class" in trial["params"]):
        values = objective.params.with_values(objective.recipe, trial["params"])
        trial["images_per_class"] = [images_at(values, objective.recipe, rung) for rung in model.per_class]
    spans = {knob: span for trial in first for knob, span in trial.distributions.items()}
    chosen = next((trial for trial in trials if choice is not None and trial["number"] == choice["chosen"]), None)
    rule = params.selection if params.sets_apart else "cv"
    record = {
        "recipe": objective.recipe,
        "searched": list(objective.space),
        "space": {knob: json.loads(distribution_to_json(spans[knob])) for knob in objective.space},
        # What is used from here on: the choice, and not always the trial of the highest CAS.
        "best": None if chosen is None else chosen["params"],
        "best_trial": None if chosen is None else chosen["number"],
        "choice": choice,
        "default": _default(trials, objective.row_values),
        "study": objective.name,
        "storage": without_password(tune.storage),
        "sampler": tune.sampler,
        "pruner": tune.pruner if tune.prunes else "none",
        "objectives": tune.objectives,
        "directions": directions(params),
        "resource": list(model.per_class),
        "classifier": model.classifier,
        "steps": model.steps_at(
            model.per_class[-1],
            len(objective.holdouts[0].split.classes),
            params.base.train.rows[model.classifier].batch,
        ),
        "selection": {
            "rule": rule,
            "folds": len(objective.holdouts),
            "images": objective.images,
            "labels_per_class": objective.images / len(objective.holdouts[0].split.classes),
        },
        "limits": {
            "max_seconds_per_image": tune.max_seconds_per_image,
            "max_fid": tune.max_fid,
            "fid_images": next((n for trial in study.trials if (n := trial.user_attrs.get("fid_images"))), None),
        },
        "trials": trials,
        "counts": {
            name: sum(analysis.ending(trial) == end for trial in trials)
            for name, end in (("complete", "COMPLETE"), ("pruned", "PRUNED"), ("slow", "SLOW"), ("failed", "FAIL"))
        },
        "seconds": round(sum(trial["seconds"] for trial in trials), 2),
    }
    record |= origin(params, objective.workspace, objective.recipe)
    record |= {"made_for": tuned.made_for(params, objective.workspace, objective.recipe)}
    record |= analysis.summarise(record)
    return record | {"sentences": sentences.of(record)}


def _default(trials: list[dict[str, Any]], row_values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the trial of the values in the recipe's row, with its score if it has one at the full resource."""
    matching = [trial for trial in trials if trial["params"] == row_values]
    if row_values is None or not matching:
        return None
    trial = next((trial for trial in matching if trial["values"]), matching[0])
    return {"values": row_values, "trial": trial["number"], "cas": trial["values"][0] if trial["values"] else None}
