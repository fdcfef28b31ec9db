"""Build the record of a study for MLflow: a run for the study, and a nested run for each trial."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core.files import digest
from dreamset.track import spool

if TYPE_CHECKING:
    from collections.abc import Mapping

STUDY: Final = "study"  # the key of a study's own run
# MLflow has no status for a pruned trial; "killed" is at least neither finished nor failed.
_STATUS: Final[dict[str, Literal["FINISHED", "KILLED", "FAILED"]]] = {
    "COMPLETE": "FINISHED",
    "PRUNED": "KILLED",
    "FAIL": "FAILED",
}
# MLflow's list of runs marks both with the same red cross.
_SUFFIX: Final = {"PRUNED": ", pruned", "FAIL": ", failed"}
_SETTINGS: Final = ("study", "recipe", "storage", "sampler", "pruner", "objectives", "resource", "classifier", "steps")
_FIGURES: Final = ("seconds", "seconds_generate", "seconds_train", "seconds_per_image", "images", "fid")
_TAGS: Final = ("worker", "retried_from", "reason")
_CHANGES: Final = ("tune.trials",)  # a study that goes on may change it


def build(results: Mapping[str, Any], params: Mapping[str, str], commit: str) -> tuple[str, list[spool.Run]]:
    """Return the tree of a study, which all its records share, and its runs: its own, then the trials.

    Args:
        results: ``results/tune/<recipe>.json`` of a recipe with a study.
        params: the parameters that the stage reads, flat.
        commit: of git.
    """
    trials = sorted((row for row in results["trials"] if row["state"] in _STATUS), key=lambda row: int(row["number"]))
    starts = [row["started"] for row in trials if row.get("started")]
    ends = [row["ended"] for row in trials if row.get("ended")]
    started, ended = min(starts, default=0.0), max(ends, default=0.0)
    best = results.get("best") or {}
    settings = {name: _text(results[name]) for name in _SETTINGS if results.get(name) is not None}
    chosen = ", ".join(f"{name} {_text(value)}" for name, value in best.items())
    study = spool.Run(
        key=STUDY,
        name=f"study {results['study']}",
        kind="study",
        started=started,
        ended=ended,
        note="\n\n".join(results.get("sentences") or ()),
        tags={
            "study": results["study"],
            "recipe": results["recipe"],
            "best": chosen or "no feasible trial",
            "git_commit": commit,
            "mlflow.source.git.commit": commit,
        },
        params=settings | {name: value for name, value in params.items() if name not in _CHANGES},
        metrics=_summary(results, trials),
    )
    # A study of the same name in another storage began at another time.
    tree = digest(["study", results["study"], started])[:16]
    return tree, [study, *(_trial(row, results, started) for row in trials)]


def key(number: int) -> str:
    """Return the key of a trial's run."""
    return f"trial/{number}"


def _trial(row: Mapping[str, Any], results: Mapping[str, Any], started: float) -> spool.Run:
    start = row.get("started") or started
    tags = {name: _text(row[name]) for name in _TAGS if row.get(name) is not None}
    tags |= {"feasible": "false"} if row.get("feasible") is False else {}
    figures = {name: row[name] for name in _FIGURES if row.get(name) is not None}
    # A pruned trial has no comparable accuracy: it was measured on fewer images.
    if row["state"] == "COMPLETE" and row.get("values"):
        figures[_score(results)] = row["values"][0]
    images = _images(results, row)
    scored = {int(rung): cas for rung, cas in (row.get("rungs") or {}).items() if cas is not None}
    rungs = [(images[rung], scored[rung]) for rung in sorted(scored)]
    return spool.Run(
        key=key(row["number"]),
        name=f"trial {row['number']}{_SUFFIX.get(row['state'], '')}",
        kind="trial",
        above=STUDY,
        status=_STATUS[row["state"]],
        started=start,
        ended=row.get("ended") or start,
        note=_note(results, row) or "",
        tags={"study": results["study"], "state": row["state"].lower(), **tags},
        params={name: _text(value) for name, value in (row.get("params") or {}).items()},
        metrics={name: float(value) for name, value in figures.items()},
        curves={f"{_score(results)}_by_images_per_class": spool.spread(rungs, start, row.get("ended") or start)}
        if rungs
        else {},
    )


def _images(results: Mapping[str, Any], row: Mapping[str, Any]) -> dict[int, int]:
    """Return the images per class of a trial at each rung."""
    return dict(zip(results["resource"], row.get("images_per_class") or results["resource"], strict=True))


def _score(results: Mapping[str, Any]) -> str:
    """Return the name of what a study's trials are scored by."""
    return "gain_score" if results.get("objectives") == "gain" else "cas"


def _summary(results: Mapping[str, Any], trials: list[Any]) -> dict[str, float]:
    """Return the study's figures: the best trial's, the savings by pruning, the number of trials by state."""
    values = {row["number"]: row.get("values") for row in trials}.get(results.get("best_trial"))
    figures: dict[str, Any] = {
        f"best_{_score(results)}": values[0] if values else None,
        "best_trial": results.get("best_trial"),
    }
    figures[f"default_{_score(results)}"] = (results.get("default") or {}).get("cas")
    for above, key in (("best", "best"), ("saved", "saved"), ("trials", "counts")):
        figures |= {f"{above}_{name}": value for name, value in (results.get(key) or {}).items()}
    figures["seconds"] = results.get("seconds")
    return {name: float(value) for name, value in figures.items() if _is_number(value)}


def _note(results: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """Return what MLflow's status does not say: how far a pruned trial came, or why one failed."""
    if row["state"] != "PRUNED":
        return str(row["reason"]) if row.get("reason") else None
    images = _images(results, row)
    last, full = max((images[int(rung)] for rung in row.get("rungs") or {}), default=0), max(images.values())
    if row.get("feasible") is False:
        return f"Stopped after {last} of {full} images per class: over tune.max_seconds_per_image."
    return f"Pruned after {last} of {full} images per class."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
