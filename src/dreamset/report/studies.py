"""The section of the page on studies: trials, choice, pruning, and which knobs matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from dreamset.report.charts import legend
from dreamset.report.figures import number, percent
from dreamset.report.markup import Table, fill
from dreamset.report.planes import Plane, placed, ranged, rounded, stairs, whole
from dreamset.study import analysis, plots, sentences

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreamset.report.evidence import Evidence

_STATES: Final = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed"}
_MARKS: Final = {
    "COMPLETE": ("complete", "finished"),
    "PRUNED": ("pruned hollow", "stopped early: CAS of its last rung"),
    "FAIL": ("failed", "failed"),
}
_OPEN: Final = 12  # trials of a table that is not folded away
_UNITS: Final = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def studies(evidence: Evidence, colours: dict[str, str]) -> Markup | None:
    """Return a part for every active recipe that a study tuned; None without one."""
    parts = [_study(recipe, record, colours[recipe]) for recipe, record in evidence.studies.items()]
    return fill("studies.studies", parts=parts) if parts else None


def _study(recipe: str, record: dict[str, Any], colour: str) -> dict[str, Any]:
    panels = [
        ("CAS by trial", _history(record)),
        (f"CAS by {_resource(record)}", _rungs(record)),
        (_contour_title(record), _contour(record)),
        ("Which knob matters", _importance(record)),
        ("CAS against the time an image takes", _front(record)),
        ("When, and by which worker", _timeline(record)),
    ]
    states = {trial["state"] for trial in record["trials"]}
    marks = [mark for state, mark in _MARKS.items() if state in states]
    if record["best"] is not None:
        marks.append(("best", "chosen"))
    if (record.get("default") or {}).get("cas") is not None:
        marks.append(("own", "the recipe’s own values"))
    return {
        "recipe": recipe,
        "colour": colour,
        "sentences": record["sentences"],
        "cost": sentences.worded(record, _cost(record)),
        "legend": Markup(sentences.worded(record, legend(marks))),
        "panels": [
            (sentences.worded(record, title), Markup(sentences.worded(record, chart)))
            for title, chart in panels
            if chart is not None
        ],
        "table": _table(record),
        "open": len(record["trials"]) <= _OPEN,
    }


def _resource(record: dict[str, Any]) -> str:
    """Return what the rungs of a study count."""
    return "share of a trial’s images" if analysis.searches_images(record) else "images per class"


def _cost(record: dict[str, Any]) -> str:
    """Return a sentence on the cost of a study and on its settings."""
    trials = record["trials"]
    seconds = sum(trial["seconds"] or 0 for trial in trials)
    images = sum(trial["images"] or 0 for trial in trials)
    workers = len({trial["worker"] for trial in trials})
    size, unit = _unit(seconds)
    return (
        f"{len(trials)} trials, {number(images)} images, {seconds / size:.1f} {unit} of work"
        f"{f' by {workers} workers' if workers > 1 else ''}; sampler {record['sampler']}, pruner {record['pruner']}, "
        f"{sentences.rungs_text(record)}; CAS by {record['classifier']}, trained for "
        f"{number(record['steps'])} steps on the most images."
    )


def _unit(seconds: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if seconds >= 2 * unit[0]), _UNITS[-1])


def _kind(record: dict[str, Any], trial: dict[str, Any]) -> str:
    """Return the style of a trial's mark."""
    if trial["number"] == record["best_trial"]:
        return "complete best"
    return {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}[trial["state"]]


def _images(record: dict[str, Any], trial: dict[str, Any]) -> int:
    """Return the images per class that a trial was last scored with; 0 for none."""
    return analysis.images(trial, record["resource"]).get(analysis.reached(trial), 0)


def _line(record: dict[str, Any], trial: dict[str, Any]) -> str:
    """Return a line of text on a trial, which appears on pointing at it."""
    cas = analysis.score(trial)
    scored = "" if cas is None else f", CAS {percent(cas)} at {_images(record, trial)} images per class"
    return f"trial {trial['number']}, {_STATES[trial['state']]}{scored}: {sentences.values_text(trial['params'])}"


def _points(plane: Plane, record: dict[str, Any], at: Iterable[tuple[dict[str, Any], float, float]]) -> Markup:
    """Return marks of trials at their places, the chosen one over the others."""
    best = record["best_trial"]
    ordered = sorted(at, key=lambda item: item[0]["number"] == best)
    return Markup().join(
        plane.dot(x, y, _line(record, trial), _kind(record, trial), 5 if trial["number"] == best else 3.2)
        for trial, x, y in ordered
    )


def _history(record: dict[str, Any]) -> Markup | None:
    """Return CAS by trial, with the best so far as stairs and the recipe's own values as a level line."""
    rows = plots.history(record)
    by_number = {trial["number"]: trial for trial in record["trials"]}
    scored = [
        (by_number[line["trial"]], float(line["trial"]), 100 * line["cas"]) for line in rows if line["cas"] is not None
    ]
    if not scored:
        return None
    default = record.get("default") or {}
    level = 100 * default["cas"] if default.get("cas") is not None else None
    values = [cas for *_, cas in scored] + ([level] if level is not None else [])
    plane = Plane(whole("trial", [line["trial"] for line in rows]), rounded("CAS", values, "%"))
    marks = [] if level is None else [plane.line([(plane.x.low, level), (plane.x.high, level)], "own")]
    best = [(line["trial"], 100 * line["best"]) for line in rows if line["best"] is not None]
    failed = [
        plane.cross(line["trial"], plane.y.low, _line(record, by_number[line["trial"]]), "failed")
        for line in rows
        if line["state"] == "fail"
    ]
    marks += [plane.line(stairs(best), "stairs"), *failed, _points(plane, record, scored)]
    return plane.drawn("CAS of every trial, and the best so far", "plane", *marks)


def _rungs(record: dict[str, Any]) -> Markup | None:
    """Return CAS by rung, a line per trial; it shows where pruned trials left the others."""
    resource = record["resource"]
    trials = [trial for trial in record["trials"] if trial["rungs"]]
    if not trials or len(resource) < 2:
        return None
    values = [100 * cas for trial in trials for cas in trial["rungs"].values()]
    searched = analysis.searches_images(record)
    ticks = [sentences.share(record, rung) for rung in resource] if searched else resource
    plane = Plane(placed(_resource(record), ticks), rounded("CAS", values, "%"))
    lines = []
    for trial in sorted(trials, key=lambda trial: trial["number"] == record["best_trial"]):
        spots = [(resource.index(int(at)), 100 * cas) for at, cas in trial["rungs"].items() if int(at) in resource]
        spots.sort()
        kind = _kind(record, trial)
        marks = [plane.line(spots, "line"), *(plane.dot(x, y, _line(record, trial), radius=2.6) for x, y in spots)]
        lines.append(Markup('<g class="{}">{}</g>').format(kind, Markup().join(marks)))
    return plane.drawn(f"CAS of every trial by {_resource(record)}", "plane rungs", *lines)


def _contour_title(record: dict[str, Any]) -> str:
    names = plots.axes(record)
    cells = [cell["cas"] for cell in plots.surface(record)]
    title = f"CAS by {names[0]} and {names[1]}" if names else ""
    return f"{title}, from {percent(min(cells))} (faint) to {percent(max(cells))} (full)" if cells else title


def _contour(record: dict[str, Any]) -> Markup | None:
    """Return the trials over two knobs, on a smooth surface of CAS."""
    names = plots.axes(record)
    by_number = {trial["number"]: trial for trial in record["trials"]}
    rows = plots.contour_rows(record)
    if names is None or not rows:
        return None
    spans = [record["space"][knob]["attributes"] for knob in names]
    inside = [
        line
        for line in rows
        if all(span["low"] <= line[knob] <= span["high"] for knob, span in zip(names, spans, strict=True))
    ]
    across, up = (ranged(knob, span["low"], span["high"], span["log"]) for knob, span in zip(names, spans, strict=True))
    plane = Plane(across, up)
    cells = plots.surface(record)
    low, high = min((c["cas"] for c in cells), default=0), max((c["cas"] for c in cells), default=1)
    boxes = []
    for cell in cells:
        share = (cell["cas"] - low) / ((high - low) or 1)
        x, y = (_cell(span, cell[knob]) for knob, span in zip(names, spans, strict=True))
        boxes.append(plane.box(x, y, "cell", full=0.06 + 0.74 * share))
    at = [(by_number[line["trial"]], float(line[names[0]]), float(line[names[1]])) for line in inside]
    title = f"CAS by {names[0]} and {names[1]}: trials, and a smooth surface through the finished ones"
    return plane.drawn(title, "plane", *boxes, _points(plane, record, at))


def _cell(span: dict[str, Any], centre: float) -> tuple[float, float]:
    """Return the ends of a cell of the surface's grid, from its centre."""
    half = 0.5 / plots.GRID
    if span["log"]:
        factor = (span["high"] / span["low"]) ** half
        return max(centre / factor, span["low"]), min(centre * factor, span["high"])
    size = half * (span["high"] - span["low"])
    return centre - size, centre + size


def _importance(record: dict[str, Any]) -> Markup | None:
    """Return shares of the variance as bars: first of each knob, then of pairs."""
    rows = plots.importance_rows(record)
    if not rows:
        return None
    most = max(*(line["share"] for line in rows), 1e-9)
    bars = [(line["of"], f"{100 * line['share'] / most:.1f}%", f"{100 * line['share']:.0f}%") for line in rows]
    return fill("studies.importance", bars=bars)


def _front(record: dict[str, Any]) -> Markup | None:
    """Return finished trials by seconds per image and CAS, with a line along the front, which none beats in both."""
    rows = plots.front_rows(record)
    if not rows:
        return None
    by_number = {trial["number"]: trial for trial in record["trials"]}
    plane = Plane(
        rounded("milliseconds per image", [0.0, *(1000 * line["seconds_per_image"] for line in rows)]),
        rounded("CAS", [100 * line["cas"] for line in rows], "%"),
    )
    at = {line["trial"]: (1000 * line["seconds_per_image"], 100 * line["cas"]) for line in rows}
    edge = [at[trial] for trial in record["front"]]
    points = _points(plane, record, [(by_number[trial], *spot) for trial, spot in at.items()])
    line = plane.line(stairs(edge), "stairs")
    return plane.drawn("CAS against seconds per image, with the front", "plane", line, points)


def _timeline(record: dict[str, Any]) -> Markup | None:
    """Return when each trial ran: a row per worker, a box per trial."""
    rows = plots.timeline(record)
    if not rows:
        return None
    by_number = {trial["number"]: trial for trial in record["trials"]}
    workers = list(dict.fromkeys(str(line["worker"]) for line in rows))
    size, unit = _unit(max(line["ended"] for line in rows))
    plane = Plane(
        rounded(unit, [0.0, *(line["ended"] / size for line in rows)]),
        placed("", [f"#{index + 1}" for index in range(len(workers))]),
        tall=max(90, 52 + 30 * len(workers)),
    )
    boxes = [
        plane.box(
            (line["started"] / size, line["ended"] / size),
            (place - 0.32, place + 0.32),
            f"run {_kind(record, by_number[line['trial']])}",
            f"{_line(record, by_number[line['trial']])}, {line['ended'] - line['started']:.0f} s by {line['worker']}",
        )
        for line in rows
        for place in [workers.index(str(line["worker"]))]
    ]
    names = ", ".join(f"#{index + 1} {name}" for index, name in enumerate(workers))
    chart = plane.drawn("When each trial ran, by worker", "plane timeline", *boxes)
    return Markup("{}<small>{}</small>").format(chart, names)


def _table(record: dict[str, Any]) -> Table:
    """Return a table of the trials with their values and how they ended."""
    trials, knobs = sorted(record["trials"], key=lambda trial: trial["number"]), record["searched"]
    limited = any(trial["fid"] is not None for trial in trials)
    score = sentences.worded(record, "CAS")
    head = ["Trial", *knobs, "images per class", score, "s", "ms per image", *(["FID"] * limited), "ended"]
    rows = []
    for trial in trials:
        each = trial["seconds_per_image"]
        cells = [_value(trial["params"].get(knob)) for knob in knobs]
        cells += [str(_images(record, trial) or "–"), percent(analysis.score(trial)), number(trial["seconds"], 1)]
        cells += [number(None if each is None else 1000 * each, 1)] + ([number(trial["fid"], 1)] if limited else [])
        name = Markup('<i class="key {}"></i>{}').format(_key(record, trial), trial["number"])
        rows.append([name, *cells, _ended(record, trial)])
    best = next((index for index, trial in enumerate(trials) if trial["number"] == record["best_trial"]), None)
    return Table(head, rows, columns={"ended": "names"}, chosen=best)


def _key(record: dict[str, Any], trial: dict[str, Any]) -> str:
    kind = _kind(record, trial)
    return f"{kind} hollow" if kind == "pruned" else "best" if "best" in kind else kind


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)


def _ended(record: dict[str, Any], trial: dict[str, Any]) -> str:
    """Return a phrase on how a trial ended, and on what distinguishes it."""
    parts = [_STATES[trial["state"]]]
    if trial["number"] == record["best_trial"]:
        parts = ["chosen"]
    elif trial["state"] != "FAIL" and not trial["feasible"]:
        parts.append("not feasible")
    if trial["number"] == (record.get("default") or {}).get("trial"):
        parts.append("the recipe’s own values")
    if trial["number"] in record["front"]:
        parts.append("on the front")
    if trial.get("retried_from") is not None:
        parts.append(f"trial {trial['retried_from']} tried again")
    if trial.get("reason"):
        parts.append(trial["reason"])
    return "; ".join(parts)
