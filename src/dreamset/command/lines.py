"""What a stage says when it is done: one line in words, with the numbers that matter.

Each stage has a function here. It takes the summary that the stage's ``run`` returns, or reads in words what of it was
written into ``results/``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.data.runs import Kind, Run
from dreamset.metrics import verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Summary = Mapping[str, Any]

_EXPECTED: Final = {
    "no help": "no help is to be expected of synthetic images",
    "unlikely": "synthetic images are unlikely to help",
    "adapt": "the base knows these classes, and its pictures look different from yours",
    "base": "the base knows these classes, and its pictures look like yours",
}


def line(stage: str, item: str | None, summary: Summary) -> str:
    """Return what a stage prints at its end: its name, then its facts; further lines are indented."""
    return f"{stage}{f' {item}' if item else ''}: {_LINES[stage](summary)}"


def prepare(summary: Summary) -> str:
    """Return the images that may be learned from, those that score, and what they look like."""
    per_class = list(summary["train_per_class"].values())
    low, high = min(per_class), max(per_class)
    span = counted(low, "image") if low == high else f"{number(low)} to {counted(high, 'image')}"
    parts = [f"{counted(summary['classes'], 'class', 'classes')}, {span} of each"]
    if summary["selection"]:
        parts.append(f"{number(summary['selection'])} more to select by")
    if summary["protocol"] == "cv":
        parts.append("each is held out once")
    else:
        groups = f" ({counted(summary['test_groups'], 'group')})" if summary["test_groups"] else ""
        parts.append(f"{counted(summary['test'], 'test image')}{groups}")
    parts.append(f"{summary['side']} px, {'grey' if summary['channels'] == 1 else 'colour'}")
    left_out = summary["rejected"] + summary["copies"]
    return "; ".join([*parts, f"{counted(left_out, 'file')} left out"] if left_out else parts)


def expect(summary: Summary) -> str:
    """Return the expectation; the stage's sentences follow it."""
    word: str = summary["expectation"]
    return _EXPECTED.get(word, word)


def adapt(summary: Summary) -> str:
    """Return how long the adapters learned, and how their loss fell."""
    adapters, steps = summary["adapters"], summary["steps"]
    if not adapters:
        return "no adapter to train"
    many = "" if adapters == 1 else f"{counted(adapters, 'adapter')}, "
    loss = f"loss {summary['loss_first']:.3f} at first, {summary['loss_last']:.3f} at the end"
    return f"{many}{counted(steps, 'step')} in {_worked(summary)}, {loss}"


def tune(summary: Summary) -> str:
    """Return how many trials a study has run, and how they ended; the stage's sentences follow it."""
    if not summary["trials"]:
        return "no values to search"
    trials = counted(summary["trials"], "trial")
    if "seconds" not in summary:  # beside other processes, which write the results
        return f"{trials} ended, those of all processes"
    ends = {"complete": "finished", "pruned": "stopped early", "slow": "too slow", "failed": "failed"}
    ended = ", ".join(f"{number(summary[key])} {words}" for key, words in ends.items() if summary[key])
    return f"{trials} in {_worked(summary)}: {ended}"


def generate(summary: Summary) -> str:
    """Return how many images there are, of each class, and how fast they came."""
    images, copies = f"{counted(summary['images'], 'image')}", summary.get("copies", {}).get("images", 0)
    images += f" ({number(copies)} of them copies)" if copies else ""
    images += f", {summary['per_class']} per class"
    how = "found" if summary["sampler"] is None else "drawn"
    if not summary["drawn_now"]:
        speed = f"all {how} before"
    elif summary["drawn_now"] < summary["images"] - copies:
        speed = f"{number(summary['drawn_now'])} of them {how} now, {_speed(summary)}"
    else:
        speed = _speed(summary)
    asides = {"redrawn": "drawn again", "rejected": "rejected by you"}
    more = "".join(f", {number(summary[key])} {words}" for key, words in asides.items() if summary[key])
    return f"{images}, {speed}{more}"


def train(summary: Summary) -> str:
    """Return how many classifiers an arm has trained, for how many steps, and how long it took."""
    runs = summary["runs"]
    steps = sorted({run["steps"] for run in runs})
    span = number(steps[0]) if len(steps) == 1 else f"{number(steps[0])} to {number(steps[-1])}"
    each = " each" if len(runs) > 1 else ""
    spent = seconds(sum(run["seconds"] for run in runs))
    line = f"{counted(len(runs), 'classifier')}, {span} {noun('step', steps[-1])}{each}, {spent}"
    return f"{line}; folds chose the step" if summary["selection"] == "cv" else line


def evaluate(summary: Summary) -> str:
    """Return how many of the held-out images are right with synthetic images and without, and the finding."""
    images = counted(summary["test_images"], "test image")
    if summary["protocol"] == "cv":
        images = f"{counted(summary['test_images'], 'image')}, held out in {summary['folds']} folds"
    found = summary["verdict"]
    if found is None:
        return f"{images}; nothing was trained on real and synthetic images together"
    right = {str(_run(record)): percent(record["accuracy"]) for record in summary["runs"]}
    with_them = f"{right[found['of']]} right with {found['recipe']}"
    return f"{images}: {with_them}, {right[found['minus']]} without\n  {verdict.finding(found)}"


def deliver(summary: Summary) -> str:
    """Return the finding, which classifier to use, and how much it gets right."""
    accuracy = f"{percent(summary['accuracy'])} ({percent(summary['low'])} to {percent(summary['high'])})"
    return (
        f"{summary['finding']}\n  {summary['advice']}\n  {summary['classifier']}, {accuracy} of held-out images right"
    )


def report(summary: Summary) -> str:
    """Return where the page is."""
    return f"results/report.html, {counted(summary['recipes'], 'recipe')}, {summary['bytes'] / 1e6:.1f} MB"


_LINES: Final[dict[str, Callable[[Summary], str]]] = {
    function.__name__: function
    for function in (prepare, expect, adapt, tune, generate, train, evaluate, deliver, report)
}


def _speed(summary: Summary) -> str:
    return f"{summary['images_per_s']:.3g} {noun('image', summary['images_per_s'])}/s"


def _worked(summary: Summary) -> str:
    """Return the time of a piece of work, and how much of it was now where an earlier run did a part."""
    now = summary["elapsed"]
    before = f" ({seconds(now)} of it now)" if now < 0.9 * summary["seconds"] else ""
    return f"{seconds(summary['seconds'])}{before}"


def _run(record: Mapping[str, Any]) -> Run:
    return Run(record["arm"], Kind.parse(record["train_on"]), record["classifier"])


def number(value: float) -> str:
    """Return a whole number with commas between thousands."""
    return f"{value:,.0f}"


def noun(one: str, count: float, many: str | None = None) -> str:
    """Return a noun as it stands behind a number."""
    return one if count == 1 else many or f"{one}s"


def counted(count: float, one: str, many: str | None = None) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{number(count)} {noun(one, count, many)}"


def percent(share: float) -> str:
    """Return a share in per cent, with one digit."""
    return f"{100 * share:.1f} %"


def seconds(value: float) -> str:
    """Return a time in the unit that reads best: "0.4 s", "41 s", "12 min", "3.5 h"."""
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 119.5:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
