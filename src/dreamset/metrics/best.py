"""The words on which classifier is delivered, and why.

The rule goes by predictions of shots that each candidate did not learn from (``dreamset.deliver``). No test image has a
part in it, and all candidates predict the same folds of the shots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.data.runs import BOTH, BOTH_STRONG, REAL, REAL_MORE, REAL_ONLY, REAL_STRONG, SYNTHETIC, Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RULE: Final = "The one with the highest probabilities of the true classes of the shots, each held out of a fold"
_METHODS: Final = {
    "nearest": "nearest neighbour",
    "logistic": "logistic regression",
    "forest": "a random forest",
}
_FEATURES: Final = {"pixels": "on the pixels", "clip": "on CLIP's features", "judge": "on the judge's features"}
_LEARNED: Final = {
    REAL_ONLY: "the real images",
    REAL_STRONG: "the real images, strongly augmented",
    REAL_MORE: "the real images and those for selection",
    SYNTHETIC: "{arm}'s images",
    BOTH: "the real images and {arm}'s",
    BOTH_STRONG: "the real images and {arm}'s, strongly augmented",
}


def is_simple(classifier: str) -> bool:
    """Return whether a classifier is a simple one, by its name."""
    method, _, features = classifier.partition("_")
    return method in _METHODS and features in _FEATURES


def words(run: Run) -> str:
    """Return a phrase for a run, such as "logistic regression on CLIP's features"."""
    method, _, features = run.classifier.partition("_")
    if is_simple(run.classifier):
        return f"{_METHODS[method]} {_FEATURES[features]}"
    # No sentence should begin with a name of several parts.
    name = f"the {run.classifier}" if "_" in run.classifier else run.classifier
    return f"{name} of {_LEARNED[run.kind].format(arm=run.arm)}" if run.kind in _LEARNED else str(run)


def sentence(record: Mapping[str, Any]) -> str | None:
    """Return in plain words which classifier is the best, against the verdict's; None where nothing was compared.

    Args:
        record: the content of ``results/deliver.json``.
    """
    candidates: Sequence[Mapping[str, Any]] = record.get("candidates") or ()
    best = next((row for row in candidates if row["delivered"]), None)
    pick = next((row for row in candidates if row["verdict"]), None)
    if best is None or pick is None or len(candidates) < 2:
        return None
    run, other = Run.parse(best["run"]), Run.parse(pick["run"])
    folds = _percent(best["accuracy_folds"])
    tested = f", {_percent(best['accuracy'])} on {record['images']} held-out images"
    # Under cross-validation both figures are of the shots.
    tested = "" if record.get("protocol") == "cv" else tested
    if run == other:
        others = len(candidates) - 1
        none = f"none of the {others} other candidates is" if others > 1 else "the other candidate is not"
        return f"By cross-validation on the shots, {none} better than {words(run)} ({folds}{tested})."
    gain = best["accuracy_folds"] - pick["accuracy_folds"]
    # Nothing is said against synthetic images by a classifier of the shots that only ties with another one.
    lead = "Leave synthetic data out: " if run.arm == REAL and (gain > 0 or other.arm != REAL) else ""
    # It is the best by its probabilities, and mostly by its answers, too.
    better = (
        "is better than"
        if gain > 0
        else "is as often right as, and surer than,"
        if gain == 0
        else "is surer than, if less often right than,"
    )
    subject = f"{words(run)}," if "," in words(run) else words(run)
    takes = f" and takes {max(1, round(best['seconds']))} s" if is_simple(run.classifier) else ""
    text = (
        f"{lead}{subject} {better} {words(other)} ({folds} against {_percent(pick['accuracy_folds'])} by "
        f"cross-validation on the shots{tested}){takes}."
    )
    return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
